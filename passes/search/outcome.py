"""The result of a search: its candidates, the finalists among them, and the winner."""

from __future__ import annotations

from dataclasses import dataclass, field

from pruneopt.passes.search.rankings.ranking import comparable

__all__ = ["Candidate", "Finalist", "Outcome"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One judged structure.

    Attributes:
        index: its number, in the order of judging.
        widths: by group.
        score: the mean metric on the sub-validation images.
        fitness: what the ranking made of score and costs; larger is better.
        stale: the score before batch-norm statistics were recomputed, where that was asked for.
        attempts: vectors drawn until it fitted.
        seconds: of judging.
        images, batches: how many validation images and calibration batches the score comes from,
            where that differs from candidate to candidate.
        trace: what a continued race has to know of it.
    """

    index: int
    widths: dict[str, int]
    score: float
    fitness: float
    stale: float | None
    attempts: int
    seconds: float
    images: int | None = None
    batches: int | None = None
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Finalist:
    """One of the best candidates, cut from the trained weights: its score as cut, and after
    fine-tuning with its fitness (None without).
    """

    index: int
    stale: float
    tuned: float | None
    fitness: float | None
    seconds: float


@dataclass
class Outcome:
    """The result of a search.

    Attributes:
        averaging: how candidates were judged.
        sampling: how structures were found.
        ranked_by: how candidates were compared.
        candidates: all judged candidates, by number.
        finalists: the best of them, as far as they were looked at again.
        interrupted: the search was stopped by hand; ``winner`` is the best until then.
        notes: what the user should know.
    """

    averaging: str
    sampling: str
    ranked_by: str = "accuracy"
    candidates: list[Candidate] = field(default_factory=list)
    finalists: list[Finalist] = field(default_factory=list)
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def ranking(self) -> list[Candidate]:
        """Candidates with different widths, the fittest first; of equals the first."""
        distinct: dict[tuple[int, ...], Candidate] = {}
        for candidate in sorted(
            self.candidates, key=lambda item: (-comparable(item.fitness), item.index)
        ):
            distinct.setdefault(tuple(candidate.widths.values()), candidate)
        return list(distinct.values())

    @property
    def winner(self) -> Candidate:
        """The fittest fine-tuned candidate, or the fittest of all where none was fine-tuned."""
        tuned = [
            (item.fitness, self._candidate(item.index))
            for item in self.finalists
            if item.fitness is not None
        ]
        if not tuned:
            return self.ranking[0]
        return max(
            tuned,
            key=lambda pair: (comparable(pair[0]), comparable(pair[1].fitness), -pair[1].index),
        )[1]

    @property
    def winning_finalist(self) -> Finalist | None:
        """The winner's second look: its stale and its fine-tuned score; None if the search was
        stopped before."""
        return next((item for item in self.finalists if item.index == self.winner.index), None)

    @property
    def acceptance(self) -> float:
        """The share of drawn vectors that became candidates."""
        return len(self.candidates) / max(1, sum(item.attempts for item in self.candidates))

    def _candidate(self, index: int) -> Candidate:
        return next(item for item in self.candidates if item.index == index)
