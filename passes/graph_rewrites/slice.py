"""Slicing: from a plan to a smaller graph.

Weights are gathered by the kept units; sizes, groups, paddings and shapes written into the graph
are re-made from the new types, which the labels determine. Channels that are removed are dropped:
what they contributed is folded nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.schema import signature
from pruneopt.ir.types import Attr, BatchSize, Dim, TensorType
from pruneopt.passes.analysis.channels.groups import Coupling, Plan
from pruneopt.passes.analysis.channels.labels import number, numbers
from pruneopt.passes.analysis.channels.sizes import AxisShare, KeptSizes, axis_shares
from pruneopt.passes.analysis.ops.custom_ops import SIZES
from pruneopt.passes.analysis.ops.rules import CREATED

__all__ = ["slice_graph", "slice_weights"]


def slice_weights(
    coupling: Coupling, kept: np.ndarray, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights with the elements of removed units taken out (copies; ``kept`` is a boolean per
    unit)."""
    sliced: dict[str, Tensor] = {}
    sizes = KeptSizes(kept)
    for name, tensor in weights.items():
        slots = (
            coupling.slots_of(coupling.graph.params[name]) if name in coupling.graph.params else []
        )
        small = sizes.gather(tensor, slots)
        sliced[name] = tensor.clone() if small is tensor else small.contiguous()
    return sliced


def slice_graph(graph: Graph, coupling: Coupling, plan: Plan) -> Graph:
    """The graph and weights that are left when only the plan's units stay. ``graph`` is not
    changed.

    Raises `UserError` for a plan that breaks a constraint.
    """
    kept = coupling.kept_units(plan)
    new = graph.copy()
    new.channels = ()
    twins = dict(zip(coupling.graph.values, new.values, strict=True))
    sizes = KeptSizes(kept)
    for old, value in twins.items():
        new.set_type(value, sizes.type_of(coupling, old))
    for old_op, op in zip(coupling.graph.ops, new.ops, strict=True):
        touched = [*old_op.inputs, *old_op.results]
        if any(coupling.slots_of(value) for value in touched):
            remake = REMAKE.get(op.role)
            site = _Site(new, op, old_op, coupling, kept)
            if remake is not None:
                remake(site)
            _remake_declared(site)
    if graph.weights:
        made = {name: new.weights[name] for name in new.params if name not in graph.params}
        new.weights = {**slice_weights(coupling, kept, graph.weights), **made}
    return new


INDEX_SUFFIX = "_kept_index"


class _Site:
    """One op of the new graph, its original, and what is kept."""

    def __init__(self, graph: Graph, op: Op, old: Op, coupling: Coupling, kept: np.ndarray) -> None:
        self.graph, self.op, self.old, self.coupling, self.kept = graph, op, old, coupling, kept

    def set(self, name: str, value: Attr) -> None:
        if self.op.attrs[name] != value:
            self.graph.set_attr(self.op, name, value)

    def share(self, value: Value | None, axis: int) -> AxisShare | None:
        """How an axis of an original value shrinks, if it does."""
        if value is not None:
            for share in axis_shares(self.coupling, value):
                if share.axis == axis:
                    return share
        return None

    def flags(self, share: AxisShare) -> np.ndarray:
        """Which positions of an axis are kept; of channels spread over several axes, in the first
        row.

        The analysis lets an op count positions only where every row has its kept channels at the
        same places.
        """
        flags: np.ndarray = np.append(self.kept, True)[share.units.reshape(share.divisor, -1)[0]]
        return flags

    def retarget(self, target: str, attrs: Mapping[str, Attr]) -> None:
        self.op.target = target
        self.op.attrs = dict(attrs)


def _type_of(op: Op) -> TensorType:
    return op.results[0].type


def _as_attr(dim: Dim) -> Attr:
    return dim if isinstance(dim, int | BatchSize) else dim.size


def _remake_sizes(name: str) -> Callable[[_Site], None]:
    """Ops that spell out their result's shape; -1 and sizes that did not change stay as they were
    written."""

    def remake(site: _Site) -> None:
        given = site.op.attrs.get(name)
        dims = site.op.result.type.dims
        old = site.old.result.type.plain().dims
        if not isinstance(given, tuple) or len(given) != len(dims):
            return
        changed = tuple(
            size if size == -1 or old[i] == dims[i] else _as_attr(dims[i])
            for i, size in enumerate(given)
        )
        site.set(name, changed)

    return remake


