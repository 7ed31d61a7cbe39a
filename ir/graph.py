"""The graph: ops and values with identity, edited only through methods that keep the uses right.

Parameters are values named by their qualified name; their tensors live beside the graph in a
`Weights` dictionary, so one graph runs with full, sliced, masked or generated weights. Text and
equality never look at tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Literal

from pruneopt.errors import InternalError
from pruneopt.ir.types import Attr, ChannelGroup, Location, TensorType

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Graph",
    "Op",
    "Operand",
    "Structure",
    "Use",
    "Value",
    "ValueKind",
    "map_structure",
    "values_in",
]

ValueKind = Literal["input", "param", "buffer", "constant", "result"]


@dataclass(eq=False, slots=True, repr=False)
class Value:
    """A tensor of the graph: an input, a named weight, or a result of an op."""

    name: str
    type: TensorType
    kind: ValueKind
    producer: Op | None = None
    _uses: dict[Op, int] = field(default_factory=dict, repr=False)

    @property
    def users(self) -> tuple[Op, ...]:
        """The ops that read this value, in the order in which they began to."""
        return tuple(self._uses)

    @property
    def is_weight(self) -> bool:
        """True for what the weights dictionary holds: parameters, buffers and constants."""
        return self.kind in ("param", "buffer", "constant")

    def __str__(self) -> str:
        return f"@{self.name}" if self.is_weight else f"%{self.name}"

    def __repr__(self) -> str:
        return f"<value {self}>"  # not its producer, which would print the whole graph before it


Operand = None | bool | int | float | Value | tuple["Value | None", ...]
Structure = (
    None
    | bool
    | int
    | float
    | str
    | Value
    | tuple["Structure", ...]
    | list["Structure"]
    | dict[str, "Structure"]
)

NAMESPACES = ("aten", "prims", "torchvision")
"""Libraries in which an op's name alone says what it does."""
ROLES: dict[str, str] = {}
"""Ops of users' libraries that do what an op of PyTorch does: base -> base."""


@dataclass(frozen=True, slots=True)
class Use:
    """One reading of a value.

    It is operand number ``index`` of ``op`` (``position`` inside a list of tensors).
    """

    op: Op
    index: int
    position: int | None = None


@dataclass(eq=False, slots=True, repr=False)
class Op:
    """One operation.

    ``target`` names an ATen overload (``aten.conv2d.default``), whose schema names the rest.

    ``operands`` holds one entry for every tensor argument of the schema, in its order; ``attrs``
    every other argument. Both change only through the methods of `Graph`.
    """

    target: str
    operands: tuple[Operand, ...]
    attrs: Mapping[str, Attr]
    results: tuple[Value, ...]
    loc: Location = Location()  # noqa: RUF009  frozen

    @property
    def result(self) -> Value:
        """The only result."""
        if len(self.results) != 1:
            raise InternalError(
                f"{self.target} has {len(self.results)} results where one was expected ({self.loc})"
            )
        return self.results[0]

    @property
    def base(self) -> str:
        """The op's name without overload: ``conv2d``.

        An op of a user's library keeps its namespace, ``mylib.conv2d``, as it need not mean what
        PyTorch's op of that name does.
        """
        return _base_of(self.target)

    @property
    def role(self) -> str:
        """The op of PyTorch that this one acts as: its own base, or that in `ROLES`."""
        return ROLES.get(self.base, self.base)

    @property
    def inputs(self) -> Iterator[Value]:
        """Every value read, in operand order, with repetitions."""
        for operand in self.operands:
            if isinstance(operand, Value):
                yield operand
            elif isinstance(operand, tuple):
                yield from (value for value in operand if value is not None)

    @property
    def uses(self) -> Iterator[tuple[Use, Value]]:
        """Every reading of a value by this op."""
        for index, operand in enumerate(self.operands):
            if isinstance(operand, Value):
                yield Use(self, index), operand
            elif isinstance(operand, tuple):
                held = ((at, value) for at, value in enumerate(operand) if value is not None)
                yield from ((Use(self, index, at), value) for at, value in held)

    def value(self, index: int) -> Value | None:
        """Return operand ``index`` if it is a single value, else None."""
        operand = self.operands[index] if index < len(self.operands) else None
        return operand if isinstance(operand, Value) else None

    def needed(self, index: int) -> Value:
        """Return operand ``index``, which has to be a single value."""
        value = self.value(index)
        if value is None:
            raise InternalError(f"{self} lacks operand {index}")
        return value

    def __str__(self) -> str:
        return f"{self.target.removesuffix('.default')} ({self.loc})"

    def __repr__(self) -> str:
        return f"<op {self}>"


@cache
def _base_of(target: str) -> str:
    namespace, base, _ = target.split(".")
    return base if namespace in NAMESPACES else f"{namespace}.{base}"


