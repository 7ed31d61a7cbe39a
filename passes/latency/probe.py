"""Measuring networks, and many sub-networks of one network, on a target."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.latency.onnx_family import OnnxFamily, leading_plan, named_by_place
from pruneopt.passes.latency.ort_times import node_regions, run_profiled
from pruneopt.passes.latency.regions import region_numbers
from pruneopt.passes.latency.sample import Sample
from pruneopt.passes.latency.torch_times import run_eager
from pruneopt.passes.targets.ort_targets import OrtCPU
from pruneopt.passes.targets.session import FLOATS, Session, fixed_inputs
from pruneopt.passes.targets.target import Target
from pruneopt.passes.targets.torch_targets import TorchCPU
from pruneopt.passes.timing.timing import measure

__all__ = ["SECONDS", "Probe", "op_times"]

SECONDS = 0.4
"""The seconds that a network runs op by op, and again as a whole."""


def op_times(
    target: Target, graph: Graph, weights: Mapping[str, Tensor], seconds: float = SECONDS
) -> Sample:
    """Return the times of a network's ops in their surroundings, fused as the target fuses them,
    and of the whole.

    Per op where the target's runtime tells: `ort-cpu` and eager `torch-cpu`. A device that works on
    its own does not say on the host what an op takes; there, as under a compiler, the whole is
    timed and there are no ops.

    Raises:
        UserError: this machine does not offer the target, or the network cannot run on it.
    """
    target.need()
    if isinstance(target, OrtCPU) and target.dtype != "int8":
        with tempfile.TemporaryDirectory(prefix="pruneopt-") as folder:
            path = Path(folder) / "model.onnx"
            target.write(graph, weights, path)
            model = named_by_place(path)
        regions = node_regions(model, _layers(graph))
        return run_profiled(
            target, bytes(model.SerializeToString()), _arrays(target, graph), regions, seconds
        )
    if isinstance(target, TorchCPU) and target.mode == "eager":
        return run_eager(target, graph, weights, seconds)
    session = target.load(graph, weights)
    try:
        found = measure([session.step], clock=session.clock(), seconds=2 * seconds)[0]
    finally:
        session.close()
    return Sample(found.seconds, ())


class Probe:
    """Measures sub-networks of a network on a target.

    Args:
        cost: of the network, whose graph has its weights.
        target: where.
        seconds: how long a network runs op by op, and again as a whole.
        seed: for the widths that files are learned from.

    Raises:
        UserError: this machine does not offer the target.
    """

    def __init__(
        self, cost: CostModel, target: Target, *, seconds: float = SECONDS, seed: int = 0
    ) -> None:
        target.need()
        self.cost, self.target, self.seconds = cost, target, seconds
        self._family: OnnxFamily | None = None
        if isinstance(target, OrtCPU) and target.dtype != "int8":
            try:
                self._family = OnnxFamily(
                    cost, lambda graph, path: target.write(graph, graph.weights, path), seed
                )
            except UserError:
                return  # files that are not alike are exported one by one
            self._regions = node_regions(self._family.model, _layers(cost.graph))

    def __call__(self, widths: np.ndarray) -> Sample:
        """Measure the sub-network of widths `[G]`."""
        if self._family is not None and isinstance(self.target, OrtCPU):
            inputs = _arrays(self.target, self.cost.graph)
            return run_profiled(
                self.target, self._family.at(widths), inputs, self._regions, self.seconds
            )
        graph = self._sliced(widths)
        return op_times(self.target, graph, graph.weights, self.seconds)

    def session(self, widths: np.ndarray) -> Session:
        """Return the sub-network of widths `[G]`, ready to run as it would be deployed."""
        if self._family is not None and isinstance(self.target, OrtCPU):
            with tempfile.TemporaryDirectory(prefix="pruneopt-") as folder:
                path = Path(folder) / "model.onnx"
                path.write_bytes(self._family.at(widths))
                return self.target.open(path, _arrays(self.target, self.cost.graph))
        graph = self._sliced(widths)
        return self.target.load(graph, graph.weights)

    def _sliced(self, widths: np.ndarray) -> Graph:
        return slice_graph(self.cost.graph, self.cost.coupling, leading_plan(self.cost, widths))


def _layers(graph: Graph) -> int:
    return max(region_numbers(graph).values(), default=0)


def _arrays(target: OrtCPU, graph: Graph) -> list[np.ndarray]:
    dtype = FLOATS[target.dtype]
    inputs = fixed_inputs(graph, target.batch)
    return [(x.to(dtype) if x.is_floating_point() else x).numpy() for x in inputs]
