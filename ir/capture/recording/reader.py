"""Recordings of a module as one graph: what all of them share, and what grows with the batch.

Three of them, or one of a run that treats every sample by itself (`Recording.samplewise`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruneopt.ir.capture.reading.exported_program import IGNORED_OPS
from pruneopt.ir.capture.reading.module_table import ModuleTable
from pruneopt.ir.capture.reading.source_lines import short_path
from pruneopt.ir.capture.recording.calls import Call, GradMode, Recording, Ref
from pruneopt.ir.capture.recording.module_state import CannotRecordError
from pruneopt.ir.capture.recording.values import Facts, RecordedValues, facts_of
from pruneopt.ir.graph import Graph, Operand, ValueKind
from pruneopt.ir.schema import DTYPE_NAMES, scalar_to_attr
from pruneopt.ir.types import DEVICE, Attr, BatchSize, Location, TensorType

__all__ = ["RecordedReader"]

Weights = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
"""Parameters and buffers, by name."""
Results = tuple[tuple[torch.dtype, tuple[int, ...]] | None, ...]


class RecordedReader(RecordedValues):
    """Reads three runs of a module, at the batch sizes ``batches``, or one samplewise run."""

    def __init__(
        self,
        runs: Sequence[Recording],
        batches: tuple[int, int, int],
        modules: ModuleTable,
        name: str,
    ) -> None:
        super().__init__(runs[0], modules, name)
        self.runs, self.batches = runs, batches
        self.types: dict[Any, TensorType | None] = {}
        self.places: dict[str, str] = {"": ""}

    def read_runs(
        self, weights: Weights, inputs: Mapping[str, Tensor], notes: tuple[str, ...]
    ) -> Graph:
        """Return the graph.

        ``weights`` are the tensors under all their names, ``inputs`` those of the example by
        theirs.

        Raises `CannotRecordError` where the runs disagree.
        """
        self._declare(weights)
        for number, (name, tensor) in enumerate(inputs.items()):
            self.names.create_name(name, None)
            type_ = TensorType(_dtype(tensor.dtype), (BatchSize(), *tensor.shape[1:]))
            self._bind(Ref(f"input {number}"), self.graph.add_input(name, type_))
        # The runs are put side by side, step by step: what one of them does alone has no place.
        if len({len(run.steps) for run in self.runs}) > 1:
            raise CannotRecordError("the calls depend on the batch size")
        for number, steps in enumerate(zip(*(run.steps for run in self.runs), strict=True)):
            self._step(number, steps)
        if any(run.spec != self.runs[0].spec for run in self.runs):
            raise CannotRecordError("the outputs depend on the batch size")
        leaves = [
            self._merged(items) for items in zip(*(run.leaves for run in self.runs), strict=True)
        ]
        if any(isinstance(leaf, BatchSize) for leaf in leaves):
            raise CannotRecordError("an output is computed from the batch size")
        self.graph.outputs = self._structure(
            [self._value(x) if isinstance(x, Ref) else x for x in leaves]
        )
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
                    self.graph.add_param(
                        name, TensorType(_dtype(tensor.dtype), tuple(tensor.shape)), kind
                    )
                    self.graph.weights[name] = tensor.detach()
                    if kind == "param" and not tensor.requires_grad:
                        self.graph.without_grad |= {name}
                self._bind(Ref(name), self.graph.params[own])

    # Three runs as one

    def _step(self, number: int, steps: Sequence[Call | GradMode]) -> None:
        first = steps[0]
        if isinstance(first, GradMode):
            if any(step != first for step in steps):
                raise CannotRecordError("the calls depend on the batch size")
            self.grad_enabled = first.enabled
            return
        if len(steps) == 1:
            self._add_call(number, first, first.args, first.kwargs, [first.results])
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
        """Return an argument from what it was in each run."""
        first = items[0]
        if len(items) == 1:
            return first
        if any(type(item) is not type(first) for item in items):
            raise CannotRecordError("an argument depends on the batch size")
        if type(first) is int:
            return self._size_of(items)
        if type(first) is tuple:
            if any(len(item) != len(first) for item in items):
                raise CannotRecordError("an argument depends on the batch size")
            return tuple(map(self._merged, zip(*items, strict=True)))
        # Tensors are compared here as well, by where they came from; nan is the same as nan.
        if any(item != first and not (item != item and first != first) for item in items):
            raise CannotRecordError("an argument or the data flow depends on the batch size")
        return first

    def _size_of(self, sizes: Sequence[int]) -> int | BatchSize:
        """Return a whole number, as it was in each run, as an expression in the batch size."""
        if sizes[0] == sizes[1] == sizes[2]:
            return sizes[0]
        # Two runs determine scale and offset, and the third confirms them. Without a divisor: where
        # sizes are rounded, export has to say in which direction.
        scale = (sizes[1] - sizes[0]) // (self.batches[1] - self.batches[0])
        found = BatchSize(scale, sizes[0] - scale * self.batches[0])
        if scale < 1 or any(
            found.at(batch) != size for batch, size in zip(self.batches, sizes, strict=True)
        ):
            raise CannotRecordError(f"a size is {sizes} at batch sizes {self.batches}")
        return found

    def _type_of(self, results: tuple[Any, ...]) -> TensorType | None:
        """Return the type of a result from what it was in each run."""
        if results not in self.types:
            self.types[results] = self._derived(results)
        return self.types[results]

    def _derived(self, results: Results) -> TensorType | None:
        present = [item for item in results if item is not None]
        if not present:
            return None
        (dtype, shape), *others = present
        # A single run is a samplewise one, in which every result has the batch in front.
        if len(results) == 1:
            return TensorType(_dtype(dtype), (BatchSize(), *shape[1:]))
        if len(present) < len(results) or any(
            other != dtype or len(s) != len(shape) for other, s in others
        ):
            raise CannotRecordError("a result depends on the batch size")
        sizes = zip(*(shape for _, shape in present), strict=True)
        return TensorType(_dtype(dtype), tuple(map(self._size_of, sizes)))

    # Calls

    def _add_call(
        self,
        number: int,
        call: Call,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        results: list[Results],
    ) -> None:
        target = call.target
        # Its data lives in the call, not in the module: only export keeps such a constant.
        if target is torch.ops.aten.lift_fresh.default:
            raise CannotRecordError("a tensor is made of numbers")
        if target is torch.ops.aten.alias.default:
            self._bind(Ref(number), self._value(args[0]))
            return
        # Assertions on sizes give nothing to compute; whoever uses their result is refused later.
        if _is_ignored(target):
            return
        facts = facts_of(target)
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
        self, facts: Facts, args: tuple[Any, ...], kwargs: Mapping[str, Any], loc: Location
    ) -> tuple[list[Operand], dict[str, Attr]]:
        """Return the operands and attributes of a call."""
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
            return tuple(
                None if item is None else self._leave_no_grad(self._value(item)) for item in value
            )
        if isinstance(value, BatchSize):
            raise CannotRecordError(f"{name} computes with the batch size")
        return super()._operand(value, name, loc)

    def _attr(self, value: Any) -> Attr:
        if isinstance(value, int | float | str | BatchSize) or value is None:
            return value
        return tuple(map(self._attr, value)) if type(value) is tuple else scalar_to_attr(value)


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


def _dtype(dtype: torch.dtype) -> str:
    if dtype not in DTYPE_NAMES:
        raise CannotRecordError(f"a tensor has the dtype {dtype}")
    return DTYPE_NAMES[dtype]
