"""The values of a recorded program, and whose memory they share.

What a network writes in place becomes a new value. Where the written tensor is a slice of another,
or others view it, that other tensor gets a new value too (`slice_scatter`), and whatever is read
later is cut out of it anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import fx

from pruneopt.errors import UserError
from pruneopt.ir.capture.reading.exported_program import (
    BACKEND_FLAGS,
    MAYBE_VIEWS,
    VIEWS,
    ProgramReader,
)
from pruneopt.ir.capture.reading.module_table import ModuleTable
from pruneopt.ir.capture.recording.calls import Call, Recording, Ref
from pruneopt.ir.capture.recording.module_state import CannotRecordError
from pruneopt.ir.graph import Graph, Op, Operand, Value
from pruneopt.ir.schema import admit, overload, signature
from pruneopt.ir.types import Attr, Location, TensorType

__all__ = ["Facts", "RecordedValues", "facts_of"]


class Facts(NamedTuple):
    """The facts of an ATen overload that reading its calls takes."""

    name: str
    hint: str
    arguments: tuple[tuple[str, str, Attr], ...]
    """Name, kind (tensor, flag, device or attribute) and default of every argument."""
    in_place: bool
    views: bool
    """True if its results may share the memory of its first operand."""


class RecordedValues(ProgramReader):
    """Adds the calls of a run to a graph, one by one."""

    def __init__(self, run: Recording, modules: ModuleTable, name: str) -> None:
        program: Any = SimpleNamespace(call_spec=SimpleNamespace(out_spec=run.spec))
        super().__init__(program, modules, name)
        self.graph = Graph(name)
        # The namespace of torch.fx: with another numbering, texts would differ from exported ones.
        self.names = fx.graph._Namespace()
        """Gives every call the name that torch.export would give it."""
        self.values: dict[Ref, Value] = {}
        """The value that each recorded tensor now has."""
        self.keys: dict[Value, list[Ref]] = {}
        self.families: dict[Value, list[Value]] = {}
        """The value that owns memory -> all that view it, itself first."""
        self.sure: set[Value] = set()
        """Views on any machine and in training too, unlike what `reshape` or a dropout gives."""
        self.last = _last_reads(run)

    def _bind(self, ref: Ref, value: Value) -> None:
        self.values[ref] = value
        self.keys.setdefault(value, []).append(ref)

    def _value(self, ref: Ref) -> Value:
        if ref not in self.values:
            raise CannotRecordError("the result of a check is used")
        return self.values[ref]

    def _add(
        self,
        facts: Facts,
        operands: Sequence[Operand],
        attrs: Mapping[str, Attr],
        types: Sequence[TensorType | None],
        loc: Location,
    ) -> Op:
        """Append an op, named as torch.export names it."""
        name = self.names.create_name(facts.hint, None)
        # In-place ops are named relu_ and relu__1: the name of the functional op has no such
        # underscore.
        hint = re.sub(r"__(\d+)$", r"_\1", name).rstrip("_") if facts.in_place else name
        names: list[str] = []
        for position in range(len(types)):
            names.append(self._fresh(hint if len(types) == 1 else f"{hint}_{position}", names))
        if facts.name in VIEWS:
            # Whether a tensor is contiguous is told for one memory format: reshape is right for
            # any.
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
        """Let later readers of a tensor written in place, or of its memory, read the result."""
        root = self.root.get(written, written)
        others = [
            value
            for value in self.families.get(root, ())
            if value is not written and value is not op.result
        ]
        # The usual case: nobody looks at this memory through another tensor any more.
        if not any(self._is_read_after(value, step) for value in others):
            self._rename(written, op.result)
            return
        # From the written part outwards, until the tensor that owns the memory is new.
        chain = _path(root, written)
        new = op.result
        for cut in reversed(chain):
            new = self._put_back(cut, new, op.loc)
        # A part is cut out of the new whole below, as every view is; otherwise two values would
        # stand for the same memory, and a second write would miss one.
        if new is not op.result:
            self._rename(op.result, written)
        # Only views that are read later are taken again; a root that is not read costs nothing, as
        # ops without readers are erased.
        twins = {root: new}
        for value in others if written is root else [*others, written]:
            if value is not root and self._is_read_after(value, step):
                self._view_again(value, twins)
        for value, twin in twins.items():
            self._rename(value, twin)

    def _rename(self, old: Value, new: Value) -> None:
        """Let ``new`` be known as all that ``old`` was known as."""
        for ref in self.keys.pop(old, []):
            self._bind(ref, new)

    def _put_back(self, cut: Op, part: Value, loc: Location) -> Value:
        """Return the tensor that ``cut`` took a slice of, with another slice in its place."""
        source = cut.operands[0]
        assert isinstance(source, Value)
        attrs = dict(cut.attrs)
        if cut.base == "select":
            # A selected place is a slice of length one, without its axis: one op writes both.
            dim, index = attrs["dim"], attrs["index"]
            size = source.type.dims[dim % source.type.rank] if isinstance(dim, int) else None
            if not isinstance(dim, int) or not isinstance(index, int) or not isinstance(size, int):
                raise CannotRecordError("a place that depends on the batch is written")
            dims = list(part.type.dims)
            dims.insert(dim % source.type.rank, 1)
            type_ = TensorType(part.type.dtype, tuple(dims))
            part = self._add(
                facts_of(torch.ops.aten.unsqueeze.default), [part], {"dim": dim}, [type_], loc
            ).result
            attrs = {"dim": dim, "start": index % size, "end": index % size + 1, "step": 1}
        scatter = facts_of(torch.ops.aten.slice_scatter.default)
        return self._add(scatter, [source, part], attrs, [source.type], loc).result

    def _view_again(self, value: Value, twins: dict[Value, Value]) -> None:
        """Take a view of memory that was written anew: the same view of its new value."""
        op = value.producer
        source = op.value(0) if op is not None else None
        # A `reshape` may have copied, and a dropout does in training: a view in its place would
        # share memory that was never shared.
        if op is None or source is None or value not in self.sure or len(list(op.inputs)) > 1:
            raise CannotRecordError("memory is written that other tensors may share")
        if source not in twins:
            self._view_again(source, twins)
        facts = facts_of(overload(op.target))
        again = self._add(
            facts, [twins[source]], op.attrs, [item.type for item in op.results], op.loc
        )
        self.sure.update(again.results)
        twins.update(zip(op.results, again.results, strict=True))


def _last_reads(run: Recording) -> dict[Ref, int]:
    """Return the last step that reads each tensor; what is returned is read after the last one."""
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
    """Return the slices that lead from a tensor to a part of it."""
    path: list[Op] = []
    # Other views (a transpose, a reshape) would need their inverse to put the part back.
    while value is not root:
        op = value.producer
        source = op.value(0) if op is not None else None
        if (
            op is None
            or source is None
            or op.target not in ("aten.slice.Tensor", "aten.select.int")
        ):
            raise CannotRecordError("a tensor is written through a view that is no slice of it")
        path.append(op)
        value = source
    return path[::-1]


@cache
def facts_of(target: Any) -> Facts:
    schema = target._schema
    base = schema.name.split("::")[1]
    name = f"{target.namespace}.{base}.{target._overloadname}"
    admit(name)
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
        arguments.append(
            (argument.name, "tensor" if argument.is_tensor else kind, argument.default)
        )
    views = any(item.alias_info is not None for item in overload(name)._schema.returns)
    return Facts(name, target._overloadpacket.__name__, tuple(arguments), in_place, views)
