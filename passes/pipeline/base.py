"""What a pass and its parts are, what a pass works on, and what a run of passes gives back.

A pass is a frozen dataclass whose fields are its options; it changes a `State` and says honestly
whether the graph changed. The work itself is a plain function that other passes may call; the pass
is the thin class around it. An option may be a *part*: again a frozen dataclass of options, of a
kind (criterion, searcher, ...) that other parts can replace.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pruneopt.errors import InternalError, UserError
from pruneopt.passes.constraints import Constraints, Limits
from pruneopt.passes.pipeline.option_types import fits, wanted

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from pruneopt.ir.graph import Graph
    from pruneopt.models.workload import Workload
    from pruneopt.passes.analysis.channels.groups import Coupling
    from pruneopt.passes.analysis.cost.cost import CostModel
    from pruneopt.passes.budget import Budget
    from pruneopt.passes.transform.verify import Verification

__all__ = [
    "BudgetUse",
    "Configured",
    "Part",
    "Pass",
    "Progress",
    "Result",
    "State",
    "budget_uses",
    "option",
    "option_fields",
    "part_kind",
    "silent",
    "without_data",
    "without_none",
]

T = TypeVar("T")
M = TypeVar("M", bound="nn.Module")
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


class Progress(Protocol):
    """Told how far a pass is: a line of text, and steps done out of ``total`` (None: unknown)."""

    def __call__(self, text: str, done: int = 0, total: int | None = None) -> None: ...


def silent(text: str, done: int = 0, total: int | None = None) -> None:
    """The `Progress` that shows nothing."""


def option(default: T, help: str) -> T:
    """A field of a pass: an option with a default and one line of help for `pruneopt passes`."""
    value: Any = field(default=default, metadata={"help": help})
    return value  # type: ignore[no-any-return]  # like dataclasses.field, typed as the value it stands for


@dataclass
class State:
    """What the passes of one run read and write.

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
        """The coupling; `UserError` before couple ran."""
        if self.coupling is None:
            raise UserError("there are no channel groups yet: run couple first")
        return self.coupling

    def need_cost(self) -> CostModel:
        """The cost model; `UserError` before cost ran."""
        if self.cost is None:
            raise UserError("there is no cost model yet: run cost first")
        return self.cost

    def need_workload(self, what: str) -> Workload:
        """The workload; `UserError` that says ``what`` needs data."""
        if self.workload is None:
            raise UserError(f"{what} needs data: give --data, or a model file with data()")
        return self.workload


@dataclass(frozen=True)
class Configured(ABC):
    """A named frozen dataclass whose fields are options (`option`): a pass, or a part of one.

    A field typed with a class of parts may be given as text,
    ``searcher="evolution{population=20}"``; a subclass with a ``__post_init__`` of its own calls
    this one first.
    """

    name: ClassVar[str]
    """Kebab-case, as in pipelines."""
    summary: ClassVar[str]
    """One line for `pruneopt passes`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        name = cls.__dict__.get("name")
        if name is not None and not NAME.fullmatch(name):
            raise InternalError(
                f"{cls.__qualname__} is named {name!r}; names of passes and parts are kebab-case"
            )

    def __post_init__(self) -> None:
        for key, (kind, optional) in _part_fields(type(self)).items():
            value = getattr(self, key)
            if isinstance(value, str):
                from pruneopt.passes.pipeline.spec import parse_part

                object.__setattr__(self, key, parse_part(kind, value))
            elif not (isinstance(value, kind) or (optional and value is None)):
                raise UserError(
                    f"{key.replace('_', '-')} must be a part of the kind {kind.kind}, not {value!r}"
                )
        for key, hint in _plain_fields(type(self)).items():
            value = getattr(self, key)
            if get_origin(hint) is tuple and isinstance(
                value, str
            ):  # it would be read letter by letter
                raise UserError(
                    f"{key.replace('_', '-')} must be a list, such as [{value!r}], not the text "
                    f"{value!r}"
                )
            if not fits(value, hint):
                raise UserError(f"{key.replace('_', '-')} must be {wanted(hint)}, not {value!r}")


@dataclass(frozen=True)
class Part(Configured):
    """A replaceable part of a pass. Each kind is an abstract class that sets ``kind``; its parts
    set ``name``."""

    kind: ClassVar[str]
    """What it can stand for: ``criterion``, ``searcher``, ..., one of `registry.PART_GROUPS`."""


@dataclass(frozen=True)
class Pass(Configured):
    """One step of a pipeline. Subclasses are frozen dataclasses; their fields are their options
    (`option`).

    The law: a valid graph in, a valid graph out, anything between. `run` returns whether the text
    of the graph or any of its weights changed; the pass manager checks the answer.
    """

    @property
    def label(self) -> str:
        """What reports and records call this pass: its name, unless it does several things that
        must be told apart."""
        return self.name

    @property
    def needs_data(self) -> str | None:
        """What of this pass cannot work without data (``abn``, ``prune with criterion=taylor``);
        None if nothing."""
        return None

    def requires(self, state: State) -> str | None:
        """What must happen before this pass can run, in the user's words ("run couple first"); None
        if nothing."""
        return None

    @abstractmethod
    def run(self, state: State) -> bool:
        """Do the work; returns whether `state.graph` changed (its text or its weights)."""


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """What a plan uses of one budget: the budget's text and unit, its limit, the plan's value and
    the original's."""

    text: str
    unit: str
    limit: float
    value: float
    full: float

    @property
    def share(self) -> float:
        """Value over limit: 1.0 is exactly on the budget, more is outside."""
        return self.value / self.limit if self.limit else float("inf")

    @property
    def kept(self) -> float:
        """Value over the original's value."""
        return self.value / self.full if self.full else 1.0


