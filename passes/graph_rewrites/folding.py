"""Batch norms with fixed statistics, folded into the layers before them.

The same function, with fewer passes over memory.

Only for scoring in evaluation mode. What is delivered keeps its batch norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.types import TensorType
from pruneopt.passes.analysis.ops.batch_norm import RunningNorm, running_norm
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.layers import layer_weight
from pruneopt.passes.analysis.ops.table import computes

__all__ = ["FoldedGraph", "fold_batch_norms"]


@dataclass(frozen=True, slots=True)
class _Pair:
    """A layer and the batch norm behind it, by the names of their weights (None: it has none)."""

    weight: str
    bias: str | None
    scale: str | None
    shift: str | None
    mean: str
    variance: str
    eps: float
    folded_weight: str
    folded_bias: str


@dataclass(frozen=True)
class FoldedGraph:
    """A graph without the batch norms that follow a layer, and how its weights are made."""

    graph: Graph
    pairs: tuple[_Pair, ...]

    def weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the folded graph's weights from the original's, in their precision.

        ``w' = w g / sqrt(var + eps)`` and ``b' = (b - mean) g / sqrt(var + eps) + beta``, per
        output channel.
        """
        found = {name: weights[name] for name in self.graph.params if name in weights}
        for pair in self.pairs:
            weight, mean = weights[pair.weight], weights[pair.mean]
            factor = torch.rsqrt(weights[pair.variance] + pair.eps)
            if pair.scale is not None:
                factor = factor * weights[pair.scale]
            bias = (weights[pair.bias] if pair.bias is not None else 0) - mean
            bias = bias * factor + (weights[pair.shift] if pair.shift is not None else 0)
            found[pair.folded_weight] = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
            found[pair.folded_bias] = bias
        return found


def fold_batch_norms(graph: Graph) -> FoldedGraph:
    """Fold every batch norm into the convolution or linear layer that only it reads.

    ``graph`` is not changed; the new one is for evaluation mode.
    """
    new = graph.copy()
    outputs = set(new.output_values)
    pairs = []
    for op in new.ops:
        norm = running_norm(op)
        layer = None if norm is None else _layer_before(norm)
        if norm is not None and layer is not None and layer.result not in outputs:
            pairs.append(_fold(new, layer, norm))
    new.erase_dead()
    new.weights = {}
    return FoldedGraph(new, tuple(pairs))


def _layer_before(norm: RunningNorm) -> Op | None:
    """Return the layer that a batch norm can be folded into."""
    layer = norm.source.producer
    if layer is None or norm.source.users != (norm.op,) or len(norm.op.results) != 1:
        return None
    if not _is_foldable(layer):
        return None
    read = [layer.value(1), layer.value(2), norm.scale, norm.shift, norm.mean, norm.variance]
    return layer if all(value is None or value.is_weight for value in read) else None


def _is_foldable(layer: Op) -> bool:
    """Return whether an op is a layer with a row of weights for every channel of axis 1."""
    if not (computes(layer, Trait.CONVOLUTION) or computes(layer, Trait.LINEAR)):
        return False
    weight = layer_weight(layer)
    if weight is None or weight.contraction is None:
        return False
    # Behind a linear layer over several positions, a batch norm's channels are the positions.
    return (weight.out_axis, weight.in_axis, weight.contraction.result_axis) == (0, 1, 1)


def _fold(graph: Graph, layer: Op, norm: RunningNorm) -> _Pair:
    def name_of(value: Value | None) -> str | None:
        return None if value is None else value.name

    weight, result = layer.needed(1), norm.op.result
    stem = f"{result.name}.folded"
    folded_weight = graph.add_param(f"{stem}_weight", weight.type)
    folded_bias = graph.add_param(
        f"{stem}_bias", TensorType(weight.type.dtype, norm.mean.type.dims)
    )
    pair = _Pair(
        weight.name,
        name_of(layer.value(2)),
        name_of(norm.scale),
        name_of(norm.shift),
        norm.mean.name,
        norm.variance.name,
        norm.eps,
        folded_weight.name,
        folded_bias.name,
    )
    graph.set_operand(layer, 1, folded_weight)
    graph.set_operand(layer, 2, folded_bias)
    graph.replace_uses(result, layer.result)
    graph.erase(norm.op)
    return pair
