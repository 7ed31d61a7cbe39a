"""The original and the cut network side by side, op by op, over the same batches, stopping at every
layer in turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from pruneopt.ir.graph import Graph, Op, Value
from pruneopt.ir.interpreter import Interpreter
from pruneopt.passes.repair.layers import Site

__all__ = ["Batches", "LockStep"]

Batches = Callable[[], Iterable[Tensor]]
"""Gives the same batches of inputs every time it is called."""


class _PartialForward:
    """One batch on its way through a network: runs as far as it is asked to, and keeps what will be
    asked for."""

    def __init__(
        self,
        interpreter: Interpreter,
        weights: Mapping[str, Tensor],
        inputs: Tensor,
        wanted: Mapping[Value, int],
    ) -> None:
        self._steps = interpreter.steps(weights, inputs)
        self._left = dict(wanted)
        self._held = {value: inputs for value in interpreter.graph.inputs if value in wanted}
        self._done = 0
        self.images = inputs.shape[0]

    def run(self, count: int) -> None:
        """Run until this many ops are done."""
        while self._done < count:
            op, results = next(self._steps)
            self._done += 1
            for value, tensor in zip(op.results, results, strict=True):
                if value in self._left:
                    self._held[value] = tensor

    def take(self, value: Value) -> Tensor:
        """Return a value that was wanted; it is forgotten when it was taken as often as it was
        wanted."""
        self._left[value] -= 1
        return self._held[value] if self._left[value] else self._held.pop(value)


class LockStep:
    """Both networks at one layer after another.

    Args:
        original, cut: the graphs; ``weights`` are the original's, ``live`` the cut network's, read
            anew by every op.
        sites: the layers that will be visited, in this order.
        batches: the inputs.
        keep: hold every batch where it is between two layers (fast, but all activations stay in
            memory); otherwise both networks run from the start again for every layer.
    """

    def __init__(
        self,
        original: Graph,
        cut: Graph,
        weights: Mapping[str, Tensor],
        live: Mapping[str, Tensor],
        sites: Sequence[Site],
        batches: Batches,
        *,
        keep: bool,
    ) -> None:
        self._weights, self._live = weights, live
        self._sites, self._batches, self._keep = list(sites), batches, keep
        self._left = Interpreter(original)
        self._right = Interpreter(cut, self._with_live_weights)
        self._place = {op: index for graph in (original, cut) for index, op in enumerate(graph.ops)}
        self._walks: list[tuple[_PartialForward, _PartialForward]] | None = None

    def at(self, site: Site) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Batch by batch: the number of images, what the cut layer reads, and what the original
        layer gives.

        The layer of the cut network has not run yet: it will run with the weights it has by then.
        """
        if not self._keep:
            walks: Iterable[tuple[_PartialForward, _PartialForward]] = self._started([site])
        else:
            if self._walks is None:
                self._walks = list(self._started(self._sites))
            walks = self._walks
        for old, new in walks:
            old.run(self._place[site.old] + 1)
            new.run(self._place[site.op])
            yield new.images, new.take(_activation(site)), old.take(site.old.result)
        self._sites.remove(site)

    def restart(self) -> None:
        """Begin anew with the weights as they are now."""
        self._walks = None

    def _started(self, sites: Sequence[Site]) -> Iterator[tuple[_PartialForward, _PartialForward]]:
        targets = Counter(site.old.result for site in sites)
        reads = Counter(_activation(site) for site in sites)
        for inputs in self._batches():
            left = _PartialForward(self._left, self._weights, inputs, targets)
            yield left, _PartialForward(self._right, self._live, inputs, reads)

    def _with_live_weights(self, op: Op, operands: list[Any], compute: Callable[[], Any]) -> Any:
        """Return the interpreter reads weights when a walk starts; layers change while walks stand
        still."""
        for index, operand in enumerate(op.operands):
            if isinstance(operand, Value) and operand.is_weight:
                operands[index] = self._live[operand.name]
        return None


def _activation(site: Site) -> Value:
    value = site.op.value(site.x)
    assert value is not None
    return value
