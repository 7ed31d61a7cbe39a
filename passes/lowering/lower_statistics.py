"""Lowering a network's statistics pass onto the fused operations of `kernels.library`.

In this pass every batch is normalised by its own statistics, and all that is wanted are these. A
batch norm is then a scale and a shift per channel, known when the layer before is finished; whoever
reads its result applies them, the activation and a residual sum while loading. So an activation is
written once, raw, and read by those who need it. What no kernel does runs as PyTorch has it, on
finished inputs, and is listed with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph, Op, Operand, Value
from pruneopt.ir.types import Attr, TensorType
from pruneopt.passes.analysis.ops.batch_norm import RunningNorm, running_norm
from pruneopt.passes.lowering.patterns import (
    GEOMETRY,
    Unfused,
    activation_name,
    is_conv2d,
    is_idle_dropout,
    is_mean_of_pixels,
    is_residual_sum,
    mapped,
    unfit,
)

__all__ = ["LoweredStatistics", "Unfused", "lower_statistics"]

Pending = tuple[Value, Value | None, Value | None, Value | None, Value | None, Value | None]


@dataclass(frozen=True)
class LoweredStatistics:
    """A graph that gives the statistics of every batch norm, and nothing else.

    Attributes:
        graph: its outputs are a mean and a biased variance for each of ``norms``, one after the
            other.
        norms: the batch norms that learn, in graph order, as in the network.
        unfused: what no kernel does.
    """

    graph: Graph
    norms: tuple[RunningNorm, ...]
    unfused: tuple[Unfused, ...]


@dataclass(frozen=True, slots=True)
class _Lazy:
    """A value that may not be finished: ``activation(raw * scale + shift + residual * ... )``."""

    raw: Value
    scale: Value | None = None
    shift: Value | None = None
    residual: Value | None = None
    residual_scale: Value | None = None
    residual_shift: Value | None = None
    activation: str = "identity"

    @property
    def operands(self) -> Pending:
        return (
            self.raw,
            self.scale,
            self.shift,
            self.residual,
            self.residual_scale,
            self.residual_shift,
        )

    @property
    def finished(self) -> bool:
        return self.scale is None and self.residual is None and self.activation == "identity"

    @property
    def takes_more(self) -> bool:
        """True where a sum can still be added before the activation."""
        return self.residual is None and self.activation == "identity"


@dataclass(frozen=True, slots=True)
class _Known:
    """The statistics of a raw value, and the bias that was left out of it."""

    mean: Value
    variance: Value
    bias: Value | None = None


@dataclass
class _Lowering:
    """A graph under way.

    Attributes:
        old, new: the network, and what is made of it.
        lazy: what the new graph has for the old graph's values.
        known: of the new graph's raw values.
        norms: the batch norms that learn, each with mean and variance.
        unfused: by op of the new graph.
        left: how many readers of an old value are still to come.
    """

    old: Graph
    new: Graph
    lazy: dict[Value, _Lazy] = field(default_factory=dict)
    known: dict[Value, _Known] = field(default_factory=dict)
    norms: list[tuple[RunningNorm, Value, Value]] = field(default_factory=list)
    unfused: dict[Op, Unfused] = field(default_factory=dict)
    left: dict[Value, int] = field(default_factory=dict)

    def run(self) -> None:
        """Lower the network op by op."""
        for value in self.old.inputs:
            self.lazy[value] = _Lazy(self.new.add_input(value.name, value.type))
        for op in self.old.ops:
            for value in op.inputs:
                self.left[value] = self.left.get(value, 0) + 1
        for op in self.old.ops:
            if not any(
                step(op)
                for step in (
                    self.norm,
                    self.conv,
                    self.activation,
                    self.sum,
                    self.pool,
                    self.dropout,
                )
            ):
                self.keep(op, "no kernel does it")
            for value in op.inputs:
                self.left[value] -= 1

    # Values

    def value(self, old: Value) -> Value:
        """Return the new graph's value for a finished one."""
        if old.is_weight:
            return self.new.params.get(old.name) or self.new.add_param(old.name, old.type, old.kind)
        lazy = self.lazy[old]
        if not lazy.finished:
            made = self.add(
                "add_act",
                lazy.operands,
                {"activation": lazy.activation},
                [(old.name, old.type)],
                old,
            )
            lazy = self.lazy[old] = _Lazy(made.result)
        return lazy.raw

    def add(
        self,
        name: str,
        operands: tuple[Operand, ...],
        attrs: Mapping[str, Attr],
        results: list[tuple[str, TensorType]],
        old: Value,
    ) -> Op:
        """Put a fused op in the place of the one that made ``old``."""
        assert old.producer is not None
        named = [(self.new.fresh_name(stem), type_) for stem, type_ in results]
        return self.new.add_op(f"pruneopt.{name}.default", operands, attrs, named, old.producer.loc)

    # Ops

    def norm(self, op: Op) -> bool:
        """Turn a batch norm into a scale and a shift."""
        norm = running_norm(op)
        if norm is None or norm.source.type.rank != 4 or len(op.results) != 1:
            return False
        raw, result = self.value(norm.source), op.result
        vector = TensorType(norm.mean.type.dtype, norm.mean.type.dims)
        if norm.learns:
            found = self.known.get(raw) or self._measured(norm, raw, vector)
            self.norms.append((norm, self._shifted(found, op), found.variance))
        else:
            found = _Known(self.value(norm.mean), self.value(norm.variance))
        gamma, beta = (
            None if item is None else self.value(item) for item in (norm.scale, norm.shift)
        )
        affine = self.add(
            "norm_affine",
            (found.mean, found.variance, gamma, beta),
            {"eps": norm.eps},
            [("scale", vector), ("shift", vector)],
            result,
        )
        self.lazy[result] = _Lazy(raw, affine.results[0], affine.results[1])
        return True

    def _measured(self, norm: RunningNorm, raw: Value, vector: TensorType) -> _Known:
        """Return the statistics of a value that no convolution made, such as a concatenation."""
        made = self.add(
            "statistics", (raw,), {}, [("mean", vector), ("variance", vector)], norm.op.result
        )
        self.unfused[made] = Unfused(
            norm.op, "its statistics take a pass of their own: no kernel makes its input"
        )
        self.known[raw] = _Known(*made.results)
        return self.known[raw]

    def _shifted(self, found: _Known, op: Op) -> Value:
        """Return the mean that is learnt: a bias cancels in a batch norm, but is part of that."""
        if found.bias is None:
            return found.mean
        results = [(self.new.fresh_name("mean"), found.mean.type)]
        return self.new.add_op(
            "aten.add.Tensor", (found.mean, found.bias), {"alpha": 1}, results, op.loc
        ).result

    def conv(self, op: Op) -> bool:
        """Write a convolution in front of a batch norm, on an input that is finished while it is
        loaded."""
        if not is_conv2d(op):
            return False
        why = self._unfit(op)
        if why is not None:
            self.keep(op, why)
            return True
        old, out, bias = op.needed(0), op.result, op.value(2)
        source = self._read(op, old)
        vector = TensorType(out.type.dtype, (out.type.dims[1],))
        made = self.add(
            "conv_statistics",
            (*source.operands, self.value(op.needed(1))),
            {"activation": source.activation, **{key: op.attrs[key] for key in GEOMETRY}},
            [
                (out.name, out.type),
                ("mean", vector),
                ("variance", vector),
                (f"{old.name}_finished", old.type),
            ],
            out,
        )
        raw, mean, variance, finished = made.results
        if self._shared(op, old, source):
            self.lazy[old] = _Lazy(
                finished
            )  # written once, on the way, for the readers that are still to come
        self.known[raw] = _Known(mean, variance, None if bias is None else self.value(bias))
        self.lazy[out] = _Lazy(raw)
        return True

    def _unfit(self, op: Op) -> str | None:
        """Return why no kernel does a convolution; None where one does."""
        why = unfit(op)
        if why is not None:
            return why
        users = op.result.users
        norm = running_norm(users[0]) if len(users) == 1 else None
        if norm is None or not norm.learns or op.result in self.old.output_values:
            return "no batch norm alone reads it"
        return None

    def _read(self, op: Op, old: Value) -> _Lazy:
        """Return how a convolution reads its input: unfinished, unless a sum would be made again by
        every reader."""
        if old.is_weight or (
            self.lazy[old].residual is not None and self.left[old] > 1 and not _same_pixels(op)
        ):
            return _Lazy(self.value(old))
        return self.lazy[old]

    def _shared(self, op: Op, old: Value, source: _Lazy) -> bool:
        """Return whether a convolution should write its finished input, as others would have to
        make it again."""
        if source.finished or self.left[old] < 2 or not _same_pixels(op):
            return False
        return source.residual is not None or not all(is_conv2d(user) for user in old.users)

    def activation(self, op: Op) -> bool:
        """Leave an activation behind a batch norm or a sum to the readers."""
        name = activation_name(op)
        source = op.value(0)
        lazy = self.lazy.get(source) if source is not None else None
        if name is None or lazy is None or lazy.finished or lazy.activation != "identity":
            return False
        self.lazy[op.result] = replace(lazy, activation=name)
        return True

    def sum(self, op: Op) -> bool:
        """Leave a residual sum to the readers, where one side is a batch norm's result."""
        left, right = op.value(0), op.value(1)
        if not is_residual_sum(op) or left is None or right is None or op.result.type.rank != 4:
            return False
        for one, other in ((left, right), (right, left)):
            first, second = self.lazy.get(one), self.lazy.get(other)
            if (
                first is not None
                and second is not None
                and first.takes_more
                and first.scale is not None
            ):
                if not second.takes_more:
                    second = _Lazy(self.value(other))
                self.lazy[op.result] = replace(
                    first,
                    residual=second.raw,
                    residual_scale=second.scale,
                    residual_shift=second.shift,
                )
                return True
        return False

    def pool(self, op: Op) -> bool:
        """Return the mean over all pixels."""
        source = op.value(0)
        lazy = self.lazy.get(source) if source is not None else None
        if lazy is None or lazy.finished or not is_mean_of_pixels(op):
            return False
        out = op.result
        made = self.add(
            "mean_pixels",
            lazy.operands,
            {"activation": lazy.activation},
            [(out.name, out.type)],
            out,
        )
        self.lazy[out] = _Lazy(made.result)
        return True

    def dropout(self, op: Op) -> bool:
        """Leave out dropout, which drops nothing in this pass."""
        source = op.value(0)
        if source is None or source not in self.lazy or not is_idle_dropout(op):
            return False
        self.lazy[op.result] = self.lazy[source]
        return True

    def keep(self, op: Op, why: str) -> None:
        """Write an op as it is, on finished inputs."""
        operands = mapped(op.operands, self.value)
        results = [(self.new.fresh_name(value.name), value.type) for value in op.results]
        made = self.new.add_op(op.target, operands, op.attrs, results, op.loc)
        for old, value in zip(op.results, made.results, strict=True):
            self.lazy[old] = _Lazy(value)
        self.unfused[made] = Unfused(op, why)


