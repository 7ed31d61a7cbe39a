"""The pass drop-blocks: the least important residual branches go, or those that are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import numpy as np

from pruneopt.errors import BudgetError, UserError
from pruneopt.ir.graph import Graph
from pruneopt.models.spec import did_you_mean
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.cost.budget import Budget, format_value, parse_budget
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.residual.branches import Branch, find_branches
from pruneopt.passes.depth.drop import DropProof, drop_branches, prove_dropped
from pruneopt.passes.depth.ranking import change_of_output, last_weight_norm
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.state import State

__all__ = ["RECORD", "DropBlocks", "DroppedBlock", "DroppedBlocks", "dropped_blocks", "whole_cost"]

RECORD = "drop-blocks"


@dataclass(frozen=True, slots=True)
class DroppedBlock:
    """A dropped block, the value that was its sum, and its score (None: it was named)."""

    name: str
    sum: str
    score: float | None


@dataclass(frozen=True)
class DroppedBlocks:
    """The record of the pass: what was dropped, what that leaves, and the proof of the last time.

    ``share``: what is left of each cost of the original, by the convention ``macs``. ``kept``:
    branches that could not be dropped, with the reason.
    """

    blocks: tuple[DroppedBlock, ...]
    share: Mapping[str, float]
    kept: Mapping[str, str]
    proof: DropProof

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a reader must know."""
        names = ", ".join(block.name for block in self.blocks)
        left = (
            f"{self.share['flops']:.1%} of the FLOPs and {self.share['params']:.1%} of the "
            "parameters"
        )
        return (
            f"dropped {names}: {left} are left before channels go",
            "proved in float64: the network without these blocks is the original with their "
            "outputs multiplied by "
            f"zero, off by at most {self.proof.max_abs_error:.1e} in {self.proof.values} values",
        )


def dropped_blocks(records: Mapping[str, object]) -> dict[str, str]:
    """Return the blocks that a run dropped: name -> the value that was the sum."""
    record = records.get(RECORD)
    return (
        {block.name: block.sum for block in record.blocks}
        if isinstance(record, DroppedBlocks)
        else {}
    )


def whole_cost(graph: Graph, convention: str = "macs") -> CostModel:
    """Return the cost model of a graph whose channels all stay: its only width vector is empty."""
    none = np.zeros(0, dtype=np.int64)
    return CostModel(graph, Coupling(graph, (), (), none, none, (), ()), convention)


