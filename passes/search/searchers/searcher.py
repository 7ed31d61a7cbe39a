"""Searchers propose structures and are told how good they were.

A searcher is deterministic: the same space, seed and answers give the same questions. A search that
was stopped is therefore continued by asking again and answering from the journal; no state of a
searcher is ever stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from pruneopt.passes.options.configured import Part
from pruneopt.passes.search.searchers.explorer import Explorer
from pruneopt.passes.search.searchers.reach import Reach
from pruneopt.passes.search.searchers.space import Proposal, Space

__all__ = ["AskTell", "FrontSearcher", "SearchMethod", "Searcher"]


class AskTell(ABC):
    """A search under way. Proposals are answered in the order in which they were asked for."""

    @abstractmethod
    def ask(self) -> Proposal | None:
        """Return the next structure to judge, inside every budget; None when the search is over."""

    @abstractmethod
    def tell(self, proposal: Proposal, fitness: float) -> None:
        """Take how good the oldest proposal without an answer was; larger is better."""

    @abstractmethod
    def describe(self) -> str:
        """Say how structures are found, in a few words."""

    @property
    def ready(self) -> int:
        """Return how many more proposals can be asked for before the last one is answered."""
        return 0

    @property
    @abstractmethod
    def total(self) -> int:
        """Return how many structures will be proposed at most."""


@dataclass(frozen=True)
class SearchMethod(Part):
    """A way to search, for the best structure (`Searcher`) or for a front (`FrontSearcher`)."""

    kind: ClassVar[str] = "searcher"


@dataclass(frozen=True)
class Searcher(SearchMethod):
    """A way to search by one number, the fitness. `pruneopt search` uses it too, level by level
    (`by_levels`)."""

    @property
    def breeds_from(self) -> int:
        """Return how many of the best structures decide what is proposed next, so that a race must
        not mistake them."""
        return 1

    @abstractmethod
    def open(self, space: Space, seed: int) -> AskTell:
        """Begin a search.

        Raises:
            UserError: options that do not fit the space.
        """


@dataclass(frozen=True)
class FrontSearcher(SearchMethod):
    """A way to search by several objectives at once."""

    @abstractmethod
    def explore(self, reach: Reach, population: int, seed: int) -> Explorer:
        """Begin a search for a front, in generations of ``population`` structures.

        Raises:
            UserError: options that do not fit.
        """
