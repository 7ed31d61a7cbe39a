"""Racing: a candidate that is clearly worse than the best so far is given up after a few images.

Candidates are scored on nested parts of the validation images, each part twice the one before. The
parts are balanced over the classes (`models.workload.balanced_order`), and every candidate sees the
same images in the same order, so that differences are compared image by image: the standard error
of a paired difference is that of the images on which two candidates disagree, far below that of
either score. Early rungs also take fewer batches for batch-norm statistics.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pruneopt.errors import UserError

__all__ = ["Race", "Result", "Rung", "rungs_of"]

FIRST_BATCHES = 0.25
"""The share of the calibration batches that the first rung takes; each further rung takes twice as
many."""


@dataclass(frozen=True, slots=True)
class Rung:
    """How much is looked at: the first ``batches`` calibration batches and the first ``images``
    validation images."""

    batches: int
    images: int


def rungs_of(batches: int, images: int, first: int | None) -> tuple[Rung, ...]:
    """Return the rungs of a race: ``first`` images, then twice as many each, up to all; only all of
    them for None.

    Raises:
        UserError: ``first`` below 2, which leaves no standard error.
    """
    if first is not None and first < 2:
        raise UserError(f"race={first} images say nothing: use at least 2, or none")
    rungs, seen, share = [], first or images, FIRST_BATCHES
    while seen < images:
        rungs.append(Rung(max(1, math.ceil(batches * min(1.0, share))), seen))
        seen, share = 2 * seen, 2 * share
    return (*rungs, Rung(batches, images))


@dataclass(frozen=True, slots=True)
class Result:
    """How a candidate did.

    Attributes:
        value: its mean score; for one that was given up, an estimate of that (`Race`).
        rung: how far it came.
        per_rung: its score on every image, on each rung it came to, float32 `[images]`.
    """

    value: float
    rung: Rung
    per_rung: tuple[Tensor, ...]

    def pack(self) -> str:
        """Return the scores as text, for a journal."""
        raw = torch.cat(self.per_rung).numpy().astype("<f4").tobytes()
        return base64.b64encode(zlib.compress(raw, 9)).decode()


@dataclass
class Race:
    """Judges candidates, one by one or several side by side, against the best of those before.

    A candidate that is given up keeps the mean of the images it has seen, corrected by how much
    harder or easier these are than all images for the candidates that came to the end; it is never
    set above the one that it lost to.

    Attributes:
        rungs: of `rungs_of`.
        keep: how many of the best have to be told apart from the rest by all images (a search that
            only wants its winner: 1; one that breeds from its best ten: 10).
        z: a candidate is given up when it is worse by more than this many standard errors of the
            difference.
        best: the results of the best candidates that came to the last rung, the best first.
        offsets: for every candidate that came there, its mean score less that on each rung, float64
            `[rungs]`.
    """

    rungs: tuple[Rung, ...]
    keep: int = 1
    z: float = 2.0
    best: list[Result] = field(default_factory=list)
    offsets: list[Tensor] = field(default_factory=list)

    def judge(self, score: Callable[[Rung], Tensor]) -> Result:
        """Run a candidate up the rungs and enter its result. ``score`` gives its score on every
        image, `[images]`."""
        (result,) = self.judge_together(1, lambda _, rung: [score(rung)])
        self.enter(result)
        return result

    def judge_together(
        self, count: int, scores: Callable[[Sequence[int], Rung], Sequence[Tensor]]
    ) -> list[Result]:
        """Run candidates up the rungs side by side, each against the best of those that were
        entered before.

        Args:
            count: how many candidates.
            scores: for those that are still in the race, by number, the score of each on every
                image of a rung.

        Returns:
            A result for each. None is entered.
        """
        # One rival for all: the order in which candidates side by side come to an end decides
        # nothing.
        rival = self.best[self.keep - 1] if len(self.best) >= self.keep else None
        found: list[list[Tensor]] = [[] for _ in range(count)]
        results: dict[int, Result] = {}
        for number, rung in enumerate(self.rungs):
            running = [index for index in range(count) if index not in results]
            for index, values in zip(
                running, scores(running, rung) if running else (), strict=True
            ):
                found[index].append(values.float().cpu())
                if rung is self.rungs[-1]:
                    results[index] = Result(
                        float(found[index][-1].double().mean()), rung, tuple(found[index])
                    )
                elif rival is not None and self._hopeless(
                    found[index][-1].double() - rival.per_rung[number].double()
                ):
                    results[index] = self._given_up(rival, number, found[index])
        return [results[index] for index in range(count)]

    def _given_up(self, rival: Result, number: int, found: Sequence[Tensor]) -> Result:
        value = float(found[-1].double().mean() + torch.stack(self.offsets)[:, number].mean())
        least = float(found[-1].min())  # an accuracy is not estimated below zero
        return Result(min(max(value, least), rival.value), self.rungs[number], tuple(found))

    def recall(self, text: str) -> None:
        """Take a result of an earlier run (`Result.pack`) in, as if it had been judged now.

        Raises:
            UserError: it is not of such a race.
        """
        try:
            flat = torch.from_numpy(
                np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f4").copy()
            )
            sizes = [rung.images for rung in self.rungs]
            if len(flat) != sum(sizes):
                raise ValueError(f"{len(flat)} scores for {sum(sizes)}")
        except (ValueError, zlib.error) as error:
            raise UserError(
                f"the journal's scores of a race cannot be read ({error}): delete it"
            ) from error
        parts = tuple(flat.split(sizes))
        self.enter(Result(float(parts[-1].double().mean()), self.rungs[-1], parts))

    def enter(self, result: Result) -> None:
        """Take a result in: later candidates are compared with it if it came to the last rung."""
        if result.rung is not self.rungs[-1]:
            return
        self.offsets.append(
            result.value - torch.stack([part.double().mean() for part in result.per_rung])
        )
        # Stable: of equals the first stays before.
        self.best = sorted([*self.best, result], key=lambda item: -item.value)[: self.keep]

    def _hopeless(self, gap: Tensor) -> bool:
        """Return whether a mean difference `[n]` is below zero by more than chance explains, given
        all images there are."""
        n, every = len(gap), self.rungs[-1].images
        # The last factor corrects for a sample from finitely many: once all images are seen, chance
        # has no part in the difference any more.
        error = float(gap.std()) / math.sqrt(n) * math.sqrt(1 - n / every)
        return float(gap.mean()) < -self.z * error
