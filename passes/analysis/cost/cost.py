"""Costs of every width: FLOPs, parameters, bytes and peak memory as functions of the widths of
the channel groups.

The length of every axis is a linear form in the widths, and every op costs a sum of products of
such lengths. They are compiled once into arrays, so that a whole population of width vectors is
measured by a few matrix products.

What each unit counts: `pruneopt.passes.analysis.cost.units`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from pruneopt.errors import InternalError, UserError
from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.schema import DTYPES, overload
from pruneopt.ir.types import Location
from pruneopt.passes.analysis.channels.groups import Coupling, Plan
from pruneopt.passes.analysis.channels.sizes import AxisShare, axis_shares, size_form
from pruneopt.passes.analysis.cost.conventions import convention_named
from pruneopt.passes.analysis.cost.units import UNITS, Measure, unit_named
from pruneopt.passes.analysis.ops.count import Count, elements
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.table import has_trait

__all__ = ["CostModel", "OpCost", "Times"]

CHUNK = 4096
"""Width vectors measured at a time: large enough for the matrix products, small enough for the
cache."""


@dataclass(frozen=True, slots=True)
class OpCost:
    """One line of the cost table. Parameters belong to the first op that reads them."""

    op: Op
    location: Location
    flops: int
    params: int


class Times(Protocol):
    """A predictor of times on a target."""

    def seconds(self, widths: np.ndarray) -> np.ndarray:
        """Return the times of width vectors, `[P, G]` -> `[P]`."""
        ...


class LayerTable(Protocol):
    """Gives the sum of the times of a network's layers (`latency_table.LatencyTable`)."""

    def predictor(self, cost: CostModel) -> Callable[[np.ndarray], np.ndarray]:
        """Return the nanoseconds of width vectors, `[P, G]` -> `[P]`; `UserError` for another
        network."""
        ...

    def data(self) -> dict[str, Any]:
        """Return the table as JSON holds it."""
        ...