def lower_statistics(graph: Graph) -> LoweredStatistics:
    """Return the statistics pass of a network in fused operations; ``graph`` is not changed.

    Raises:
        UserError: no batch norm over images learns.
    """
    lowering = _Lowering(graph, Graph(f"{graph.name}_statistics"))
    lowering.run()
    if not lowering.norms:
        raise UserError(
            f"{graph.name} has no batch norm over images whose statistics can be recomputed"
        )
    new = lowering.new
    new.outputs = tuple(value for _, *pair in lowering.norms for value in pair)
    new.erase_dead()
    unfused = (found for op in new.ops if (found := lowering.unfused.get(op)) is not None)
    return LoweredStatistics(new, tuple(norm for norm, _, _ in lowering.norms), tuple(unfused))


def _same_pixels(op: Op) -> bool:
    """Return whether a convolution reads every pixel once at its own place, so that it can write
    the finished input."""
    size = op.needed(1).type.shape()[2:]
    stride, padding, dilation = (op.attrs[key] for key in GEOMETRY[:3])
    if not (
        isinstance(stride, tuple) and isinstance(padding, tuple) and isinstance(dilation, tuple)
    ):
        return False
    middle = tuple((k - 1) * d for k, d in zip(size, dilation, strict=True) if isinstance(d, int))
    return stride == (1, 1) and tuple(2 * p for p in padding if isinstance(p, int)) == middle
