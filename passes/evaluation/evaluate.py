"""Scores of many plans of one network: the one way in which searches judge what they cut from
trained weights.

A plan is sliced from the one copy of the weights, gets fresh batch-norm statistics, and is scored
in evaluation mode with its batch norms folded. Convolutions run channels-last. Images are prepared
once. Several plans are judged side by side, and what they compute alike is computed once. With a
race, candidates that are clearly worse than the best so far are given up early. The same numbers by
the long way are `CutNetworks`'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph
from pruneopt.models.workload import Workload, logits_of, seeded
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.evaluation.evaluation_backends import choose, weight_bytes
from pruneopt.passes.evaluation.fresh_statistics import Statistics
from pruneopt.passes.evaluation.race import Race, Result, Rung, rungs_of
from pruneopt.passes.evaluation.resident_images import (
    CalibrationImages,
    ValidationImages,
    channels_last,
    held,
)
from pruneopt.passes.evaluation.settings import EvaluationSettings
from pruneopt.passes.graph_rewrites.folding import fold_batch_norms
from pruneopt.passes.graph_rewrites.slice import slice_graph

__all__ = ["Evaluation", "Score"]

Plan = Mapping[str, np.ndarray]
Networks = Callable[[Tensor], Sequence[Any]]
"""The outputs of each of some networks for the same inputs."""


@dataclass(frozen=True, slots=True)
class Score:
    """A plan's score, and what it was made of.

    Attributes:
        value: what candidates are compared by: the mean of the signal; of a candidate that a race
            gave up, an estimate on all images (`race.Result`).
        metric: the mean metric on the images that were looked at.
        images, batches: how many validation images and calibration batches were looked at.
        semantics: of the batch-norm statistics, such as ``mean(reset=true)``; ``stale`` where there
            are no new ones.
        trace: the scores on every image of a candidate that came to the end of a race, for
            `Evaluation.recall`.
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

    def __init__(
        self, graph: Graph, coupling: Coupling, workload: Workload, settings: EvaluationSettings
    ) -> None:
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
        self.way = choose(graph, settings)
        self.rungs = rungs_of(settings.batches, len(self.images), settings.race)
        self.race = Race(self.rungs, settings.keep)
        if settings.signal != "metric" and workload.num_classes is None:
            raise UserError(
                f"signal={settings.signal} is for classification, which {workload.name} is not: "
                "use metric"
            )
        self._teacher: Tensor | None = None

    def evaluate(self, plans: Iterable[Plan]) -> Iterator[Score]:
        """Yield the scores of plans, in their order; with a race, each depends on those before
        it."""
        rest, done = iter(plans), 0
        size = weight_bytes(self.graph)
        while group := list(islice(rest, self.settings.batch_size_at(done, size))):
            for score in self.together(group):
                if score.trace is not None:
                    self.recall(score.trace)
                yield score
            done += len(group)

    def together(self, plans: Sequence[Plan]) -> list[Score]:
        """Return the scores of plans that are judged side by side: what they compute alike is
        computed once.

        In a race they are compared with those that `recall` knows, and become known by it
        themselves.
        """
        if self.settings.signal == "agreement":
            self.teacher()  # before there are other networks
        candidates = _Candidates(self, plans)
        results = self.race.judge_together(len(plans), candidates.signals)
        return [self._score(*pair) for pair in zip(results, candidates.metrics, strict=True)]

    def _score(self, result: Result, metric: Tensor) -> Score:
        trace = result.pack() if self.settings.race and result.rung is self.rungs[-1] else None
        mean, rung = float(metric.double().mean()), result.rung
        return Score(
            result.value, mean, rung.images, rung.batches, str(self.settings.averaging), trace
        )

    def stale(self, plan: Plan) -> Score:
        """Return the score of a plan with the original's batch-norm statistics, on all images."""
        candidates = _Candidates(self, [plan])
        values = candidates.signals([0], Rung(0, len(self.images)))
        mean, metric = (float(part.double().mean()) for part in (*values, *candidates.metrics))
        return Score(mean, metric, len(self.images), 0, "stale")

    def recall(self, trace: str) -> None:
        """Take the trace of a score of an earlier run into the race."""
        self.race.recall(trace)

    def describe(self) -> str:
        """Return how plans are judged, in a few words."""
        settings = self.settings
        words = [str(settings.averaging), f"n={settings.batches}"]
        if settings.signal != "metric":
            words.append(f"compared by {settings.signal}")
        if settings.race:
            words.append(f"race from {self.rungs[0].images} of {len(self.images)} images")
        if str(self.way):
            words.append(str(self.way))
        return ", ".join(words)

    def teacher(self) -> Tensor:
        """Return the class that the original network gives every validation image, int64
        `[images]`; computed once."""
        if self._teacher is None:
            networks = self.networks([self.graph], [self._placed(self.graph.weights)])
            with torch.no_grad():
                outputs = (
                    self._outputs(networks, x)[0] for x, _ in self.images.part(0, len(self.images))
                )
                self._teacher = torch.cat([logits_of(item).argmax(1) for item in outputs])
        return self._teacher

    def networks(
        self, graphs: Sequence[Graph], weights: Sequence[Mapping[str, Tensor]]
    ) -> Networks:
        """Return networks in evaluation mode, their batch norms folded; on the fused kernels where
        there are any."""
        folded = [fold_batch_norms(graph) for graph in graphs]
        tensors = [item.weights(own) for item, own in zip(folded, weights, strict=True)]
        return self.way.networks([item.graph for item in folded], tensors)

    def _outputs(self, networks: Networks, inputs: Tensor) -> Sequence[object]:
        return cast("Sequence[object]", self.workload.forward(networks, inputs))

    def signals(self, networks: Networks, start: int, stop: int) -> list[tuple[Tensor, Tensor]]:
        """Return for every network the signal and the metric on images ``start`` to ``stop``, each
        `[stop
        - start]`."""
        found: list[list[tuple[Tensor, Tensor]]] = []
        seen = start
        with torch.no_grad():
            for inputs, targets in self.images.part(start, stop):
                rows = slice(seen, seen + len(inputs))
                found.append(
                    [self._signal(item, targets, rows) for item in self._outputs(networks, inputs)]
                )
                seen = rows.stop
        return [
            (torch.cat([a for a, _ in own]), torch.cat([b for _, b in own]))
            for own in zip(*found, strict=True)
        ]

    def _signal(self, outputs: object, targets: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the signal and the metric of a network's outputs for some of the images."""
        metric = self.workload.scores(outputs, targets)
        if self.settings.signal == "metric":
            return metric, metric
        if self.settings.signal == "likelihood":
            return -F.cross_entropy(logits_of(outputs).float(), targets, reduction="none"), metric
        return (logits_of(outputs).argmax(1) == self.teacher()[rows]).float(), metric

    def _placed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        device = self.settings.device
        return {name: channels_last(tensor.detach().to(device)) for name, tensor in weights.items()}

    def cut(self, plan: Plan) -> tuple[Graph, dict[str, Tensor]]:
        """Return the graph of a plan and its weights, on the device."""
        small = slice_graph(self.graph, self.coupling, plan)
        return small, self._placed(small.weights)


class _Candidates:
    """Plans side by side on their way up the rungs: what they have learnt and scored so far is
    kept.

    Attributes:
        metrics: of each, on every image it has seen.
    """

    def __init__(self, evaluation: Evaluation, plans: Sequence[Plan]) -> None:
        self.evaluation = evaluation
        self.cut = [evaluation.cut(plan) for plan in plans]
        self.statistics = [Statistics() for _ in plans]
        self.batches: int | None = None
        self.running: list[Mapping[str, Tensor]] = [{} for _ in plans]
        self.seen = [torch.zeros(0) for _ in plans]
        self.metrics = [torch.zeros(0) for _ in plans]

    def signals(self, racing: Sequence[int], rung: Rung) -> list[Tensor]:
        """Return the signal of those that are still in the race on every image of a rung, each
        `[images]`."""
        if rung.batches != self.batches:
            for index, found in zip(racing, self._running(racing, rung.batches), strict=True):
                self.running[index] = found
                self.seen[index] = self.metrics[index] = torch.zeros(0)
            self.batches = rung.batches
        start = len(self.seen[racing[0]])
        if start < rung.images:
            cut = [self.cut[index] for index in racing]
            weights = [
                {**own, **self.running[index]} for index, (_, own) in zip(racing, cut, strict=True)
            ]
            networks = self.evaluation.networks([graph for graph, _ in cut], weights)
            for index, pair in zip(
                racing, self.evaluation.signals(networks, start, rung.images), strict=True
            ):
                self.seen[index], self.metrics[index] = (
                    torch.cat([old.to(new), new])
                    for old, new in zip((self.seen[index], self.metrics[index]), pair, strict=True)
                )
        return [self.seen[index] for index in racing]

    def _running(self, racing: Sequence[int], batches: int) -> list[dict[str, Tensor]]:
        """Return the running statistics after the first ``batches`` batches; none are new after
        none."""
        settings, calibration = self.evaluation.settings, self.evaluation.calibration
        if not batches:
            return [{} for _ in racing]
        population = settings.averaging.kind == "population"
        start = 0 if population else self.statistics[racing[0]].batches
        with seeded(settings.seed + start, settings.device):
            return self.evaluation.way.statistics(
                [self.cut[index][0] for index in racing],
                [self.cut[index][1] for index in racing],
                calibration.part(start, batches),
                into=None if population else [self.statistics[index] for index in racing],
            )