class CostModel:
    """The cost of a graph as a function of the widths of its free groups. Built once; the graph is
    not changed.

    A width vector has one entry per free group, in the order of ``groups``. A graph captured with a
    fixed batch is counted at that batch.
    """

    def __init__(
        self,
        graph: Graph,
        coupling: Coupling,
        convention: str = "macs",
        latency: LayerTable | None = None,
    ) -> None:
        """Raise `UserError` for an unknown convention, or a latency table of another network."""
        self.graph, self.coupling, self.latency = graph, coupling, latency
        self.convention = convention_named(convention)
        free = coupling.free
        self.groups: tuple[str, ...] = tuple(group.name for group in free)
        self.full = np.array([group.width for group in free], dtype=np.int64)
        """The widths of the original, [G]."""
        self.step = np.array([group.step for group in free], dtype=np.int64)
        """Widths are multiples of these (every block keeps the same number), [G]."""
        self.minimum = np.array([group.minimum for group in free], dtype=np.int64)
        """The smallest widths: one unit in each block, or two, [G]."""
        self.before: dict[str, float] = {}
        """What the network cost before whole blocks were dropped from it, or as it was measured, by
        unit."""
        self.times: Callable[[str, CostModel], Times] | None = None
        """Gives the predictor of this network on the target of a text; asked once for each when it
        is needed."""
        self._lengths = _Lengths(coupling, self.full)
        self._measures: dict[str, Measure] = {}
        if latency is not None:
            self._measures["latency"] = self.time_by_table()

    @property
    def units(self) -> tuple[str, ...]:
        """The units that this model measures; a time on a target once it was asked for."""
        return (*UNITS, *(unit for unit in self._measures if unit not in UNITS))

    def length_form(self, value: Value, axis: int) -> np.ndarray:
        """Return the length of an axis as a linear form in a width vector: G coefficients, and the
        constant."""
        return self._lengths(value, axis)

    def length(self, value: Value, axis: int, widths: ArrayLike) -> np.ndarray:
        """Return the length of an axis at width vectors: [G] -> 0-d, [P, G] -> [P]; float64."""
        form = self.length_form(value, axis)
        length: np.ndarray = np.asarray(widths, dtype=np.float64) @ form[:-1] + form[-1]
        return length

    def widths(self, plan: Plan) -> np.ndarray:
        """Return the width vector of a plan, [G]; groups that the plan does not name are full. The
        plan is not checked."""
        given = [
            len(plan[name]) if name in plan else full
            for name, full in zip(self.groups, self.full, strict=True)
        ]
        return np.array(given, dtype=np.int64)

    def measure(self, unit: str, widths: ArrayLike) -> np.ndarray:
        """Return the cost of width vectors: [G] -> a 0-d int64 array, [P, G] -> [P]. ``unit`` is
        one of ``units``.

        Exact for widths that are multiples of ``step``; others give what the formulas give,
        rounded.
        """
        rows = np.asarray(widths, dtype=np.float64)
        if rows.ndim not in (1, 2) or rows.shape[-1] != len(self.groups):
            raise InternalError(
                f"width vectors of shape {rows.shape} do not fit {len(self.groups)} free groups"
            )
        function = self._measure_of(unit)
        table = np.atleast_2d(rows)
        parts = [function(table[start : start + CHUNK]) for start in range(0, len(table), CHUNK)]
        result: np.ndarray = np.rint(np.concatenate(parts) if parts else np.empty(0)).astype(
            np.int64
        )
        return result.reshape(rows.shape[:-1])

    def original(self, unit: str) -> float:
        """Return what the original cost, dropped blocks included: a budget that is a share is a
        share of this."""
        return self.before[unit] if unit in self.before else float(self.measure(unit, self.full))

    def describe(self, widths: ArrayLike | None = None) -> tuple[OpCost, ...]:
        """Return the ops that cost FLOPs or own parameters, in graph order, at a width vector [G]
        (default: the original)."""
        row = np.atleast_2d(np.asarray(self.full if widths is None else widths, dtype=np.float64))
        flops = [(op, count) for op in self.graph.ops for count in self.convention.flops(op)]
        params = [(op, Count(elements(value))) for op, value in self._owned_params()]
        columns = [self._per_op(items, row) for items in (flops, params)]
        return tuple(
            OpCost(op, op.loc, *(column.get(op, 0) for column in columns))
            for op in self.graph.ops
            if any(op in column for column in columns)
        )

    def _per_op(self, items: list[tuple[Op, Count]], row: np.ndarray) -> dict[Op, int]:
        values = _Terms.of(
            _products(self._lengths, [count for _, count in items]), len(self.groups)
        )(row)[0]
        totals: dict[Op, int] = {}
        for (op, _), value in zip(items, values, strict=True):
            totals[op] = totals.get(op, 0) + round(value)
        return totals

    def _owned_params(self) -> list[tuple[Op, Value]]:
        owner: dict[Value, Op] = {}
        for op in self.graph.ops:
            for value in self.convention.counted_params(op):
                owner.setdefault(value, op)
        return [(op, value) for value, op in owner.items()]

    def _measure_of(self, unit: str) -> Measure:
        if unit not in self._measures:
            self._measures[unit] = unit_named(unit).measure(self)
        return self._measures[unit]

    # What units are measured by: see `units.Measurable`

    def counted_params(self) -> list[Value]:
        """Return the parameters that the convention counts, each once."""
        return [value for _, value in self._owned_params()]

    def sum_of_flops(self) -> Measure:
        """Return the cost of all ops by the convention."""
        return self._sum_of(count for op in self.graph.ops for count in self.convention.flops(op))

    def sum_of_elements(self, values: Iterable[Value]) -> Measure:
        """Return the number of elements of all values together."""
        return self._sum_of(Count(elements(value)) for value in values)

    def sum_of_bytes(self, values: Iterable[Value]) -> Measure:
        """Return the bytes of all values together, each with its dtype."""
        return self._sum_of(Count(elements(value), _item_size(value)) for value in values)

    def peak_bytes(self) -> Measure:
        """Return the largest number of bytes that activations take at one time."""
        return _peak(self.graph, self._lengths)

    def time_by_table(self) -> Measure:
        """Return the nanoseconds by the latency table; `UserError` without one."""
        if self.latency is None:
            raise UserError(
                "a limit on time needs a latency table of this network: measure one with `pruneopt "
                "profile MODEL --out table.json`, and give it to the pass cost, as in --pipeline "
                "'couple,cost{latency=table.json},...'; or name a target, as in 4ms@ort-cpu"
            )
        return self.latency.predictor(self)

    def time_on(self, target: str) -> Measure:
        """Return the nanoseconds predicted on a target; `UserError` without a predictor."""
        if self.times is None:
            raise UserError(
                f"a limit on the time on {target} needs measurements, which `pruneopt compile` "
                "takes"
            )
        predictor = self.times(target, self)
        return lambda rows: 1e9 * predictor.seconds(rows)

    def _sum_of(self, counts: Iterable[Count]) -> Measure:
        groups = len(self.groups)
        terms = _Terms.of(_merged(_products(self._lengths, counts), groups), groups)
        return lambda rows: terms(rows).sum(axis=1)


