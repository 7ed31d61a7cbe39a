"""From a PyTorch model to a graph that serves training and evaluation at any batch size.

There are two ways. The fast one records the calls of a run on tensors without data
(`recording.capture`); where it cannot be sure of the result, torch.export has the word
(`exporting`). Both give the same graph.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, get_ident
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from pruneopt.calling import calling
from pruneopt.errors import UserError
from pruneopt.ir.capture.check import Proof, can_run
from pruneopt.ir.capture.exporting import exported_graph, load_program, program_graph
from pruneopt.ir.capture.reading.module_table import ModuleTable
from pruneopt.ir.capture.recording.module_state import CannotRecordError
from pruneopt.ir.capture.recording.torch_internals import why_untested
from pruneopt.ir.capture.sizes import why_fixed
from pruneopt.ir.capture.training_mode import evaluation_mode, training_notes
from pruneopt.ir.graph import Graph
from pruneopt.ir.module_state import Snapshot

__all__ = ["capture"]

_LOCK = Lock()
_holder: int | None = None
"""The thread that captures."""


def capture(
    model: nn.Module | ExportedProgram | str | Path,
    example_inputs: Sequence[torch.Tensor] | torch.Tensor | None = None,
    *,
    dynamic_batch: bool = True,
    name: str | None = None,
    forward: Callable[..., Any] | None = None,
    check: bool = True,
    trusted: bool = False,
) -> Graph:
    """Capture a model as a `Graph` that holds its weights by name.

    ``model`` is a module (a torch.fx.GraphModule too), an exported program, or the path of a
    ``.pt2`` file, which may run code while PyTorch loads it and therefore needs ``trusted=True``;
    the last two need no inputs. ``example_inputs`` are the tensors of one call of
    ``forward``. With ``dynamic_batch`` the first dimension of every input is the symbol ``N`` where
    the network allows it; where not, a note on the graph says why.

    ``forward``, called as ``forward(model, *example_inputs)``, is captured in the place of the
    model's own: the part of a network up to where sizes depend on the data (a detector's raw
    outputs), or the way in and out of one that takes or returns something else than tensors. What
    other code reads of the network has to be among its outputs.

    The graph is compared with the model: both run in evaluation mode, twice in a row on the example
    inputs and then at other batch sizes, and in training mode. ``Graph.checked`` says how, notes
    name what the graph leaves out; ``check=False`` saves these forward passes.

    The model is left as it was: parameters, buffers, gradients, attributes, caches, hooks, mode,
    device, and the random states. Meanwhile no other thread may use it; other models run as ever,
    and other captures wait. Only torch.export, where it is needed, tells networks of all threads
    that they are being exported.

    Raises `UserError` when the model cannot be traced, when its inputs do not fit, or when it
    changes itself in evaluation mode; `InternalError` when the graph computes something else.
    """
    if isinstance(model, str | Path):
        model = load_program(Path(model), trusted=trusted)
    if isinstance(model, ExportedProgram):
        return program_graph(model, name or "program")
    inputs = _checked_inputs(model, example_inputs)
    name = name or re.sub(r"\W", "_", type(model).__name__)
    check = check and can_run(model, inputs)
    with (
        _one_at_a_time(),
        _left_as_it_was(model, inputs, values=check) as snapshot,
        calling(model, forward),
        evaluation_mode(model) as frozen,
    ):
        trace = _Trace(model, inputs, ModuleTable(model, frozen), name, snapshot)
        record = dynamic_batch and forward is None
        if not check:
            return trace.graph(record=record, dynamic_batch=dynamic_batch)
        proof = Proof(model, inputs, snapshot, frozen)
        proof.refuse_changes()
        graph = trace.graph(record=record, dynamic_batch=dynamic_batch)
        snapshot.restore()
        why, notes = proof.compare(graph)
        if why is not None:
            graph = trace.fixed_graph(why)
            snapshot.restore()
            _, notes = proof.compare(graph)
        graph.notes = (*graph.notes, *notes, *proof.training_notes(graph))
        fixed = why_fixed(proof, graph)
        if fixed is not None:
            graph.fixed_sizes, graph.notes = True, (*graph.notes, fixed)
        graph.checked = f"compared with the network on inputs of {', '.join(proof.compared)}"
        return graph


@contextmanager
def _left_as_it_was(
    model: nn.Module, inputs: Sequence[torch.Tensor], *, values: bool
) -> Iterator[Snapshot]:
    snapshot = Snapshot(model, inputs, values=values)
    try:
        yield snapshot
    finally:
        snapshot.restore()


@dataclass(frozen=True)
class _Trace:
    """The two ways from one module to a graph."""

    model: nn.Module
    inputs: tuple[torch.Tensor, ...]
    modules: ModuleTable
    name: str
    snapshot: Snapshot

    def graph(self, *, record: bool, dynamic_batch: bool) -> Graph:
        """Record the module, or export it where that could be wrong."""
        try:
            if not record:
                raise CannotRecordError("a fixed batch size or another forward was asked for")
            return _recorded_graph(self.model, self.inputs, self.modules, self.name, self._notes())
        except CannotRecordError as error:
            reason = " ".join(str(error).split())
        self.snapshot.restore()  # caches of the module's hold tensors without data now
        return self._exported(reason, self._notes(), dynamic_batch=dynamic_batch)

    def fixed_graph(self, why: str) -> Graph:
        """Export the module for the batch size of its example inputs alone."""
        shape = self.inputs[0].shape
        note = f"the batch size is fixed at {shape[0] if shape else 1}: {why}"
        return self._exported(why, (*self._notes(), note), dynamic_batch=False)

    def _notes(self) -> tuple[str, ...]:
        notes, untested = training_notes(self.model), why_untested()
        if untested is None:
            return notes
        return (*notes, f"the network was exported, which is slower: {untested}")

    def _exported(self, reason: str, notes: tuple[str, ...], *, dynamic_batch: bool) -> Graph:
        graph = exported_graph(
            self.model, self.inputs, self.modules, self.name, notes, dynamic_batch=dynamic_batch
        )
        graph.exported_because = reason
        return graph


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let captures of several threads wait for each other.

    A capture changes the modes and the weights of its model for a while, and torch.export keeps
    its state in globals: neither bears a second one. One within another has nothing to wait for.
    """
    global _holder
    if _holder == get_ident():
        raise UserError("a network cannot be captured in the forward of one that is being captured")
    with _LOCK:
        try:
            _holder = get_ident()
            yield
        finally:
            _holder = None


def _recorded_graph(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    modules: ModuleTable,
    name: str,
    notes: tuple[str, ...],
) -> Graph:
    untested = why_untested()
    if untested is not None:
        raise CannotRecordError(untested)
    # Imported only now: the recorder's files do not load where torch lacks what they are built on.
    from pruneopt.ir.capture.recording.capture import recorded_graph

    return recorded_graph(model, inputs, modules, name, notes)


def _checked_inputs(
    model: nn.Module, given: Sequence[torch.Tensor] | torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    if given is None:
        raise UserError(
            f"capturing {type(model).__name__} needs example inputs: pass the tensors of one "
            "forward call"
        )
    inputs = (given,) if isinstance(given, torch.Tensor) else tuple(given)
    if not inputs or not all(isinstance(item, torch.Tensor) for item in inputs):
        raise UserError("example inputs must be tensors, one for each argument of forward")
    return inputs
