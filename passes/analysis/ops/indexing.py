"""Ops that pick, write or order elements by number: embedding, index, gather, scatter, sort, tril.

Along the axis whose places are numbered every place stays: channels there are frozen. Along the
other axes the tensors share their labels, as element by element.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pruneopt.ir.graph import Op, Value
from pruneopt.passes.analysis.channels.labels import Labels, number
from pruneopt.passes.analysis.channels.layer_weight import LayerWeight
from pruneopt.passes.analysis.channels.planes import Plane, align, varying
from pruneopt.passes.analysis.ops.data_movement import source
from pruneopt.passes.analysis.ops.definition import OpDefinition
from pruneopt.passes.analysis.ops.pointwise import merge_pointwise

__all__ = ["DEFINITIONS"]


def numbered(labels: Labels, op: Op, value: Value | None, axes: Iterable[int]) -> list[Plane]:
    """Return the planes of a value that do not vary along ``axes``, whose places are numbered; the
    others are frozen."""
    stay, out = set(axes), []
    for plane in labels.of(value):
        if stay & set(varying(plane)):
            labels.freeze(plane, f"places along channels are numbered by {op}")
        else:
            out.append(plane)
    return out


def _share(labels: Labels, op: Op, values: Iterable[Value | None], axis: int) -> list[Plane]:
    """Return the planes that tensors of one rank have in common beside ``axis``; where their sizes
    differ, channels stay."""
    found = [value for value in values if value is not None]
    shapes = [labels.shape(value) for value in found]
    uneven = {a for a in range(len(shapes[0])) if len({shape[a] for shape in shapes}) > 1}
    return merge_pointwise(
        labels, op, [(numbered(labels, op, v, {axis, *uneven}), v) for v in found]
    )


# Reading


def embedding(labels: Labels, op: Op) -> None:
    """Give what is picked the labels along the rows; the rows themselves stay."""
    weight = op.value(0)
    if weight is None or labels.of(op.value(1)):
        labels.freeze_unknown(op, "its indices carry channels")
        return
    out = labels.axis_labels(weight, 1)
    rows = [plane for plane in labels.of(weight) if 0 in varying(plane)]
    for plane in rows:
        labels.freeze(plane, f"rows are picked by number, {op}")
    if out is not None:
        shape = [1] * op.result.type.rank
        shape[-1] = out.numel()
        labels.set(op.result, [out.reshape(shape)])


def embedding_weight(op: Op) -> tuple[LayerWeight, ...]:
    """Return the weight ``[rows, outputs]``, which meets no input channels."""
    weight = op.value(0)
    return () if weight is None else (LayerWeight(weight, 1, None),)


def index(labels: Labels, op: Op) -> None:
    """Freeze channels along the indexed axes; the others pass."""
    value = source(labels, op)
    if any(labels.of(v) for v in op.inputs if v is not value):
        labels.freeze_unknown(op, "its indices carry channels")
        return
    axes = _indexed(op, value)
    width = op.result.type.rank - (value.type.rank - len(axes))
    if axes != list(range(axes[0], axes[0] + len(axes))):
        labels.freeze_unknown(op, "it indexes separate axes")
        return
    labels.set(op.result, _picked(numbered(labels, op, value, axes), axes, width))


def _indexed(op: Op, value: Value) -> list[int]:
    """Return the axes that indices stand for: a mask stands for as many as it has."""
    if op.role == "index_select":
        return [number(op, "dim") % value.type.rank]
    entries = op.operands[1] if isinstance(op.operands[1], tuple) else (op.value(1),)
    axes: list[int] = []
    place = 0
    for entry in entries:
        count = entry.type.rank if entry is not None and entry.type.dtype == "bool" else 1
        axes += range(place, place + count) if entry is not None else ()
        place += count
    return axes


def _picked(planes: Iterable[Plane], axes: list[int], width: int) -> list[Plane]:
    """Return the planes of what is picked: ``width`` axes of places instead of adjacent
    ``axes``."""
    first, last = axes[0], axes[-1] + 1
    return [
        plane.reshape([*plane.shape[:first], *[1] * width, *plane.shape[last:]]) for plane in planes
    ]


def gather(labels: Labels, op: Op) -> None:
    """Freeze channels along the axis that is picked from; along the others an index stands at the
    place of what it picks."""
    value, picks, dim = source(labels, op), labels.operand(op, 1), op.attrs.get("dim")
    if not isinstance(dim, int) or not value.type.rank:
        labels.freeze_unknown(op, "it picks along no axis")
        return
    axis = dim % value.type.rank
    alone = [plane for plane in labels.of(picks) if varying(plane) == (axis,)]
    for plane in labels.of(picks):
        if axis in varying(plane) and len(varying(plane)) > 1:
            labels.freeze(plane, f"places along channels are numbered by {op}")
    shapes = labels.shape(value), labels.shape(picks)
    fewer = {
        a for a in range(value.type.rank) if op.role == "gather" and shapes[0][a] != shapes[1][a]
    }
    beside = [plane for plane in labels.of(picks) if axis not in varying(plane)]
    for plane in beside:
        if fewer & set(varying(plane)):
            labels.freeze(plane, f"places along channels are numbered by {op}")
    sides = [(numbered(labels, op, value, {axis, *fewer}), value)]
    sides.append(([plane for plane in beside if not fewer & set(varying(plane))], picks))
    labels.set(op.result, [*merge_pointwise(labels, op, sides), *alone])


# Writing


def scatter(labels: Labels, op: Op) -> None:
    """Unite, along the other axes, what is written with what it replaces or is added to."""
    value, picks, written = source(labels, op), labels.operand(op, 1), op.value(2)
    if not value.type.rank:
        labels.freeze_unknown(op, "it writes along no axis")
        return
    axis = number(op, "dim") % value.type.rank
    values = [value, *([picks] if op.role.startswith("scatter") else ()), written]
    if not op.role.startswith("scatter"):
        labels.freeze_value(picks, f"its values are places, {op}")
    labels.set(
        op.result,
        _share(
            labels, op, [v for v in values if v is None or v.type.rank == value.type.rank], axis
        ),
    )


def write_place(labels: Labels, op: Op) -> None:
    """Unite what is written with what stands at one place along an axis."""
    value, written = source(labels, op), labels.operand(op, 1)
    axis = number(op, "dim") % value.type.rank
    labels.label_axes(written)
    facing = [plane.unsqueeze(axis) for plane in labels.of(written)]
    labels.set(
        op.result,
        _replaced(labels, op, (numbered(labels, op, value, [axis]), value), facing, written),
    )


def write_places(labels: Labels, op: Op) -> None:
    """Unite what is written with what the same indices would pick, to which it broadcasts."""
    value, written = source(labels, op), op.operands[2]
    entries = op.operands[1] if isinstance(op.operands[1], tuple) else (op.value(1),)
    if not isinstance(written, Value) or any(labels.of(entry) for entry in entries):
        labels.freeze_unknown(op, "its indices carry channels")
        return
    axes = _indexed(op, value)
    if axes != list(range(axes[0], axes[0] + len(axes))):
        labels.freeze_unknown(op, "it indexes separate axes")
        return
    labels.label_axes(written)
    masks = [entry for entry in entries if entry is not None and entry.type.dtype == "bool"]
    width = 1 if masks else max(entry.type.rank for entry in entries if entry is not None)
    rank = value.type.rank - len(axes) + width
    facing = []
    for plane in (align(plane, rank) for plane in labels.of(written)):
        if set(range(axes[0], axes[0] + width)) & set(varying(plane)):
            labels.freeze(plane, f"places along channels are numbered by {op}")
            continue
        facing.append(
            plane.reshape(
                [*plane.shape[: axes[0]], *[1] * len(axes), *plane.shape[axes[0] + width :]]
            )
        )
    labels.set(
        op.result,
        _replaced(labels, op, (numbered(labels, op, value, axes), value), facing, written),
    )


def _replaced(
    labels: Labels, op: Op, own: tuple[list[Plane], Value], facing: list[Plane], written: Value
) -> list[Plane]:
    """Return the planes of a tensor written into: what is written has the same labels, or is one
    number."""
    covered = {axis for plane in facing for axis in varying(plane)}
    out = []
    for plane in merge_pointwise(labels, op, [own, (facing, None)]):
        if covered.isdisjoint(varying(plane)) and max(labels.shape(written), default=1) > 1:
            labels.freeze(plane, f"written into by a tensor whose channels cannot be removed, {op}")
        else:
            out.append(plane)
    return out


# Order and place


def ordered(labels: Labels, op: Op) -> None:
    """Freeze channels along the ordered axis (or all axes); along the others they do not matter."""
    value, dim = source(labels, op), op.attrs.get("dim")
    rank = value.type.rank
    axes = [dim % rank] if isinstance(dim, int) and rank else range(rank)
    planes = numbered(labels, op, value, axes)
    for result in op.results:
        same = result.type.rank == rank
        labels.set(result, [plane if same else plane.squeeze(axes[0]) for plane in planes])


def triangle(labels: Labels, op: Op) -> None:
    """Freeze channels along rows and columns, which are counted."""
    value = source(labels, op)
    rank = op.result.type.rank
    labels.set(op.result, numbered(labels, op, value, (rank - 2, rank - 1)))


def sample(labels: Labels, op: Op) -> None:
    """Pass channels to values between places, at computed coordinates."""
    value, grid = source(labels, op), op.value(1)
    labels.freeze_value(grid, f"coordinates of {op}")
    rank = op.result.type.rank
    labels.set(op.result, numbered(labels, op, value, range(2, rank)))


DEFINITIONS: Mapping[str, OpDefinition] = {
    "embedding": OpDefinition(rule=embedding, layers=embedding_weight, needs=()),
    **dict.fromkeys(("index", "index_select"), OpDefinition(rule=index)),
    **dict.fromkeys(("gather", "take_along_dim"), OpDefinition(rule=gather)),
    **dict.fromkeys(
        (
            *("scatter", "scatter_add", "scatter_reduce"),
            *("index_add", "index_copy", "index_fill", "index_reduce"),
        ),
        OpDefinition(rule=scatter),
    ),
    "select_scatter": OpDefinition(rule=write_place),
    "index_put": OpDefinition(rule=write_places),
    **dict.fromkeys(
        (
            *("sort", "argsort", "topk", "kthvalue", "median", "nanmedian", "mode"),
            *("cummax", "cummin", "argmax", "argmin"),
        ),
        OpDefinition(rule=ordered),
    ),
    **dict.fromkeys(("tril", "triu"), OpDefinition(rule=triangle)),
    "grid_sampler": OpDefinition(rule=sample),
}
