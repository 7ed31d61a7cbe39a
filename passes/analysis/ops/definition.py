"""All that is known of an op, in one value: its family states it, and every pass asks for it.

A pass compares no op with a name. It asks `table.definition_of(op)` for what it needs to know, and
gets the same answer for a user's op that was declared to be like one of PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from pruneopt.ir.graph import Op
from pruneopt.passes.analysis.channels.labels import Labels
from pruneopt.passes.analysis.channels.layer_weight import LayerWeight
from pruneopt.passes.analysis.ops.count import Count
from pruneopt.passes.analysis.ops.resize import SlicedOp

__all__ = ["OpDefinition", "Rule", "Trait"]

Rule = Callable[[Labels, Op], None]
"""How labels pass through an op: gives its results their labels, and unites or freezes others."""


class Trait(Enum):
    """A property that passes ask for where no more than a yes or no is needed."""

    CONVOLUTION = auto()
    """A convolution of operand 0 with the weight in operand 1, transposed or not."""
    LINEAR = auto()
    """`nn.Linear`: the last axis of operand 0 meets the weight ``[outputs, inputs]``."""
    MATRIX_PRODUCT = auto()
    """A product of two matrices or vectors, either of which may be a weight."""
    COUNTED_AS_LAYER = auto()
    """A layer to every convention of FLOPs that counts layers alone."""
    CONTRACTS_OPERANDS = auto()
    """Operands are multiplied with each other and summed over channels: for the proof, removed
    elements of each count as zero."""
    BATCH_NORM = auto()
    """Operands are the input, scale, shift, running mean and running variance."""
    NORM = auto()
    """Subtracts a mean or divides by a deviation, over any axes."""
    ACTIVATION = auto()
    """A non-linear function of single elements of operand 0."""
    ADD = auto()
    """A sum of two tensors; ``alpha``, where it is given, scales the second."""
    CONCATENATION = auto()
    """Puts tensors beside each other along an axis that they have."""
    VIEW = auto()
    """The elements of operand 0, in their order, in another shape."""
    SPLIT = auto()
    """Cuts a tensor along one axis into several results."""
    ADAPTIVE_MEAN = auto()
    """The mean over bins of places; ``output_size`` says how many bins."""
    DROPOUT = auto()
    """Drops single elements in training, and nothing in evaluation mode."""
    RANDOM = auto()
    """Draws numbers whatever the mode: the pruned network gets the kept ones of the original's."""
    UNWRITTEN = auto()
    """The result holds whatever lay in memory: there is nothing to compare."""


def _nothing(op: Op) -> tuple[()]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OpDefinition:
    """Everything that is known of one op.

    Attributes:
        rule: how labels pass through it; None freezes what it touches.
        layers: the weights that it contracts its input with: one for a layer, several for a
            recurrence, none for a product of activations and for other ops.
        macs: its multiply-accumulates, from which every convention of FLOPs is made; what counts
            nothing here (element-by-element ops) has none.
        window: the values that pooling windows read.
        resize: re-makes the sizes written out in it after slicing.
        traits: its further properties.
        needs: the arguments that a user's op must have to be declared like it; None where none can
            be.
    """

    rule: Rule | None = None
    layers: Callable[[Op], tuple[LayerWeight, ...]] = _nothing
    macs: Callable[[Op], Sequence[Count]] = _nothing
    window: Callable[[Op], Sequence[Count]] = _nothing
    resize: Callable[[SlicedOp], None] | None = None
    traits: frozenset[Trait] = frozenset()
    needs: tuple[str, ...] | None = None