def budget_uses(
    budgets: list[Budget],
    cost: CostModel,
    plan: Mapping[str, np.ndarray],
    masks: Mapping[str, Tensor] | None = None,
) -> tuple[BudgetUse, ...]:
    """What a plan uses of every budget, in their order. Parameters that masks hold at zero do not
    count."""
    widths = cost.widths(plan)
    zeros = {"params": sum(int((~mask).sum()) for mask in (masks or {}).values())}
    return tuple(
        BudgetUse(
            budget.text,
            budget.unit,
            float(budget.limit(cost)),
            float(cost.measure(budget.unit, widths)) - zeros.get(budget.unit, 0),
            cost.original(budget.unit),
        )
        for budget in budgets
    )


@dataclass(frozen=True)
class Result:
    """What a run of passes gave: the graph as it is now, how it came about, and the network on
    request."""

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
        """The network as a plain `nn.Module` in evaluation mode: trainable, and pruneopt is not
        needed to run it."""
        from pruneopt.ir.codegen.module import build_module

        return build_module(self.graph, self.graph.weights)

    def apply_(
        self,
        model: M,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        weights: Literal["result", "model"] = "result",
        inputs: Sequence[Tensor] | None = None,
        forward: Callable[..., Any] | None = None,
    ) -> M:
        """Slim your own module in place, and return it: what was captured, or another instance of
        the same network.

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

        return apply_to(self, model, optimizer, weights=weights, inputs=inputs, forward=forward)

    @classmethod
    def of(cls, state: State) -> Result:
        """The result of a state."""
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


def without_data(state: State) -> str | None:
    """What `Pass.requires` says where there is no data; None where there is."""
    return (
        None
        if state.workload is not None
        else "it needs data: give --data, or a model file with data()"
    )


def option_fields(kind: type[Configured]) -> tuple[dataclasses.Field[Any], ...]:
    """The options of a pass or part class, in order of declaration."""
    return tuple(item for item in dataclasses.fields(kind) if item.init)


def part_kind(hint: Any) -> type[Part] | None:
    """The class of parts that a field's type asks for; None for any other type."""
    return hint if isinstance(hint, type) and issubclass(hint, Part) else None


def without_none(hint: Any) -> tuple[Any, bool]:
    """``float | None`` as ``float`` and True; any other type as it is, and False."""
    if get_origin(hint) in (Union, UnionType):
        rest = [part for part in get_args(hint) if part is not type(None)]
        return Union[tuple(rest)], len(rest) < len(get_args(hint))  # noqa: UP007  made from a list
    return hint, False


@cache
def _part_fields(kind: type[Configured]) -> dict[str, tuple[type[Part], bool]]:
    """The options of a class that are parts, and whether they may be None."""
    hints = get_type_hints(kind)
    found = {item.name: without_none(hints[item.name]) for item in option_fields(kind)}
    return {
        name: (part, optional)
        for name, (hint, optional) in found.items()
        if (part := part_kind(hint))
    }


@cache
def _plain_fields(kind: type[Configured]) -> dict[str, Any]:
    """The types of the options of a class that are no parts."""
    hints = get_type_hints(kind)
    return {
        item.name: hints[item.name]
        for item in option_fields(kind)
        if item.name not in _part_fields(kind)
    }
