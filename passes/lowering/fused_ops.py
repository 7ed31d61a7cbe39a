"""The fused operations of lowered graphs, each as launches over all segments of a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruneopt.ir.graph import Op
from pruneopt.kernels.operands import Affine, Output, Prologue
from pruneopt.passes.lowering.convolutions import Convolution
from pruneopt.passes.lowering.layout import Handler, Layout
from pruneopt.passes.lowering.shape_match import depthwise
from pruneopt.passes.lowering.storage import Activation, Table

__all__ = ["HANDLERS"]

Columns = dict[str, tuple[int, ...]]
"""Of a launch's table: where every segment's part of an operand begins."""


def _prologue(
    layout: Layout, op: Op, finished: Activation | None
) -> tuple[Activation, Prologue, Columns]:
    """Return what is loaded and how it is finished; with the table's columns for it."""
    raw = layout.activation(op.needed(0))
    affine, in_table = layout.affine(op.value(1), op.value(2))
    beside = op.value(3)
    residual = None if beside is None else layout.activation(beside)
    residual_affine, residual_table = layout.affine(op.value(4), op.value(5))
    activation: Any = op.attrs["activation"]
    prologue = Prologue(
        affine,
        activation,
        None if residual is None else residual.buffer,
        residual_affine,
        None if finished is None else finished.buffer,
    )
    columns = {"x": raw.starts, "in_table": in_table, "residual_table": residual_table}
    if residual is not None:
        columns["residual"] = residual.starts
    if finished is not None:
        columns["materialised"] = finished.starts
    return raw, prologue, columns


def add_act(layout: Layout, op: Op) -> None:
    """Launch a finished activation, written out."""
    layout.env[op.result] = _finished(layout, op)


def _finished(layout: Layout, op: Op) -> Activation:
    source = op.needed(0)
    made = layout.make(source)
    raw, prologue, columns = _prologue(layout, op, made)
    segments = layout.table((source, source), columns)
    layout.launch(layout.backend.add_act(raw.buffer, segments, raw.pixels, prologue))
    return made


def mean_pixels(layout: Layout, op: Op) -> None:
    """Launch the mean over an image's pixels."""
    source = op.needed(0)
    raw, prologue, columns = _prologue(layout, op, None)
    made = layout.make(op.result, (1, 1))
    columns["y"] = made.starts
    segments = layout.table((source, source), columns)
    layout.launch(
        layout.backend.mean_pixels(raw.buffer, made.buffer, segments, raw.pixels, prologue=prologue)
    )
    layout.env[op.result] = made


def conv_statistics(layout: Layout, op: Op) -> None:
    """Launch a convolution with the statistics of what it gives, and its batch norm's scale and
    shift."""
    out, mean, variance, finished = op.results
    raw, prologue, columns, kept = _loaded(layout, op, wanted=bool(finished.users))
    convolution = Convolution.of(layout, op, 6, raw, prologue, columns)
    channels = convolution.made.channels
    tables = [Table.zeros(channels, layout.backend.sums, layout.device) for _ in range(4)]
    means, variances, scale, shift = (table.buffer for table in tables)
    convolution.columns["out_table"] = tables[0].starts
    norm = _norm_of(op)
    gamma = beta = affine = None
    eps: Any = 0.0
    if norm is not None:
        gamma, beta = (
            layout.parameters(norm, index, default, out) for index, default in ((2, 1.0), (3, 0.0))
        )
        convolution.columns["params"] = gamma.starts
        affine, eps = Affine(scale, shift), norm.attrs["eps"]
    for partials, segments in convolution.measured():
        layout.launch(
            layout.backend.finalize(
                partials,
                means,
                variances,
                segments,
                convolution.window.out_pixels,
                gamma=None if gamma is None else gamma.buffer,
                beta=None if beta is None else beta.buffer,
                affine=affine,
                eps=float(eps),
            )
        )
    layout.env |= {out: convolution.made, mean: tables[0], variance: tables[1]}
    if kept is not None:
        layout.env[finished] = kept
    if norm is not None:
        layout.env |= dict(zip(norm.results, tables[2:], strict=True))
        layout.applied.add(norm)


def conv_output(layout: Layout, op: Op) -> None:
    """Launch a convolution with bias, residual and activation."""
    raw = layout.activation(op.needed(0))
    beside = op.value(3)
    other = None if beside is None else layout.activation(beside)
    convolution = Convolution.of(layout, op, 1, raw, Prologue(), {"x": raw.starts})
    bias = None
    if op.value(2) is not None:
        table = layout.parameters(op, 2, 0.0, op.results[0])
        bias, convolution.columns["params"] = table.buffer, table.starts
    if other is not None:
        convolution.columns["residual"] = other.starts
    activation: Any = op.attrs["activation"]
    convolution.finished(Output(bias, activation, None if other is None else other.buffer))
    layout.env[op.result] = convolution.made


def _loaded(
    layout: Layout, op: Op, *, wanted: bool
) -> tuple[Activation, Prologue, Columns, Activation | None]:
    """Return how a convolution reads its input, and where it writes what it has finished, if others
    want it."""
    if not wanted:
        return (*_prologue(layout, op, None), None)
    if _writes_input(op):
        made = layout.make(op.needed(0))
        return (*_prologue(layout, op, made), made)
    made = _finished(layout, op)
    return made, Prologue(), {"x": made.starts}, made


def _writes_input(op: Op) -> bool:
    """Return whether a convolution's kernel can write its input: one group, or depthwise."""
    return op.attrs["groups"] == 1 or depthwise(op)


def _norm_of(op: Op) -> Op | None:
    """Return the batch norm of a convolution's statistics, if its parameters are weights."""
    _, mean, variance, _ = op.results
    for user in mean.users:
        own = user.base == "pruneopt.norm_affine" and (user.value(0), user.value(1)) == (
            mean,
            variance,
        )
        if own and all(
            value is None or value.is_weight for value in (user.value(2), user.value(3))
        ):
            return user
    return None


HANDLERS: Mapping[str, Handler] = {
    "pruneopt.conv_statistics": conv_statistics,
    "pruneopt.conv_output": conv_output,
    "pruneopt.add_act": add_act,
    "pruneopt.mean_pixels": mean_pixels,
}
