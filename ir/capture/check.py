"""The comparison of a captured graph with the module it came from, by running both.

Every later proof compares with the captured graph. What ties that graph to the user's own Python
are these runs: in evaluation mode on the example inputs twice in a row, on other data, at other
batch sizes where the graph has any, and in training mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruneopt.errors import InternalError, UserError
from pruneopt.ir.capture.blame import Values, first_apart, line_of_change
from pruneopt.ir.compare import difference, tensor_leaves
from pruneopt.ir.graph import Graph
from pruneopt.ir.interpreter import Interpreter, batch_of
from pruneopt.ir.modes import in_mode
from pruneopt.ir.module_state import Change, Snapshot, state_restored
from pruneopt.ir.types import BatchSize

__all__ = ["Proof", "alike", "can_run", "check_capture", "resized"]

Outputs = list[Tensor]
BUMPS = (7, 100, 10**6)
"""Steps by which counters are moved on, to see whether they play a part."""
SEED = 0
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest difference relative to the largest output: PyTorch has faster kernels for whole modules,
which round."""
HALF = 5e-2
WITHOUT_VALUES = "the weights have no values: the graph was not compared with the network"
EXPLAINED = ("stochastic depth", "dropout is left out")
"""What notes say already that training does otherwise."""
UNSTEADY = (
    "the network gives other outputs each time it runs: the graph could not be compared with it"
)


