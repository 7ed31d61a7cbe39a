"""The state that the passes of a run read and write."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pruneopt.errors import UserError
from pruneopt.passes.analysis.channels.constraints import Constraints, Limits
from pruneopt.progress import Progress, silent

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from pruneopt.ir.graph import Graph
    from pruneopt.models.workload import Workload
    from pruneopt.passes.analysis.channels.groups import Coupling
    from pruneopt.passes.analysis.cost.budget import Budget
    from pruneopt.passes.analysis.cost.cost import CostModel
    from pruneopt.passes.graph_rewrites.verify import Verification

__all__ = ["State", "without_data"]


@dataclass
class State:
    """The state of a run of passes: all that they read and write.

    Attributes:
        original: the graph the run began with; no pass changes it.
        graph: the graph as it is now.
        coupling: the channel groups that `plan` speaks of (set by couple; slice keeps it).
        uncut: the graph as it was before slice, with its weights; None until slice ran.
        cost: the cost model of the coupled graph (set by cost).
        budgets: everything the result must stay inside.
        plan: group name -> sorted kept unit indices; None until a pass decides.
        verification: the proof, once verify ran.
        masks: weight name -> bool tensor of its shape, False where unstructured pruning keeps the
            weight at zero; None without.
        unmasked: the masked weights as they were before; None without masks, or once training moved
            the others.
        trained_after_slice: whether the cut network's weights are no longer those of the original.
        workload: data, loss and metric; None without data.
        ignore: parameters, modules or groups that must not lose channels.
        constraints: widths, largest shares to lose and ties, by the user's names.
        limits: what the constraints mean for the groups (set by couple); every plan obeys them.
        seed: drives every random choice of the run.
        device: where data runs through networks.
        records: what each pass has to report, by the pass's name.
        timings: seconds by pass, in order; a repeated pass gets a number (``finetune.2``).
        progress: where passes report how far they are.
        run_dir: a folder for files that a pass wants to leave (journals); None if there is none.
    """

    original: Graph
    graph: Graph
    coupling: Coupling | None = None
    uncut: Graph | None = None
    cost: CostModel | None = None
    budgets: list[Budget] = field(default_factory=list)
    plan: dict[str, np.ndarray] | None = None
    verification: Verification | None = None
    masks: dict[str, Tensor] | None = None
    unmasked: dict[str, Tensor] | None = None
    trained_after_slice: bool = False
    workload: Workload | None = None
    ignore: tuple[str, ...] = ()
    constraints: Constraints = field(default_factory=Constraints)
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    device: str = "cpu"
    records: dict[str, object] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    progress: Progress = silent
    run_dir: Path | None = None

    def need_coupling(self) -> Coupling:
        """Return the coupling; `UserError` before couple ran."""
        if self.coupling is None:
            raise UserError("there are no channel groups yet: run couple first")
        return self.coupling

    def need_cost(self) -> CostModel:
        """Return the cost model; `UserError` before cost ran."""
        if self.cost is None:
            raise UserError("there is no cost model yet: run cost first")
        return self.cost

    def need_workload(self, what: str) -> Workload:
        """Return the workload; `UserError` that says ``what`` needs data."""
        if self.workload is None:
            raise UserError(f"{what} needs data: give --data, or a model file with data()")
        return self.workload


def without_data(state: State) -> str | None:
    """Return what `Pass.requires` says where there is no data; None where there is."""
    return (
        None
        if state.workload is not None
        else "it needs data: give --data, or a model file with data()"
    )
