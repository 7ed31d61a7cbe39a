"""The units of cost, one table: how each is written in budgets, shown in reports, and measured.

Everything else asks this table. It imports nothing heavy, as help texts are made from it.

All are counted at batch 1:

- ``flops``: what the model's convention counts (`pruneopt.passes.analysis.cost.conventions`).
- ``params``: the elements of the parameters that the convention counts, each parameter once however
  often it is read.
- ``bytes``: the bytes of all tensors a saved model holds (parameters, buffers and constants, each
  with its dtype, shared ones once). Index tensors that slicing adds where channels are picked by
  number are not foreseen.
- ``memory``: the peak, over the ops in their order, of the bytes of all activations alive. A graph
  input is alive from the start until its last use, a result from its op until its last use, an
  output to the end; an op's operands and results are alive together while it runs. A result that by
  its op's schema may alias an operand (`view`, `reshape`, `transpose`, `split`, ...) and a dropout,
  which does nothing in evaluation, share the operand's memory and keep all of it alive. Weights and
  views of them do not count; nothing is overwritten in place; scratch space inside an op is not
  known.
- ``latency``: nanoseconds, the sum over a table of measured layers (`latency_table`); only
  where the model was given one, at the table's batch.
- ``latency@TARGET``: nanoseconds on a target such as ``ort-cpu{threads=2}``, at its batch, as
  predicted from measured sub-networks (`pruneopt.passes.latency`); only where `CostModel.times`
  gives a predictor. These need not grow with the widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from pruneopt.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from pruneopt.ir.graph import Graph, Value

__all__ = [
    "FORMS",
    "NAME_WIDTH",
    "TABLE",
    "UNITS",
    "Measurable",
    "Measure",
    "Unit",
    "on_target",
    "target_of",
    "unit_named",
]

Measure = Callable[["np.ndarray"], "np.ndarray"]
"""The costs of width vectors, float64: [P, G] -> [P]."""


class Measurable(Protocol):
    """The sums that a cost model offers to its units."""

    graph: Graph

    def counted_params(self) -> Iterable[Value]:
        """Return the parameters that the convention counts, each once."""
        ...

    def sum_of_flops(self) -> Measure:
        """Return the cost of all ops by the convention."""
        ...

    def sum_of_elements(self, values: Iterable[Value]) -> Measure:
        """Return the number of elements of all values together."""
        ...

    def sum_of_bytes(self, values: Iterable[Value]) -> Measure:
        """Return the bytes of all values together, each with its dtype."""
        ...

    def peak_bytes(self) -> Measure:
        """Return the largest number of bytes that activations take at one time."""
        ...

    def time_by_table(self) -> Measure:
        """Return the nanoseconds by the model's latency table; `UserError` without one."""
        ...

    def time_on(self, target: str) -> Measure:
        """Return the nanoseconds predicted on a target; `UserError` without a predictor."""
        ...


DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
SECONDS = {"": 10**9, "m": 10**6, "u": 10**3, "\N{MICRO SIGN}": 10**3, "n": 1}
"""Prefixes of a second, in nanoseconds."""


@dataclass(frozen=True)
class Unit:
    """One kind of cost.

    Attributes:
        name: what code, options and ``report.json`` call it.
        label: what reports call it.
        symbol: what an amount ends with in reports, behind a prefix.
        amounts: what an amount may end with in budgets; the first is the one that messages use.
        shares: what may stand behind ``%`` in budgets; the first is the one that messages use.
        forms: budgets as examples, for help texts and messages; the first is an amount.
        measure: gives the cost of width vectors from the sums of a model.
        prefixes: what may stand before an amount's unit, and how much of the unit it is.
        shown_in: the prefix that amounts are always shown with; None chooses a readable one.
        measure_on: the cost on a target; None where it is the same on all.
        always: whether every cost model knows it, without measured times.
        target: the text of the target, for a cost on one.
    """

    name: str
    label: str
    symbol: str
    amounts: tuple[str, ...]
    shares: tuple[str, ...]
    forms: tuple[str, ...]
    measure: Callable[[Measurable], Measure]
    prefixes: Mapping[str, int]
    shown_in: str | None = None
    measure_on: Callable[[Measurable, str], Measure] | None = None
    always: bool = True
    target: str = ""

    def prefix_for(self, value: float) -> str:
        """Return the prefix that an amount is shown with: the largest that leaves at least 1."""
        if self.shown_in is not None:
            return self.shown_in
        return max(
            (prefix for prefix, factor in DECIMAL.items() if abs(value) >= factor),
            key=DECIMAL.__getitem__,
            default="",
        )