def can_run(model: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Tell whether the module has numbers to compute with."""
    if isinstance(model, torch.jit.ScriptModule):
        return False
    tensors = (*model.parameters(), *model.buffers(), *inputs)
    return not any(tensor.is_meta for tensor in tensors)


def check_capture(model: nn.Module, graph: Graph, inputs: Sequence[Tensor]) -> str | None:
    """Compare a network in evaluation mode with its graph, on ``inputs`` and at other batch sizes.

    Returns a note where that says nothing. The network is left as it was.

    Raises:
        InternalError: they differ, by more than the network differs from itself.
    """
    if not can_run(model, (*graph.weights.values(), *inputs)):
        return WITHOUT_VALUES
    with state_restored(model, inputs) as snapshot, in_mode(model):
        why, notes = Proof(model, inputs, snapshot, frozenset()).compare(graph)
    if why is not None:
        raise InternalError(
            f"the graph of {graph.name} does not compute what the network does on the example "
            f"inputs: {why}; please report this with the network"
        )
    return notes[0] if notes else None


class Proof:
    """The runs of one module, whose state ``snapshot`` holds; every run begins from it or goes on.

    ``frozen`` names the modules that stay in evaluation mode. The module is left in any state:
    whoever took the snapshot restores it.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Tensor],
        snapshot: Snapshot,
        frozen: frozenset[str],
    ) -> None:
        self.model, self.inputs, self.snapshot, self.frozen = model, inputs, snapshot, frozen
        self.name = type(model).__name__
        self.changes: list[Change] = []
        """What a run changes beside parameters and buffers."""
        self.compared: list[str] = []
        """What was compared, in words."""

    def refuse_changes(self) -> None:
        """Run the module once; raise `UserError` if that changes a parameter, buffer or input."""
        try:
            self._run(self.inputs)
        except Exception:  # capture says what is wrong
            return self.snapshot.restore()
        self.changes = self.snapshot.changes()
        for change in self.changes:
            if change.registered:
                kind = "a parameter" if change.what.startswith("param") else "a buffer or an input"
                raise UserError(
                    f"{self.name} changes {kind} in evaluation mode, which a graph cannot hold: "
                    f"{self._where(change)}; compute it outside of forward, or return it and keep "
                    "it there"
                )
        self.snapshot.restore()

    def compare(self, graph: Graph) -> tuple[str | None, tuple[str, ...]]:
        """Compare in evaluation mode; return why the batch must stay the example's, and notes.

        Raises:
            UserError: the module's outputs depend on what earlier runs have changed in it.
            InternalError: the graph computes something else, at the example's batch size.
        """
        self.compared = []
        known: dict[int, Outputs | Exception] = {}
        counts: list[Mapping[str, float]] = []
        for given in self._rows(graph):
            ours = known.get(id(given[0]))
            if ours is None:
                ours = known[id(given[0])] = self._attempt(lambda g=given: _run_graph(graph, g))
            own = self._attempt(lambda g=given: self._run(g))
            counts.append(self._numbers())
            if not alike(own, ours):
                return self._explain(graph, given, ours)
            self.compared.append(_in_words(given))
        self.snapshot.restore()
        ours = known[id(self.inputs[0])]
        moving = [
            change
            for change in self.changes
            if counts[0].get(change.what) != counts[1].get(change.what)
        ]
        return None, tuple(note for change in moving if (note := self._bumped(change, ours)))

    def _rows(self, graph: Graph) -> list[Sequence[Tensor]]:
        """Return what both run on, one after the other."""
        rows: list[Sequence[Tensor]] = [self.inputs, self.inputs]
        if not graph.dynamic_batch:
            return [*rows, [_stirred(item) for item in self.inputs]]
        own = batch_of(graph, self.inputs)
        sizes = [size for size in (own + 1, 1) if size != own]
        return [*rows, *(resized(graph, self.inputs, size) for size in sizes)]

    def _explain(
        self, graph: Graph, given: Sequence[Tensor], ours: Outputs | Exception
    ) -> tuple[str | None, tuple[str, ...]]:
        """Say why the module gave something else than its graph on ``given``."""
        fresh, again = self.fresh(given), self.fresh(given)
        if not alike(fresh, again):
            return None, (UNSTEADY,)
        if alike(fresh, ours):
            if self.changes:
                raise UserError(self._depends(self.changes[0]))
            return None, (UNSTEADY,)
        line = self.first_line(graph, given)
        if graph.dynamic_batch:
            size = batch_of(graph, given)
            does = "fails" if isinstance(fresh, Exception) else "computes something else"
            return f"with a batch of {size} the network {does}{f', at {line}' if line else ''}", ()
        if isinstance(fresh, Exception) or isinstance(ours, Exception):
            how = f"one of them fails: {fresh if isinstance(fresh, Exception) else ours}"
        else:
            how = f"they differ by {_error(fresh, ours):.3g} times what rounding allows"
        raise InternalError(
            f"the graph of {graph.name} does not compute what the network does on the example "
            f"inputs{f', from {line} on' if line else ''}: {how}; please report this with the "
            "network"
        )

    def _depends(self, change: Change) -> str:
        return (
            f"{self.name} gives other outputs after it has run, as it changes itself in evaluation "
            f"mode, which a graph cannot hold: {self._where(change)}"
        )

    def _bumped(self, change: Change, ours: Outputs | Exception) -> str | None:
        """Refuse a counter that decides something later; return a note on any other."""
        write, value = change.write, None
        self.fresh(self.inputs)
        if write is not None:
            value = _number(change.read())
        for bump in BUMPS if write is not None and value is not None else ():
            self.snapshot.restore()
            assert write is not None
            write(change.read() + bump)
            if not alike(self._attempt(lambda: self._run(self.inputs)), ours):
                raise UserError(self._depends(change))
        self.snapshot.restore()
        where = self._where(change)
        return f"forward changes what no output depends on, and the result does not: {where}"

    def _numbers(self) -> dict[str, float]:
        """Return the numbers among what runs change."""
        found = {change.what: _number(change.read()) for change in self.changes}
        return {what: number for what, number in found.items() if number is not None}

    def _where(self, change: Change) -> str:
        self.snapshot.restore()
        line = line_of_change(lambda: self._run(self.inputs), change.there)
        self.snapshot.restore()
        return f"{change.what}{f', at {line}' if line else ''}"

    # Training

    def training_notes(self, graph: Graph) -> tuple[str, ...]:
        """Compare in training mode; say what the module does there that the graph does not hold."""
        if any(word in note for note in graph.notes for word in EXPLAINED):
            return ()
        self.snapshot.restore()
        own = batch_of(graph, self.inputs)
        given = self.inputs
        if own == 1 and graph.dynamic_batch:  # batch norm needs more than one sample
            given = resized(graph, self.inputs, 2)
        weights = {name: tensor.clone() for name, tensor in graph.weights.items()}
        theirs = self._attempt(lambda: self._run(given, training=True))
        if isinstance(theirs, Exception):
            return ()  # it needs more than inputs, such as targets
        self.compared.append(f"in training mode {_in_words(given)}")
        changed = {c.what: c for c in self.snapshot.changes() if c.registered}
        after = {what: change.read().clone() for what, change in changed.items()}
        ours = self._attempt(lambda: _run_graph(graph, given, weights, training=True))
        notes = []
        if not alike(theirs, ours):
            notes.append(self._training_difference(graph, given, theirs))
        for what, value in after.items():
            name = what.removeprefix("buffer ")
            mine = weights.get(graph.aliases.get(name, name))
            if mine is None and any("play no part in evaluation" in note for note in graph.notes):
                continue  # it belongs to what that note names
            if mine is None or not alike([value], [mine]):
                where = self._where_in_training(changed[what], given)
                notes.append(f"in training mode forward changes what the result keeps: {where}")
                break
        self.snapshot.restore()
        return tuple(note for note in notes if note)

    def _training_difference(
        self, graph: Graph, given: Sequence[Tensor], theirs: Outputs | Exception
    ) -> str:
        self.snapshot.restore()
        again = self._attempt(lambda: self._run(given, training=True))
        if not alike(theirs, again):
            return ""  # it draws random numbers of its own
        self.snapshot.restore()
        with Values() as own:
            self._attempt(lambda: self._run(given, training=True))
        weights = {name: tensor.clone() for name, tensor in graph.weights.items()}
        with Values() as ours:
            self._attempt(lambda: _run_graph(graph, given, weights, training=True))
        line = first_apart(own, ours)
        return (
            "in training mode the network computes something else, which is left out"
            f"{f': from {line} on' if line else ''}"
        )

    def _where_in_training(self, change: Change, given: Sequence[Tensor]) -> str:
        self.snapshot.restore()
        line = line_of_change(lambda: self._run(given, training=True), change.there)
        self.snapshot.restore()
        return f"{change.what}{f', at {line}' if line else ''}"

    # Runs

    def _run(self, given: Sequence[Tensor], *, training: bool = False) -> Outputs:
        """Run the module on the very inputs: what it writes into them is seen."""
        if training:
            self._train()
        try:
            with torch.no_grad():
                torch.manual_seed(SEED)
                return [item.clone() for item in tensor_leaves(self.model(*given))]
        finally:
            if training:
                self.model.eval()

    def _train(self) -> None:
        """Put the module into training mode, with copies of its buffers to write into.

        Autograd may still need the module's own: they must not even change for a while.
        """
        self.model.train()
        for path in self.frozen:
            self.model.get_submodule(path).training = False
        copies: dict[int, Tensor] = {}
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    copies.setdefault(id(buffer), buffer.clone())
                    module._buffers[name] = copies[id(buffer)]

    def attempt_graph(self, graph: Graph, given: Sequence[Tensor]) -> Outputs | Exception:
        """Run a graph; return its error where it fails."""
        return self._attempt(lambda: _run_graph(graph, given))

    def fresh(self, given: Sequence[Tensor]) -> Outputs | Exception:
        """Run the module as it was at first; return its error where it fails."""
        self.snapshot.restore()
        return self._attempt(lambda: self._run(given))

    def first_line(self, graph: Graph, given: Sequence[Tensor]) -> str:
        """Return the user's line of the first tensor that module and graph do not share."""
        self.snapshot.restore()
        with Values() as own:
            self._attempt(lambda: self._run(given))
        with Values() as ours:
            self._attempt(lambda: _run_graph(graph, given))
        self.snapshot.restore()
        return first_apart(own, ours) or _op_apart(graph, given, own)

    @staticmethod
    def _attempt(run: Any) -> Outputs | Exception:
        try:
            found: Outputs = run()
        except Exception as error:  # the user's code may raise anything
            return error
        return found


