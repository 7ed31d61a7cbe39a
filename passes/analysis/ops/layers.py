"""Find the weights that an op contracts its input with."""

from __future__ import annotations

from pruneopt.ir.graph import Op
from pruneopt.passes.analysis.channels.layer_weight import LayerWeight
from pruneopt.passes.analysis.ops.table import definition_of

__all__ = ["LayerWeight", "layer_weight", "layer_weights"]


def layer_weight(op: Op) -> LayerWeight | None:
    """Return the weight of a layer; None for other ops, for products of activations, and for
    recurrences, which have several."""
    found = definition_of(op).layers(op)
    return found[0] if len(found) == 1 else None


def layer_weights(op: Op) -> tuple[LayerWeight, ...]:
    """Return the weights that an op contracts its input with: one for a layer, several for a
    recurrence (from inputs to gates, from hidden channels to gates, projections), none for other
    ops."""
    return definition_of(op).layers(op)