class _Lengths:
    """The length of every axis of every value as a linear form in the widths: G coefficients, and
    the constant."""

    def __init__(self, coupling: Coupling, full: np.ndarray) -> None:
        self.coupling = coupling
        self.at_full = np.append(full, 1)
        free = [number for number, group in enumerate(coupling.groups) if group.frozen is None]
        self.index = {number: column for column, number in enumerate(free)}
        self._known: dict[Value, list[int | _Form]] = {}
        self._shared: dict[Any, tuple[np.ndarray, _Form]] = {}

    def __call__(self, value: Value, axis: int) -> np.ndarray:
        found = self.of(value)[axis]
        return (
            np.append(np.zeros(len(self.index)), found) if isinstance(found, int) else found.array
        )

    def of(self, value: Value) -> list[int | _Form]:
        """Return the length of every axis of a value: a number where it is always the same."""
        if value not in self._known:
            self._known[value] = self._forms(value)
        return self._known[value]

    def _forms(self, value: Value) -> list[int | _Form]:
        shape = value.type.shape()
        forms: list[int | _Form] = list(shape)
        for share in axis_shares(self.coupling, value):
            form = self._form(share)
            if round(float(form.array @ self.at_full)) != shape[share.axis]:
                raise InternalError(
                    f"axis {share.axis} of {value} is not as long as its channel groups say"
                )
            if form.varies:
                forms[share.axis] = form
        return forms

    def _form(self, share: AxisShare) -> _Form:
        """Return the form of an axis; most axes have units, and so a form, in common with
        others."""
        units = share.units
        key = units.__array_interface__["data"][0], units.shape, units.strides, share.divisor
        if key not in self._shared:
            array = size_form(self.coupling, share, self.index)
            # The units are held as well: nothing else may come to lie where they do.
            self._shared[key] = units, _Form(array, bool(array[:-1].any()), array.tobytes())
        return self._shared[key][1]


class _Form(NamedTuple):
    """A length as a linear form: G coefficients and the constant, whether it varies, and its bytes
    to tell it by."""

    array: np.ndarray
    varies: bool
    key: bytes


_Product = tuple[float, list[_Form]]
"""A factor and the forms that it is multiplied with."""


def _products(lengths: _Lengths, counts: Iterable[Count]) -> list[_Product]:
    """Return every count as a product; axes of constant length go into its factor."""
    found: list[_Product] = []
    for count in counts:
        factor, forms = float(count.factor), []
        for value, axis in count.axes:
            length = lengths.of(value)[axis]
            if isinstance(length, int):
                factor *= length
            else:
                forms.append(length)
        found.append((factor, sorted(forms, key=lambda form: form.key)))
    return found


def _merged(products: Iterable[_Product], groups: int) -> list[_Product]:
    """Return fewer products with the same sum: equal ones once, and all linear ones as one."""
    linear = np.zeros(groups + 1)
    several: dict[tuple[bytes, ...], _Product] = {}
    for factor, forms in products:
        if len(forms) > 1:
            key = tuple(form.key for form in forms)
            several[key] = (several[key][0] + factor if key in several else factor, forms)
        elif forms:
            linear += factor * forms[0].array
        else:
            linear[-1] += factor
    return [(1.0, [_Form(linear, True, b"")]), *several.values()]


