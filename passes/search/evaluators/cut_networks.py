"""Candidates as modules: cut the one copy of the weights, recompute batch-norm statistics, score,
fine-tune.

The long way to the scores of `evaluation.Evaluation`, and the way to networks that are trained. At
most one candidate network exists at a time. Images are decoded once and stay in memory as the data
set holds them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph
from pruneopt.models.workload import Workload, seeded
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.evaluation.fresh_statistics import fresh_statistics
from pruneopt.passes.evaluation.resident_images import calibration_inputs, held
from pruneopt.passes.evaluation.settings import EvaluationSettings
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.selection.masks import slice_masks
from pruneopt.passes.training.keep_masks import KeepMasks
from pruneopt.passes.training.recipe import SGD
from pruneopt.passes.training.trainer import train
from pruneopt.passes.transform.recalibrate import recalibrate_on

__all__ = ["CutNetworks"]


class CutNetworks:
    """Makes and scores candidates of one network; its weights are never written.

    ``masks`` are those of the network's weights, by name: what they set to zero stays zero in a
    fine-tuned candidate.
    """

    def __init__(
        self,
        graph: Graph,
        coupling: Coupling,
        workload: Workload,
        settings: EvaluationSettings,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.graph, self.coupling, self.settings, self.masks = graph, coupling, settings, masks
        self.workload = held(workload, settings)

    def network(self, plan: Mapping[str, np.ndarray]) -> nn.Module:
        """Return the original cut to a plan, on the device, its statistics stale, in evaluation
        mode."""
        graph = slice_graph(self.graph, self.coupling, plan)
        return build_module(graph, graph.weights).to(self.settings.device)

    def recalibrate(self, module: nn.Module, plan: Mapping[str, np.ndarray]) -> None:
        """Recompute the batch-norm statistics of the network of a plan in place."""
        if self.settings.averaging.kind in ("ema", "mean"):
            self.recalibrate_module(module)
            return
        settings = self.settings
        drawn = calibration_inputs(
            self.workload.calibration,
            settings.batches,
            settings.batch_size,
            seed=settings.seed,
            device=settings.device,
            augment=settings.augment,
        )
        graph = slice_graph(self.graph, self.coupling, plan)
        with seeded(settings.seed, settings.device):
            fresh = fresh_statistics(
                graph, module.state_dict(), drawn, settings.averaging, whole=settings.whole
            )
        module.load_state_dict(fresh, strict=False)

    def recalibrate_module(self, module: nn.Module) -> None:
        """Do the same for a network of no plan, by PyTorch's own batch norm (``ema`` and ``mean``
        only)."""
        settings = self.settings
        recalibrate_on(
            module,
            self.workload,
            batches=settings.batches,
            batch_size=settings.batch_size,
            averaging=settings.averaging,
            whole=settings.whole,
            augment=settings.augment,
            seed=settings.seed,
            device=settings.device,
        )

    def score(self, module: nn.Module, split: str = "subval") -> float:
        """Return the mean metric on the sub-validation images (or another split), not rounded."""
        settings = self.settings
        return self.workload.score(
            module,
            split,
            device=settings.device,
            augment_seed=settings.seed if settings.augment else None,
        )

    def tune(self, module: nn.Module, plan: Mapping[str, np.ndarray], epochs: int) -> None:
        """Fine-tune the network of a plan in place as EagleEye does: SGD with momentum 0.9, rate
        0.01, decay 1e-4, cosine.
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