class Graph:
    """A captured network: inputs, named weights, ops in execution order, outputs, channel groups.

    ``weights`` holds the tensors that the parameter names refer to; it is no part of the graph's
    equality or text. ``notes`` are what capture had to tell the user.

    Two graphs are equal if they say the same: name, inputs, weights' names, ops in order, operands,
    attributes, types, locations, outputs, aliases and channel groups; the order of attributes and
    aliases says nothing. Numbers are compared by their spelling: 1, 1.0 and true differ, and nan
    equals itself. Ops and values are equal to themselves only. A graph has no hash, as it changes:
    what is kept for a graph is kept by its ``id``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.params: dict[str, Value] = {}
        self.channels: tuple[ChannelGroup, ...] = ()
        self.notes: tuple[str, ...] = ()
        self.exported_because: str | None = None
        """Why capture exported the network instead of recording it, which is faster; None where it
        was recorded, or not captured at all. No part of text and equality, as the notes."""
        self.checked: str | None = None
        """How capture compared the graph with the module; None where it did not."""
        self.fixed_sizes = False
        """True where generated code has to refuse inputs of other sizes, as it would compute
        something else there; no part of text and equality."""
        self.weights: dict[str, Tensor] = {}
        self.without_grad: frozenset[str] = frozenset()
        """Parameters that did not require gradients when they were captured. No part of text and
        equality."""
        self.aliases: dict[str, str] = {}
        """State-dict names that share the tensor of another name (tied weights): alias -> name."""
        self._ops: dict[Op, None] = {}
        self._outputs: Structure = None
        self._names: set[str] = set()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        return self is other or self._key() == other._key()

    __hash__ = None  # type: ignore[assignment]

    def _key(self) -> object:
        return (
            self.name,
            self.channels,
            [_value_key(value) for value in self.inputs],
            [_value_key(value) for value in self.params.values()],
            self.aliases,
            [_op_key(op) for op in self._ops],
            _structure_key(self._outputs),
        )

    @property
    def ops(self) -> tuple[Op, ...]:
        return tuple(self._ops)

    @property
    def outputs(self) -> Structure:
        return self._outputs

    @outputs.setter
    def outputs(self, structure: Structure) -> None:
        self._outputs = structure

    @property
    def output_values(self) -> list[Value]:
        return list(values_in(self._outputs))

    @property
    def values(self) -> Iterator[Value]:
        """Inputs, parameters and results, in order of definition."""
        yield from self.inputs
        yield from self.params.values()
        for op in self._ops:
            yield from op.results

    @property
    def dynamic_batch(self) -> bool:
        """True if any input's size depends on the batch size ``N``."""
        return any(
            not isinstance(dim, int) and hasattr(dim, "at")
            for v in self.inputs
            for dim in v.type.dims
        )

    def group(self, name: str) -> ChannelGroup:
        """Return the declared channel group of that name."""
        for group in self.channels:
            if group.name == name:
                return group
        raise InternalError(f"graph {self.name} declares no channel group ${name}")

    # Building

    def fresh_name(self, hint: str) -> str:
        """Return ``hint``, with a number behind it if the name is taken."""
        name, number = hint, 0
        while name in self._names:
            number += 1
            name = f"{hint}_{number}"
        return name

    def _claim(self, name: str) -> str:
        if name in self._names:
            raise InternalError(f"the name {name} is defined twice in graph {self.name}")
        self._names.add(name)
        return name

    def add_input(self, name: str, type: TensorType) -> Value:
        value = Value(self._claim(name), type, "input")
        self.inputs.append(value)
        return value

    def add_param(self, name: str, type: TensorType, kind: ValueKind = "param") -> Value:
        if name in self.params:
            raise InternalError(f"the parameter {name} is declared twice in graph {self.name}")
        value = Value(name, type, kind)
        self.params[name] = value
        return value

    def add_op(
        self,
        target: str,
        operands: Iterable[Operand],
        attrs: Mapping[str, Attr],
        results: Iterable[tuple[str, TensorType]],
        loc: Location = Location(),  # noqa: B008  frozen
        before: Op | None = None,
    ) -> Op:
        """Append an op (or insert it before another) and define its results."""
        op = Op(target, tuple(operands), dict(attrs), (), loc)
        op.results = tuple(Value(self._claim(name), type, "result", op) for name, type in results)
        for value in op.inputs:
            value._uses[op] = value._uses.get(op, 0) + 1
        if before is None:
            self._ops[op] = None
        else:
            order = list(self._ops)
            order.insert(order.index(before), op)
            self._ops = dict.fromkeys(order)
        return op

    # Editing

    def set_operand(self, op: Op, index: int, operand: Operand) -> None:
        """Replace one operand; the uses of the old and the new values are kept right."""
        for value in op.inputs:
            self._drop_use(value, op)
        op.operands = (*op.operands[:index], operand, *op.operands[index + 1 :])
        for value in op.inputs:
            value._uses[op] = value._uses.get(op, 0) + 1

    def set_attr(self, op: Op, name: str, value: Attr) -> None:
        """Replace one attribute of an op."""
        if name not in op.attrs:
            raise InternalError(f"{op} has no attribute {name}")
        op.attrs = {**op.attrs, name: value}

    def set_type(self, value: Value, type: TensorType) -> None:
        """Give a value another type."""
        value.type = type

    def replace_uses(
        self, old: Value, new: Value, where: Callable[[Op], bool] = lambda op: True
    ) -> None:
        """Let every reader of ``old`` read ``new``.

        The outputs read it, too; ``where`` restricts the ops.
        """

        def swap(value: Value | None) -> Value | None:
            return new if value is old else value

        for op in old.users:
            if not where(op):
                continue
            for index, operand in enumerate(op.operands):
                if operand is old:
                    self.set_operand(op, index, new)
                elif isinstance(operand, tuple) and old in operand:
                    self.set_operand(op, index, tuple(swap(value) for value in operand))
        self._outputs = map_structure(lambda value: new if value is old else value, self._outputs)

    def erase(self, op: Op) -> None:
        """Remove an op; refused while one of its results is still read."""
        outputs = self.output_values
        for value in op.results:
            if value._uses or value in outputs:
                raise InternalError(f"cannot erase {op}: its result {value} is still used")
        for value in op.inputs:
            self._drop_use(value, op)
        for value in op.results:
            self._names.discard(value.name)
        del self._ops[op]

    def erase_dead(self) -> int:
        """Remove ops whose results nobody reads, and weights that no op reads.

        Returns the number of ops removed.
        """
        count = 0
        outputs = set(self.output_values)
        for op in reversed(self.ops):
            if not any(value._uses or value in outputs for value in op.results):
                self.erase(op)
                count += 1
        for name, value in list(self.params.items()):
            if (
                not value._uses
                and value not in outputs
                and not name.endswith("num_batches_tracked")
            ):
                del self.params[name]
        return count

    def _drop_use(self, value: Value, op: Op) -> None:
        count = value._uses.get(op, 0)
        if count > 1:
            value._uses[op] = count - 1
        else:
            value._uses.pop(op, None)

    def copy(self) -> Graph:
        """Return an equal graph with its own values and ops, and the same weight tensors."""
        new = Graph(self.name)
        new.channels, new.notes, new.weights = self.channels, self.notes, dict(self.weights)
        new.aliases, new.exported_because = dict(self.aliases), self.exported_because
        new.without_grad = self.without_grad
        new.checked, new.fixed_sizes = self.checked, self.fixed_sizes
        twin: dict[Value, Value] = {}
        for value in self.inputs:
            twin[value] = new.add_input(value.name, value.type)
        for value in self.params.values():
            twin[value] = new.add_param(value.name, value.type, value.kind)

        def operand_of(operand: Operand) -> Operand:
            if isinstance(operand, Value):
                return twin[operand]
            if isinstance(operand, tuple):
                return tuple(None if value is None else twin[value] for value in operand)
            return operand

        for op in self._ops:
            results = [(value.name, value.type) for value in op.results]
            made = new.add_op(op.target, map(operand_of, op.operands), op.attrs, results, op.loc)
            twin.update(zip(op.results, made.results, strict=True))
        new.outputs = map_structure(lambda value: twin[value], self._outputs)
        return new

    def declare_groups(self, channels: Iterable[ChannelGroup]) -> None:
        """Replace the declared channel groups."""
        self.channels = tuple(channels)

    def decide(self, keep: Mapping[str, tuple[tuple[int, int], ...] | None]) -> None:
        """Write the kept ranges of groups into the header."""
        self.channels = tuple(
            replace(g, keep=keep[g.name]) if g.name in keep else g for g in self.channels
        )


