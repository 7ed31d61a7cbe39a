"""Scores of many plans of one network: the one way in which searches judge what they cut from trained weights.

A plan is sliced from the one copy of the weights, gets fresh batch-norm statistics, and is scored in evaluation mode
with its batch norms folded. Convolutions run channels-last. Images are prepared once. With a race, candidates that are
clearly worse than the best so far are given up early. The same numbers by the long way are `CutNetworks`'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph
from pruneopt.models.workload import Workload, logits_of, seeded
from pruneopt.passes.analysis.coupling import Coupling
from pruneopt.passes.evaluation.folding import fold_batch_norms
from pruneopt.passes.evaluation.fused import Taken, choose
from pruneopt.passes.evaluation.images import CalibrationImages, ValidationImages, channels_last, held
from pruneopt.passes.evaluation.race import Race, Rung, rungs_of
from pruneopt.passes.evaluation.settings import Settings
from pruneopt.passes.evaluation.statistics import Statistics
from pruneopt.passes.transform.slice import slice_graph

__all__ = ["Evaluation", "Score"]

Plan = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Score:
    """A plan's score, and what it was made of.

    Attributes:
        value: what candidates are compared by: the mean of the signal; of a candidate that a race gave up, an estimate
            on all images (`race.Result`).
        metric: the mean metric on the images that were looked at.
        images, batches: how many validation images and calibration batches were looked at.
        semantics: of the batch-norm statistics, such as ``mean(reset=true)``; ``stale`` where there are no new ones.
        trace: the scores on every image of a candidate that came to the end of a race, for `Evaluation.recall`.
    """

    value: float
    metric: float
    images: int
    batches: int
    semantics: str
    trace: str | None = None

    def __str__(self) -> str:
        return f"{self.semantics} over {self.batches} batches, {self.images} images"


class Evaluation:
    """Judges plans of one network; its weights are never written.

    Args:
        graph, coupling: the network and what a plan of it may say.
        workload: calibration images for batch-norm statistics, sub-validation images for scores.
        settings: how.

    Raises:
        UserError: settings that do not fit the data or the task.
    """

    def __init__(self, graph: Graph, coupling: Coupling, workload: Workload, settings: Settings) -> None:
        self.graph, self.coupling, self.settings = graph, coupling, settings
        self.workload = held(workload, settings)
        seed = settings.seed if settings.augment else None
        self.images = ValidationImages(self.workload.subval, settings.device, seed)
        self.calibration = CalibrationImages(
            self.workload.calibration,
            settings.batches,
            settings.batch_size,
            seed=settings.seed,
            device=settings.device,
            augment=settings.augment,
        )
        self.taken = choose(settings)
        self.rungs = rungs_of(settings.batches, len(self.images), settings.race)
        self.race = Race(self.rungs, settings.keep)
        if settings.signal != "metric" and workload.num_classes is None:
            raise UserError(f"signal={settings.signal} is for classification, which {workload.name} is not: use metric")
        self._teacher: Tensor | None = None

    def evaluate(self, plans: Iterable[Plan]) -> Iterator[Score]:
        """The scores of plans, one after the other; with a race, each depends on those before it."""
        for plan in plans:
            yield self._judged(plan)

    def _judged(self, plan: Plan) -> Score:
        candidate = _Candidate(self, plan)
        result = self.race.judge(candidate.signal)
        trace = result.pack() if self.settings.race and result.rung is self.rungs[-1] else None
        metric = float(candidate.metric.double().mean())
        return Score(result.value, metric, result.rung.images, result.rung.batches, str(self.settings.averaging), trace)

    def stale(self, plan: Plan) -> Score:
        """The score of a plan with the original's batch-norm statistics, on all images."""
        candidate = _Candidate(self, plan)
        values = candidate.signal(Rung(0, len(self.images)))
        mean, metric = (float(part.double().mean()) for part in (values, candidate.metric))
        return Score(mean, metric, len(self.images), 0, "stale")

    def recall(self, trace: str) -> None:
        """Take the trace of a score of an earlier run into the race."""
        self.race.recall(trace)

    def describe(self) -> str:
        """How plans are judged, in a few words."""
        settings = self.settings
        words = [str(settings.averaging), f"n={settings.batches}"]
        if settings.signal != "metric":
            words.append(f"compared by {settings.signal}")
        if settings.race:
            words.append(f"race from {self.rungs[0].images} of {len(self.images)} images")
        if str(self.taken):
            words.append(str(self.taken))
        return ", ".join(words)

    def teacher(self) -> Tensor:
        """The class that the original network gives every validation image, int64 `[images]`; computed once."""
        if self._teacher is None:
            network = _Folded(self.graph, self._placed(self.graph.weights), self.taken)
            with torch.no_grad():
                outputs = (self.workload.forward(network, x) for x, _ in self.images.part(0, len(self.images)))
                self._teacher = torch.cat([logits_of(item).argmax(1) for item in outputs])
        return self._teacher

    def signals(self, network: _Folded, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The signal and the metric on images ``start`` to ``stop``, each `[stop - start]`."""
        signals, metrics, seen = [], [], start
        with torch.no_grad():
            for inputs, targets in self.images.part(start, stop):
                outputs = self.workload.forward(network, inputs)
                metric = self.workload.scores(outputs, targets)
                metrics.append(metric)
                if self.settings.signal == "metric":
                    signals.append(metric)
                elif self.settings.signal == "likelihood":
                    signals.append(-F.cross_entropy(logits_of(outputs).float(), targets, reduction="none"))
                else:
                    rows = self.teacher()[seen : seen + len(inputs)]
                    signals.append((logits_of(outputs).argmax(1) == rows).float())
                seen += len(inputs)
        return torch.cat(signals), torch.cat(metrics)

    def _placed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        device = self.settings.device
        return {name: channels_last(tensor.detach().to(device)) for name, tensor in weights.items()}

    def cut(self, plan: Plan) -> tuple[Graph, dict[str, Tensor]]:
        """The graph of a plan and its weights, on the device."""
        small = slice_graph(self.graph, self.coupling, plan)
        return small, self._placed(small.weights)


class _Folded:
    """A network in evaluation mode, its batch norms folded; on the fused kernels where there are any."""

    def __init__(self, graph: Graph, weights: Mapping[str, Tensor], taken: Taken) -> None:
        folded = fold_batch_norms(graph)
        self._run, self._weights = taken.network(folded.graph), folded.weights(weights)

    def __call__(self, inputs: Tensor) -> object:
        return self._run(self._weights, inputs)


class _Candidate:
    """One plan on its way up the rungs: what it has learnt and scored so far is kept."""

    def __init__(self, evaluation: Evaluation, plan: Plan) -> None:
        self.evaluation = evaluation
        self.graph, self.weights = evaluation.cut(plan)
        self.statistics = Statistics()
        self.batches: int | None = None
        self.network: _Folded | None = None
        self.signals = self.metric = torch.zeros(0)

    def signal(self, rung: Rung) -> Tensor:
        """The signal on every image of a rung, `[images]`."""
        if self.network is None or rung.batches != self.batches:
            self.network = _Folded(self.graph, {**self.weights, **self._running(rung.batches)}, self.evaluation.taken)
            self.batches, self.signals, self.metric = rung.batches, torch.zeros(0), torch.zeros(0)
        if len(self.signals) < rung.images:
            found = self.evaluation.signals(self.network, len(self.signals), rung.images)
            self.signals, self.metric = (
                torch.cat([old.to(new), new]) for old, new in zip((self.signals, self.metric), found, strict=True)
            )
        return self.signals

    def _running(self, batches: int) -> dict[str, Tensor]:
        """The running statistics after the first ``batches`` batches; none are new after none."""
        settings, calibration = self.evaluation.settings, self.evaluation.calibration
        if not batches:
            return {}
        population = settings.averaging.kind == "population"
        start = 0 if population else self.statistics.batches
        with seeded(settings.seed + start, settings.device):
            return self.evaluation.taken.statistics(
                self.graph,
                self.weights,
                calibration.part(start, batches),
                settings.averaging,
                whole=settings.whole,
                into=None if population else self.statistics,
            )
