"""Running a pipeline: checks between passes, instruments, and failures that name the pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pruneopt.errors import InternalError, UserError, VerificationError
from pruneopt.ir.finite import check_weights
from pruneopt.ir.text.printer import print_graph
from pruneopt.ir.verifier import verify_graph
from pruneopt.passes.analysis.channels.constraints import Constraints, MaxRatios, Ties, Widths
from pruneopt.passes.analysis.cost.budget import Budget, parse_budget
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.instrument import Instrument, Timing
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.pipeline.text import parse_pipeline, pipeline_text
from pruneopt.passes.result import Result
from pruneopt.progress import Progress, silent

if TYPE_CHECKING:
    from pruneopt.ir.graph import Graph
    from pruneopt.models.workload import Workload

__all__ = ["PassManager"]


class PassManager:
    """A sequence of passes, run one after another on a copy of a graph.

    Args:
        passes: what to run.
        verify_ir: check the graph before the first pass and after every one, and that a pass which
            says it changed nothing did not.
        instruments: told before and after every pass.
    """

    def __init__(
        self,
        passes: Iterable[Pass],
        *,
        verify_ir: bool = True,
        instruments: Sequence[Instrument] = (),
    ) -> None:
        self.passes = tuple(passes)
        self._verify_ir = verify_ir
        # The last one is told last before a pass and first after it: other instruments' work is not
        # timed.
        self._instruments = (*instruments, Timing())

    @classmethod
    def parse(
        cls, text: str, *, verify_ir: bool = True, instruments: Sequence[Instrument] = ()
    ) -> PassManager:
        """Return the manager of a pipeline string such as
        ``couple,cost,prune{budget=50%FLOPs},slice,verify``.

        Raises:
            UserError: a mistake in the string, with its place.
        """
        return cls(parse_pipeline(text), verify_ir=verify_ir, instruments=instruments)

    def __str__(self) -> str:
        return pipeline_text(self.passes)

    def run(
        self,
        graph: Graph,
        *,
        budgets: Iterable[Budget | str] = (),
        workload: Workload | None = None,
        seed: int = 0,
        device: str = "cpu",
        ignore: Iterable[str] = (),
        width: Widths = (),
        max_ratio: MaxRatios = (),
        tie: Ties = (),
        progress: Progress = silent,
        run_dir: str | Path | None = None,
    ) -> Result:
        """Run the passes on a copy of ``graph``; see `State` for the arguments, and
        `analysis.channels.constraints` for the forms in which ``width``, ``max_ratio`` and ``tie``
        may be written.

        Raises:
            UserError: something the user can mend: a pass out of order, an impossible budget, data
                that does not fit.
            VerificationError: a proof failed; there is no result.
            InternalError: a pass broke; the message names it and those before it, the cause is
                chained.
        """
        state = State(
            original=graph,
            graph=graph.copy(),
            budgets=[parse_budget(item) if isinstance(item, str) else item for item in budgets],
            workload=workload,
            ignore=tuple(ignore),
            constraints=Constraints.parse(width, max_ratio, tie),
            seed=seed,
            device=device,
            progress=progress,
            run_dir=None if run_dir is None else Path(run_dir),
        )
        check_weights(state.graph)
        if self._verify_ir:
            verify_graph(state.graph)
        for index, step in enumerate(self.passes, 1):
            self._run_one(index, step, state)
        return Result.of(state)

    def _run_one(self, index: int, step: Pass, state: State) -> None:
        problem = step.requires(state)
        if problem is not None:
            raise UserError(f"{step.name} cannot run here: {problem}")
        for instrument in self._instruments:
            instrument.before_pass(index, step, state)
        try:
            self._run_checked(step, state)
        except (UserError, VerificationError):
            raise
        except Exception as error:
            before = ", ".join(done.name for done in self.passes[: index - 1])
            where = f"after {before}" if before else "the first pass"
            raise InternalError(
                f"the pass {step.name} ({where}) failed: {type(error).__name__}: {error}"
            ) from error
        for instrument in reversed(self._instruments):
            instrument.after_pass(index, step, state)

    def _run_checked(self, step: Pass, state: State) -> None:
        if not self._verify_ir:
            step.run(state)
            return
        text, weights = print_graph(state.graph), dict(state.graph.weights)
        modified = step.run(state)
        if not modified:
            same = len(weights) == len(state.graph.weights) and all(
                state.graph.weights.get(name) is tensor for name, tensor in weights.items()
            )
            if not same or print_graph(state.graph) != text:
                raise InternalError(
                    f"{step.name} says it changed nothing, but the graph is another one"
                )
        else:
            verify_graph(state.graph)
