"""Train the cut network from scratch: new weights as fresh layers have, and a full training.

MetaPruning trains the structure it found from scratch and inherits nothing. The proof of the cut
comes before, on the weights that the structure was cut from. New weights and training are one pass:
a run that is stopped in between leaves the cut network and not an untrained one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph
from pruneopt.models.workload import seeded
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.residual.hypernet_blocks import layer_places
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.state import State, without_data
from pruneopt.passes.training.recipe import SGD, Recipe
from pruneopt.passes.training.stage import train_state

__all__ = ["SCRATCH", "Scratch", "decayed_by_role", "fresh_weights"]

SCRATCH = SGD(
    epochs=256,
    lr=0.0625,
    weight_decay=4e-5,
    batch_size=128,
    schedule="linear",
    every="epoch",
    label_smoothing=0.1,
    decay_norm=False,
)
"""MetaPruning's final training of MobileNets, with the published rate of 0.5 for batches of 1024
scaled to 128."""


def fresh_weights(graph: Graph, seed: int) -> tuple[dict[str, Tensor], list[str]]:
    """Return new weights for the layers of a graph, and the parameters that belong to no layer.

    The layers are those of the module that the graph generates, and each is initialised by its own
    class (`reset_parameters`): convolutions and linear layers uniformly within 1 / sqrt(fan in),
    norms to 1 and 0 with fresh statistics. The same seed gives the same weights.

    Returns:
        Weights by name (parameters and buffers of layers), and the names of parameters that no
        layer initialises.
    """
    module = build_module(graph, graph.weights).cpu()
    fresh: set[str] = set()
    with seeded(seed):
        for prefix, part in module.named_modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
                own = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
                fresh.update(f"{prefix}.{name}" for name, _ in own)
    state = module.state_dict()
    bare = [
        name for name, value in graph.params.items() if value.kind == "param" and name not in fresh
    ]
    return {name: state[name] for name in graph.weights if name in fresh and name in state}, bare


def decayed_by_role(coupling: Coupling) -> set[str]:
    """Return the parameters that MetaPruning's final training decays: of all convolutions and
    linear layers but depthwise ones, the projections of inverted residuals, and shortcuts.

    The published code picks them by name; the roles are what the names have in common.
    """
    names: set[str] = set()
    for place in layer_places(coupling):
        if place.role not in ("depthwise", "project", "shortcut"):
            names.update(value.name for value in place.op.inputs if value.kind == "param")
    return names


@dataclass(frozen=True)
class Scratch(Pass):
    """Give the layers of the cut network new weights, as PyTorch does, and train it."""

    name: ClassVar[str] = "scratch"
    summary: ClassVar[str] = (
        "train the cut network from scratch, from new weights (MetaPruning's last stage)"
    )

    recipe: Recipe = option(SCRATCH, "how it is trained")
    decay: Literal["recipe", "role"] = option(
        "recipe", "what decays: as the recipe says, or MetaPruning's roles"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recipe.epochs < 1:
            raise UserError(
                "epochs=0 would deliver an untrained network: train for at least 1, or leave "
                "scratch out"
            )

    @property
    def needs_data(self) -> str | None:
        return self.name

    def requires(self, state: State) -> str | None:
        if state.uncut is None:
            return "there is no cut network yet: run slice and verify first"
        if state.verification is None:
            return "run verify first: afterwards nothing is left to compare with"
        return without_data(state)

    def run(self, state: State) -> bool:
        fresh, bare = fresh_weights(state.graph, state.seed)
        if bare:
            raise UserError(
                f"{bare[0]} belongs to no layer whose initialisation PyTorch defines, so "
                f"{state.graph.name} cannot be "
                "trained from scratch here: keep its weights (weights=inherit), or train the "
                "written model.py yourself"
            )
        recipe, before = self.recipe, state.graph.weights
        decayed = decayed_by_role(state.need_coupling()) if self.decay == "role" else None
        if decayed is not None:
            recipe = replace(recipe, decay_norm=True)  # the roles say it all
        state.graph.weights = {**before, **fresh}
        try:
            log = train_state(
                state,
                recipe,
                name=self.name,
                decays=None if decayed is None else lambda name, _: name in decayed,
            )
        except BaseException:
            state.graph.weights = before
            raise
        state.trained_after_slice = True
        log.notes.append("trained from new weights: the proof is about the structure that was cut")
        state.records[self.name] = log
        return True
