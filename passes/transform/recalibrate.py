"""Adaptive batch norm: recompute the statistics of a pruned network before it is scored or used.

Pruning changes what every layer feeds the next, so the running statistics of the full network are
stale. EagleEye (Li et al., ECCV 2020, section 3) and its preprint FNNP recompute them by forward
passes in training mode and without gradients; no weight changes. See
`pruneopt.kernels.bn_statistics` for how batches are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pruneopt.errors import UserError
from pruneopt.ir.codegen.module import build_module
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.models.workload import Workload, placed, seeded, set_mode
from pruneopt.passes.evaluation.fresh_statistics import fresh_statistics
from pruneopt.passes.evaluation.resident_images import calibration_inputs
from pruneopt.passes.evaluation.settings import MEAN, PLAIN, Plain, averaging_of
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.state import State, without_data

__all__ = ["PAPER", "Recalibrate", "recalibrate", "recalibrate_on"]

PAPER = Averaging("ema", 0.1, reset=False)
"""EagleEye's code: the framework's momentum, and the old statistics fade (0.9^102 after its 102
batches)."""


def recalibrate(
    module: nn.Module,
    batches: Iterable[Tensor],
    *,
    momentum: float | None = None,
    reset: bool = True,
    whole: bool = False,
    forward: Callable[[nn.Module, Tensor], object] = lambda module, inputs: module(inputs),
) -> int:
    """Recompute every batch norm's running statistics in place, and return the number of batches.

    Every batch is normalised by its own statistics. Momenta and the mode of every submodule come
    back as they were. Frozen batch norms (which refuse training mode) and those without running
    statistics are left alone.

    Args:
        module: the network, on the device of the batches.
        batches: network inputs; each has to give every batch norm more than one value per channel.
        momentum: None takes the plain mean over batches, a number the moving average with this
            momentum.
        reset: forget the old statistics first.
        whole: the complete network in training mode, as the papers' code has it: dropout then
            drops.
        forward: how the network is called.

    Raises:
        UserError: a batch norm that is a bare function call, or inputs that do not fit.
    """
    _refuse_functional(module)
    count = 0
    with _statistics_mode(module, whole) as norms, torch.no_grad():
        for norm in norms:
            norm.momentum = momentum
            if reset:
                norm.reset_running_stats()
        if norms:
            for inputs in batches:
                forward(module, inputs)
                count += 1
    return count


@contextmanager
def _statistics_mode(module: nn.Module, whole: bool) -> Iterator[list[_BatchNorm]]:
    """Put batch norms in training mode, the rest only if ``whole``, and yield those that learn."""
    modes = [(part, part.training) for part in module.modules()]
    norms = [
        part
        for part in module.modules()
        if isinstance(part, _BatchNorm) and part.track_running_stats
    ]
    momenta = [norm.momentum for norm in norms]
    try:
        set_mode(module, training=whole)
        for norm in norms:
            norm.train()
        # A frozen batch norm overrides train() and stays in evaluation mode.
        yield [norm for norm in norms if norm.training]
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, training in modes:
            part.training = training


def _refuse_functional(module: nn.Module) -> None:
    """Update running statistics that no layer owns, by the momentum that the code has."""
    owners = {name for name, part in module.named_modules() if hasattr(part, "track_running_stats")}
    for name, _ in module.named_buffers():
        prefix, _, leaf = name.rpartition(".")
        if leaf == "running_mean" and prefix not in owners:
            raise UserError(
                f"the statistics {name} belong to a batch norm that is a function call, which "
                "cannot be recomputed: "
                "use nn.BatchNorm in the model"
            )


def recalibrate_on(
    module: nn.Module,
    workload: Workload,
    *,
    batches: int,
    batch_size: int,
    averaging: Averaging = MEAN,
    whole: bool = False,
    augment: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> int:
    """`recalibrate` on a workload's calibration images; the network comes back on its own device.

    Raises:
        UserError: an averaging that PyTorch's batch norm does not do; `evaluation.fresh_statistics`
            does.
    """
    if averaging.kind not in ("ema", "mean"):
        raise UserError(f"PyTorch's batch norm does not average by {averaging}: use ema or mean")
    with placed(module, device), seeded(seed, device):
        return recalibrate(
            module,
            calibration_inputs(
                workload.calibration, batches, batch_size, seed=seed, device=device, augment=augment
            ),
            momentum=averaging.momentum,
            reset=averaging.reset,
            whole=whole,
            forward=workload.forward,
        )


@dataclass(frozen=True)
class RecalibrateReport:
    """How the statistics were recomputed, and the sub-validation score before and after."""

    averaging: str
    batches: int
    before: float
    after: float


@dataclass(frozen=True)
class Recalibrate(Pass):
    """Recompute the batch-norm statistics of the network as it is now; no weight changes."""

    name: ClassVar[str] = "recalibrate"
    summary: ClassVar[str] = (
        "recompute batch-norm statistics on calibration images (adaptive batch norm)"
    )

    batches: int = option(30, "calibration batches")
    batch_size: int = option(128, "images in a batch")
    statistics: Plain = option("mean", PLAIN)
    momentum: float | None = option(
        None, "of the moving average of the published code, in place of statistics"
    )
    reset: bool = option(True, "forget the old statistics first")
    whole: bool = option(False, "the complete network in training mode: dropout drops")
    augment: bool = option(
        False, "read the images as in training, with random shifts, flips or crops"
    )
    seed: int | None = option(None, "decides the batches (the run's seed)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batches < 1 or self.batch_size < 2:
            raise UserError(
                "recalibrate needs batches of at least 1 and a batch-size of at least 2"
            )
        if self.seed is not None and self.seed < 0:
            raise UserError(f"seed={self.seed} must not be negative")
        averaging_of(self.statistics, self.momentum, self.reset)

    @property
    def needs_data(self) -> str | None:
        return self.name

    def requires(self, state: State) -> str | None:
        return without_data(state)

    def run(self, state: State) -> bool:
        workload = state.need_workload(self.name)
        averaging = averaging_of(self.statistics, self.momentum, self.reset)
        before = workload.score(build_module(state.graph, state.graph.weights), device=state.device)
        fresh = self._statistics(state, workload, averaging)
        state.graph.weights = {**state.graph.weights, **fresh}
        after = workload.score(build_module(state.graph, state.graph.weights), device=state.device)
        count = self.batches if fresh else 0
        state.records[self.name] = RecalibrateReport(str(averaging), count, before, after)
        state.trained_after_slice |= bool(fresh) and state.uncut is not None
        return bool(fresh)

    def _statistics(
        self, state: State, workload: Workload, averaging: Averaging
    ) -> dict[str, Tensor]:
        """The new statistics by name, where the weights lie; none where no batch norm has any."""
        seed = state.seed if self.seed is None else self.seed
        weights = {name: tensor.to(state.device) for name, tensor in state.graph.weights.items()}
        drawn = calibration_inputs(
            workload.calibration,
            self.batches,
            self.batch_size,
            seed=seed,
            device=state.device,
            augment=self.augment,
        )
        with seeded(seed, state.device):
            found = fresh_statistics(state.graph, weights, drawn, averaging, whole=self.whole)
        return {name: tensor.to(state.graph.weights[name].device) for name, tensor in found.items()}
