"""2:4 sparsity: of every four weights that one output adds up, the two largest stay.

NVIDIA GPUs from compute capability 8.0 on multiply such matrices at up to twice the rate
("Accelerating Sparse Deep Neural Networks", Mishra et al. 2021, arXiv 2104.08378). What is made
here are masks; `to_semi_structured` turns the linear layers of a masked network into the form that
these GPUs read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.passes.analysis.channels.naming import is_within
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.layers import layer_weight
from pruneopt.passes.analysis.ops.table import definition_of
from pruneopt.passes.analysis.residual.stage_numbers import StagedLayer, staged_layers
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.selection.masks import deliver
from pruneopt.passes.selection.weight_counts import check_weight_budgets, keeping_all

__all__ = ["TwoOfFour", "is_two_of_four", "prune_two_of_four", "to_semi_structured", "two_of_four"]

CAPABLE = (8, 0)
"""The first compute capability with sparse matrix units."""


@dataclass(frozen=True, slots=True)
class TwoOfFour:
    """Which layers were masked, and why others were not."""

    masked: tuple[str, ...]
    left: tuple[str, ...]


def two_of_four(weight: Tensor) -> Tensor:
    """Return the mask of a weight `[out, ...]`: the two largest of four neighbours in a row stay.

    A row is the weight of one output, flattened: `in * kh * kw` of a convolution. Of equal weights
    the first stay.

    Raises:
        UserError: rows that are not made of fours.
    """
    rows = weight.detach().reshape(weight.shape[0], -1)
    if rows.shape[1] % 4:
        raise UserError(
            f"rows of {rows.shape[1]} weights are not made of fours: 2:4 sparsity does not apply"
        )
    fours = rows.abs().reshape(-1, 4)
    order = torch.argsort(fours, dim=1, descending=True, stable=True)
    mask = torch.zeros_like(fours, dtype=torch.bool)
    return mask.scatter_(1, order[:, :2], True).reshape(weight.shape)


def is_two_of_four(weight: Tensor) -> bool:
    """Return whether at most two of every four neighbours along the rows are not zero."""
    rows = weight.detach().reshape(weight.shape[0], -1)
    return rows.shape[1] % 4 == 0 and bool(((rows != 0).reshape(-1, 4).sum(1) <= 2).all())


def prune_two_of_four(state: State) -> bool:
    """Mask every convolution and linear layer whose rows are made of fours.

    Returns that the graph changed.

    Raises:
        BudgetError: a budget on parameters that this does not meet.
        UserError: a budget on anything else, or no layer that can be masked.
    """
    ignore = keeping_all(state)
    masks: dict[str, Tensor] = {}
    masked: list[str] = []
    left: list[str] = []
    for place in staged_layers(state.need_coupling().graph).layers:
        why = _obstacle(place, ignore)
        if why is None:
            masks[place.weight.name] = two_of_four(state.graph.weights[place.weight.name])
            masked.append(place.module)
        else:
            left.append(f"{place.module}: {why}")
    if not masks:
        raise UserError(
            f"{state.graph.name} has no layer whose rows are made of fours: 2:4 sparsity does not "
            "apply"
        )
    check_weight_budgets(state, sum(int((~mask).sum()) for mask in masks.values()))
    state.records["2:4"] = TwoOfFour(tuple(masked), tuple(left))
    return deliver(
        state, {group.name: np.arange(group.width) for group in state.need_coupling().free}, masks
    )


def _obstacle(place: StagedLayer, ignore: tuple[str, ...]) -> str | None:
    """Return why a layer cannot be masked; None where it can."""
    name = place.weight.name
    if any(is_within(name, item) for item in ignore):
        return "ignored by request"
    layer = layer_weight(place.op)
    # The rows of other layers do not lie one after the other.
    has_rows = definition_of(place.op).traits & {Trait.CONVOLUTION, Trait.LINEAR}
    if layer is None or layer.out_axis != 0 or not has_rows:
        return f"{place.op.base} has no rows in memory"
    shape = place.weight.type.shape()
    length = int(np.prod(shape[1:]))
    return f"its rows have {length} weights" if length % 4 else None


def to_semi_structured(module: nn.Module, dtype: torch.dtype = torch.float16) -> list[str]:
    """Turn the weights of 2:4 sparse `nn.Linear` layers, in place, into the form that sparse matrix
    units read.

    Call it on a delivered network (`Result.module`, or the bundle's `model.py`) on its GPU. The
    network is moved to ``dtype``, for which these units exist; it can then be run, not trained.
    Convolutions stay as they are.

    Args:
        dtype: float16 or bfloat16.

    Returns:
        The names of the layers that were turned.

    Raises:
        UserError: no GPU of compute capability 8.0 or newer, another dtype, or no layer that is 2:4
            sparse.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        raise UserError(f"sparse matrix units read float16 and bfloat16, not {dtype}")
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABLE:
        raise UserError(
            "2:4 sparse matrices need the network on an NVIDIA GPU of compute capability 8.0 or "
            "newer"
        )
    sparse = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    sparse = [(name, part) for name, part in sparse if is_two_of_four(part.weight)]
    if not sparse:
        raise UserError(
            "no linear layer of this network is 2:4 sparse: prune it with granularity=2:4"
        )
    module.to(dtype)
    found = []
    for name, part in sparse:
        # The units read blocks of 32 rows and 64 columns.
        if part.out_features % 32 == 0 and part.in_features % 64 == 0:
            weight = torch.sparse.to_sparse_semi_structured(part.weight.detach())
            part.weight = nn.Parameter(weight, requires_grad=False)
            found.append(name)
    return found