def values_in(structure: Structure) -> Iterator[Value]:
    """Iterate over the values of an output structure, depth first."""
    if isinstance(structure, Value):
        yield structure
    elif isinstance(structure, tuple | list):
        for item in structure:
            yield from values_in(item)
    elif isinstance(structure, dict):
        for item in structure.values():
            yield from values_in(item)


def map_structure(function: Callable[[Value], Structure], structure: Structure) -> Structure:
    """Return the structure with every value replaced by ``function(value)``."""
    if isinstance(structure, Value):
        return function(structure)
    if isinstance(structure, tuple):
        return tuple(map_structure(function, item) for item in structure)
    if isinstance(structure, list):
        return [map_structure(function, item) for item in structure]
    if isinstance(structure, dict):
        return {key: map_structure(function, item) for key, item in structure.items()}
    return structure


def _structure_key(structure: Structure) -> object:
    """Return what an output structure says, comparable: containers by their kind, too."""
    if isinstance(structure, Value):
        return Value, str(structure)
    if isinstance(structure, tuple | list):
        return type(structure), [_structure_key(item) for item in structure]
    if isinstance(structure, dict):
        return dict, [(key, _structure_key(item)) for key, item in structure.items()]
    return type(structure), repr(structure)


def _value_key(value: Value) -> object:
    return value.name, value.type, value.kind


def _op_key(op: Op) -> object:
    attrs = sorted((name, repr(value)) for name, value in op.attrs.items())
    operands = [_structure_key(operand) for operand in op.operands]
    return op.target, operands, attrs, [_value_key(value) for value in op.results], op.loc
