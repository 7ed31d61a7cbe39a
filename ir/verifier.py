"""Checks that a graph holds together.

Definitions, uses, schemas, shapes, weights and channel groups.

The manager runs it between passes. A fault is ours, not the user's; the message names the op, the
user's source line, and shows the lines of the graph around it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch

from pruneopt.errors import InternalError, UserError
from pruneopt.ir.graph import Graph, Op, Operand, Value
from pruneopt.ir.schema import DTYPE_NAMES, DTYPES, MEMORY_FORMATS, call, signature, torch_value
from pruneopt.ir.text.printer import dim_text, group_text, op_text, type_text, value_text
from pruneopt.ir.types import (
    DEVICE,
    MODE,
    Attr,
    Axis,
    BatchSize,
    ChannelGroup,
    Dim,
    IndexedAxis,
    Keyword,
    SplitAxis,
    TensorType,
)

__all__ = ["IRError", "Verifier", "verify_graph"]

BATCHES = (2, 3)
"""Types are recomputed at two batch sizes, so that a size that should follow ``N`` is told from a
fixed one."""

_META = torch.device("meta")
_KEYWORDS = {*DTYPES, *MEMORY_FORMATS, MODE.name, DEVICE.name}
# What torch says when an op needs the numbers of a tensor, and not only its shape.
_NEEDS_DATA = (
    "meta tensor",
    "data-dependent",
    "data dependent",
    "'meta' backend",
    "Meta backend",
    "device type: meta",
)


class IRError(InternalError):
    """A graph that does not hold together: a pass (or capture) made it wrong."""


def verify_graph(graph: Graph, *, types: bool = True) -> None:
    """Raise `IRError` at the first thing in the graph that cannot be right.

    Without ``types`` the types of results are taken as they are declared.
    """
    Verifier(graph).run(types=types)


class Verifier:
    """One check of one graph.

    After `run`, ``skipped`` counts the ops whose types torch could not recompute.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.skipped: Counter[str] = Counter()
        self._groups = {group.name: group for group in graph.channels}
        self._widths = {group.name: group.width for group in graph.channels}
        self._defined: set[Value] = set()

    def run(self, *, types: bool = True) -> None:
        """Check everything, in the order in which one fault would explain the next.

        ``types`` cost most.
        """
        self._check_groups()
        self._check_names()
        for value in self.graph.values:
            self._check_type(value)
        self._check_definitions()
        self._check_uses()
        for op in self.graph.ops:
            self._check_schema(op)
        self._check_weights()
        if not types:
            return
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for batch in BATCHES if self.graph.dynamic_batch else BATCHES[:1]:
                self._check_results(batch)

    # Messages

    def _fail(self, message: str, op: Op | None = None) -> NoReturn:
        if op is None:
            raise IRError(f"graph {self.graph.name}: {message}")
        raise IRError(f"{op}: {message}\n{self._around(op)}")

    def _around(self, op: Op, context: int = 2) -> str:
        """Return the lines of the graph around an op, with a marker at it."""
        ops = self.graph.ops
        place = ops.index(op)
        near = ops[max(0, place - context) : place + context + 1]
        return "\n".join(
            f"  {'>' if other is op else ' '} {op_text(other, self._widths)}" for other in near
        )

    # Header and names

    def _check_groups(self) -> None:
        if len(self._groups) < len(self.graph.channels):
            (name, _), *_ = Counter(group.name for group in self.graph.channels).most_common(1)
            self._fail(f"the channel group ${name} is declared twice")
        for group in self.graph.channels:
            problem = _group_problem(group)
            if problem:
                self._fail(f"the channel group {group_text(group)} {problem}")

    def _check_names(self) -> None:
        names: set[str] = set()
        for value in self.graph.values:
            if str(value) in names:
                self._fail(f"{value_text(value)} is defined twice", value.producer)
            names.add(str(value))
        for name, value in self.graph.params.items():
            if value.name != name:
                self._fail(f"the parameter {name} is held under the name {value.name}")
        for alias, name in self.graph.aliases.items():
            if name not in self.graph.params or alias in self.graph.params:
                self._fail(f"the alias {alias} of {name} does not lead to a parameter of the graph")

    def _check_type(self, value: Value) -> None:
        if value.type.dtype not in DTYPES and value.type.dtype != "none":
            self._fail(
                f"{value_text(value)} has the unknown dtype {value.type.dtype}", value.producer
            )
        for dim in value.type.dims:
            problem = self._dim_problem(dim)
            if problem:
                text = dim_text(dim, self._widths)
                self._fail(
                    f"{value_text(value)} has the dimension {text}: {problem}", value.producer
                )

    def _dim_problem(self, dim: Dim) -> str | None:
        if isinstance(dim, int):
            return "a size is not negative" if dim < 0 else None
        if isinstance(dim, BatchSize):
            return None if self.graph.dynamic_batch else "no input has the batch size N"
        missing = [name for name in dim.groups if name not in self._groups]
        if missing:
            return f"the channel group ${missing[0]} is not declared"
        if isinstance(dim, Axis):
            return self._axis_problem(dim)
        if isinstance(dim, SplitAxis) and dim.size * dim.divisor != self._widths[dim.group]:
            return (
                f"${dim.group} has {self._widths[dim.group]} channels, not {dim.divisor} times "
                f"{dim.size}"
            )
        return "a size is not negative" if isinstance(dim, IndexedAxis) and dim.size < 0 else None

    def _axis_problem(self, axis: Axis) -> str | None:
        for part in axis.parts:
            if part.start < 0 or part.count < 0 or part.repeat < 1:
                return "a part has a negative size or start"
            if part.group is not None and part.start + part.count > self._widths[part.group]:
                return f"${part.group} has {self._widths[part.group]} channels"
        return None

    # Definitions and uses

    def _check_definitions(self) -> None:
        for value in (*self.graph.inputs, *self.graph.params.values()):
            if value.producer is not None:
                self._fail(
                    f"{value_text(value)} is an input or a weight, and yet has a producer",
                    value.producer,
                )
            self._defined.add(value)
        for op in self.graph.ops:
            for value in op.inputs:
                if value not in self._defined:
                    self._fail(f"it reads {value_text(value)}, which is not defined before it", op)
            for value in op.results:
                if value.producer is not op or value.kind != "result":
                    self._fail(f"its result {value_text(value)} names another producer", op)
            self._defined.update(op.results)
        for value in self.graph.output_values:
            if value not in self._defined:
                self._fail(f"it returns {value_text(value)}, which it does not define")

    def _check_uses(self) -> None:
        """Check that every value knows exactly the ops that read it, and how often each does."""
        read: dict[Value, Counter[Op]] = {}
        for op in self.graph.ops:
            for value in op.inputs:
                read.setdefault(value, Counter())[op] += 1
        outputs = set(self.graph.output_values)
        for value in self.graph.values:
            known, real = value._uses, read.get(value, Counter())
            for op in {**known, **real}:
                count = known.get(op, 0)
                if count != real[op]:
                    place = op if op in self.graph._ops else None
                    self._fail(
                        f"{value_text(value)} counts {count} readings by {op.target}, not "
                        f"{real[op]}",
                        place,
                    )
            if (
                value.is_weight
                and not real
                and value not in outputs
                and not value.name.endswith("num_batches_tracked")
            ):
                self._fail(f"{value_text(value)} is declared, and no op reads it")

    # Schemas

    def _check_schema(self, op: Op) -> None:
        try:
            sig = signature(op.target)
        except UserError as error:
            self._fail(str(error), op)
        if len(op.operands) != len(sig.operands):
            self._fail(
                f"it has {len(op.operands)} operands, its schema has {len(sig.operands)}", op
            )
        for argument, operand in zip(sig.operands, op.operands, strict=True):
            listed = "List[" in argument.type
            if operand is None and not argument.has_default and "Optional" not in argument.type:
                self._fail(f"its operand '{argument.name}' is missing", op)
            if operand is not None and isinstance(operand, tuple) is not listed:
                kind = "a list of tensors" if listed else "one tensor"
                self._fail(f"its operand '{argument.name}' must be {kind}", op)
        names = {argument.name for argument in sig.attrs}
        for name in [*(names - op.attrs.keys()), *(op.attrs.keys() - names)]:
            self._fail(
                f"it {'lacks the' if name in names else 'has an unknown'} attribute '{name}'", op
            )
        for word in (word for attr in op.attrs.values() for word in _words(attr)):
            if word not in _KEYWORDS:
                self._fail(f"the word '{word}' has no meaning", op)

    # Weights

    def _check_weights(self) -> None:
        """Check that the tensors beside the graph fit their declarations.

        A parsed graph has none.
        """
        weights = self.graph.weights
        for name, value in self.graph.params.items() if weights else ():
            if name not in weights:
                self._fail(f"the weights lack {value_text(value)}")
            found = _type_of(weights[name])
            if found != (value.type.dtype, value.type.shape()):
                declared = type_text(value.type, self._widths)
                self._fail(
                    f"{value_text(value)} is declared as {declared}, its tensor is "
                    f"{_shape_text(*found)}"
                )

    # Types

    def _check_results(self, batch: int) -> None:
        """Run every op on tensors without data and compare the results with their types."""
        env: dict[Value, Any] = {}
        outputs = set(self.graph.output_values)
        for value in self.graph.values:
            if value.type.dtype != "none":
                env[value] = torch.empty(
                    value.type.shape(batch), dtype=DTYPES[value.type.dtype], device=_META
                )
        for op in self.graph.ops:
            results = self._results(op, env, batch)
            if results is None:
                continue
            if len(results) != len(op.results):
                self._fail(f"it declares {len(op.results)} results and computes {len(results)}", op)
            for value, result in zip(op.results, results, strict=True):
                # What else an op leaves, for its derivative, has other sizes on other devices.
                if len(results) == 1 or value.users or value in outputs:
                    self._compare(op, value.type, result, batch)

    def _results(self, op: Op, env: Mapping[Value, Any], batch: int) -> list[Any] | None:
        """Return the results of an op on meta tensors.

        None (and counted) if torch needs data for them.
        """
        operands = [_fetch(operand, env) for operand in op.operands]
        try:
            attrs = {
                name: torch_value(attr, batch, False, _META) for name, attr in op.attrs.items()
            }
            if "momentum" in attrs and attrs["momentum"] is None:
                attrs["momentum"] = 0.0  # a cumulative average; evaluation does not read it
            result = call(op.target, operands, attrs)
        except Exception as error:
            reason = str(error).strip()
            if isinstance(error, NotImplementedError) or any(
                words in reason for words in _NEEDS_DATA
            ):
                self.skipped[op.target] += batch == BATCHES[0]
                return None
            reason = reason.splitlines()[0] if reason else type(error).__name__
            self._fail(f"torch refuses it at batch size {batch}: {reason}", op)
        return list(result) if isinstance(result, tuple | list) else [result]

    def _compare(self, op: Op, declared: TensorType, result: Any, batch: int) -> None:
        found = _type_of(result)
        wanted = (declared.dtype, declared.shape(batch))
        if found != wanted:
            at = f" at batch size {batch}" if self.graph.dynamic_batch else ""
            text, shape, computed = (
                type_text(declared, self._widths),
                _shape_text(*wanted),
                _shape_text(*found),
            )
            self._fail(f"it declares {text}, which is {shape}{at}, and computes {computed}", op)


