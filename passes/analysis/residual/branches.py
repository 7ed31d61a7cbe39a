"""Residual branches that can be dropped: ``y = x + f(x)`` becomes ``y = x``.

Read off the graph alone. An addition has a droppable branch where

- both operands and the sum have one type, so that one operand, the skip, can stand for the sum;
- the branch's ops are read by nothing else: they die with the addition, and nobody misses them;
- the branch starts from the stream that the skip is part of (the skip, or what was added up to
  become it), and contains a layer. So two projections of one input that are added are no block, and
  neither is the polynomial inside a GELU.

A scale on the branch (layer scale) is part of it. Branches may contain others. Of a block that is
normalised after the addition (post-norm) the branch is listed but not dropped: what would be left
is a second norm, no identity.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.module_paths import common_module
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.layers import layer_weights
from pruneopt.passes.analysis.ops.table import has_trait
from pruneopt.passes.analysis.residual.structure import Flow, activations, is_sum

__all__ = ["Branch", "find_branches", "weights_of"]

POST_NORM = (
    "the sum is normalised before the next block reads it (post-norm): without the branch "
    "it is no identity"
)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Branch:
    """A residual branch.

    Attributes:
        name: the module that holds all weights of the branch, or its heaviest part where that
            module has several.
        add: the op that adds it to the skip.
        place: which operand of the addition is the branch; the other one is the skip.
        ops: everything that is read by the branch alone, in graph order.
        kept: why it cannot be dropped; None where it can.
    """

    name: str
    add: Op
    place: int
    ops: tuple[Op, ...]
    kept: str | None = None

    @property
    def skip(self) -> Value:
        """Return what is left of the sum without the branch."""
        value = self.add.value(1 - self.place)
        assert value is not None
        return value

    @property
    def value(self) -> Value:
        """Return what the branch adds."""
        value = self.add.value(self.place)
        assert value is not None
        return value

    def inside(self, other: Branch) -> bool:
        """Return whether the branch is a part of another one."""
        return self.add in other.ops


def find_branches(graph: Graph) -> tuple[Branch, ...]:
    """Return all residual branches, in the order of their additions; outer ones come after those
    inside them."""
    flow = Flow(graph)
    found = []
    for add in flow.sums:
        for place in _places(add):
            branch = Branch("", add, place, flow.only_for(add, add.needed(place)))
            if any(layer_weights(op) for op in branch.ops) and _starts_from_stream(branch, flow):
                found.append(branch)
    skips = {branch.skip for branch in found}
    found = [
        replace(branch, kept=POST_NORM) if _is_post_norm(branch, skips) else branch
        for branch in found
    ]
    return tuple(
        replace(branch, name=name) for branch, name in zip(found, _names(found), strict=True)
    )


def weights_of(branch: Branch) -> dict[str, Value]:
    """Return the parameters that a branch reads, by name, in the order of its ops; others may read
    them too."""
    read = (value for op in branch.ops for value in op.inputs if value.kind == "param")
    return {value.name: value for value in read}


def _places(add: Op) -> Iterable[int]:
    """Yield the operands of an addition that may be branches, by the types alone."""
    if add.role != add.base:  # a user's op that is like an addition may do more than add
        return
    first, second = add.needed(0), add.needed(1)
    if first is second or not first.type.plain() == second.type.plain() == add.result.type.plain():
        return
    # With a scale the second operand alone is not the sum without the first.
    if add.attrs.get("alpha", 1) == 1:
        yield 0
    yield 1


def _starts_from_stream(branch: Branch, flow: Flow) -> bool:
    """Return whether the branch is computed from its skip, or from a summand of it."""
    stream = _stream(branch.skip)
    path = flow.between(branch.value, stream)
    return any(value in stream for op in path for value in activations(op))


def _stream(skip: Value) -> set[Value]:
    """Return a value, and everything of its type that was added up to become it."""
    found = {skip}
    waiting = [skip]
    while waiting:
        op = waiting.pop().producer
        if op is not None and is_sum(op):
            alike = [value for value in op.inputs if value.type.plain() == skip.type.plain()]
            waiting.extend(value for value in alike if value not in found)
            found.update(alike)
    return found


def _is_post_norm(branch: Branch, skips: set[Value]) -> bool:
    """Return whether only a norm reads the sum, in a stack whose stream runs through norms."""
    readers = branch.add.result.users
    if not readers or not all(has_trait(op, Trait.NORM) for op in readers):
        return False
    above = branch.skip.producer
    return (above is not None and has_trait(above, Trait.NORM)) or any(
        op.results[0] in skips for op in readers
    )


# Names


def _names(branches: Sequence[Branch]) -> list[str]:
    """Return a name for every branch, each once: the module around its weights, with the heaviest
    part if it has several."""
    modules = [
        common_module([name.rpartition(".")[0] for name in weights_of(branch)])
        for branch in branches
    ]
    pairs = list(zip(branches, modules, strict=True))

    def alone(branch: Branch, module: str) -> bool:
        """Return whether no other branch lies in the module, except those inside this one."""
        others = (name for other, name in pairs if other is not branch and not other.inside(branch))
        return bool(module) and not any(f"{name}.".startswith(f"{module}.") for name in others)

    names = [
        module if alone(branch, module) else _heaviest(branch, module) for branch, module in pairs
    ]
    again = Counter(names)
    return [
        name if name and again[name] == 1 else f"{name or 'sum'}:{branch.add.result.name}"
        for branch, name in zip(branches, names, strict=True)
    ]


def _heaviest(branch: Branch, module: str) -> str:
    """Return the child of a module that holds most of a branch's parameters."""
    sizes: Counter[str] = Counter()
    start = f"{module}." if module else ""
    for name, value in weights_of(branch).items():
        child = name.removeprefix(start).partition(".")
        sizes[child[0] if child[1] else ""] += math.prod(value.type.shape())
    child_name = max(sizes, key=sizes.__getitem__)
    return f"{start}{child_name}" if child_name else module