def _run_graph(
    graph: Graph,
    given: Sequence[Tensor],
    weights: Mapping[str, Tensor] | None = None,
    *,
    training: bool = False,
) -> Outputs:
    with torch.no_grad():
        torch.manual_seed(SEED)
        run = Interpreter(graph).run
        found = run(graph.weights if weights is None else weights, *given, training=training)
        return tensor_leaves(found)


def _op_apart(graph: Graph, given: Sequence[Tensor], own: Values) -> str:
    """Return the line of the first op whose results the module does not compute."""
    steps = Interpreter(graph).steps(graph.weights, *given)
    with torch.no_grad():
        try:
            for op, results in steps:
                if op.loc.file and not own.holds(results):
                    return f"{op.loc.file}:{op.loc.line}"
        except Exception:
            return ""
    return ""


def alike(one: Outputs | Exception, other: Outputs | Exception) -> bool:
    """Tell whether two runs gave the same, up to rounding; two failures are the same."""
    if isinstance(one, Exception) or isinstance(other, Exception):
        return isinstance(one, Exception) and isinstance(other, Exception)
    shapes = [tensor.shape for tensor in one] == [tensor.shape for tensor in other]
    return shapes and not _error(one, other)


def _error(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    """Return the largest difference of any output in units of what rounding allows.

    It is infinite where rounding allows none.
    """
    worst = 0.0
    for a, b in zip(one, two, strict=True):
        error, scale = difference(a, b)
        real = a.real.dtype if a.is_complex() else a.dtype
        allowed = TOLERANCE.get(real, HALF) * max(scale, 1e-12) if real.is_floating_point else 0.0
        if not error <= allowed:
            worst = max(worst, error / allowed if allowed and not math.isnan(error) else math.inf)
    return worst


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 and not value.is_complex() else None
    return float(value) if isinstance(value, int | float) else None


def _in_words(inputs: Sequence[Tensor]) -> str:
    return " and ".join("x".join(map(str, tensor.shape)) or "a number" for tensor in inputs)


def _stirred(tensor: Tensor) -> Tensor:
    """Return other data of the same kind: the same elements elsewhere, numbers also smaller."""
    mixed = tensor.detach().flatten().flip(0).view(tensor.shape)
    return mixed * 0.75 if tensor.is_floating_point() else mixed


def resized(graph: Graph, inputs: Sequence[Tensor], batch: int) -> list[Tensor]:
    """Return other data at another batch size, whatever axes of the inputs it stands in."""
    found = []
    for value, tensor in zip(graph.inputs, inputs, strict=True):
        tensor = _stirred(tensor)
        for axis, dim in enumerate(value.type.dims):
            if isinstance(dim, BatchSize):
                size = value.type.shape(batch)[axis]
                rows = [tensor] * -(-size // tensor.shape[axis])
                tensor = torch.cat(rows, axis).narrow(axis, 0, size)
        found.append(tensor.contiguous())
    return found
