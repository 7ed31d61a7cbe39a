"""Repair without training: a cut network gets its outputs back from a few hundred inputs, without
their labels.

Slicing drops what removed channels contributed. Three methods put back what can be had without
gradients: fresh batch-norm statistics (``bn``), the mean contribution as a constant (``bias``), and
weights fitted anew, layer by layer, to the original's outputs (``lstsq``). See docs/repair.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.codegen.module import build_module
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.state import State, without_data
from pruneopt.passes.repair.bias import BiasShift, fold_means
from pruneopt.passes.repair.context import Batching, Left, RepairContext
from pruneopt.passes.repair.lstsq import Fit, LayerFit, fit_layers
from pruneopt.passes.transform.recalibrate import recalibrate_on

__all__ = ["METHODS", "Repair", "RepairReport"]

METHODS = ("bias", "lstsq", "bn")
"""In the order in which several of them must run."""
RIDGE = 0.05
POSITIONS = 64
MEMORY = 4.0
GIGA = 1e9


@dataclass(frozen=True)
class RepairReport:
    """The record of a repair: on how many images, to which layers, and which it had to leave.

    Attributes:
        norm_batches: for ``bn``, the number of batches of the statistics.
        added: what new biases cost, by unit (`CostModel`).
    """

    method: str
    images: int
    layers: tuple[LayerFit | BiasShift, ...] = ()
    left: tuple[Left, ...] = ()
    norm_batches: int | None = None
    added: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Repair(Pass):
    """Give the cut network its outputs back without training; comes right after verify."""

    name: ClassVar[str] = "repair"
    summary: ClassVar[str] = (
        "bring the cut network's outputs back without training, from inputs without labels"
    )

    method: Literal["bn", "bias", "lstsq"] = option(
        "lstsq", "batch-norm statistics, mean contributions as biases, or weights by least squares"
    )
    images: int = option(512, "calibration images to use; their labels are not")
    batch_size: int = option(128, "images in a batch, at most")
    positions: int | None = option(
        None, f"for lstsq: output positions per image to fit on ({POSITIONS})"
    )
    ridge: float | None = option(None, f"for lstsq: pull towards the weights as cut ({RIDGE:g})")
    cut_only: bool = option(
        False, "for lstsq: fit only layers that lost inputs, not all whose inputs changed"
    )
    memory: float | None = option(
        None, f"for lstsq: GB that the activations of all images may take ({MEMORY:g})"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 1 or self.batch_size < 1:
            raise UserError("images and batch-size must be at least 1")
        if self.method == "bn" and min(self.images, self.batch_size) < 2:
            raise UserError("method=bn needs at least 2 images in a batch")
        for key in ("positions", "ridge", "memory"):
            value = getattr(self, key)
            if value is not None and self.method != "lstsq":
                raise UserError(f"{key} is for method=lstsq: leave it out")
            if value is not None and (value < 0 or (key != "ridge" and value == 0)):
                raise UserError(f"{key}={value:g} is impossible: use a number above 0")
        if self.cut_only and self.method != "lstsq":
            raise UserError("cut-only is for method=lstsq: leave it out")

    @property
    def label(self) -> str:
        return f"{self.name}-{self.method}"

    @property
    def needs_data(self) -> str | None:
        return f"{self.name} with method={self.method}"

    def requires(self, state: State) -> str | None:
        if state.uncut is None:
            return "there is nothing to repair yet: run slice and verify first"
        if self.method == "bias" and state.trained_after_slice:
            return (
                "the weights have changed since slice: method=bias must come first, right "
                "after "
                "verify"
            )
        return without_data(state)

    def run(self, state: State) -> bool:
        split = state.need_workload(self.label).calibration
        batches = Batching.of(split, state.graph, self.images, self.batch_size, state.device)
        changed = (
            self._recalibrate(state, batches)
            if self.method == "bn"
            else self._change_weights(state, batches)
        )
        state.trained_after_slice |= changed
        return changed

    def _recalibrate(self, state: State, batches: Batching) -> bool:
        workload = dataclasses.replace(state.need_workload(self.label), calibration=batches.split)
        module = build_module(state.graph, state.graph.weights)
        count = recalibrate_on(
            module,
            workload,
            batches=max(1, batches.images // batches.size),
            batch_size=batches.size,
            seed=state.seed,
            device=state.device,
        )
        state.records[self.label] = RepairReport(self.method, batches.images, norm_batches=count)
        if count:
            fresh = module.state_dict()
            state.graph.weights = {
                name: fresh.get(name, tensor) for name, tensor in state.graph.weights.items()
            }
        return count > 0

    def _change_weights(self, state: State, batches: Batching) -> bool:
        context = RepairContext.of(state, batches)
        context.leave_others()
        layers: list[LayerFit | BiasShift] = []
        if self.method == "bias":
            layers.extend(fold_means(context))
        else:
            layers.extend(fit_layers(context, self._fit(state, batches)))
        state.records[self.label] = RepairReport(
            self.method, batches.images, tuple(layers), tuple(context.left), added=context.added
        )
        before, after = state.graph.weights, context.cut.weights
        written = {name: _back(before.get(name), tensor) for name, tensor in after.items()}
        if all(written[name] is before.get(name) for name in written):
            return False
        context.cut.weights = written
        state.graph = context.cut
        return True

    def _fit(self, state: State, batches: Batching) -> Fit:
        memory = GIGA * (MEMORY if self.memory is None else self.memory)
        cost = state.need_cost()
        at_once = 1 if state.graph.dynamic_batch else batches.size
        both = sum(
            int(cost.measure("memory", widths))
            for widths in (cost.full, cost.widths(state.plan or {}))
        )
        return Fit(
            ridge=RIDGE if self.ridge is None else self.ridge,
            positions=POSITIONS if self.positions is None else self.positions,
            cut_only=self.cut_only,
            memory=memory,
            keep=both * batches.images / at_once <= memory,
        )


def _back(before: Tensor | None, after: Tensor) -> Tensor:
    """Return a weight as the state holds it: the old tensor where nothing changed, else on the old
    one's device."""
    if before is None:
        return after.cpu()
    same = after is before or (
        after.shape == before.shape and bool((after.to(before.device) == before).all())
    )
    return before if same else after.to(before.device)
