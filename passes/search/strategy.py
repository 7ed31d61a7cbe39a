"""Pruning strategies in the text that EagleEye's search writes: lines ``score ratio r_1 ... r_L``,
as plans and a pass.

EagleEye (Li et al., ECCV 2020) prints one line per candidate: its score, the share of MACs that is
left, and the share of channels that each layer loses. A group keeps ``C - floor(r C)`` channels,
those with the best scores; the order of the ratios is that of `eagleeye_order`. Its four released
strategies are such files.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from pruneopt.errors import UserError
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.importance.criteria import L1Norm
from pruneopt.passes.analysis.importance.importance import Criterion, score_units
from pruneopt.passes.analysis.residual.gene_order import eagleeye_order
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.searchers.sampling import floor_widths
from pruneopt.passes.selection.prune import Choose, check_leader, data_for
from pruneopt.passes.selection.select import Scores, best_units
from pruneopt.passes.transform.given_plan import take_plan
from pruneopt.reading import read_text

__all__ = [
    "Strategy",
    "StrategyPass",
    "load_strategy",
    "read_strategies",
    "strategy_plan",
    "strategy_widths",
]

FORM = "score ratio r_1 ... r_L"


@dataclass(frozen=True, slots=True)
class Strategy:
    """One line: the candidate's score, the share of MACs left as the line states it, and the
    ratios, float64 `[L]`."""

    score: float
    share: float
    ratios: np.ndarray


def read_strategies(path: str | os.PathLike[str]) -> list[Strategy]:
    """Return the strategies of a file, in its order; numbers are separated by blanks or commas,
    empty lines are skipped.

    Raises:
        UserError: no such file, no strategy in it, or a line that is none.
    """
    lines = read_text(path, "list of strategies").splitlines()
    found = [
        _strategy(f"line {number} of {path}", line)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise UserError(f"{path} holds no strategy: its lines must read {FORM}")
    return found


def _strategy(where: str, line: str) -> Strategy:
    try:
        numbers = [float(word) for word in line.replace(",", " ").split()]
    except ValueError as error:
        raise UserError(f"{where} is no strategy ({error}): it must read {FORM}") from error
    if len(numbers) < 3:
        raise UserError(f"{where} is no strategy: it must read {FORM}")
    for position, ratio in enumerate(numbers[2:], 1):
        if not 0 <= ratio < 1:
            raise UserError(
                f"{where}: ratio {position} is {ratio:g}, but a layer loses a share from 0 to "
                "below 1"
            )
    if not math.isfinite(numbers[0]):
        raise UserError(f"{where}: the score {numbers[0]:g} is no finite number")
    return Strategy(numbers[0], numbers[1], np.array(numbers[2:]))


def strategy_widths(ratios: np.ndarray, coupling: Coupling) -> dict[str, int]:
    """Return how many units every free group keeps under ratios `[L]` in the order of
    `eagleeye_order`.

    A group with blocks keeps as many of each: the count is taken block by block. At least one
    always stays, or two where a statistic over them needs it.

    Raises:
        UserError: another number of ratios than free groups.
    """
    groups = eagleeye_order(coupling)
    if len(ratios) != len(groups):
        raise UserError(
            f"the strategy has {len(ratios)} ratios, but {coupling.graph.name} has {len(groups)} "
            "channel groups that "
            "can be pruned: it belongs to another network, or --ignore freezes some of its groups"
        )
    steps = np.array([group.step for group in groups], dtype=np.int64)
    full = np.array([group.width for group in groups], dtype=np.int64)
    least = np.array([group.least for group in groups], dtype=np.int64)
    kept = (
        np.maximum(floor_widths(np.asarray(ratios, dtype=np.float64), full // steps), least) * steps
    )
    return {group.name: int(width) for group, width in zip(groups, kept, strict=True)}


def strategy_plan(ratios: np.ndarray, coupling: Coupling, scores: Scores) -> dict[str, np.ndarray]:
    """Return the plan of a strategy: in every group the units with the best of ``scores`` (per
    unit, by group) stay.

    EagleEye's scores are ``score_units(coupling, weights, "l1", leader=True)``.

    Raises:
        UserError: another number of ratios than free groups.
    """
    widths = strategy_widths(ratios, coupling)
    return {
        name: best_units(coupling.group(name), scores[name], width)
        for name, width in widths.items()
    }


def load_strategy(
    path: str | os.PathLike[str], coupling: Coupling, scores: Scores, *, line: int | None = None
) -> dict[str, np.ndarray]:
    """Return the plan of one strategy of a file.

    Args:
        scores: per unit of every free group; the best of a group stay.
        line: which strategy, counted from 1; None takes the one with the best score, the first of
            equals.

    Raises:
        UserError: a file without strategies, no such line, or a strategy of another network.
    """
    found = read_strategies(path)
    if line is not None and not 1 <= line <= len(found):
        raise UserError(f"{path} has {len(found)} strategies: there is no number {line}")
    chosen = max(found, key=lambda strategy: strategy.score) if line is None else found[line - 1]
    try:
        return strategy_plan(chosen.ratios, coupling, scores)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


@dataclass(frozen=True)
class StrategyPass(Choose):
    """Keep what a line of a strategy file says, by EagleEye's ranking of filters."""

    name: ClassVar[str] = "strategy"
    summary: ClassVar[str] = (
        "the plan of a strategy file of EagleEye: lines of score, ratio, r_1 ... r_L"
    )

    file: str = field(metadata={"help": "the strategy file"})
    line: int | None = option(None, "which of its strategies, from 1 (the one with the best score)")
    criterion: Criterion = option(L1Norm(), "which channels of a group go: those it scores lowest")
    leader: bool = option(
        True, "score the first layer of a group only, as EagleEye does, not all of them"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_leader(self.leader, self.criterion, "leader")

    @property
    def aims(self) -> bool:
        return True

    @property
    def needs_data(self) -> str | None:
        return data_for(self.name, self.criterion)

    def run(self, state: State) -> bool:
        coupling = state.need_coupling()
        scores = score_units(
            coupling,
            state.graph.weights,
            self.criterion,
            leader=self.leader,
            seed=state.seed,
            workload=state.workload,
            device=state.device,
        )
        plan = load_strategy(self.file, coupling, scores, line=self.line)
        return take_plan(state, plan, f"the strategy of {self.file}")
