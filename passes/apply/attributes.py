"""Attributes in which modules hold their own sizes, such as ``out_channels``, after the cut.

Layers of `torch.nn`, and classes derived from them, are known: their sizes follow from their
weights and from the ops that ran in them. Of any other module an attribute is changed only if all
of this holds: it is a whole number, or a sequence of such; its name speaks of channels
(`CHANNEL_WORDS`, `CHANNEL_NAMES`); it equals the length that a channel axis had, in what the module
computes itself or else in what its submodules do; and all such axes of that length there have one
and the same new length. For a name that begins with ``in`` or ``out`` only what goes in, or comes
out, is asked; for a number of heads (`HEADS`) only the axes, but the last, of views that split one.
Where lengths alone do not decide, the sizes do that the module's ops spell out. A sequence of any
name is changed if the module's ops spell it out just so, and have one and the same other sequence
in its place. All else stays as it is, numbers that are computed from sizes too: the scale of
attention is that of the original.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.table import has_trait
from pruneopt.passes.apply.layers import layer_sizes
from pruneopt.passes.apply.literal_sizes import literal_lists, literal_sizes
from pruneopt.passes.apply.scope import Run, Scope, Sizes

__all__ = ["Change", "attribute_changes"]

CHANNEL_WORDS = frozenset(
    (
        "channel",
        "channels",
        "chs",
        "chans",
        "features",
        "feat",
        "feats",
        "dim",
        "dims",
        "planes",
        "embd",
        "embed",
        "hidden",
        "filters",
        "nc",
    )
)
CHANNEL_NAMES = frozenset(
    (
        "inplanes",
        "outplanes",
        "hidden_size",
        "head_size",
        "attention_head_size",
        "all_head_size",
        "intermediate_size",
        "embed_size",
        "d_model",
        "d_ff",
        "d_inner",
        "d_state",
        "normalized_shape",
    )
)
NO_CHANNELS = frozenset(
    (
        "patch",
        "window",
        "kernel",
        "image",
        "img",
        "grid",
        "spatial",
        "num",
        "heads",
        "reduction",
        "ratio",
        "idx",
        "index",
        "axis",
    )
)
"""Words of names that count something else, such as ``window_dim``; ``num_features`` and
``num_channels`` are known."""
SEQUENCES: Mapping[type, Callable[[Iterable[int]], Any]] = {
    list: list,
    tuple: tuple,
    torch.Size: torch.Size,
}
COUNTED = ("num_features", "num_channels", "num_hidden")
SMALLEST = 8
"""A bare ``dim`` below this is taken for the number of an axis."""


@dataclass(frozen=True)
class Change:
    """An attribute of a module, and its new value."""

    module: nn.Module
    name: str
    value: Any


def attribute_changes(model: nn.Module, coupling: Coupling, cut: Graph) -> Iterator[Change]:
    """Yield the attributes of modules that describe a size which is another now.

    Args:
        model: with its weights cut already.
        coupling: of the graph before the cut; ``cut`` is that graph after it, op by op.
    """
    run = Run(coupling, cut)
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    for module, mine in paths.items():
        scope = Scope(run, mine)
        known = layer_sizes(module, scope)
        yield from (
            Change(module, name, value)
            for name, value in known.items()
            if _differs(module, name, value)
        )
        # Torch's own attributes are known; guesses are for what a user wrote.
        if not type(module).__module__.startswith("torch.nn."):
            yield from _guessed(module, scope, known)


def _differs(module: nn.Module, name: str, value: Any) -> bool:
    return value is not None and hasattr(module, name) and getattr(module, name) != value


# Other modules


def _guessed(module: nn.Module, scope: Scope, known: Mapping[str, Any]) -> Iterator[Change]:
    others = [name for name in vars(module) if name not in known]
    for name, sizes in _sequences(module, others):
        lists = literal_lists(scope).get(tuple(sizes), set())
        # The same list may stand for several things, with another value each: then none is right.
        if len(lists) == 1 and (now := next(iter(lists))) != tuple(sizes):
            others.remove(name)
            yield Change(module, name, SEQUENCES[type(sizes)](now))
    named = [name for name in others if speaks_of_sizes(name)]
    if not named:
        return
    near, far = ({op for op, _ in scope.own}, scope.inside)
    for name in named:
        before = vars(module)[name]
        if name in GROUPS:
            after = _renamed(before, [_group_counts(scope)])
        elif name in HEADS:
            after = _renamed(before, [scope.run.sizes(_split(near), last=False)])
        else:
            # What the module computes itself says more than what its submodules do.
            after = _renamed(before, [scope.run.sizes(_seen(name, ops)) for ops in (near, far)])
            after = _renamed(before, [literal_sizes(scope)]) if after is None else after
        if after is not None and after != before and not (name == "dim" and before < SMALLEST):
            yield Change(module, name, after)


def _sequences(module: nn.Module, names: Iterable[str]) -> list[tuple[str, Sequence[int]]]:
    """Return the attributes that are several whole numbers, unless named after something else."""
    own = [
        (name, vars(module)[name]) for name in names if not NO_CHANNELS.intersection(_words(name))
    ]
    return [
        (name, value)
        for name, value in own
        if type(value) in SEQUENCES and all(type(x) is int for x in value)
    ]


def _words(name: str) -> list[str]:
    return name.lower().strip("_").split("_")


def _split(ops: Iterable[Op]) -> list[Value]:
    """Return the results of views that split an axis, such as heads and what each has."""
    views = [op for op in ops if has_trait(op, Trait.VIEW)]
    return [
        op.result
        for op in views
        if (x := op.value(0)) is not None and x.type.rank < op.result.type.rank
    ]


def _seen(name: str, ops: Collection[Op]) -> list[Value]:
    """Return the values that ops read or make and an attribute of this name may be about."""
    values = dict.fromkeys(value for op in ops for value in (*op.inputs, *op.results))
    if _begins(name, "in"):
        return [value for value in values if not value.is_weight and value.producer not in ops]
    if _begins(name, "out"):
        return [
            v
            for v in values
            if v.producer in ops and not (v.users and all(user in ops for user in v.users))
        ]
    return list(values)


GROUPS = ("groups", "num_groups")
HEADS = ("num_heads", "n_heads", "n_head", "heads", "num_attention_heads", "num_key_value_heads")


def speaks_of_sizes(name: str) -> bool:
    """Return whether an attribute's name says that it counts channels, groups or heads."""
    words = _words(name)
    if name in CHANNEL_NAMES or name in COUNTED or name in GROUPS or name in HEADS:
        return True
    return bool(CHANNEL_WORDS.intersection(words)) and not NO_CHANNELS.intersection(words)


def _begins(name: str, word: str) -> bool:
    return re.match(rf"{word}(_|planes|channels|features|dim)", name) is not None


def _group_counts(scope: Scope) -> Sizes:
    found: dict[int, set[int]] = {}
    for old, new in scope.own:
        for name in GROUPS:
            before, after = old.attrs.get(name), new.attrs.get(name)
            if isinstance(before, int) and isinstance(after, int):
                found.setdefault(before, set()).add(after)
    return found


def _renamed(value: Any, known: Sequence[Sizes]) -> Any:
    """Return a size, or a sequence of sizes, as it is now; None where it is not one size alone.

    Of several tables the first that knows a size decides.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        found: set[int] = next((sizes[value] for sizes in known if value in sizes), set())
        return next(iter(found)) if len(found) == 1 else None
    if isinstance(value, tuple | list) and value:
        items = [_renamed(item, known) if isinstance(item, int) else None for item in value]
        if all(item is not None for item in items):
            return items if isinstance(value, list) else tuple(items)
    return None
