"""Train under a penalty that drives units towards zero, then remove units: the shape of Network
Slimming and GReg.

Such a pass is made of a regulariser (what is added to the gradients), a recipe (how it is trained
meanwhile) and a decision (which units go). Who decides, and when, is up to the regulariser: GReg
picks while it trains, Network Slimming leaves the decision to the pass, on the final weights. Every
regulariser works under every such pass.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from pruneopt.digest import digest
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.options.configured import Part, option
from pruneopt.passes.options.spec import pass_text
from pruneopt.passes.pipeline.state import State, without_data
from pruneopt.passes.selection.masks import deliver
from pruneopt.passes.selection.prune import BUDGET, Choose, add_budgets, aims_of
from pruneopt.passes.selection.set_plan import set_plan_for_budgets
from pruneopt.passes.training.hooks import Hook
from pruneopt.passes.training.log import TrainingLog
from pruneopt.passes.training.recipe import Recipe
from pruneopt.passes.training.stage import train_state

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from pruneopt.passes.analysis.cost.cost import CostModel

__all__ = [
    "Decision",
    "Regularised",
    "Regulariser",
    "RegulariserHook",
    "RegulariserTask",
    "Trained",
]


@dataclass(frozen=True)
class Decision:
    """A choice of what goes: units by a plan, single weights by masks.

    Attributes:
        plan: group -> sorted kept units.
        masks: weight name -> bool tensor of its shape, True where the weight stays; None where
            whole units go.
    """

    plan: dict[str, np.ndarray]
    masks: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class RegulariserTask:
    """The network, budgets and data that a regulariser may look at.

    Attributes:
        state: of the run; its graph and weights are those before training.
        coupling, cost: of the network in training.
        decide: weights by name -> what would go if it were decided on them now.
    """

    state: State
    coupling: Coupling
    cost: CostModel
    decide: Callable[[Mapping[str, Tensor]], Decision]


class RegulariserHook(Hook):
    """The hook of a regulariser."""

    decision: Decision | None = None
    """What the regulariser picked; None leaves it to the pass, on the final weights."""

    def report(self) -> Any:
        """Return what there is to say after training, as a dataclass or None."""
        return None


@dataclass(frozen=True)
class Regulariser(Part):
    """A penalty on the weights while a network trains."""

    kind: ClassVar[str] = "regulariser"

    @abstractmethod
    def hook(self, task: RegulariserTask) -> RegulariserHook:
        """Return the penalty of one training run.

        Raises:
            UserError: the network has nothing that this penalty applies to.
        """


@dataclass(frozen=True)
class Trained:
    """A training under a regulariser: its hook, what it did, and what goes."""

    hook: RegulariserHook
    log: TrainingLog
    decision: Decision


@dataclass(frozen=True)
class Regularised(Choose):
    """A pass that trains under a regulariser and then removes units.

    Subclasses add ``regulariser: Regulariser`` and ``recipe: Recipe`` fields with their defaults,
    and `decide`.
    """

    budget: tuple[str, ...] = option((), BUDGET)

    @property
    def needs_data(self) -> str | None:
        return self.name

    def requires(self, state: State) -> str | None:
        return super().requires(state) or without_data(state)

    @abstractmethod
    def parts(self) -> tuple[Regulariser, Recipe]:
        """Return the regulariser, and how the network is trained under it."""

    @abstractmethod
    def decide(self, state: State, weights: Mapping[str, Tensor]) -> Decision:
        """Return what goes, decided on weights by name (of the network in training, on any
        device)."""

    def run(self, state: State) -> bool:
        add_budgets(state, self.budget)
        trained = self.train(state, lambda weights: self.decide(state, weights), name=self.name)
        return self.conclude(state, trained)

    def train(
        self,
        state: State,
        decide: Callable[[Mapping[str, Tensor]], Decision],
        *,
        name: str,
        hooks: Sequence[Hook] = (),
    ) -> Trained:
        """Train the state's network under the regulariser and other hooks, and take the
        decision."""
        regulariser, recipe = self.parts()
        # What cannot be reached is said before hours of training, not after.
        state.limits.check(state.need_coupling(), decide(state.graph.weights).plan)
        hook = regulariser.hook(
            RegulariserTask(state, state.need_coupling(), state.need_cost(), decide)
        )
        log = train_state(
            state, recipe, name=name, hooks=(hook, *hooks), identity=self._identity(state)
        )
        return Trained(hook, log, hook.decision or decide(state.graph.weights))

    def source(self) -> str:
        """Return what the decision depends on besides the options, such as the digest of a file
        that one of them names."""
        return ""

    def _identity(self, state: State) -> str:
        """Return what the state of a training is for.

        Where the penalty picks, that state holds the picks, so they must be those for these
        budgets, groups and files.
        """
        text = pass_text(replace(self, budget=()))
        return (
            f"{text} {digest({**aims_of(state), 'ignore': state.ignore, 'source': self.source()})}"
        )

    def conclude(self, state: State, trained: Trained) -> bool:
        """Write a decision and its record into the state; whether the graph changed since before
        the training."""
        decision = trained.decision
        if decision.masks is None:
            changed = set_plan_for_budgets(state, decision.plan)
        else:
            changed = deliver(state, decision.plan, decision.masks)
        state.records[self.name] = self.record(state, trained.log, trained.hook, decision)
        return changed or trained.log.steps > 0

    @abstractmethod
    def record(self, state: State, log: Any, hook: RegulariserHook, decision: Decision) -> Any:
        """Return what the pass has to report, as a dataclass."""
