"""What modules say about their own sizes: attributes such as ``out_channels``, after the weights were cut.

Layers of `torch.nn`, and classes derived from them, are known: their sizes follow from their weights and from the ops
that ran in them. Of any other module an attribute is changed only if all of this holds: it is a whole number, or a
sequence of such; its name speaks of channels (`CHANNEL_WORDS`, `CHANNEL_NAMES`); it equals the length that a channel
axis had, in what the module computes itself or else in what its submodules do; and all such axes of that length there
have one and the same new length. For a name that begins with ``in`` or ``out`` only what goes in, or comes out, is
asked; for a number of heads (`HEADS`) only the axes, but the last, of views that split one. All else stays as it is,
numbers that are computed from sizes too: the scale of attention is that of the original.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.types import BatchSize
from pruneopt.passes.analysis.coupling import Coupling
from pruneopt.passes.analysis.sizes import axis_shares

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
"""Words of names that count something else, such as ``window_dim``; ``num_features`` and ``num_channels`` are known."""
COUNTED = ("num_features", "num_channels", "num_hidden")
SMALLEST = 8
"""A bare ``dim`` below this is taken for the number of an axis."""

Sizes = Mapping[int, set[int]]
"""The lengths that channel axes had -> those that they have."""


@dataclass(frozen=True)
class Change:
    """An attribute of a module, and its new value."""

    module: nn.Module
    name: str
    value: Any


class _Run:
    """The ops of the graph before and after the cut, by the module in which they ran."""

    def __init__(self, coupling: Coupling, cut: Graph) -> None:
        self.coupling = coupling
        self.by_path: dict[str, list[tuple[Op, Op]]] = {}
        self.twins: dict[Value, Value] = dict(zip(coupling.graph.inputs, cut.inputs, strict=True))
        self.twins.update((value, cut.params[name]) for name, value in coupling.graph.params.items())
        for old, new in zip(coupling.graph.ops, cut.ops, strict=True):
            self.by_path.setdefault(old.loc.module, []).append((old, new))
            self.twins.update(zip(old.results, new.results, strict=True))

    def sizes(self, values: Iterable[Value], *, last: bool = True) -> Sizes:
        """The lengths of the channel axes of values of the graph before the cut; with or without their last axes."""
        found: dict[int, set[int]] = {}
        for value in values:
            for share in axis_shares(self.coupling, value):
                before, after = value.type.dims[share.axis], self.twins[value].type.shape()[share.axis]
                if not isinstance(before, BatchSize) and (last or share.axis < value.type.rank - 1):
                    found.setdefault(value.type.shape()[share.axis], set()).add(after)
        return found


@dataclass(frozen=True)
class _Scope:
    """What ran in a module, known by these paths."""

    run: _Run
    paths: list[str]

    @property
    def own(self) -> list[tuple[Op, Op]]:
        """Pairs of an op before and after the cut, without those of modules inside."""
        return [pair for path in self.paths for pair in self.run.by_path.get(path, [])]

    @property
    def inside(self) -> set[Op]:
        """The ops before the cut, of modules inside too."""
        paths = [path for path in self.run.by_path if any(_inside(path, mine) for mine in self.paths)]
        return {op for path in paths for op, _ in self.run.by_path[path]}

    def attr(self, name: str, *bases: str) -> Any:
        """The new value of an attribute of the first op of one of these kinds; None where none ran."""
        return next((new.attrs[name] for _, new in self.own if new.base in bases and name in new.attrs), None)

    def channels(self) -> int | None:
        """The second axis of what the first op reads."""
        value = next((new.value(0) for _, new in self.own), None)
        return None if value is None or value.type.rank < 2 else value.type.shape()[1]


def attribute_changes(model: nn.Module, coupling: Coupling, cut: Graph) -> Iterator[Change]:
    """The attributes of modules that describe a size which is another now.

    Args:
        model: with its weights cut already.
        coupling: of the graph before the cut; ``cut`` is that graph after it, op by op.
    """
    run = _Run(coupling, cut)
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    for module, mine in paths.items():
        scope = _Scope(run, mine)
        known = _known(module, scope)
        yield from (Change(module, name, value) for name, value in known.items() if _differs(module, name, value))
        if not type(module).__module__.startswith("torch.nn."):
            yield from _guessed(module, scope, known)


def _inside(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")


def _differs(module: nn.Module, name: str, value: Any) -> bool:
    return value is not None and hasattr(module, name) and getattr(module, name) != value


# Layers of torch.nn


def _shape(module: nn.Module, name: str = "weight") -> tuple[int, ...] | None:
    tensor = getattr(module, name, None)
    return tuple(tensor.shape) if isinstance(tensor, Tensor) else None


def _linear(module: nn.Module, scope: _Scope) -> dict[str, Any]:
    shape = _shape(module)
    return {} if shape is None else {"out_features": shape[0], "in_features": shape[1]}


def _bilinear(module: nn.Module, scope: _Scope) -> dict[str, Any]:
    shape = _shape(module)
    return {} if shape is None else dict(zip(("out_features", "in1_features", "in2_features"), shape, strict=True))


def _convolution(module: nn.Module, scope: _Scope) -> dict[str, Any]:
    shape = _shape(module)
    if shape is None:
        return {}
    ran = scope.attr("groups", "conv1d", "conv2d", "conv3d", "convolution", *TRANSPOSED)
    groups = ran if isinstance(ran, int) else int(module.groups)  # type: ignore[arg-type]
    flipped = isinstance(module, nn.modules.conv._ConvTransposeNd)
    sizes = (shape[0], shape[1] * groups) if flipped else (shape[1] * groups, shape[0])
    return {"groups": groups, "in_channels": sizes[0], "out_channels": sizes[1]}


TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def _batch_norm(module: nn.Module, scope: _Scope) -> dict[str, Any]:
    shape = _shape(module) or _shape(module, "running_mean")
    return {"num_features": scope.channels() if shape is None else shape[0]}


def _group_norm(module: nn.Module, scope: _Scope) -> dict[str, Any]:
    shape = _shape(module)
    groups = scope.attr("num_groups", "group_norm", "native_group_norm")
    return {"num_channels": scope.channels() if shape is None else shape[0], "num_groups": groups}


def _layer_norm(module: nn.Module, scope: _Scope) -> dict[str, Any]:
    ran = scope.attr("normalized_shape", "layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
    return {"normalized_shape": _shape(module) or ran}


def _embedding(module: nn.Module, scope: _Scope) -> dict[str, Any]:
    shape = _shape(module)
    return {} if shape is None else {"num_embeddings": shape[0], "embedding_dim": shape[1]}


def _prelu(module: nn.Module, scope: _Scope) -> dict[str, Any]:
    shape = _shape(module)
    return {} if shape is None else {"num_parameters": shape[0]}


def _attention(module: nn.Module, scope: _Scope) -> dict[str, Any]:
    assert isinstance(module, nn.MultiheadAttention)
    packed, query = _shape(module, "in_proj_weight"), _shape(module, "q_proj_weight")
    if packed is not None:
        width, inner = packed[1], packed[0] // 3
        found = {"kdim": width, "vdim": width}
    elif query is not None:
        inner, width = query
        key, value = _shape(module, "k_proj_weight"), _shape(module, "v_proj_weight")
        found = {"kdim": key[1], "vdim": value[1]} if key and value else {}
    else:
        return {}
    return {"embed_dim": width, "head_dim": inner // module.num_heads, **found}


def _recurrent(module: nn.Module, scope: _Scope) -> dict[str, Any]:
    layer = "_l0" if isinstance(module, nn.RNNBase) else ""
    inputs, recurrent = _shape(module, f"weight_ih{layer}"), _shape(module, f"weight_hh{layer}")
    if inputs is None or recurrent is None:
        return {}
    gates = 4 if isinstance(module, nn.LSTM | nn.LSTMCell) else 3 if isinstance(module, nn.GRU | nn.GRUCell) else 1
    found = {"input_size": inputs[1], "hidden_size": inputs[0] // gates}
    return {**found, "proj_size": recurrent[1]} if getattr(module, "proj_size", 0) else found


def _unflatten(module: nn.Module, scope: _Scope) -> dict[str, Any]:
    sizes = scope.attr("sizes", "unflatten")
    return {} if not isinstance(sizes, tuple) else {"unflattened_size": sizes}


LAYERS: tuple[tuple[Any, Callable[[nn.Module, _Scope], dict[str, Any]]], ...] = (
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    (nn.modules.conv._ConvNd, _convolution),
    (nn.modules.batchnorm._NormBase, _batch_norm),
    (nn.GroupNorm, _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (nn.PReLU, _prelu),
    (nn.MultiheadAttention, _attention),
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
    (nn.Unflatten, _unflatten),
)


def _known(module: nn.Module, scope: _Scope) -> dict[str, Any]:
    return next((rule(module, scope) for kind, rule in LAYERS if isinstance(module, kind)), {})


# Other modules


def _guessed(module: nn.Module, scope: _Scope, known: Mapping[str, Any]) -> Iterator[Change]:
    named = [name for name in vars(module) if name not in known and speaks_of_sizes(name)]
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
            after = _renamed(before, [scope.run.sizes(_seen(name, ops)) for ops in (near, far)])
        if after is not None and after != before and not (name == "dim" and before < SMALLEST):
            yield Change(module, name, after)


def _split(ops: Iterable[Op]) -> list[Value]:
    """What came out of views that made several axes of one, such as heads and what each has."""
    views = [op for op in ops if op.base in ("view", "reshape", "unflatten", "_unsafe_view")]
    return [op.result for op in views if (x := op.value(0)) is not None and x.type.rank < op.result.type.rank]


def _seen(name: str, ops: Collection[Op]) -> list[Value]:
    """The values that an attribute of this name may be about, of those that some ops read and make."""
    values = dict.fromkeys(value for op in ops for value in (*op.inputs, *op.results))
    if _begins(name, "in"):
        return [value for value in values if not value.is_weight and value.producer not in ops]
    if _begins(name, "out"):
        return [v for v in values if v.producer in ops and not (v.users and all(user in ops for user in v.users))]
    return list(values)


GROUPS = ("groups", "num_groups")
HEADS = ("num_heads", "n_heads", "n_head", "heads", "num_attention_heads", "num_key_value_heads")


def speaks_of_sizes(name: str) -> bool:
    """Whether an attribute's name says that it counts channels, groups or heads."""
    words = name.lower().strip("_").split("_")
    if name in CHANNEL_NAMES or name in COUNTED or name in GROUPS or name in HEADS:
        return True
    return bool(CHANNEL_WORDS.intersection(words)) and not NO_CHANNELS.intersection(words)


def _begins(name: str, word: str) -> bool:
    return re.match(rf"{word}(_|planes|channels|features|dim)", name) is not None


def _group_counts(scope: _Scope) -> Sizes:
    found: dict[int, set[int]] = {}
    for old, new in scope.own:
        for name in GROUPS:
            before, after = old.attrs.get(name), new.attrs.get(name)
            if isinstance(before, int) and isinstance(after, int):
                found.setdefault(before, set()).add(after)
    return found


def _renamed(value: Any, known: Sequence[Sizes]) -> Any:
    """A size, or a sequence of sizes, as it is now; None for what is no size, or not one alone.

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
