"""The additive table's way to measure, on a target: every layer alone, with the target's own
runtime."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pruneopt.extend import CostModel, Target
from pruneopt.ir.schema import DTYPES, call
from pruneopt.passes.analysis.cost.latency_measure import Timer, layer_attrs, layer_shapes
from pruneopt.passes.analysis.cost.latency_table import TimedLayer
from pruneopt.passes.targets.ort_targets import OrtTarget

REPEATS, STRETCH = 10, 2e-3
"""Timed stretches, and the seconds of one at least."""


def table_timer(target: Target, cost: CostModel) -> Timer:
    """Return seconds of a layer at an input and an output width; layers that look alike are
    measured once."""
    known: dict[object, float] = {}

    def timer(layer: TimedLayer, inputs: int, outputs: int) -> float:
        shapes = layer_shapes(layer, inputs, outputs, target.batch)
        attrs = layer_attrs(layer, inputs, target.batch, torch.device("cpu"))
        key = (
            layer.op.target,
            shapes,
            tuple(sorted((name, str(value)) for name, value in attrs.items())),
        )
        if key not in known:
            known[key] = _median(_ready(target, layer, shapes, attrs))
        return known[key]

    return timer


def _ready(
    target: Target, layer: TimedLayer, shapes: Any, attrs: dict[str, Any]
) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(shape, generator=generator).to(DTYPES[layer.input[0].type.dtype])
        for shape in shapes
    ]
    if not isinstance(target, OrtTarget):
        operands = [*tensors, *[None] * (len(layer.op.operands) - len(tensors))]
        return torch.inference_mode()(lambda: call(layer.op.target, operands, attrs))
    module = _Alone(layer.op.target, tensors[1:], attrs, len(layer.op.operands))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        _write(module, tensors[0], path)
        session = target.open(path, [tensors[0].numpy()])
    return session.run


class _Alone(torch.nn.Module):
    def __init__(
        self, target: str, weights: list[torch.Tensor], attrs: dict[str, Any], operands: int
    ) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(weights)
        self.target, self.attrs, self.rest = target, attrs, operands - 1 - len(weights)

    def forward(self, x: torch.Tensor) -> Any:
        return call(self.target, [x, *self.weights, *[None] * self.rest], self.attrs)


def _write(module: _Alone, x: torch.Tensor, path: Path) -> None:
    """Write the layer as ONNX, by hand: an export by torch takes a second for each of some
    hundred."""
    from onnx import TensorProto, helper, numpy_helper

    weights = [
        numpy_helper.from_array(np.asarray(w.detach()), f"w{i}")
        for i, w in enumerate(module.weights)
    ]
    names = ["x", *(tensor.name for tensor in weights)]
    attrs = module.attrs
    result = module(x)
    if module.weights[0].dim() == 2:  # a linear layer
        rank = "Transpose" if x.dim() > 2 else None
        nodes = [helper.make_node("Transpose", ["w0"], ["t"], perm=[1, 0])] if rank else []
        if rank:
            nodes += [helper.make_node("MatMul", ["x", "t"], ["m" if len(names) > 2 else "y"])]
            nodes += [helper.make_node("Add", ["m", "w1"], ["y"])] if len(names) > 2 else []
        else:
            nodes = [helper.make_node("Gemm", names, ["y"], transB=1)]
    else:
        padding = list(attrs["padding"])
        nodes = [
            helper.make_node(
                "Conv",
                names,
                ["y"],
                strides=list(attrs["stride"]),
                pads=padding + padding,
                dilations=list(attrs["dilation"]),
                group=attrs["groups"],
            )
        ]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(result.shape))],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())


def _median(run: Callable[[], object]) -> float:
    for _ in range(3):
        started = time.perf_counter()
        run()
        once = time.perf_counter() - started
    calls = max(1, int(STRETCH / max(once, 1e-9)))
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(calls):
            run()
        found.append((time.perf_counter() - started) / calls)
    return statistics.median(found)