@dataclass(frozen=True)
class _Terms:
    """T products of linear forms: ``scale[t] * prod_k(widths @ factors[k, :-1, t] + factors[k, -1,
    t])``."""

    scale: np.ndarray
    factors: np.ndarray
    """[K, G + 1, T]; products of fewer than K forms are filled up with ones."""

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return the products at width vectors, [P, G] -> [P, T]."""
        values = np.tile(self.scale, (len(rows), 1))
        for factor in self.factors:
            lengths = rows @ factor[:-1]
            lengths += factor[-1]
            values *= lengths
        return values

    @staticmethod
    def of(products: Sequence[_Product], groups: int) -> _Terms:
        depth = max((len(forms) for _, forms in products), default=0)
        array = np.zeros((depth, groups + 1, len(products)))
        array[:, -1, :] = 1.0
        for term, (_, forms) in enumerate(products):
            for k, form in enumerate(forms):
                array[k, :, term] = form.array
        return _Terms(np.array([factor for factor, _ in products], dtype=np.float64), array)


def _item_size(value: Value) -> int:
    """Return the bytes per element; results that an op does not give have none."""
    return DTYPES[value.type.dtype].itemsize if value.type.dtype in DTYPES else 0


# Memory


def _peak(graph: Graph, lengths: _Lengths) -> Measure:
    """Return the peak of the live bytes over the steps of a graph."""
    owners, live = _live_storages(graph)
    counts = [Count(elements(value), _item_size(value)) for value in owners]
    sizes = _Terms.of(_products(lengths, counts), len(lengths.index))
    table = _without_subsets(live).T.astype(np.float64)
    return lambda rows: (sizes(rows) @ table).max(axis=1, initial=0.0)


def _live_storages(graph: Graph) -> tuple[list[Value], np.ndarray]:
    """Return the values that own memory, and which of them are alive at each step: [1 + ops,
    owners], the start first."""
    root: dict[Value, Value] = {value: value for value in graph.inputs}
    born: dict[Value, int] = dict.fromkeys(graph.inputs, 0)
    dies: dict[Value, int] = dict.fromkeys(graph.inputs, 0)
    for step, op in enumerate(graph.ops, start=1):
        for value in op.inputs:
            if value in root:
                dies[root[value]] = step
        for number, value in enumerate(op.results):
            source = _aliased(op, number)
            if source is None:
                root[value], born[value], dies[value] = value, step, step
            elif source in root:
                root[value] = root[source]  # else a view of a weight
    for value in graph.output_values:
        if value in root:
            dies[root[value]] = len(graph.ops)
    steps = np.arange(len(graph.ops) + 1)[:, None]
    owners = list(born)
    live = (np.array([born[v] for v in owners], dtype=np.int64) <= steps) & (
        steps <= np.array([dies[v] for v in owners], dtype=np.int64)
    )
    return owners, live


def _aliased(op: Op, number: int) -> Value | None:
    """Return the operand whose memory result ``number`` shares by the op's schema, if any."""
    if has_trait(op, Trait.DROPOUT):  # does nothing in evaluation mode
        return op.value(0)
    schema = overload(op.target)._schema
    returned = schema.returns[min(number, len(schema.returns) - 1)].alias_info
    if returned is None:
        return None
    # A list of views carries no name of its own: it aliases the one operand that the schema marks.
    tensors = [argument for argument in schema.arguments if "Tensor" in str(argument.type)]
    for index, argument in enumerate(tensors):
        alias = argument.alias_info
        if alias is not None and (
            not returned.before_set or returned.before_set & alias.before_set
        ):
            return op.value(index)
    return None


def _without_subsets(live: np.ndarray) -> np.ndarray:
    """Return the steps that can be the peak: those whose live set is part of another step's
    cannot."""
    distinct = np.unique(live, axis=0)
    inside = (distinct.astype(np.int64) @ (~distinct).astype(np.int64).T) == 0
    np.fill_diagonal(inside, False)
    candidates: np.ndarray = distinct[~inside.any(axis=1)]
    return candidates