@dataclass(frozen=True)
class DropBlocks(Pass):
    """Drop residual branches, and prove what is left."""

    name: ClassVar[str] = RECORD
    summary: ClassVar[str] = (
        "drop whole residual branches: the least important ones, or those that are named"
    )

    count: int | None = option(None, "how many go, the least important first")
    blocks: tuple[str, ...] = option(
        (), "names of branches that go, such as layer3.*; with count or budget: that may go"
    )
    keep: tuple[str, ...] = option((), "names of branches that stay")
    budget: tuple[str, ...] = option(
        (), "branches go until the network is inside this, such as 70%FLOPs"
    )
    criterion: Literal["weight", "output"] = option(
        "weight",
        "least important by the norm of a branch's last weight, or by the change of the output on "
        "data",
    )
    batches: int = option(4, "batches of 64 for criterion=output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count is None and not self.blocks and not self.budget:
            raise UserError(
                "drop-blocks needs count=2, blocks=layer3.* or budget=70%FLOPs to know what may go"
            )
        if self.count is not None and self.budget:
            raise UserError(
                "a count and a budget contradict each other: give drop-blocks one of them"
            )
        if self.count is not None and self.count < 1:
            raise UserError(f"count={self.count} must be at least 1")
        if self.batches < 1:
            raise UserError(f"batches={self.batches} must be at least 1")

    @property
    def needs_data(self) -> str | None:
        return (
            f"{self.name} with criterion=output"
            if self.criterion == "output" and self._ranks
            else None
        )

    @property
    def _ranks(self) -> bool:
        return self.count is not None or bool(self.budget)

    def requires(self, state: State) -> str | None:
        return (
            None
            if state.coupling is None
            else "run drop-blocks before couple: it changes what is coupled"
        )

    def run(self, state: State) -> bool:
        graph, branches = state.graph, find_branches(state.graph)
        allowed = _named(branches, self.keep, self.blocks, graph.name)
        scores = self._scores(state, allowed) if self._ranks else {}
        if not self._ranks:
            chosen = allowed
        elif self.count is not None:
            chosen = _first(
                sorted(allowed, key=lambda branch: scores[branch.name]), self.count, graph.name
            )
        else:
            ranked = sorted(allowed, key=lambda branch: scores[branch.name])
            chosen = _until_inside(state, ranked, [parse_budget(text) for text in self.budget])
        if not chosen:
            return False
        dropped = drop_branches(graph, chosen)
        proof = prove_dropped(graph, chosen, dropped, seed=state.seed)
        state.graph = dropped
        self._report(
            state, chosen, scores, {b.name: b.kept for b in branches if b.kept is not None}, proof
        )
        return True

    def _scores(self, state: State, branches: Sequence[Branch]) -> dict[str, float]:
        if self.criterion == "output":
            return change_of_output(state, branches, self.batches)
        return {branch.name: last_weight_norm(state.graph, branch) for branch in branches}

    def _report(
        self,
        state: State,
        chosen: Sequence[Branch],
        scores: Mapping[str, float],
        kept: Mapping[str, str],
        proof: DropProof,
    ) -> None:
        before = state.records.get(RECORD)
        earlier = before.blocks if isinstance(before, DroppedBlocks) else ()
        new = tuple(DroppedBlock(b.name, b.add.result.name, scores.get(b.name)) for b in chosen)
        full, left = whole_cost(state.original), whole_cost(state.graph)
        share = {unit: _total(left, unit) / max(_total(full, unit), 1.0) for unit in full.units}
        state.records[RECORD] = DroppedBlocks((*earlier, *new), share, kept, proof)


def _total(cost: CostModel, unit: str) -> float:
    return float(cost.measure(unit, cost.full))


def _named(
    branches: Sequence[Branch], keep: Sequence[str], wanted: Sequence[str], network: str
) -> list[Branch]:
    """Return the branches that may go: those named, or all that contain no other one.

    Raises:
        UserError: a name without match, or of a branch that cannot be dropped.
    """
    free = [branch for branch in branches if branch.kept is None]
    if not free:
        why = next(
            (branch.kept for branch in branches),
            "no addition has a branch that starts from its other operand",
        )
        raise UserError(f"{network} has no block that can be dropped: {why}")
    named: list[Branch] = []
    for name in (*keep, *wanted):
        found = [branch for branch in branches if fnmatchcase(branch.name, name)]
        if not found:
            guess = did_you_mean(name, [branch.name for branch in free])
            raise UserError(f"{network} has no block '{name}' that can be dropped: {guess}")
        if name in wanted:
            if all(branch.kept is not None for branch in found):
                raise UserError(f"the block {found[0].name} cannot be dropped: {found[0].kept}")
            named.extend(branch for branch in found if branch not in named)
    # One that contains others is more than one block: it goes only where somebody asks for it.
    leaves = [branch for branch in free if not any(other.inside(branch) for other in free)]
    stay = {branch for branch in branches if any(fnmatchcase(branch.name, name) for name in keep)}
    allowed = [branch for branch in (named or leaves) if branch.kept is None and branch not in stay]
    return [branch for branch in allowed if not any(other.inside(branch) for other in stay)]


def _first(ranked: Sequence[Branch], count: int, network: str) -> list[Branch]:
    if count > len(ranked):
        raise UserError(
            f"count={count} is too much: {network} has {len(ranked)} blocks that may be dropped"
        )
    return list(ranked[:count])


def _until_inside(
    state: State, ranked: Sequence[Branch], budgets: Sequence[Budget]
) -> list[Branch]:
    """Return as few of the branches as bring the network inside the budgets, by the run's original.

    Raises:
        BudgetError: not even all do.
    """
    full = whole_cost(state.original)
    for count in range(len(ranked) + 1):
        cost = whole_cost(drop_branches(state.graph, ranked[:count]))
        over = [
            budget
            for budget in budgets
            if _total(cost, budget.unit) > budget.limit(full) * (1 + 1e-12)
        ]
        if not over:
            return list(ranked[:count])
    left = format_value(over[0].unit, _total(cost, over[0].unit))
    raise BudgetError(
        f"the budget '{over[0].text}' is out of reach: without all {len(ranked)} blocks that may "
        "be dropped "
        f"{state.graph.name} still has {left}"
    )
