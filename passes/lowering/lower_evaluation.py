"""Lowering a network in evaluation mode onto the fused operations of `kernels.library`.

Batch norms are folded into the layers before them already (`graph_rewrites.folding`). A convolution
takes the residual sum and the activation behind it along: what comes out is finished and written
once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pruneopt.ir.graph import Graph, Op, Operand, Value, map_structure
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

__all__ = ["LoweredEvaluation", "lower_evaluation"]


@dataclass(frozen=True)
class LoweredEvaluation:
    """A graph that computes what the network does in evaluation mode.

    Attributes:
        graph: its weights are the network's.
        unfused: what no kernel does.
    """

    graph: Graph
    unfused: tuple[Unfused, ...]


@dataclass(frozen=True, slots=True)
class _Open:
    """A convolution that is not written yet, as more may join it."""

    conv: Op
    residual: Value | None = None


@dataclass
class _Lowering:
    """A graph under way: what the new graph has for the old graph's values."""

    old: Graph
    new: Graph
    done: dict[Value, Value] = field(default_factory=dict)
    open: dict[Value, _Open] = field(default_factory=dict)
    unfused: dict[Op, Unfused] = field(default_factory=dict)

    def run(self) -> None:
        """Lower the network op by op."""
        for value in self.old.inputs:
            self.done[value] = self.new.add_input(value.name, value.type)
        for op in self.old.ops:
            if not any(
                step(op) for step in (self.conv, self.sum, self.activation, self.pool, self.dropout)
            ):
                self.keep(op, "no kernel does it")
        self.new.outputs = map_structure(self.value, self.old.outputs)

    def value(self, old: Value) -> Value:
        """Return the new graph's value; what is still open is written now."""
        if old.is_weight:
            return self.new.params.get(old.name) or self.new.add_param(old.name, old.type, old.kind)
        if old in self.open:
            self.write(old, self.open.pop(old), "identity")
        return self.done[old]

    def write(self, old: Value, found: _Open, activation: str) -> None:
        """Write the convolution that makes ``old``, with all that joined it."""
        conv, producer = found.conv, old.producer
        assert producer is not None
        read = [conv.needed(0), conv.needed(1), conv.value(2), found.residual]
        operands: tuple[Operand, ...] = tuple(
            None if value is None else self.value(value) for value in read
        )
        attrs = {"activation": activation, **{name: conv.attrs[name] for name in GEOMETRY}}
        results = [(self.new.fresh_name(old.name), old.type)]
        self.done[old] = self.new.add_op(
            "pruneopt.conv_output.default", operands, attrs, results, conv.loc
        ).result

    def conv(self, op: Op) -> bool:
        """Return a convolution, left open for what may join it."""
        if not is_conv2d(op):
            return False
        bias = op.value(2)
        why = unfit(op) or (None if bias is None or bias.is_weight else "its bias is computed")
        if why is None:
            self.value(op.needed(0))  # what it reads is written before anything joins it
            self.open[op.result] = _Open(op)
        else:
            self.keep(op, why)
        return True

    def joins(self, value: Value | None) -> _Open | None:
        """Return the open convolution that makes a value, if nothing else reads it."""
        if value is None or len(value.users) != 1 or value in self.old.output_values:
            return None
        return self.open.get(value)

    def sum(self, op: Op) -> bool:
        """Let a residual sum join the convolution on one of its sides, the later one where both
        are."""
        left, right = op.value(0), op.value(1)
        if not is_residual_sum(op) or left is None or right is None:
            return False
        for one, other in ((right, left), (left, right)):
            found = self.joins(one)
            if (
                found is not None
                and found.residual is None
                and one is not other
                and not other.is_weight
            ):
                del self.open[one]
                self.value(other)
                self.open[op.result] = replace(found, residual=other)
                return True
        return False

    def activation(self, op: Op) -> bool:
        """Let an activation end a convolution."""
        name, source = activation_name(op), op.value(0)
        found = self.joins(source)
        if name is None or found is None or source is None:
            return False
        del self.open[source]
        self.write(op.result, found, name)
        return True

    def pool(self, op: Op) -> bool:
        """Return the mean over all pixels."""
        source = op.value(0)
        if source is None or not is_mean_of_pixels(op):
            return False
        operands = (self.value(source), *[None] * 5)
        results = [(self.new.fresh_name(op.result.name), op.result.type)]
        made = self.new.add_op(
            "pruneopt.mean_pixels.default", operands, {"activation": "identity"}, results, op.loc
        )
        self.done[op.result] = made.result
        return True

    def dropout(self, op: Op) -> bool:
        """Leave out dropout, which drops nothing in evaluation mode."""
        source = op.value(0)
        if source is None or not is_idle_dropout(op):
            return False
        self.done[op.result] = self.value(source)
        return True

    def keep(self, op: Op, why: str) -> None:
        """Write an op as it is."""
        operands = mapped(op.operands, self.value)
        results = [(self.new.fresh_name(value.name), value.type) for value in op.results]
        made = self.new.add_op(op.target, operands, op.attrs, results, op.loc)
        self.done.update(zip(op.results, made.results, strict=True))
        self.unfused[made] = Unfused(op, why)


def lower_evaluation(graph: Graph) -> LoweredEvaluation:
    """Return a network in evaluation mode in fused operations.

    ``graph``, whose batch norms are folded, is not changed.
    """
    lowering = _Lowering(graph, Graph(f"{graph.name}_evaluation"))
    lowering.run()
    unfused = tuple(
        found for op in lowering.new.ops if (found := lowering.unfused.get(op)) is not None
    )
    return LoweredEvaluation(lowering.new, unfused)
