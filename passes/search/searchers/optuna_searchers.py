"""Optuna's samplers as searchers: ``tpe`` and ``cma-es``, asked and told one structure at a time.

A sampler suggests a ratio per gene, the share of channels that goes. The vector is moved onto the
budget before it is judged, as `sampling.WidthSampler` moves random ones: along its ray, ``t *
ratios`` for the smallest t that fits, then up on the grid as far as there is room. A structure that
was judged before is answered from memory and the sampler asked again. So no evaluation is spent
outside the budget, or twice.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pruneopt.errors import UserError
from pruneopt.passes.analysis.cost.budget import within
from pruneopt.passes.options.configured import option
from pruneopt.passes.search.searchers.searcher import AskTell, Searcher
from pruneopt.passes.search.searchers.space import Proposal, Space
from pruneopt.passes.selection.select import largest_share

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

__all__ = ["CMAES", "TPE", "OptunaSearcher", "onto_budget"]

ATTEMPTS = 200
"""Suggestions without anything new in them, after which a search is over."""


def onto_budget(space: Space, ratios: np.ndarray) -> np.ndarray:
    """Return the grid indices `[L]` of ratios `[L]` (shares that go), moved to where the budgets
    are just met.

    Every ratio grows, or shrinks, by one factor, up to the smallest scale of the grid. What the
    budget then has room for is filled up gene by gene, evenly, and first where the grid took most.
    Without budgets the ratios stay.
    """
    asked = 100 * (1 - np.clip(ratios, 0.0, 1 - space.grid[0] / 100))

    def indices(percent: np.ndarray) -> np.ndarray:
        # A product such as 100 * (1 - 0.9) must not fall below the scale it stands for.
        found: np.ndarray = np.maximum(
            np.searchsorted(space.grid, percent + 1e-6, side="right") - 1, 0
        )
        return found

    if not space.budgets:
        return indices(asked)
    # No ratio is 0 exactly, so that the far end of the ray is the smallest structure.
    ray = np.maximum(100 - asked, 1e-8)

    def along(shares: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            times = (1 - shares) / shares
        percent: np.ndarray = np.maximum(
            100 - np.minimum(times[:, None] * ray, 100.0), space.grid[0]
        )
        return percent

    share = largest_share(
        lambda shares: space.widths_of(indices(along(shares))), space.budgets, space.cost
    )
    percent = along(np.array([share]))[0]
    return _filled(space, indices(percent), percent)


def _filled(space: Space, found: np.ndarray, percent: np.ndarray) -> np.ndarray:
    """Return indices raised one by one while the budgets are met; ``percent`` is what each gene
    asked for."""
    found, climbed = found.copy(), np.zeros(len(found), dtype=np.int64)
    open_ = found < len(space.grid) - 1
    while open_.any():
        rows = np.flatnonzero(open_)
        trials = np.repeat(found[None], len(rows), axis=0)
        trials[np.arange(len(rows)), rows] += 1
        fits = np.asarray(within(space.budgets, space.cost, space.widths_of(trials)))
        # Costs grow with the widths: what does not fit now never will.
        open_[rows[~fits]] = False
        rows = rows[fits]
        if len(rows):
            lost = percent[rows] - space.grid[found[rows]]
            chosen = rows[np.lexsort((-lost, climbed[rows]))[0]]
            found[chosen] += 1
            climbed[chosen] += 1
            open_[chosen] = found[chosen] < len(space.grid) - 1
    return found


@dataclass(frozen=True)
class OptunaSearcher(Searcher):
    """A searcher that asks a sampler of Optuna."""

    candidates: int = option(100, "structures to judge")

    packages: ClassVar[tuple[str, ...]] = ("optuna",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates < 1:
            raise UserError(f"candidates={self.candidates} must be at least 1")

    def open(self, space: Space, seed: int) -> AskTell:
        for package in self.packages:
            try:
                import_module(package)
            except ImportError as error:
                raise UserError(
                    f"the searcher {self.name} needs the package {package}: pip install "
                    "'pruneopt[search]'"
                ) from error
        return _Asking(self, space, seed)

    @abstractmethod
    def sampler(self, seed: int) -> BaseSampler:
        """Return the sampler, new; seeds are below 2**32."""


@dataclass(frozen=True)
class TPE(OptunaSearcher):
    """Bergstra et al. 2011, in its multivariate form."""

    name: ClassVar[str] = "tpe"
    summary: ClassVar[str] = "tree-structured Parzen estimator (Optuna)"

    startup: int = option(10, "random structures before anything is learnt")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.startup < 1:
            raise UserError(f"startup={self.startup} must be at least 1")

    def sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(n_startup_trials=self.startup, multivariate=True, seed=seed)


@dataclass(frozen=True)
class CMAES(OptunaSearcher):
    """Hansen 2016; the first structure is random."""

    name: ClassVar[str] = "cma-es"
    summary: ClassVar[str] = (
        "evolution of a normal distribution with its covariance (Optuna, cmaes)"
    )
    packages: ClassVar[tuple[str, ...]] = ("optuna", "cmaes")

    population: int | None = option(
        None, "structures in a generation (4 + 3 ln of the number of genes)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.population is not None and self.population < 2:
            raise UserError(f"population={self.population} must be at least 2")

    def sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import CmaEsSampler

        return CmaEsSampler(popsize=self.population, warn_independent_sampling=False, seed=seed)


class _Asking(AskTell):
    """A study in memory, kept in step by asking and telling alone."""

    def __init__(self, options: OptunaSearcher, space: Space, seed: int) -> None:
        import optuna

        self.options, self.space = options, space
        self.rng = np.random.default_rng([seed, 2])
        with _quiet():
            sampler = options.sampler(seed % 2**32)
            self.study = optuna.create_study(direction="maximize", sampler=sampler)
        ratio = optuna.distributions.FloatDistribution(0.0, 1 - float(space.grid[0]) / 100)
        # Names sort as the genes do.
        self.names = [f"gene{number:05d}" for number in range(len(space.genes))]
        self.distributions: dict[str, Any] = dict.fromkeys(self.names, ratio)
        self.known: dict[tuple[int, ...], float] = {}
        self.judged = 0
        self._asked: tuple[Trial, tuple[int, ...]] | None = None

    def ask(self) -> Proposal | None:
        """Return the next structure; None also where ``ATTEMPTS`` suggestions in a row hold nothing
        new."""
        if self.judged == self.options.candidates:
            return None
        for attempt in range(1, ATTEMPTS + 1):
            with _quiet():
                trial = self.study.ask(self.distributions)
            indices = self._moved(np.array([trial.params[name] for name in self.names]))
            if indices is None:
                self._answer(trial, None)
                continue
            key = tuple(self.space.widths_of(indices).tolist())
            if key not in self.known:
                self._asked = trial, key
                return self.space.proposal(indices, attempt)
            self._answer(trial, self.known[key])
        if not self.known:
            raise UserError(
                f"none of {ATTEMPTS} structures on the budgets is above the window's lower end: "
                "use a wider window"
            )
        return None

    def tell(self, proposal: Proposal, fitness: float) -> None:
        assert self._asked is not None
        trial, key = self._asked
        self.known[key] = fitness
        self.judged += 1
        self._asked = None
        self._answer(trial, fitness)

    def describe(self) -> str:
        genes = len(self.space.genes)
        return (
            f"{self.options.name}, {self.options.candidates} structures of {genes} genes, "
            "moved "
            "onto the budget"
        )

    @property
    def total(self) -> int:
        return self.options.candidates

    def _moved(self, ratios: np.ndarray) -> np.ndarray | None:
        """Return feasible grid indices for ratios; None where the window's lower end is out of
        reach from there."""
        indices = onto_budget(self.space, ratios)
        if self.space.feasible(self.space.widths_of(indices)[None])[0]:
            return indices
        return self.space.moved(indices, self.rng)

    def _answer(self, trial: Trial, fitness: float | None) -> None:
        """Tell the study; no number, or one that is not finite, counts as failed."""
        from optuna.trial import TrialState

        with _quiet():
            if fitness is None or not np.isfinite(fitness):
                self.study.tell(trial, state=TrialState.FAIL)
            else:
                self.study.tell(trial, float(fitness))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's log lines for a block: progress is pruneopt's to report."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
