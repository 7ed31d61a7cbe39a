"""Slicing: from a plan to a smaller graph.

Weights are gathered by the kept units; sizes, groups, paddings and shapes written into the graph
are re-made from the new types, which the labels determine, as the op's definition says. Channels
that are removed are dropped: what they contributed is folded nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from pruneopt.ir.graph import Graph
from pruneopt.passes.analysis.channels.groups import Coupling, Plan
from pruneopt.passes.analysis.channels.sizes import KeptSizes
from pruneopt.passes.analysis.ops.resize import SlicedOp, resize_declared
from pruneopt.passes.analysis.ops.table import definition_of

__all__ = ["slice_graph", "slice_weights"]


def slice_weights(
    coupling: Coupling, kept: np.ndarray, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the weights without the elements of removed units (copies; ``kept`` is a boolean per
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
    """Return the graph and weights that are left when only the plan's units stay. ``graph`` is not
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
            resize = definition_of(op).resize
            site = SlicedOp(new, op, old_op, coupling, kept)
            if resize is not None:
                resize(site)
            resize_declared(site)
    if graph.weights:
        made = {name: new.weights[name] for name in new.params if name not in graph.params}
        new.weights = {**slice_weights(coupling, kept, graph.weights), **made}
    return new
