"""A layer's weight, and which of its axes makes channels and which reads them."""

from __future__ import annotations

from dataclasses import dataclass

from pruneopt.ir.graph import Value

__all__ = ["Contraction", "LayerWeight"]


@dataclass(frozen=True, slots=True)
class Contraction:
    """The place where a layer's weight meets its one input.

    Attributes:
        operand: the number of the operand that the weight is contracted with.
        axis: the axis of that operand which is summed over.
        result_axis: the axis of the op's result along which the output channels lie.
        bias: the number of the operand that is the bias; None where the op has no place for one.
    """

    operand: int
    axis: int
    result_axis: int
    bias: int | None = None


@dataclass(frozen=True, slots=True)
class LayerWeight:
    """A weight (it may be computed) that an op contracts its input with.

    Attributes:
        value: the weight.
        out_axis: the axis of its output channels.
        in_axis: the axis that meets the input channels; None for an embedding, which picks rows.
        contraction: where it meets its input; None for an embedding, and where it meets several.
    """

    value: Value
    out_axis: int
    in_axis: int | None
    contraction: Contraction | None = None

    def makes(self, axes: tuple[int, ...]) -> bool:
        """Return whether labels over ``axes`` of the weight are those of its output channels.

        Those of a grouped transposed convolution lie along both axes: (groups, outputs of one
        group).
        """
        return axes[-1] == self.out_axis
