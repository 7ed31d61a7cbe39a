"""Several candidates as one graph: what they compute alike is computed once.

Candidates of a search resemble each other: children of an evolution, or the moves of one width, are
often equal from the input up to the first layer that differs, and so are their batch-norm
statistics. Ops that do the same to the same values, with equal weights, become one op (common
subexpressions); for chains this is the trie of the candidates. Ops stand in the order of the
candidates, so that of several only one is under way at a time beside what others still need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneopt.ir.graph import Graph, Op, Operand, Structure, Value, map_structure
from pruneopt.ir.schema import overload

__all__ = ["Merged", "merge"]

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Merged:
    """One graph for several.

    Attributes:
        graph: gives a tuple with the outputs of each.
        weights: of all.
        ops: for each, its own ops with the op of the merged graph that does their work.
    """

    graph: Graph
    weights: dict[str, Tensor]
    ops: tuple[Mapping[Op, Op], ...]

    @property
    def shared(self) -> float:
        """The share of all ops that need not be run again."""
        return 1 - len(self.graph.ops) / max(1, sum(map(len, self.ops)))


def merge(graphs: Sequence[Graph], weights: Sequence[Weights]) -> Merged:
    """Return one graph for networks with the same inputs, and its weights.

    Ops that draw random numbers are never shared: in training mode each candidate draws its own.
    """
    merged = Graph(graphs[0].name)
    inputs = [merged.add_input(value.name, value.type) for value in graphs[0].inputs]
    joined = _Joined(merged)
    outputs: list[Structure] = []
    ops: list[Mapping[Op, Op]] = []
    for graph, tensors in zip(graphs, weights, strict=True):
        twins = dict(zip(graph.inputs, inputs, strict=True))
        twins |= {
            value: joined.weight(value, tensors[name])
            for name, value in graph.params.items()
            if name in tensors
        }
        ops.append({op: joined.op(op, twins) for op in graph.ops})
        outputs.append(map_structure(twins.__getitem__, graph.outputs))
    merged.outputs = tuple(outputs)
    return Merged(merged, joined.weights, tuple(ops))


class _Joined:
    """The merged graph while it grows."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.weights: dict[str, Tensor] = {}
        self._params: dict[tuple[str, bytes], Value] = {}
        self._ops: dict[tuple[object, ...], Op] = {}

    def weight(self, value: Value, tensor: Tensor) -> Value:
        """Return the value of a weight, one for equal tensors of the same name."""
        key = (value.name, _content(tensor))
        if key not in self._params:
            # Candidates cut one weight differently: names must tell the tensors apart.
            name, number = value.name, 0
            while name in self.weights:
                number += 1
                name = f"{value.name}#{number}"
            self.weights[name] = tensor
            self._params[key] = self.graph.add_param(name, value.type, value.kind)
        return self._params[key]

    def op(self, op: Op, twins: dict[Value, Value]) -> Op:
        """Return the op that does an op's work; its results become the twins of the op's."""

        def twin(operand: Operand) -> Operand:
            if isinstance(operand, Value):
                return twins[operand]
            if isinstance(operand, tuple):
                return tuple(None if value is None else twins[value] for value in operand)
            return operand

        operands = tuple(map(twin, op.operands))
        attrs = tuple(sorted((name, repr(attr)) for name, attr in op.attrs.items()))
        key: tuple[object, ...] = (op.target, tuple(map(_key, operands)), attrs)
        if torch.Tag.nondeterministic_seeded in overload(op.target).tags:
            key = (object(),)  # equal to nothing: never shared
        if key not in self._ops:
            results = [(self.graph.fresh_name(value.name), value.type) for value in op.results]
            self._ops[key] = self.graph.add_op(op.target, operands, op.attrs, results, op.loc)
        made = self._ops[key]
        twins.update(zip(op.results, made.results, strict=True))
        return made


def _key(operand: Operand) -> object:
    """Return numbers by their spelling: 1, 1.0 and True are equal in Python, but not to an op."""
    return operand if isinstance(operand, Value | tuple) else (type(operand), repr(operand))


def _content(tensor: Tensor) -> bytes:
    """Return a digest of what a tensor holds."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    head = f"{tensor.dtype} {list(tensor.shape)}".encode()
    return hashlib.blake2b(flat.tobytes() + head, digest_size=16).digest()
