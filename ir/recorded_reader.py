"""Three recordings of a module as one graph.

What a network writes in place becomes a new value. Where the written tensor is a slice of another, or others view it,
that other tensor gets a new value too (`slice_scatter`), and whatever is read later is cut out of it anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph, Op, Operand, Value, ValueKind
from pruneopt.ir.program_reader import (
    BACKEND_FLAGS,
    IGNORED_OPS,
    MAYBE_VIEWS,
    VIEWS,
    ModuleTable,
    ProgramReader,
    short_path,
)
from pruneopt.ir.recorder import Call, CannotRecordError, GradMode, Recording, Ref
from pruneopt.ir.schema import DTYPE_NAMES, overload, scalar_to_attr, signature
from pruneopt.ir.types import DEVICE, Attr, BatchSize, Location, TensorType

__all__ = ["RecordedReader"]

Weights = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
"""Parameters and buffers, by name."""
Results = tuple[tuple[torch.dtype, tuple[int, ...]] | None, ...]


class _Facts(NamedTuple):
    """What is to be known of an ATen overload."""

    name: str
    hint: str
    arguments: tuple[tuple[str, str, Attr], ...]
    """Name, kind (tensor, flag, device or attribute) and default of every argument."""
    in_place: bool
    views: bool
    """Whether its results may share the memory of its first operand."""


class RecordedReader(ProgramReader):
    """Reads three runs of a module, at the batch sizes ``batches``, into a graph."""

    def __init__(
        self, runs: Sequence[Recording], batches: tuple[int, int, int], modules: ModuleTable, name: str
    ) -> None:
        super().__init__(SimpleNamespace(call_spec=SimpleNamespace(out_spec=runs[0].spec)), modules, name)  # type: ignore[arg-type]
        self.graph = Graph(name)
        self.runs, self.batches = runs, batches
        self.names = fx.Graph()._graph_namespace
        """Gives every call the name that torch.export would give it."""
        self.values: dict[Ref, Value] = {}
        """The value that each recorded tensor now has."""
        self.keys: dict[Value, list[Ref]] = {}
        self.families: dict[Value, list[Value]] = {}
        """The value that owns memory -> all that view it, itself first."""
        self.sure: set[Value] = set()
        """Views on any machine and in training too, unlike what `reshape` or a dropout gives."""
        self.last = _last_reads(runs[0])
        self.types: dict[Any, TensorType | None] = {}
        self.places: dict[str, str] = {"": ""}

    def read_runs(self, weights: Weights, inputs: Mapping[str, Tensor], notes: tuple[str, ...]) -> Graph:
        """The graph; ``weights`` are the tensors under all their names, ``inputs`` those of the example by theirs.

        Raises `CannotRecordError` where the runs disagree.
        """
        self._declare(weights)
        for number, (name, tensor) in enumerate(inputs.items()):
            self.names.create_name(name, None)
            type_ = TensorType(_dtype(tensor.dtype), (BatchSize(), *tensor.shape[1:]))
            self._bind(Ref(f"input {number}"), self.graph.add_input(name, type_))
        if len({len(run.steps) for run in self.runs}) > 1:
            raise CannotRecordError("the calls depend on the batch size")
        for number, steps in enumerate(zip(*(run.steps for run in self.runs), strict=True)):
            self._step(number, steps)
        if any(run.spec != self.runs[0].spec for run in self.runs):
            raise CannotRecordError("the outputs depend on the batch size")
        leaves = [self._merged(items) for items in zip(*(run.leaves for run in self.runs), strict=True)]
        if any(isinstance(leaf, BatchSize) for leaf in leaves):
            raise CannotRecordError("an output is computed from the batch size")
        self.graph.outputs = self._structure([self._value(x) if isinstance(x, Ref) else x for x in leaves])
        self._drop_unused(notes)
        return self.graph

    def _declare(self, weights: Weights) -> None:
        first: dict[int, str] = {}
        kinds: tuple[ValueKind, ...] = ("param", "buffer")
        for kind, tensors in zip(kinds, weights, strict=True):
            for name, tensor in tensors.items():
                own = first.setdefault(id(tensor), name)
                if own != name:
                    self.graph.aliases[name] = own
                else:
                    self.graph.add_param(name, TensorType(_dtype(tensor.dtype), tuple(tensor.shape)), kind)
                    self.graph.weights[name] = tensor.detach()
                self._bind(Ref(name), self.graph.params[own])

    def _bind(self, ref: Ref, value: Value) -> None:
        self.values[ref] = value
        self.keys.setdefault(value, []).append(ref)

    def _value(self, ref: Ref) -> Value:
        if ref not in self.values:
            raise CannotRecordError("the result of a check is used")
        return self.values[ref]

    # Three runs as one

    def _step(self, number: int, steps: Sequence[Call | GradMode]) -> None:
        first = steps[0]
        if isinstance(first, GradMode):
            if any(step != first for step in steps):
                raise CannotRecordError("the calls depend on the batch size")
            self.grad_enabled = first.enabled
            return
        calls = [step for step in steps if isinstance(step, Call) and _alike(step, first)]
        if len(calls) < len(steps):
            raise CannotRecordError("the calls depend on the batch size")
        args, kwargs = first.args, first.kwargs
        if any(call.args != args for call in calls):
            args = tuple(map(self._merged, zip(*(call.args for call in calls), strict=True)))
        if any(call.kwargs != kwargs for call in calls):
            kwargs = {name: self._merged([call.kwargs[name] for call in calls]) for name in kwargs}
        self._add_call(number, first, args, kwargs, [call.results for call in calls])

    def _merged(self, items: Sequence[Any]) -> Any:
        """An argument from what it was in each run."""
        first = items[0]
        if any(type(item) is not type(first) for item in items):
            raise CannotRecordError("an argument depends on the batch size")
        if type(first) is int:
            return self._size_of(items)
        if type(first) is tuple:
            if any(len(item) != len(first) for item in items):
                raise CannotRecordError("an argument depends on the batch size")
            return tuple(map(self._merged, zip(*items, strict=True)))
        if any(item != first and not (item != item and first != first) for item in items):
            raise CannotRecordError("an argument or the data flow depends on the batch size")
        return first

    def _size_of(self, sizes: Sequence[int]) -> int | BatchSize:
        """A whole number as it was in each run, as an expression in the batch size."""
        if sizes[0] == sizes[1] == sizes[2]:
            return sizes[0]
        scale = (sizes[1] - sizes[0]) // (self.batches[1] - self.batches[0])
        found = BatchSize(scale, sizes[0] - scale * self.batches[0])
        if scale < 1 or any(found.at(batch) != size for batch, size in zip(self.batches, sizes, strict=True)):
            raise CannotRecordError(f"a size of {sizes} at batch sizes {self.batches}")
        return found

    def _type_of(self, results: tuple[Any, ...]) -> TensorType | None:
        """The type of a result from what it was in each run."""
        if results not in self.types:
            self.types[results] = self._derived(results)
        return self.types[results]

    def _derived(self, results: Results) -> TensorType | None:
        present = [item for item in results if item is not None]
        if not present:
            return None
        (dtype, shape), *others = present
        if len(present) < len(results) or any(other != dtype or len(s) != len(shape) for other, s in others):
            raise CannotRecordError("a result depends on the batch size")
        sizes = zip(*(shape for _, shape in present), strict=True)
        return TensorType(_dtype(dtype), tuple(map(self._size_of, sizes)))

    # Calls

    def _add_call(
        self, number: int, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any], results: list[Results]
    ) -> None:
        target = call.target
        if target is torch.ops.aten.lift_fresh.default:
            raise CannotRecordError("a tensor made of numbers")
        if target is torch.ops.aten.alias.default:
            self._bind(Ref(number), self._value(args[0]))
            return
        if _is_ignored(target):
            return
        facts = _facts(target)
        loc = Location(call.module, call.module_type, self._place(call.file), call.line)
        written = self._value(args[0]) if facts.in_place else None
        operands, attrs = self._given(facts, args, kwargs, loc)
        types = [self._type_of(items) for items in zip(*results, strict=True)]
        op = self._add(facts, operands, self._follow_mode(attrs, loc), types, loc)
        for index, (value, found) in enumerate(zip(op.results, types, strict=True)):
            if found is not None:
                self._bind(Ref(number, index), value)
        if written is not None:
            self._write(written, op, number)

    def _place(self, file: str) -> str:
        if file not in self.places:
            self.places[file] = short_path(Path(file))
        return self.places[file]

    def _given(
        self, facts: _Facts, args: tuple[Any, ...], kwargs: Mapping[str, Any], loc: Location
    ) -> tuple[list[Operand], dict[str, Attr]]:
        """The operands and attributes of a call."""
        operands: list[Operand] = []
        attrs: dict[str, Attr] = {}
        for index, (name, kind, default) in enumerate(facts.arguments):
            given = index < len(args) or name in kwargs
            value = args[index] if index < len(args) else kwargs.get(name, default)
            if kind == "tensor":
                operands.append(self._operand(value, facts.name, loc))
            elif kind == "flag":
                attrs[name] = True
            elif kind == "device":
                attrs[name] = None if value is None else DEVICE
            else:
                attrs[name] = self._attr(value) if given else value
        return operands, attrs

    def _operand(self, value: Any, name: str, loc: Location) -> Operand:
        if isinstance(value, Ref):
            return self._leave_no_grad(self._value(value))
        if type(value) is tuple:
            return tuple(None if item is None else self._leave_no_grad(self._value(item)) for item in value)
        if isinstance(value, BatchSize):
            raise CannotRecordError(f"{name} computes with the batch size")
        return super()._operand(value, name, loc)

    def _attr(self, value: Any) -> Attr:
        if isinstance(value, int | float | str | BatchSize) or value is None:
            return value
        return tuple(map(self._attr, value)) if type(value) is tuple else scalar_to_attr(value)

    def _add(
        self,
        facts: _Facts,
        operands: Sequence[Operand],
        attrs: Mapping[str, Attr],
        types: Sequence[TensorType | None],
        loc: Location,
    ) -> Op:
        """Append an op, named as torch.export names it."""
        name = self.names.create_name(facts.hint, None)
        # In-place ops are named relu_ and relu__1: the name of the functional op has no such underscore.
        hint = re.sub(r"__(\d+)$", r"_\1", name).rstrip("_") if facts.in_place else name
        names: list[str] = []
        for position in range(len(types)):
            names.append(self._fresh(hint if len(types) == 1 else f"{hint}_{position}", names))
        if facts.name in VIEWS:
            # Whether a tensor is contiguous is told for one memory format: reshape is right for any.
            target, attrs = "aten.reshape.default", {"shape": attrs["size"]}
        else:
            target = facts.name
        known = [item or TensorType("none", ()) for item in types]
        op = self.graph.add_op(target, operands, attrs, zip(names, known, strict=True), loc)
        if not self.grad_enabled:
            self.no_grad.update(op.results)
        if facts.views or op.base in MAYBE_VIEWS:
            self._join_family(op, sure=facts.name.split(".")[1] not in MAYBE_VIEWS)
        return op

    # Memory

    def _join_family(self, op: Op, sure: bool) -> None:
        source = next(iter(op.inputs), None)
        if source is not None:
            self.sure.update(op.results if sure else ())
            root = self.root.get(source, source)
            self.root.update(dict.fromkeys(op.results, root))
            self.families.setdefault(root, [root]).extend(op.results)

    def _is_read_after(self, value: Value, step: int) -> bool:
        return any(self.last.get(ref, -1) > step for ref in self.keys.get(value, ()))

    def _write(self, written: Value, op: Op, step: int) -> None:
        """After an in-place op, later readers of the written tensor, and of what shares its memory, read the result."""
        root = self.root.get(written, written)
        others = [value for value in self.families.get(root, ()) if value is not written and value is not op.result]
        if not any(self._is_read_after(value, step) for value in others):
            self._rename(written, op.result)
            return
        chain = _path(root, written)
        new = op.result
        for cut in reversed(chain):
            new = self._put_back(cut, new, op.loc)
        if new is not op.result:
            self._rename(op.result, written)
        twins = {root: new}
        for value in others if written is root else [*others, written]:
            if value is not root and self._is_read_after(value, step):
                self._view_again(value, twins)
        for value, twin in twins.items():
            self._rename(value, twin)

    def _rename(self, old: Value, new: Value) -> None:
        """All that is known as ``old`` becomes ``new``."""
        for ref in self.keys.pop(old, []):
            self._bind(ref, new)

    def _put_back(self, cut: Op, part: Value, loc: Location) -> Value:
        """The tensor that an op has taken a slice of, with another slice in its place."""
        source = cut.operands[0]
        assert isinstance(source, Value)
        attrs = dict(cut.attrs)
        if cut.base == "select":
            dim, index = attrs["dim"], attrs["index"]
            size = source.type.dims[dim % source.type.rank] if isinstance(dim, int) else None
            if not isinstance(dim, int) or not isinstance(index, int) or not isinstance(size, int):
                raise CannotRecordError("a place that depends on the batch is written")
            dims = list(part.type.dims)
            dims.insert(dim % source.type.rank, 1)
            type_ = TensorType(part.type.dtype, tuple(dims))
            part = self._add(_facts(torch.ops.aten.unsqueeze.default), [part], {"dim": dim}, [type_], loc).result
            attrs = {"dim": dim, "start": index % size, "end": index % size + 1, "step": 1}
        scatter = _facts(torch.ops.aten.slice_scatter.default)
        return self._add(scatter, [source, part], attrs, [source.type], loc).result

    def _view_again(self, value: Value, twins: dict[Value, Value]) -> None:
        """A view of memory that was written: the same view of its new value."""
        op = value.producer
        source = op.value(0) if op is not None else None
        if op is None or source is None or value not in self.sure or len(list(op.inputs)) > 1:
            raise CannotRecordError("memory is written that other tensors may share")
        if source not in twins:
            self._view_again(source, twins)
        facts = _facts(overload(op.target))
        again = self._add(facts, [twins[source]], op.attrs, [item.type for item in op.results], op.loc)
        self.sure.update(again.results)
        twins.update(zip(op.results, again.results, strict=True))


def _last_reads(run: Recording) -> dict[Ref, int]:
    """The last step that reads each tensor; what is returned is read after the last one."""
    last: dict[Ref, int] = {}

    def read(items: Any, number: int) -> None:
        for item in items:
            if isinstance(item, Ref):
                last[item] = number
            elif type(item) is tuple:
                read(item, number)

    for number, step in enumerate(run.steps):
        if isinstance(step, Call):
            read(step.args, number)
            read(step.kwargs.values(), number)
    read(run.leaves, len(run.steps))
    return last


def _path(root: Value, value: Value) -> list[Op]:
    """The slices that lead from a tensor to a part of it."""
    path: list[Op] = []
    while value is not root:
        op = value.producer
        source = op.value(0) if op is not None else None
        if op is None or source is None or op.target not in ("aten.slice.Tensor", "aten.select.int"):
            raise CannotRecordError("a tensor is written through a view that is no slice of it")
        path.append(op)
        value = source
    return path[::-1]


def _alike(call: Call, other: Call) -> bool:
    return (
        call.target is other.target
        and len(call.args) == len(other.args)
        and len(call.results) == len(other.results)
        and call.kwargs.keys() == other.kwargs.keys()
        and call.several == other.several
    )


@cache
def _is_ignored(target: Any) -> bool:
    return any(word in str(target) for word in IGNORED_OPS)


@cache
def _facts(target: Any) -> _Facts:
    schema = target._schema
    base = schema.name.split("::")[1]
    name = f"{target.namespace}.{base}.{target._overloadname}"
    in_place = bool(schema.is_mutable)
    if in_place:
        name = f"{target.namespace}.{base.removesuffix('_')}.{target._overloadname}"
        if not base.endswith("_"):
            raise CannotRecordError(f"{target} writes in place")
        try:
            signature(name)
        except UserError:
            raise CannotRecordError(f"{target} has no functional twin") from None
    arguments = []
    for argument in signature(name).arguments:
        kind = "device" if "Device" in argument.type else "attribute"
        kind = "flag" if argument.name in BACKEND_FLAGS else kind
        arguments.append((argument.name, "tensor" if argument.is_tensor else kind, argument.default))
    views = any(item.alias_info is not None for item in overload(name)._schema.returns)
    return _Facts(name, target._overloadpacket.__name__, tuple(arguments), in_place, views)


def _dtype(dtype: torch.dtype) -> str:
    if dtype not in DTYPE_NAMES:
        raise CannotRecordError(f"a tensor of {dtype}")
    return DTYPE_NAMES[dtype]
