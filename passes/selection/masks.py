"""Masks: single weights that stay at zero, where whole channels stay.

A mask has the shape of its weight and is True where the weight stays. Weights are multiplied by
their masks once, when they are pruned, and after every step of any training that follows
(`training.keep_masks`). A network with masks is as large and as slow as before: what counts is how
many of its weights are zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from pruneopt.errors import UserError, VerificationError
from pruneopt.files import atomic_path
from pruneopt.ir.graph import Graph
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.residual.stage_numbers import staged_layers
from pruneopt.passes.graph_rewrites.slice import slice_weights
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.selection.set_plan import set_plan

__all__ = [
    "MASKS",
    "LayerSparsity",
    "Sparsity",
    "check_masks",
    "check_saved_masks",
    "deliver",
    "masked",
    "save_masks",
    "slice_masks",
    "sparsity",
]

MASKS = "masks.safetensors"


def masked(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with zeros where a mask is False (copies, where there is a mask).

    Raises:
        UserError: a mask of no weight, or of another shape.
    """
    for name, mask in masks.items():
        if name not in weights or mask.shape != weights[name].shape:
            raise UserError(
                f"the mask of {name} does not fit: the network has no such weight of shape "
                f"{mask.shape}"
            )
    return {
        # Not a product: zero times infinity is no zero.
        name: torch.where(masks[name].to(tensor.device), tensor, torch.zeros_like(tensor))
        if name in masks
        else tensor
        for name, tensor in weights.items()
    }


# In a run of passes


def deliver(state: State, plan: Mapping[str, np.ndarray], masks: Mapping[str, Tensor]) -> bool:
    """Write a plan and masks, beside earlier ones, into the state, with the sparsity they leave.

    Returns that the graph changed.
    """
    set_plan(state, plan)
    # What an earlier pass has masked stays at zero, whatever this one takes.
    earlier, unmasked = state.masks or {}, state.unmasked or {}
    both = {
        name: masks[name] & earlier[name].to(masks[name].device)
        for name in masks.keys() & earlier.keys()
    }
    weights = state.graph.weights
    state.masks = {**earlier, **masks, **both}
    state.unmasked = {
        name: unmasked.get(name, weights[name]) for name in state.masks if name in weights
    }
    state.graph.weights = masked(weights, state.masks)
    state.records["masks"] = sparsity(state.graph, state.masks)
    return True


def slice_masks(
    coupling: Coupling, kept: np.ndarray, masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the masks of what stays when channels are cut too; ``kept`` is a boolean per unit."""
    return slice_weights(coupling, kept, masks)


def check_masks(state: State) -> None:
    """Prove that masked weights of the cut network are zero, and the others as before masking.

    Where the network was trained between masking and cutting there is nothing to compare the others
    with; then only the zeros are proved.

    Raises:
        VerificationError: a weight that is not as it should be.
    """
    weights, coupling = state.graph.weights, state.need_coupling()
    kept = coupling.kept_units(state.plan or {})
    before = None if state.unmasked is None else slice_weights(coupling, kept, state.unmasked)
    for name, mask in (state.masks or {}).items():
        tensor = weights[name]
        stays = mask.to(tensor.device)
        if bool((tensor[~stays] != 0).any()):
            raise VerificationError(f"masked elements of {name} are not zero; nothing is delivered")
        if before is not None and not torch.equal(
            tensor[stays], before[name].to(tensor.device)[stays]
        ):
            raise VerificationError(
                f"elements of {name} that its mask keeps have changed; nothing is delivered"
            )


# What it comes to


@dataclass(frozen=True, slots=True)
class LayerSparsity:
    """How many weights a layer has, and how many of them its mask holds at zero."""

    name: str
    weights: int
    zeros: int

    @property
    def share(self) -> float:
        """Zeros over weights."""
        return self.zeros / self.weights


@dataclass(frozen=True, slots=True)
class Sparsity:
    """The sparsity of all weights of convolutions and linear layers, and by layer."""

    weights: int
    zeros: int
    layers: tuple[LayerSparsity, ...]

    @property
    def share(self) -> float:
        """Zeros over weights."""
        return self.zeros / self.weights if self.weights else 0.0


def sparsity(graph: Graph, masks: Mapping[str, Tensor]) -> Sparsity:
    """Return what masks come to in a graph (cut or not, as the masks are)."""
    layers = []
    for place in staged_layers(graph).layers:
        name = place.weight.name
        zeros = int((~masks[name]).sum()) if name in masks else 0
        layers.append(LayerSparsity(place.module, int(np.prod(place.weight.type.shape())), zeros))
    return Sparsity(
        sum(layer.weights for layer in layers), sum(layer.zeros for layer in layers), tuple(layers)
    )


# In files


def save_masks(path: Path, masks: Mapping[str, Tensor]) -> None:
    """Write masks as booleans by the names of their weights; whole or not at all."""
    content = {name: mask.cpu().contiguous().clone() for name, mask in masks.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(content, {"format": "pruneopt-masks"}))


def check_saved_masks(folder: Path, masks: Mapping[str, Tensor]) -> None:
    """Load the masks of a bundle back and hold its weights to them.

    Raises:
        VerificationError: masks that are not those given, or a masked weight that is not zero.
    """
    found = safetensors.torch.load_file(folder / MASKS)
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    if found.keys() != masks.keys():
        raise VerificationError("it holds masks of other weights")
    for name, mask in masks.items():
        if found[name].dtype != torch.bool or not torch.equal(found[name], mask.cpu()):
            raise VerificationError(f"its mask of {name} is another one")
        if bool((weights[name][~found[name]] != 0).any()):
            raise VerificationError(f"weights that it masks in {name} are not zero")