def _group_problem(group: ChannelGroup) -> str | None:
    if group.width < 0 or group.blocks < 1 or group.width % group.blocks:
        return f"does not split into {group.blocks} equal blocks"
    if group.keep is None:
        return None
    end = 0
    for start, stop in group.keep:
        if not end <= start < stop <= group.width:
            return (
                f"keeps {start}:{stop}, which is out of order or not among its {group.width} "
                "channels"
            )
        end = stop
    if group.frozen is not None and group.kept != group.width:
        return "is frozen, and yet loses channels"
    size = group.width // group.blocks
    kept = {sum(_overlap(group, block * size, (block + 1) * size)) for block in range(group.blocks)}
    return "does not keep the same number of channels in every block" if len(kept) > 1 else None


def _overlap(group: ChannelGroup, first: int, end: int) -> Iterator[int]:
    """Count the kept channels that lie from ``first`` to ``end``, range by range."""
    return (max(0, min(stop, end) - max(start, first)) for start, stop in group.keep or ())


def _words(attr: Attr) -> Iterator[str]:
    """Iterate over the bare words in an attribute."""
    if isinstance(attr, Keyword):
        yield attr.name
    elif isinstance(attr, tuple):
        for item in attr:
            yield from _words(item)


def _fetch(operand: Operand, env: Mapping[Value, Any]) -> Any:
    if isinstance(operand, Value):
        return env.get(operand)
    if isinstance(operand, tuple):
        return [None if value is None else env.get(value) for value in operand]
    return operand


def _type_of(result: Any) -> tuple[str, tuple[int, ...]]:
    if not isinstance(result, torch.Tensor):
        return ("none", ())
    return (DTYPE_NAMES.get(result.dtype, str(result.dtype)), tuple(result.shape))


def _shape_text(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"
