"""The result of a run of passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pruneopt.errors import UserError
from pruneopt.passes.analysis.cost.budget import BudgetUse, budget_uses
from pruneopt.passes.depth.drop_blocks import dropped_blocks

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from pruneopt.ir.graph import Graph
    from pruneopt.passes.analysis.channels.groups import Coupling
    from pruneopt.passes.graph_rewrites.verify import Verification
    from pruneopt.passes.pipeline.state import State

__all__ = ["Result"]

M = TypeVar("M", bound="nn.Module")


@dataclass(frozen=True)
class Result:
    """The result of a run of passes: the graph, how it came about, and the network on request."""

    graph: Graph
    plan: dict[str, np.ndarray] | None
    coupling: Coupling | None
    verification: Verification | None
    budgets: tuple[BudgetUse, ...]
    """What the plan uses of every budget; empty without budgets, a plan or a cost model."""
    records: Mapping[str, object]
    timings: Mapping[str, float]
    masks: Mapping[str, Tensor] | None = None
    """Weight name -> bool, False where the weight is held at zero; None without."""

    @cached_property
    def module(self) -> nn.Module:
        """The network as a plain `nn.Module`, in evaluation mode.

        It keeps ``requires_grad``, and can be trained, cast, copied and pickled. A pickle of it
        carries the module's source, which loading executes, so load only your own; it needs
        pruneopt. A bundle's ``model.py`` and ``weights.safetensors`` do without.
        """
        from pruneopt.ir.codegen.module import build_module

        return build_module(self.graph, self.graph.weights, keep_frozen=True)

    def apply_(
        self,
        model: M,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        weights: Literal["result", "model"] = "result",
        inputs: Sequence[Tensor] | None = None,
        forward: Callable[..., Any] | None = None,
    ) -> M:
        """Slim your own module in place, the captured one or another like it, and return it.

        It stays the same object, with its class, module names, hooks, modes and parameters: every
        parameter remains the object that it is, with ``requires_grad``, its gradient cut along, and
        shared as before. Attributes such as ``out_channels`` follow. An optimizer goes on where it
        was: its moments are cut with the parameters. Then the module is run beside the pruned
        network; if its code fixes a size, everything is put back.

        Args:
            optimizer: one or several that train the module.
            weights: ``result`` gives the module the weights of the pruned network, as trained or
                repaired by the passes; ``model`` keeps what the plan leaves of its own.
            inputs: example inputs for the comparison; random ones if left out.
            forward: as it was given to `capture`.

        Raises:
            UserError: another network than the one captured, an optimizer whose state cannot be
                cut, or code that fixes a size; the message names the line, and nothing was changed.
        """
        from pruneopt.passes.apply.apply import apply_to

        if self.coupling is None or self.plan is None:
            raise UserError("no pass has decided which channels stay: there is nothing to apply")
        return apply_to(
            model,
            self.graph,
            self.coupling,
            self.plan,
            self.masks or {},
            dropped_blocks(self.records),
            optimizer,
            weights=weights,
            inputs=inputs,
            forward=forward,
        )

    @classmethod
    def of(cls, state: State) -> Result:
        """Return the result of a state."""
        uses: tuple[BudgetUse, ...] = ()
        if state.cost is not None and state.plan is not None:
            uses = budget_uses(state.budgets, state.cost, state.plan, state.masks)
        return cls(
            state.graph,
            state.plan,
            state.coupling,
            state.verification,
            uses,
            dict(state.records),
            dict(state.timings),
            state.masks,
        )