def _remake_repeat(site: _Site) -> None:
    """Copies of a single place are as many as are kept; channels are repeated as often as
    before."""
    name = "repeats" if site.op.role == "repeat" else "dims"
    given, source = site.op.attrs.get(name), site.old.value(0)
    old, dims = site.old.result.type.plain().dims, site.op.result.type.dims
    if not isinstance(given, tuple) or source is None:
        return
    before = (1,) * (len(dims) - source.type.rank) + source.type.plain().dims
    first = len(dims) - len(given)
    new = list(given)
    for axis in range(first, len(dims)):
        if before[axis] == 1 and old[axis] != dims[axis]:
            new[axis - first] = _as_attr(dims[axis])
    site.set(name, tuple(new))


def _remake_unflatten(site: _Site) -> None:
    sizes = site.op.attrs["sizes"]
    if isinstance(sizes, tuple):
        dims = site.op.result.type.dims
        first = number(site.op, "dim") % (len(dims) - len(sizes) + 1)
        site.set(
            "sizes",
            tuple(-1 if s == -1 else _as_attr(dims[first + i]) for i, s in enumerate(sizes)),
        )


def _remake_conv(site: _Site) -> None:
    if site.op.attrs.get("transposed") is True:
        _remake_conv_transpose(site)
        return
    x, weight = site.op.value(0), site.op.value(1)
    if (
        x is None or weight is None or isinstance(site.op.attrs["groups"], BatchSize)
    ):  # a group for each row
        return
    axis = x.type.rank - weight.type.rank + 1
    site.set("groups", x.type.shape()[axis] // weight.type.shape()[1])


def _remake_conv_transpose(site: _Site) -> None:
    """The weight holds the outputs of one group."""
    x, weight = site.op.value(0), site.op.value(1)
    if x is not None and weight is not None and not isinstance(site.op.attrs["groups"], BatchSize):
        axis = x.type.rank - weight.type.rank + 1
        site.set("groups", site.op.result.type.shape()[axis] // weight.type.shape()[1])


def _remake_group_norm(site: _Site) -> None:
    """Groups of which each is one unit are as many as are kept; else all stay."""
    share = site.share(site.old.value(0), 1)
    if share is not None:
        rows = share.units.reshape(number(site.old, "num_groups"), -1)
        if bool((rows == rows[:, :1]).all()):
            site.set("num_groups", int(np.append(site.kept, True)[rows[:, 0]].sum()))


def _remake_layer_norm(site: _Site) -> None:
    normalized = site.op.attrs["normalized_shape"]
    count = len(normalized) if isinstance(normalized, tuple) else 1
    site.set("normalized_shape", site.op.results[0].type.shape()[-count:])


def _remake_split(site: _Site) -> None:
    """Any way of splitting becomes a split into written-out sizes once the pieces are unequal or
    fewer."""
    dim = number(site.op, "dim")
    sizes = tuple(value.type.shape()[dim] for value in site.op.results)
    old = tuple(value.type.shape()[dim] for value in site.old.results)
    if sizes != old:
        site.retarget("aten.split_with_sizes.default", {"split_sizes": sizes, "dim": dim})


def _remake_pad(site: _Site) -> None:
    """As many channels of padding as are kept; where a pad is negative, as many are cut off as are
    kept of those."""
    pads = numbers(site.op, "pad")
    rank = _type_of(site.op).rank
    new = []
    for place, count in enumerate(pads):
        share = site.share(
            site.old.result if count > 0 else site.old.value(0), rank - 1 - place // 2
        )
        flags = np.ones(abs(count), dtype=bool) if share is None or not count else site.flags(share)
        edge = flags[: abs(count)] if place % 2 == 0 else flags[len(flags) - abs(count) :]
        new.append(int(np.sign(count)) * int(edge.sum()))
    site.set("pad", tuple(new))


def _remake_select(site: _Site) -> None:
    x = site.old.value(0)
    if x is None:
        return
    dim = number(site.op, "dim") % x.type.rank
    share = site.share(x, dim)
    if share is not None:
        flags = site.flags(share)
        index = number(site.op, "index") % len(flags)
        site.set("index", int(flags[:index].sum()))


def _remake_slice(site: _Site) -> None:
    """A slice along channels: again a slice where the kept positions form one, else an index."""
    x = site.old.value(0)
    if x is None:
        return
    dim = number(site.op, "dim") % x.type.rank
    share = site.share(x, dim)
    if share is None:
        return
    flags = site.flags(share)
    start, end, step = _range_of(site.op, len(flags))
    taken = np.zeros(len(flags), dtype=bool)
    taken[start:end:step] = True
    if not taken.any():
        return  # an empty slice remains one
    positions = (np.cumsum(flags) - 1)[taken & flags]
    steps = np.unique(np.diff(positions))
    if len(steps) <= 1:
        first, last = int(positions[0]), int(positions[-1])
        if site.op.role == "narrow":
            site.set("start", first)
            site.set("length", last + 1 - first)
        elif (first, last + 1, len(flags)) != (start, end, int(flags.sum())):
            site.set("start", first)
            site.set("end", last + 1)
            site.set("step", int(steps[0]) if len(steps) else 1)
        return
    name = site.graph.fresh_name(f"{site.op.result.name}{INDEX_SUFFIX}")
    constant = site.graph.add_param(name, TensorType("i64", (len(positions),)), "constant")
    site.graph.weights[name] = torch.from_numpy(positions)
    site.retarget("aten.index_select.default", {"dim": dim})
    site.op.operands = (site.op.operands[0], None)
    site.graph.set_operand(site.op, 1, constant)


def _range_of(op: Op, size: int) -> tuple[int, int, int]:
    """First, past last and step of a slice of an axis of ``size`` positions."""
    if op.role == "narrow":
        first = number(op, "start") % size
        return first, first + number(op, "length"), 1
    return slice(*(op.attrs[name] for name in ("start", "end", "step"))).indices(size)


def _remake_squeeze(site: _Site) -> None:
    """An axis that was no axis of size 1 stays, even where one channel is left: squeezed axes are
    written out."""
    x, old = site.op.value(0), site.old.value(0)
    if x is None or old is None:
        return
    before, after = old.type.plain().dims, x.type.plain().dims
    asked = site.op.attrs.get("dim")
    axes = range(x.type.rank) if asked is None else asked if isinstance(asked, tuple) else (asked,)
    real = [axis % x.type.rank for axis in axes if isinstance(axis, int)]
    if any(before[axis] != 1 and after[axis] == 1 for axis in real):
        gone = tuple(
            axis for axis in real if before[axis] == 1 or isinstance(before[axis], BatchSize)
        )
        site.retarget("aten.squeeze.dims", {"dim": gone})


def _remake_attention(site: _Site) -> None:
    """The scale of the scores is the original's: one over the root of the original head size."""
    query, old = site.op.value(0), site.old.value(0)
    if query is not None and old is not None and site.op.attrs["scale"] is None:
        width = old.type.shape()[-1]
        if query.type.shape()[-1] != width:
            site.set("scale", 1.0 / math.sqrt(width))


def _remake_declared(site: _Site) -> None:
    """The arguments of a user's op that were declared to be numbers of channels."""
    for name, (source, axis) in SIZES.get(site.old.base, {}).items():
        names = [argument.name for argument in signature(site.op.target).operands]
        value = site.op.results[0] if source == "result" else site.op.value(names.index(source))
        if value is not None:
            site.set(name, value.type.shape()[axis])


REMAKE: dict[str, Callable[[_Site], None]] = {
    "repeat": _remake_repeat,
    "tile": _remake_repeat,
    "unflatten": _remake_unflatten,
    "layer_norm": _remake_layer_norm,
    "native_layer_norm": _remake_layer_norm,
    "rms_norm": _remake_layer_norm,
    "_fused_rms_norm": _remake_layer_norm,
    "group_norm": _remake_group_norm,
    "select": _remake_select,
    "select_copy": _remake_select,
    "slice": _remake_slice,
    "slice_copy": _remake_slice,
    "slice_scatter": _remake_slice,
    "narrow": _remake_slice,
    "squeeze": _remake_squeeze,
    "scaled_dot_product_attention": _remake_attention,
    **dict.fromkeys(CREATED, _remake_sizes("size")),
    **dict.fromkeys(
        ("view", "expand", "_unsafe_view", "view_copy", "expand_copy"), _remake_sizes("size")
    ),
    **dict.fromkeys(("reshape",), _remake_sizes("shape")),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _remake_conv),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _remake_conv_transpose
    ),
    **dict.fromkeys(("pad", "constant_pad_nd"), _remake_pad),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), _remake_split),
    **dict.fromkeys(("unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes"), _remake_split),
}
