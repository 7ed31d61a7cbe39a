"""Fine-tuning: train the network as it is now, by default with the original as a teacher."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pruneopt.errors import UserError
from pruneopt.ir.codegen.module import build_module
from pruneopt.models.workload import Workload
from pruneopt.passes.options.configured import option
from pruneopt.passes.options.registry import part_class
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.state import State, without_data
from pruneopt.passes.training.objective import can_distil
from pruneopt.passes.training.recipe import Momentum, Recipe, TrainingOptions
from pruneopt.passes.training.stage import train_state

__all__ = ["Finetune"]

PROBE = 1000
"""On so many samples the original network must be better than chance to be a teacher."""


@dataclass(frozen=True)
class Finetune(Momentum, Pass):
    """Train the network as it is now on the workload's training split.

    Its options are those of a recipe; `recipe` makes the recipe of them. The original network is
    the teacher where that can help: once something was removed, in classification with the default
    cross-entropy, and if it knows the task.
    """

    name: ClassVar[str] = "finetune"
    summary: ClassVar[str] = "train the network, with the original as its teacher"

    distil: float = option(
        0.5, "weight of the original network's outputs in the loss, 0 to 1; 0 is off"
    )
    optimiser: Literal["sgd", "adamw"] = option("sgd", "what moves the weights")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimiser != "sgd":
            shared = {field.name for field in dataclasses.fields(TrainingOptions)}
            for field in dataclasses.fields(Momentum):
                if field.name not in shared and getattr(self, field.name) != field.default:
                    raise UserError(f"{field.name} is for optimiser=sgd: leave it out")

    def recipe(self) -> Recipe:
        """Return the recipe of these options."""
        kind: Any = part_class("recipe", self.optimiser)
        mine = {field.name for field in dataclasses.fields(self)}
        options = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(kind)
            if field.name in mine
        }
        made: Recipe = kind(**options)
        return made

    @property
    def needs_data(self) -> str | None:
        return self.name

    def requires(self, state: State) -> str | None:
        return without_data(state)

    def run(self, state: State) -> bool:
        recipe = self.recipe()
        why = self._no_teacher(state)
        if why is not None:
            recipe = replace(recipe, distil=0.0)
        log = train_state(state, recipe, name=self.name)
        if why is not None:
            log.notes.append(f"without a teacher: {why}")
        state.records[self.name] = log
        return log.steps > 0

    def _no_teacher(self, state: State) -> str | None:
        """Return why the original is no teacher here; None where it is, or none was asked for."""
        if not self.distil:
            return None
        if state.uncut is None and state.masks is None:
            return "nothing was removed from the network yet"
        workload = state.need_workload(self.name)
        if not can_distil(workload):
            return "distillation is for classification with the default cross-entropy"
        return _ignorance(state, workload)


def _ignorance(state: State, workload: Workload) -> str | None:
    """Return what says that the original was not trained for this task; None if it beats chance."""
    samples = workload.calibration.head(PROBE)
    original = build_module(state.original, state.original.weights)
    score = replace(workload, calibration=samples).score(
        original, "calibration", device=state.device
    )
    chance = 1 / (workload.num_classes or 1)
    # Three standard deviations of guessing.
    if score > chance + 3 * (chance * (1 - chance) / len(samples)) ** 0.5:
        return None
    return (
        f"the original network scores {score:.3g} on {len(samples)} calibration samples, which "
        "chance does too"
    )
