"""A front by a searcher that knows one objective, by the epsilon-constraint method.

The method is that of Haimes et al. (1971): the range of the cost is cut into strata of equal ratio,
and at the middle of each the searcher looks for the best score within that cost, as it would under
a budget; all the structures together make the front. Searchers are told the score alone, so this
serves a single cost: of several, the others would have no say.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from pruneopt.errors import UserError
from pruneopt.passes.search.searchers.explorer import ATTEMPTS, WORST, Explorer, Structure
from pruneopt.passes.search.searchers.reach import Reach
from pruneopt.passes.search.searchers.searcher import AskTell, Searcher
from pruneopt.passes.search.searchers.space import Proposal

__all__ = ["ByLevels"]


class ByLevels(Explorer):
    """One search for each level of the cost, asked in turns.

    Args:
        searcher: what looks for the best structure of a level.
        reach, population, seed: see `Explorer`; there are as many levels as the first generation
            has of each baseline.

    Raises:
        UserError, BudgetError: options of the searcher that do not fit a level.
    """

    def __init__(self, searcher: Searcher, reach: Reach, population: int, seed: int) -> None:
        super().__init__(reach, population, seed)
        self.searcher = searcher
        self.count = count = max(2, population // 4)
        ratio = reach.high / reach.low
        levels = [reach.low * ratio ** ((place + 0.5) / count) for place in range(count)]
        seeds = np.random.SeedSequence([seed, 6]).generate_state(count)
        self.searches: list[AskTell] = [
            searcher.open(reach.space.under((*reach.budgets, reach.level(level))), int(own))
            for level, own in zip(levels, seeds, strict=True)
        ]
        self.share = max(1, population // count)
        self._scores: dict[bytes, float] = {}
        self._pending: deque[tuple[AskTell, Proposal]] = deque()
        self._last: list[Structure] = []

    def ask(self) -> list[Structure]:
        self._last = super().ask()
        return self._last

    def tell(self, points: np.ndarray) -> None:
        for structure, value in zip(self._last, points[:, 0], strict=True):
            self._scores[_key(structure.widths)] = -value if value < WORST else np.nan
        self._answer()

    def describe(self) -> str:
        return (
            f"{self.searcher.name} at {self.count} levels from {self.reach.low:.1%} to "
            f"{self.reach.high:.1%} of the {self.reach.unit}"
        )

    def _next(self, rng: np.random.Generator) -> list[Structure]:
        found: list[Structure] = []
        for _ in range(ATTEMPTS):
            self.searches = [search for search in self.searches if self._asks(search, found)]
            if found or not self.searches:
                return found
            self._answer()  # nothing new in this round: every score is known
        return found

    def _asks(self, search: AskTell, found: list[Structure]) -> bool:
        """Add a level's share of new structures; return whether its search goes on."""
        for _ in range(self.share):
            proposal = search.ask()
            if proposal is None:
                return False
            if not self.reach.allows(proposal.widths):
                raise UserError(
                    f"the searcher {self.searcher.name} proposed a structure outside of its budgets"
                )
            self._pending.append((search, proposal))
            self._take(proposal.widths, self.searcher.name, found)
            if not search.ready:
                return True
        return True

    def _answer(self) -> None:
        """Tell every search how good its structures were, in the order in which it proposed
        them."""
        while self._pending:
            search, proposal = self._pending.popleft()
            search.tell(proposal, self._scores[_key(proposal.widths)])


def _key(widths: np.ndarray) -> bytes:
    return widths.astype(np.int64).tobytes()
