"""Capture without torch.export: a module's calls recorded at three batch sizes, and put together as one graph.

The sizes and whole numbers of the three runs agree, or they grow with the batch, and then two runs determine the
expression in ``N`` and the third confirms it. The batch sizes are 2 and 3, and one so large and with so many divisors
that a network that goes another way for large batches, or for multiples of some number, does so there. Whatever does
not fit is left to torch.export: a `CannotRecordError` here is no failure of the capture.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph, Operand
from pruneopt.ir.program_reader import (
    ModuleTable,
    NeedsFunctionalizationError,
    NotDynamicError,
    ProgramReader,
    short_path,
)
from pruneopt.ir.recorder import META, Call, CannotRecordError, GradMode, Recording, Ref, record
from pruneopt.ir.schema import DTYPE_NAMES
from pruneopt.ir.types import Attr, BatchSize, Location, TensorType
from pruneopt.ir.verifier import IRError, verify_graph

__all__ = ["recorded_graph"]

BATCHES = (2, 3, 720720)
"""The last one is divisible by everything up to 16."""


def recorded_graph(
    model: nn.Module, inputs: Sequence[Tensor], modules: ModuleTable, name: str, notes: tuple[str, ...]
) -> Graph:
    """The graph of ``model(*inputs)`` in evaluation mode, with the first dimension of the inputs as ``N``.

    Raises `CannotRecordError` where the recording could differ from what torch.export yields, which then has the word
    on what is wrong. The model is left as it was.
    """
    if isinstance(model, fx.GraphModule | torch.jit.ScriptModule) or not torch.is_grad_enabled():
        raise CannotRecordError("a program, or no gradients")
    tensors = _tensors(model)
    if any(type(item) not in (Tensor, nn.Parameter) or item.layout != torch.strided for item in tensors.values()):
        raise CannotRecordError("a weight is no plain tensor")
    if any(tensor.device.type not in ("cpu", "meta") for tensor in (*tensors.values(), *inputs)):
        raise CannotRecordError("the network is on another device")
    size = inputs[0].shape[0] if inputs[0].dim() else 0
    batched = [item.dim() > 0 and item.shape[0] == size > 0 for item in inputs]
    if not all(batched):
        raise CannotRecordError("an input has no batch")
    weights = _weightless(tensors)
    runs = record(model, weights, [[_sized(item, batch) for item in inputs] for batch in BATCHES])
    reader = _RecordedReader(_program(model, tensors, inputs, runs), modules, name)
    try:
        graph = reader.read(notes)
        verify_graph(graph, types=False)  # they come from running the ops
    except (NeedsFunctionalizationError, NotDynamicError, UserError, IRError) as error:
        raise CannotRecordError(f"{type(error).__name__} {error}") from error
    return graph


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters, then all buffers, under every name they have."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _weightless(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Meta tensors in the shape of weights, one for each tensor."""
    twins: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in twins:
            twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)
            parameter = isinstance(tensor, nn.Parameter)
            twins[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if parameter else twin
    return {name: twins[id(tensor)] for name, tensor in tensors.items()}


def _sized(tensor: Tensor, batch: int) -> Tensor:
    return torch.empty((batch, *tensor.shape[1:]), dtype=tensor.dtype, device=META)


# Three runs as one program


def _program(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Sequence[Tensor], runs: list[Recording]) -> Any:
    """What `ProgramReader` reads of a program: a torch.fx graph with types for values, and where weights belong."""
    graph = fx.Graph()
    buffers = dict(model.named_buffers(remove_duplicate=False))
    to_name: list[dict[str, str]] = [{}, {}]
    nodes: dict[tuple[int | str, int], fx.Node] = {}
    for name, tensor in tensors.items():
        node = graph.placeholder(f"{'b' if name in buffers else 'p'}_{name.replace('.', '_')}")
        node.meta["val"] = TensorType(_dtype(tensor.dtype), tuple(tensor.shape))
        to_name[name in buffers][node.name] = name
        nodes[name, 0] = node
    for number, (name, tensor) in enumerate(zip(_input_names(model, len(inputs)), inputs, strict=True)):
        node = graph.placeholder(name)
        node.meta["name"] = name  # torch.fx renames what Python has a meaning for
        node.meta["val"] = TensorType(_dtype(tensor.dtype), (BatchSize(), *tensor.shape[1:]))
        nodes[f"input {number}", 0] = node
    if len({len(run.steps) for run in runs}) > 1:
        raise CannotRecordError("the calls depend on the batch size")
    for number, steps in enumerate(zip(*(run.steps for run in runs), strict=True)):
        _add_step(graph, nodes, number, steps)
    if any(run.spec != runs[0].spec for run in runs):
        raise CannotRecordError("the outputs depend on the batch size")
    leaves = tuple(_argument(nodes, items) for items in zip(*(run.leaves for run in runs), strict=True))
    if any(isinstance(leaf, BatchSize) for leaf in leaves):
        raise CannotRecordError("an output is computed from the batch size")
    graph.output(leaves)
    return SimpleNamespace(
        graph=graph,
        graph_module=SimpleNamespace(graph=graph),
        graph_signature=SimpleNamespace(
            buffers_to_mutate={},
            user_inputs_to_mutate={},
            inputs_to_parameters=to_name[0],
            inputs_to_buffers=to_name[1],
            inputs_to_lifted_tensor_constants={},
        ),
        state_dict=tensors,
        constants={},
        call_spec=SimpleNamespace(out_spec=runs[0].spec),
    )


def _input_names(model: nn.Module, count: int) -> list[str]:
    """The names of the first parameters of ``forward``; those of ``*args`` are numbered."""
    names: list[str] = []
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names.extend(f"{name}_{number}" for number in range(count - len(names)))
        elif parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            names.append(name)
    if len(names) < count:
        raise CannotRecordError("forward takes fewer inputs")
    return names[:count]


def _add_step(
    graph: fx.Graph, nodes: dict[tuple[int | str, int], fx.Node], number: int, steps: Sequence[Call | GradMode]
) -> None:
    first = steps[0]
    if isinstance(first, GradMode):
        if any(step != first for step in steps):
            raise CannotRecordError("the calls depend on the batch size")
        graph.call_function(torch._C._set_grad_enabled, (first.enabled,)).meta["val"] = None
        return
    calls = [step for step in steps if isinstance(step, Call) and _alike(step, first)]
    if len(calls) < len(steps):
        raise CannotRecordError("the calls depend on the batch size")
    args = tuple(_argument(nodes, items) for items in zip(*(call.args for call in calls), strict=True))
    kwargs = {name: _argument(nodes, [call.kwargs[name] for call in calls]) for name in first.kwargs}
    target = first.target
    if target is torch.ops.aten.lift_fresh.default:
        raise CannotRecordError("a tensor made of numbers")
    node = graph.create_node("call_function", target, args, kwargs, name=target._overloadpacket.__name__)
    node.meta["location"] = Location(first.module, first.module_type, *_place(first))
    types = [_type([call.results[index] for call in calls]) for index in range(len(first.results))]
    node.meta["val"] = types if first.several else types[0]
    nodes[number, 0] = node
    for index, item in enumerate(types if first.several else ()):
        if item is not None:
            part = graph.call_function(operator.getitem, (node, index))
            part.meta["val"] = item
            nodes[number, index] = part


def _alike(call: Call, other: Call) -> bool:
    one, two = ((len(c.args), list(c.kwargs), len(c.results), c.several) for c in (call, other))
    return call.target is other.target and one == two


def _place(call: Call) -> tuple[str, int]:
    return (short_path(Path(call.file)), call.line) if call.file else ("", 0)


def _dtype(dtype: torch.dtype) -> str:
    if dtype not in DTYPE_NAMES:
        raise CannotRecordError(f"a tensor of {dtype}")
    return DTYPE_NAMES[dtype]


def _type(results: Sequence[tuple[torch.dtype, tuple[int, ...]] | None]) -> TensorType | None:
    """The type of a result from what it was in each run."""
    present = [item for item in results if item is not None]
    if not present:
        return None
    (dtype, shape), *others = present
    if len(present) < len(results) or any(other != dtype or len(s) != len(shape) for other, s in others):
        raise CannotRecordError("a result depends on the batch size")
    sizes = zip(*(shape for _, shape in present), strict=True)
    return TensorType(_dtype(dtype), tuple(map(_size, sizes)))


def _size(sizes: Sequence[int]) -> int | BatchSize:
    """A whole number as it was in each run, as an expression in the batch size."""
    if sizes[0] == sizes[1] == sizes[2]:
        return sizes[0]
    scale = (sizes[1] - sizes[0]) // (BATCHES[1] - BATCHES[0])
    found = BatchSize(scale, sizes[0] - scale * BATCHES[0])
    if scale < 1 or any(found.at(batch) != size for batch, size in zip(BATCHES, sizes, strict=True)):
        raise CannotRecordError(f"a size of {sizes} at batch sizes {BATCHES}")
    return found


def _argument(nodes: Mapping[tuple[int | str, int], fx.Node], items: Sequence[Any]) -> Any:
    """An argument from what it was in each run, with the node of every tensor."""
    first = items[0]
    if any(type(item) is not type(first) for item in items):
        raise CannotRecordError("an argument depends on the batch size")
    if isinstance(first, Ref):
        if any(item != first for item in items):
            raise CannotRecordError("the data flow depends on the batch size")
        return nodes[first.source, first.index]
    if isinstance(first, tuple):
        if any(len(item) != len(first) for item in items):
            raise CannotRecordError("an argument depends on the batch size")
        return tuple(_argument(nodes, parts) for parts in zip(*items, strict=True))
    if type(first) is int:
        return _size(items)
    if any(item != first and not (item != item and first != first) for item in items):
        raise CannotRecordError("an argument depends on the batch size")
    return first


@dataclass
class _RecordedReader(ProgramReader):
    """Reads a program whose values have types in place of tensors."""

    def _declare_input(self, node: fx.Node) -> None:
        self.env[node] = self.graph.add_input(node.meta["name"], node.meta["val"])

    def _type(self, value: Any) -> TensorType:
        return value if isinstance(value, TensorType) else TensorType("none", ())

    def _attr(self, value: Any) -> Attr:
        return value if isinstance(value, BatchSize) else super()._attr(value)

    def _operand(self, value: Any, name: str, loc: Location) -> Operand:
        if isinstance(value, BatchSize):
            raise CannotRecordError(f"{name} computes with the batch size")
        return super()._operand(value, name, loc)

    def _location(self, node: fx.Node) -> Location:
        location: Location = node.meta["location"]
        return location