TABLE = (
    Unit(
        name="flops",
        label="FLOPs",
        symbol="FLOPs",
        amounts=("FLOPs", "FLOP", "MACs", "MAC"),
        shares=("FLOPs", "FLOP", "MACs", "MAC"),
        forms=("300MFLOPs (or 300MMACs)", "50%FLOPs"),
        measure=lambda model: model.sum_of_flops(),
        prefixes=DECIMAL,
    ),
    Unit(
        name="params",
        label="parameters",
        symbol="params",
        amounts=("params", "param", "parameters", "parameter"),
        shares=("params", "param", "parameters", "parameter"),
        forms=("1.5Mparams", "40%params"),
        measure=lambda model: model.sum_of_elements(model.counted_params()),
        prefixes=DECIMAL,
    ),
    Unit(
        name="bytes",
        label="weights",
        symbol="B",
        amounts=("B", "bytes", "byte"),
        shares=("bytes", "byte"),
        forms=("6MB", "6MiB", "25%bytes"),
        measure=lambda model: model.sum_of_bytes(model.graph.params.values()),
        prefixes={**DECIMAL, **BINARY},
    ),
    Unit(
        name="memory",
        label="peak memory",
        symbol="B",
        amounts=("B memory", "bytes memory"),
        shares=("memory",),
        forms=("12MBmemory", "30%memory"),
        measure=lambda model: model.peak_bytes(),
        prefixes={**DECIMAL, **BINARY},
    ),
    Unit(
        name="latency",
        label="latency by table",
        symbol="s",
        amounts=("s",),
        shares=("latency",),
        forms=("4ms@ort-cpu",),
        measure=lambda model: model.time_by_table(),
        prefixes=SECONDS,
        shown_in="m",
        measure_on=lambda model, target: model.time_on(target),
        always=False,
    ),
)
UNITS = tuple(unit.name for unit in TABLE if unit.always)
"""What every cost model measures; `CostModel.units` adds times where they are known."""
NAME_WIDTH = max(len(unit.name) for unit in TABLE)
"""Letters of the longest name, for lists of costs."""
FORMS = ", ".join(form for unit in TABLE for form in unit.forms)
"""Budgets as examples."""


def unit_named(name: str) -> Unit:
    """Return the unit of a name such as ``flops`` or ``latency@ort-cpu``.

    Raises `UserError` where there is no such unit.
    """
    plain, at, target = name.partition("@")
    unit = next((unit for unit in TABLE if unit.name == plain), None)
    if unit is None or (at and unit.measure_on is None):
        known = ", ".join(unit.name for unit in TABLE)
        raise UserError(f"there is no cost unit '{name}': known are {known}")
    on = unit.measure_on
    if not at or on is None:
        return unit
    return replace(
        unit, name=name, label=name, target=target, measure=lambda model: on(model, target)
    )


def on_target(target: str, unit: str = "latency") -> str:
    """Return the name of a unit on a target; the target's text is not checked."""
    return f"{unit}@{target}"


def target_of(name: str) -> str | None:
    """Return the text of the target that a unit's name holds; None for any other text."""
    plain, at, target = name.partition("@")
    known = any(unit.name == plain and unit.measure_on is not None for unit in TABLE)
    return target if known and at else None
