"""Capture without torch.export: the calls of a module at three batch sizes, as one graph.

The sizes and whole numbers of the three runs agree, or they grow with the batch, and then two runs
determine the expression in ``N`` and the third confirms it. The batch sizes are 2 and 3, and one so
large and with so many divisors that a network that goes another way for large batches, or for
multiples of some number, does so there. Whatever does not fit is left to torch.export: a
`CannotRecordError` here is no failure of the capture.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from pruneopt.collection import no_collection
from pruneopt.errors import UserError
from pruneopt.ir.capture.reading.exported_program import NotDynamicError
from pruneopt.ir.capture.reading.module_table import ModuleTable
from pruneopt.ir.capture.recording.calls import META
from pruneopt.ir.capture.recording.module_state import CannotRecordError
from pruneopt.ir.capture.recording.reader import RecordedReader
from pruneopt.ir.capture.recording.recorder import record
from pruneopt.ir.graph import Graph
from pruneopt.ir.verifier import IRError, verify_graph

__all__ = ["recorded_graph"]

BATCHES = (2, 3, 720720)
"""The last one is divisible by everything up to 16."""


def recorded_graph(
    model: nn.Module,
    inputs: Sequence[Tensor],
    modules: ModuleTable,
    name: str,
    notes: tuple[str, ...],
) -> Graph:
    """Return the graph of ``model(*inputs)`` in evaluation mode, with a batch of size ``N``.

    Raises `CannotRecordError` where the recording could differ from what torch.export yields, which
    then has the word on what is wrong. The model is left as it was.
    """
    if isinstance(model, fx.GraphModule | torch.jit.ScriptModule) or not torch.is_grad_enabled():
        raise CannotRecordError("the model is a GraphModule, or grad mode is off")
    parameters, buffers = _tensors(model)
    tensors = {**parameters, **buffers}
    if any(
        type(item) not in (Tensor, nn.Parameter) or item.layout != torch.strided
        for item in tensors.values()
    ):
        raise CannotRecordError("a weight is no plain tensor")
    # A run says that its tensors are on the CPU, and elsewhere a network may go another way.
    if any(tensor.device.type not in ("cpu", "meta") for tensor in (*tensors.values(), *inputs)):
        raise CannotRecordError("the network or an input is on another device than the CPU")
    size = inputs[0].shape[0] if inputs[0].dim() else 0
    batched = [item.dim() > 0 and item.shape[0] == size > 0 for item in inputs]
    if not all(batched):
        raise CannotRecordError("an input has no batch")
    with no_collection():  # many small objects are made here that stay
        weights = _weightless(tensors)
        runs = record(
            model, weights, [[_sized(item, batch) for item in inputs] for batch in BATCHES]
        )
        named = dict(zip(_input_names(model, len(inputs)), inputs, strict=True))
        try:
            graph = RecordedReader(runs, BATCHES, modules, name).read_runs(
                (parameters, buffers), named, notes
            )
            verify_graph(graph, types=False)  # they come from running the ops
        except (NotDynamicError, UserError, IRError) as error:
            raise CannotRecordError(f"{type(error).__name__}: {error}") from error
    return graph


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return all parameters and all buffers, under every name they have."""
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        parameters.update(
            (prefix + name, item) for name, item in module._parameters.items() if item is not None
        )
        buffers.update(
            (prefix + name, item) for name, item in module._buffers.items() if item is not None
        )
    return parameters, buffers


def _weightless(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make meta tensors in the shape of weights, one for each tensor."""
    twins: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in twins:
            twin = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META
            )
            parameter = isinstance(tensor, nn.Parameter)
            twins[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if parameter else twin
    return {name: twins[id(tensor)] for name, tensor in tensors.items()}


def _sized(tensor: Tensor, batch: int) -> Tensor:
    return torch.empty((batch, *tensor.shape[1:]), dtype=tensor.dtype, device=META)


def _input_names(model: nn.Module, count: int) -> list[str]:
    """Return the names of the first parameters of ``forward``; those of ``*args`` are numbered."""
    names: list[str] = []
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names.extend(f"{name}_{number}" for number in range(count - len(names)))
        elif parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            names.append(name)
    if len(names) < count:
        raise CannotRecordError("forward takes fewer inputs than were given")
    return names[:count]
