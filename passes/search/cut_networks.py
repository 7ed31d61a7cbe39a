"""Scoring plans on data: cut the one copy of the weights, recompute batch-norm statistics, score held-out images.

At most one candidate network exists at a time. Images are decoded once and stay in memory as the data set holds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from pruneopt.ir.codegen import build_module
from pruneopt.ir.graph import Graph
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.models.workload import DatasetSplit, Split, TensorSplit, Workload
from pruneopt.passes.analysis.coupling import Coupling
from pruneopt.passes.search.adaptive_bn import MEAN, recalibrate_on
from pruneopt.passes.training.recipe import SGD
from pruneopt.passes.training.trainer import train
from pruneopt.passes.transform.masks import KeepMasks, slice_masks
from pruneopt.passes.transform.slice import slice_graph

__all__ = ["CutNetworks", "Settings"]

RESIDENT_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Settings:
    """How candidates are scored.

    Attributes:
        batches, batch_size: calibration batches for the batch-norm statistics; they are the same for all candidates.
        averaging: how the statistics are averaged over batches.
        whole: the complete network in training mode while they are taken (dropout drops).
        augment: calibration and sub-validation images are read as in training, as EagleEye's code does.
        subval_limit: score on this many sub-validation images; None takes all.
        seed: which calibration batches.
        device: where networks run.
    """

    batches: int = 30
    batch_size: int = 128
    averaging: Averaging = MEAN
    whole: bool = False
    augment: bool = False
    subval_limit: int | None = None
    seed: int = 0
    device: str = "cpu"


class CutNetworks:
    """Makes and scores candidates of one network; its weights are never written.

    ``masks`` are those of the network's weights, by name: what they set to zero stays zero in a fine-tuned candidate.
    """

    def __init__(
        self,
        graph: Graph,
        coupling: Coupling,
        workload: Workload,
        settings: Settings,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.graph, self.coupling, self.settings, self.masks = graph, coupling, settings, masks
        # Cut here once: every new split would be decoded again.
        calibration = workload.calibration.head(settings.batches * settings.batch_size)
        limit = len(workload.subval) if settings.subval_limit is None else settings.subval_limit
        subval = _resident(workload.subval.head(limit))
        self.workload = replace(workload, calibration=_resident(calibration), subval=subval)

    def network(self, plan: Mapping[str, np.ndarray]) -> nn.Module:
        """The original cut to a plan, on the device, its statistics stale, in evaluation mode."""
        graph = slice_graph(self.graph, self.coupling, plan)
        return build_module(graph, graph.weights).to(self.settings.device)

    def recalibrate(self, module: nn.Module) -> int:
        """Recompute the batch-norm statistics in place; returns the number of batches."""
        with_settings = self.settings
        return recalibrate_on(
            module,
            self.workload,
            batches=with_settings.batches,
            batch_size=with_settings.batch_size,
            averaging=with_settings.averaging,
            whole=with_settings.whole,
            augment=with_settings.augment,
            seed=with_settings.seed,
            device=with_settings.device,
        )

    def score(self, module: nn.Module, split: str = "subval") -> float:
        """The mean metric on the sub-validation images (or another split), not rounded."""
        settings = self.settings
        return self.workload.score(
            module, split, device=settings.device, augment_seed=settings.seed if settings.augment else None
        )

    def tune(self, module: nn.Module, plan: Mapping[str, np.ndarray], epochs: int) -> None:
        """Fine-tune the network of a plan in place as EagleEye does: SGD with momentum 0.9, rate 0.01, decay 1e-4,
        cosine.
        """
        settings = self.settings
        kept = self.coupling.kept_units(plan)
        train(
            module,
            self.workload,
            SGD(epochs=epochs, batch_size=settings.batch_size),
            hooks=[KeepMasks(slice_masks(self.coupling, kept, self.masks))] if self.masks else (),
            seed=settings.seed,
            device=settings.device,
            name="fine-tuning",
        )


def _resident(split: Split) -> Split:
    """A user's own data set read into memory once, where it fits; pruneopt's own splits keep their images."""
    if not isinstance(split, DatasetSplit) or not len(split):
        return split
    inputs, targets = next(split.batches(1))
    if inputs.nbytes * len(split) > RESIDENT_BYTES:
        return split
    parts: list[tuple[Tensor, Tensor]] = list(split.batches(256))
    inputs, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return TensorSplit(inputs, targets, torch.arange(len(split)))
