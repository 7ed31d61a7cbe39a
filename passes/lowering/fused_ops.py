"""The fused operations of lowered graphs, each as launches over all segments of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pruneopt.ir.graph import Op
from pruneopt.kernels.operands import Affine, Output, Prologue
from pruneopt.passes.lowering.convolutions import Convolution
from pruneopt.passes.lowering.run import Handler, Run
from pruneopt.passes.lowering.storage import Activation, Table

__all__ = ["HANDLERS"]

Columns = dict[str, tuple[int, ...]]
"""Of a launch's table: where every segment's part of an operand begins."""


def _prologue(run: Run, op: Op, finished: Activation | None) -> tuple[Activation, Prologue, Columns]:
    """What is loaded and how it is finished; with the table's columns for it."""
    raw = run.activation(op.needed(0))
    affine, in_table = run.affine(op.value(1), op.value(2))
    beside = op.value(3)
    residual = None if beside is None else run.activation(beside)
    residual_affine, residual_table = run.affine(op.value(4), op.value(5))
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


def _like(run: Run, raw: Activation) -> Activation:
    return run.empty(raw.images, raw.channels, (raw.height, raw.width))


def add_act(run: Run, ops: Sequence[Op]) -> None:
    """A finished activation, written out."""
    run.env[ops[0].result] = _finished(run, ops[0])


def _finished(run: Run, op: Op) -> Activation:
    made = _like(run, run.activation(op.needed(0)))
    raw, prologue, columns = _prologue(run, op, made)
    run.work.backend.add_act(raw.buffer, run.work.table(raw.channels, raw.channels, columns), raw.pixels, prologue)
    return made


def mean_pixels(run: Run, ops: Sequence[Op]) -> None:
    """The mean over an image's pixels."""
    raw, prologue, columns = _prologue(run, ops[0], None)
    made = run.empty(raw.images, raw.channels, (1, 1))
    columns["y"] = made.starts
    segments = run.work.table(raw.channels, raw.channels, columns)
    run.work.backend.mean_pixels(raw.buffer, made.buffer, segments, raw.pixels, prologue=prologue)
    run.env[ops[0].result] = made


def conv_statistics(run: Run, ops: Sequence[Op]) -> None:
    """A convolution with the statistics of what it gives, and its batch norm's scale and shift."""
    first = ops[0]
    out, mean, variance, finished = first.results
    raw, prologue, columns, kept = _loaded(run, first, wanted=bool(finished.users))
    convolution = Convolution.of(run, ops, 6, raw, prologue, columns)
    channels = convolution.made.channels
    tables = [Table.zeros(channels, run.work.backend.sums, run.work.device) for _ in range(4)]
    means, variances, scale, shift = (table.buffer for table in tables)
    convolution.columns["out_table"] = tables[0].starts
    norm = _norm_of(first)
    gamma = beta = affine = None
    eps: Any = 0.0
    if norm is not None:
        norms = [_norm_of(op) or norm for op in ops]
        widths = [len(kernel) for kernel in convolution.kernels]
        gamma, beta = (run.parameters(norms, index, default, widths) for index, default in ((2, 1.0), (3, 0.0)))
        convolution.columns["params"] = gamma.starts
        affine, eps = Affine(scale, shift), norm.attrs["eps"]
    for partials, segments in convolution.measured():
        run.work.backend.finalize(
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
    run.env |= {out: convolution.made, mean: tables[0], variance: tables[1]}
    if kept is not None:
        run.env[finished] = kept
    if norm is not None:
        run.env |= dict(zip(norm.results, tables[2:], strict=True))
        run.applied.add(norm)


def conv_output(run: Run, ops: Sequence[Op]) -> None:
    """A convolution with bias, residual and activation."""
    first = ops[0]
    raw = run.activation(first.needed(0))
    convolution = Convolution.of(run, ops, 1, raw, Prologue(), {"x": raw.starts})
    bias = residual = None
    if first.value(2) is not None:
        table = run.parameters(ops, 2, 0.0, [len(kernel) for kernel in convolution.kernels])
        bias, convolution.columns["params"] = table.buffer, table.starts
    beside = first.value(3)
    if beside is not None:
        other = run.activation(beside)
        residual, convolution.columns["residual"] = other.buffer, other.starts
    activation: Any = first.attrs["activation"]
    convolution.finished(Output(bias, activation, residual))
    run.env[first.result] = convolution.made


def _loaded(run: Run, op: Op, *, wanted: bool) -> tuple[Activation, Prologue, Columns, Activation | None]:
    """How a convolution reads its input, and where it writes what it has finished, if others want it."""
    if not wanted:
        return (*_prologue(run, op, None), None)
    if _writes_input(op):
        made = _like(run, run.activation(op.needed(0)))
        return (*_prologue(run, op, made), made)
    made = _finished(run, op)
    return made, Prologue(), {"x": made.starts}, made


def _writes_input(op: Op) -> bool:
    """Whether a convolution's kernel can write its input: one group, or depthwise."""
    groups, source, out = op.attrs["groups"], op.needed(0), op.results[0]
    return groups == 1 or groups == source.type.plain().dims[1] == out.type.plain().dims[1]


def _norm_of(op: Op) -> Op | None:
    """The batch norm that a convolution's statistics are for, if its parameters are weights."""
    _, mean, variance, _ = op.results
    for user in mean.users:
        own = user.base == "pruneopt.norm_affine" and (user.value(0), user.value(1)) == (mean, variance)
        if own and all(value is None or value.is_weight for value in (user.value(2), user.value(3))):
            return user
    return None


HANDLERS: Mapping[str, Handler] = {
    "pruneopt.conv_statistics": conv_statistics,
    "pruneopt.conv_output": conv_output,
    "pruneopt.add_act": add_act,
    "pruneopt.mean_pixels": mean_pixels,
}
