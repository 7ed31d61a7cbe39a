"""The fixed stages of a pipeline: couple, cost, slice, verify, as thin passes around functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruneopt.errors import UserError
from pruneopt.passes.analysis.channels.annotate import annotate
from pruneopt.passes.analysis.channels.limits import limits_of
from pruneopt.passes.analysis.channels.naming import freeze_named
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.latency_table import load_table
from pruneopt.passes.analysis.couple import HEADS, couple
from pruneopt.passes.depth.drop_blocks import RECORD, whole_cost
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.graph_rewrites.verify import verify_pruned
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.selection.masks import check_masks, slice_masks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Cost", "CostReport", "Couple", "CoupleReport", "Slice", "Verify"]

PROOF_INPUTS = 4
"""How many real inputs the proof also runs on, where there is data."""


@dataclass(frozen=True, slots=True)
class CoupleReport:
    """The record of coupling: how many groups there are and are free, and notes on the network."""

    groups: int
    free: int
    unknown: tuple[str, ...]
    """Ops without a rule; what they touch keeps all channels."""
    notes: tuple[str, ...]
    """Ops over removed channels whose result changes by construction."""


@dataclass(frozen=True)
class Couple(Pass):
    """Find which channels live or die together, and write the groups into the graph."""

    name: ClassVar[str] = "couple"
    summary: ClassVar[str] = "find which channels must be removed together"
    heads: str = option(
        "width", "how attention shrinks: width (channels within every head) or count (whole heads)"
    )
    groups: str = option(
        "width", "the same for grouped convolutions and group norms: width, or count (whole groups)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, way in (("heads", self.heads), ("groups", self.groups)):
            if way not in HEADS:
                raise UserError(f"{name} must be one of {', '.join(HEADS)}, not {way!r}")

    def requires(self, state: State) -> str | None:
        if state.uncut is not None:
            return "the network is already cut: couple must come before slice"
        return (
            "the channel groups are known already: run couple once"
            if state.coupling is not None
            else None
        )

    def run(self, state: State) -> bool:
        found = couple(state.graph, heads=self.heads, groups=self.groups)
        state.coupling = coupling = freeze_named(found, state.ignore)
        state.limits = limits_of(coupling, state.constraints)
        state.graph = annotate(coupling)
        state.records[self.name] = CoupleReport(
            len(coupling.groups),
            len(coupling.free),
            tuple(f"{item.op}: {item.why}" for item in coupling.unknown),
            tuple(f"{note.op}: {', '.join(note.groups)}" for note in coupling.notes),
        )
        return bool(coupling.groups)


@dataclass(frozen=True, slots=True)
class CostReport:
    """The cost of the uncut network at batch 1, by the units of `CostModel.measure`."""

    convention: str
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Cost(Pass):
    """Compile the costs of the network to polynomials in the widths of its groups."""

    name: ClassVar[str] = "cost"
    summary: ClassVar[str] = (
        "compile FLOPs, parameters, bytes and memory to functions of the widths"
    )

    convention: str = option(
        "macs", "how FLOPs and parameters are counted: macs, 2x, or the convention of a paper"
    )
    latency: str | None = option(
        None, "a latency table, for budgets such as 4ms; `pruneopt profile` measures one"
    )

    def requires(self, state: State) -> str | None:
        if state.uncut is not None:
            return "the network is already cut: cost must come before slice"
        return "run couple first" if state.coupling is None else None

    def run(self, state: State) -> bool:
        coupling = state.need_coupling()
        table = None if self.latency is None else load_table(self.latency)
        state.cost = cost = CostModel(coupling.graph, coupling, self.convention, table)
        if RECORD in state.records:
            whole = whole_cost(state.original, self.convention)
            cost.before = {unit: whole.original(unit) for unit in whole.units}
        full = {unit: float(cost.measure(unit, cost.full)) for unit in cost.units}
        state.records[self.name] = CostReport(self.convention, full)
        return False


@dataclass(frozen=True)
class Slice(Pass):
    """Cut the graph and its weights to the plan."""

    name: ClassVar[str] = "slice"
    summary: ClassVar[str] = "cut the network to the channels that stay"

    def requires(self, state: State) -> str | None:
        if state.uncut is not None:
            return "the network is already cut"
        if state.coupling is None:
            return "run couple first"
        return (
            "choose channels first, with a pass such as prune, uniform or abn"
            if state.plan is None
            else None
        )

    def run(self, state: State) -> bool:
        state.uncut = state.graph
        coupling, plan = state.need_coupling(), state.plan or {}
        state.graph = slice_graph(state.graph, coupling, plan)
        if state.masks is not None:
            state.masks = slice_masks(coupling, coupling.kept_units(plan), state.masks)
        return True


@dataclass(frozen=True)
class Verify(Pass):
    """Prove that the cut network is the original with channels removed."""

    name: ClassVar[str] = "verify"
    summary: ClassVar[str] = "prove that the cut network is the original with channels removed"

    def requires(self, state: State) -> str | None:
        if state.uncut is None:
            return "there is nothing to prove yet: run slice first"
        if state.trained_after_slice:
            return "training changed the weights since slice: run verify before finetune"
        return None

    def run(self, state: State) -> bool:
        assert state.uncut is not None
        if state.masks is not None:
            check_masks(state)
        state.verification = verify_pruned(
            state.uncut,
            state.need_coupling(),
            state.plan or {},
            state.graph,
            _real_inputs(state),
            seed=state.seed,
        )
        state.records[self.name] = state.verification
        return False


def _real_inputs(state: State) -> list[Tensor] | None:
    """Return a few calibration inputs, where there are data and one input of any batch size."""
    if state.workload is None or len(state.graph.inputs) != 1 or not state.graph.dynamic_batch:
        return None
    inputs, _ = next(state.workload.calibration.batches(PROOF_INPUTS))
    return [inputs]
