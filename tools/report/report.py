"""The typed report of a compile, which ``report.json``, the terminal and the page are made from."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from torch import Tensor

from pruneopt.ir.graph import Graph
from pruneopt.passes.analysis.channels.groups import Coupling, Plan
from pruneopt.passes.analysis.cost.budget import BudgetUse
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.units import target_of
from pruneopt.passes.graph_rewrites.verify import Verification
from pruneopt.passes.latency.deliver import Delivered
from pruneopt.passes.repair.repair import RepairReport
from pruneopt.passes.selection.masks import LayerSparsity, sparsity
from pruneopt.tools.bundle.checks import Check

__all__ = [
    "EQUIVALENT",
    "NOT_PROVED",
    "BudgetResult",
    "GroupResult",
    "LatencyResult",
    "Proof",
    "Report",
    "Score",
    "SparsityResult",
    "delivered_costs",
    "original_costs",
    "plain",
    "versions",
]

EQUIVALENT, NOT_PROVED = "equivalent", "not proved"
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "safetensors",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
)


@dataclass(frozen=True, slots=True)
class BudgetResult:
    """A budget, and what the delivered network came to; amounts of ``unit``."""

    text: str
    unit: str
    limit: float
    achieved: float
    original: float
    met: bool

    @classmethod
    def of(cls, use: BudgetUse, latency: LatencyResult | None = None) -> BudgetResult:
        """Return what a plan uses of a budget; of a time on a target, what was measured."""
        achieved, original = use.value, use.full
        for item in () if latency is None else latency.targets:
            if item.target == target_of(use.unit):
                achieved, original = 1e9 * item.measured, 1e9 * item.measured_before
        met = achieved <= use.limit * (1 + 1e-12)  # half of an odd number is no whole one
        return cls(use.text, use.unit, use.limit, achieved, original, met)


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """The times on targets, by round; ``corrections`` are what predictions were multiplied with."""

    rounds: list[list[Delivered]]
    corrections: dict[str, float]

    @property
    def targets(self) -> list[Delivered]:
        """The times of the delivered network."""
        return self.rounds[-1]

    def data(self) -> dict[str, Any]:
        """Return the times as ``report.json`` has them."""
        rounds = [[{**plain(item), "met": item.met} for item in items] for items in self.rounds]
        return {"targets": rounds[-1], "rounds": rounds, "corrections": self.corrections}


@dataclass(frozen=True, slots=True)
class Score:
    """The score on the test split after a stage; ``original`` is before all of them."""

    after: str
    score: float


@dataclass(frozen=True)
class Proof(Verification):
    """The proof, and what loading the artefacts back gave."""

    artefacts: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupResult:
    """A channel group with its width and how much of it is kept."""

    name: str
    width: int
    kept: int
    frozen: str | None

    @classmethod
    def all(cls, coupling: Coupling, plan: Plan) -> list[GroupResult]:
        """Return every group of a network."""
        return [
            cls(
                group.name,
                group.width,
                len(plan[group.name]) if group.name in plan else group.width,
                group.frozen,
            )
            for group in coupling.groups
        ]


@dataclass(frozen=True, slots=True)
class SparsityResult:
    """The sparsity of a delivered network: over all weights of convolutions and linear layers, and
    by layer."""

    weights: int
    zeros: int
    share: float
    nonzero_params: int
    layers: tuple[LayerSparsity, ...]

    @classmethod
    def of(cls, graph: Graph, masks: Mapping[str, Tensor], params: int) -> SparsityResult:
        """Return what masks come to in a delivered graph of ``params`` parameters."""
        found = sparsity(graph, masks)
        return cls(found.weights, found.zeros, found.share, params - found.zeros, found.layers)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The report of a compile. A field that is None by default is left out of ``report.json``.

    Attributes:
        pass_: the text of the pass that chose the channels.
        original, pruned: the costs by unit, and ``accuracy`` where there was data.
        records: what the other passes have to report, by their names.
        search: the record of the pass that chose the channels.
        reached: how close to its budget the pass came.
    """

    model: str
    pass_: str
    pipeline: str
    interrupted: bool
    budgets: Sequence[BudgetResult]
    flops_convention: str
    original: Mapping[str, float]
    pruned: Mapping[str, float]
    metric: str | None
    scores: Sequence[Score]
    verification: Proof
    groups: Sequence[GroupResult]
    seconds: Mapping[str, float]
    notes: Sequence[str]
    sparsity: SparsityResult | None = None
    reached: str | None = None
    records: Mapping[str, object]
    search: object = None
    latency: LatencyResult | None = None
    artefacts: Mapping[str, dict[str, Any]]

    @property
    def equivalence(self) -> str:
        """What the proof says of the pruned network, in words."""
        changed = len(self.verification.notes)
        if not self.verification.equivalent:
            return NOT_PROVED
        if not changed:
            return EQUIVALENT
        operations = "1 operation" if changed == 1 else f"{changed} operations"
        return f"{EQUIVALENT} but for {operations} whose statistic runs over removed channels"

    def data(self) -> dict[str, Any]:
        """Return the report as JSON can hold it: ``report.json``."""
        found = {
            item.name.rstrip("_"): plain(getattr(self, item.name))
            for item in dataclasses.fields(self)
            if item.default is dataclasses.MISSING or getattr(self, item.name) is not None
        }
        found["equivalence"] = self.equivalence
        if self.latency is not None:
            found["latency"] = self.latency.data()
        if self.search is not None:
            found["search"] = self.search_data()
        return found

    def search_data(self) -> dict[str, Any]:
        """Return the record of the pass that chose as data, with the winner of a search."""
        found = plain(self.search)
        winners = {
            name: plain(getattr(self.search, name, None)) for name in ("winner", "winning_finalist")
        }
        return (found if isinstance(found, dict) else {"record": found}) | winners


def original_costs(cost: CostModel) -> dict[str, float]:
    """Return what the original costs, in every unit, with the blocks that were dropped."""
    return {unit: int(cost.original(unit)) for unit in cost.units}


def delivered_costs(cost: CostModel, plan: Plan, records: Mapping[str, object]) -> dict[str, float]:
    """Return what the delivered network costs, in every unit: that of its plan, and of the biases
    that repairs have made."""
    widths = cost.widths(plan)
    repairs = [record for record in records.values() if isinstance(record, RepairReport)]
    return {
        unit: int(cost.measure(unit, widths)) + sum(item.added.get(unit, 0) for item in repairs)
        for unit in cost.units
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("pruneopt", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def plain(value: Any) -> Any:
    """Return a record as data that JSON can hold; what has no such form becomes its text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, tuple | list | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
