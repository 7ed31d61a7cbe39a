"""In-situ times by onnxruntime: whole networks run under its own profiler, which times every node
as it was fused.

The profiler names a node after the node or the value of the file that it came from, with the layout
behind it (``relu_1_nchwc``); nodes that onnxruntime adds (reorders between layouts, casts, copies)
have names of their own, and count with the node that ran before. When the profile is written, the
same session runs on without profiling: its times are those of the whole network.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pruneopt.errors import InternalError, UserError
from pruneopt.passes.latency.sample import NodeTime, Sample, undisturbed
from pruneopt.passes.targets.ort_providers import quiet_onnxruntime
from pruneopt.passes.targets.ort_targets import OrtTarget

__all__ = ["layer_nodes", "node_regions", "run_profiled"]

WARM_UP = 2
LEAST, MOST = 6, 200
"""Runs under the profiler, and as many without it."""
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum")
PASSED = ("Transpose", "Cast", "DequantizeLinear", "Reshape", "Identity", "Unsqueeze", "Squeeze")
"""The ops that may stand between a weight and its layer."""
ENDING = "_kernel_time"


def layer_nodes(model: Any) -> list[str]:
    """Return the names of the nodes that meet their input with a weight matrix, in order."""
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type in PASSED and node.input[0] in ranks:
            ranks[node.output[0]] = ranks[node.input[0]]
        elif node.op_type in LAYERS and any(ranks.get(name, 0) > 1 for name in node.input):
            found.append(node.name)
    return found


def node_regions(model: Any, layers: int) -> dict[str, int]:
    """Return the region of every node, by its name and by the names of its results (see `regions`).

    Where the file has another number of layers than the graph, its own are dealt out evenly in
    order: the sum of all regions is right even then.
    """
    names = layer_nodes(model)
    number = {name: -(-(place + 1) * layers // len(names)) for place, name in enumerate(names)}
    made: dict[str, int] = {}
    found: dict[str, int] = {}
    for node in model.graph.node:
        region = number.get(node.name, max((made.get(name, 0) for name in node.input), default=0))
        found[node.name] = region
        for name in node.output:
            made[name] = found[name] = region
    return found


def run_profiled(
    target: OrtTarget,
    model: bytes,
    inputs: Sequence[np.ndarray],
    regions: Mapping[str, int],
    seconds: float,
) -> Sample:
    """Run a file under the profiler and without it, each for about so many seconds.

    Raises:
        UserError: onnxruntime cannot load or run the file.
    """
    with tempfile.TemporaryDirectory(prefix="pruneopt-") as folder, quiet_onnxruntime():
        try:
            session = _session(target, model, Path(folder))
            feed = {item.name: x for item, x in zip(session.get_inputs(), inputs, strict=True)}
            first = min(_timed(session, feed) for _ in range(WARM_UP))
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"onnxruntime cannot run this network on {target}: {reason}") from error
        runs = int(np.clip(seconds / max(first, 1e-6), LEAST, MOST))
        for _ in range(runs):
            _timed(session, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        whole = [_timed(session, feed) for _ in range(runs)]
    return Sample(float(np.median(whole)), tuple(_nodes(events, regions)))


def _session(target: OrtTarget, model: bytes, folder: Path) -> Any:
    import onnxruntime

    options = target.session_options()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    return onnxruntime.InferenceSession(model, options, providers=target.providers())


def _timed(session: Any, feed: Mapping[str, np.ndarray]) -> float:
    started = time.perf_counter()
    session.run(None, feed)
    return time.perf_counter() - started


def _nodes(events: Iterable[Mapping[str, Any]], regions: Mapping[str, int]) -> Iterator[NodeTime]:
    """Yield the nodes in the order in which they run."""
    times: dict[str, list[float]] = {}
    first: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(ENDING):
            name = event["name"].removesuffix(ENDING)
            times.setdefault(name, []).append(event["dur"] / 1e6)
            first.setdefault(name, event["args"])
    if not times:
        raise InternalError("the profile of onnxruntime holds no nodes")
    runs = min(map(len, times.values()))
    medians = undisturbed(np.array([found[-runs:] for found in times.values()]).T[WARM_UP:])
    region = 0
    for name, seconds in zip(times, medians, strict=True):
        args = first[name]
        region = next((regions[text] for text in _origins(name) if text in regions), region)
        shapes = [tuple(shape) for item in _shapes(args) for shape in item.values()]
        moved = sum(
            int(args.get(part, 0)) for part in ("activation_size", "output_size", "parameter_size")
        )
        yield NodeTime(name, args["op_name"], region, float(seconds), tuple(shapes), moved)


def _shapes(args: Mapping[str, Any]) -> Iterator[Mapping[str, list[int]]]:
    yield from args.get("input_type_shape", ())
    yield from args.get("output_type_shape", ())


def _origins(name: str) -> tuple[str, ...]:
    """Return the names that a node may be called after."""
    return name, name.removesuffix("_nchwc"), name.partition("/")[0]
