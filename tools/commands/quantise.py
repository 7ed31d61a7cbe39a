"""``pruneopt quantise``: the pruned network of a bundle as ONNX in 8-bit integers or half
precision, with its accuracy.

The file lies in the bundle beside ``model.onnx``, and a record beside it says what it was made from
and what it costs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.files import atomic_path, write_json
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.compare import tensor_leaves
from pruneopt.ir.types import dim_size
from pruneopt.models.source import is_library_network, load_model
from pruneopt.models.workload import Workload
from pruneopt.passes.targets.half import apart, check_half
from pruneopt.passes.targets.onnx_network import OnnxNetwork
from pruneopt.passes.targets.ort_targets import OrtCPU
from pruneopt.passes.targets.session import fixed_inputs
from pruneopt.tools.bundle.bundle import adding, fingerprint
from pruneopt.tools.bundle.bundle_networks import Network, checked_file, data_of, pruned_of
from pruneopt.tools.report.report import plain, versions
from pruneopt.tools.report.text import percent, score_text
from pruneopt.tools.report.watch import metric_name

__all__ = ["calibration_of", "run"]

BATCH = 32
"""Calibration inputs of one call."""
CHECKED = 4
"""Inputs that a file in half precision is checked with."""


def run(options: argparse.Namespace) -> int:
    """Write the file and its record, and say what it costs."""
    pruned = pruned_of(options.bundle)
    checked_file(options.bundle, "model.onnx")
    workload = _workload(options)
    path = options.bundle / f"model.{options.dtype}.onnx"
    calls = (
        calibration_of(pruned, workload, options.calibration)
        if options.dtype == "int8" and workload
        else None
    )
    target = OrtCPU(dtype=options.dtype, batch=_batch(pruned))
    record: dict[str, Any] = {
        "dtype": options.dtype,
        "made_from": fingerprint(options.bundle / "weights.safetensors"),
    }
    with adding(options.bundle, (path.name, path.with_suffix(".json").name)):
        with atomic_path(path) as temporary:
            target.write(pruned.graph, pruned.weights, temporary, calibration=calls)
            record |= _measured(pruned, workload, options, temporary)
        if calls is not None:
            record["calibration"] = sum(len(call[0]) for call in calls)
        record["bytes"] = {
            name: (options.bundle / name).stat().st_size for name in ("model.onnx", path.name)
        }
        record["versions"] = versions()
        write_json(path.with_suffix(".json"), record)
    print(
        json.dumps(record, indent=2, ensure_ascii=False)
        if options.json
        else "\n".join(_lines(record, path))
    )
    return 0


def _measured(
    pruned: Network, workload: Workload | None, options: argparse.Namespace, path: Path
) -> dict[str, Any]:
    """Return how far the outputs of a written file are off, and the scores where there is data."""
    if workload is None:
        return _half_errors(pruned, path)
    errors = _int8_errors(pruned, path, workload) if options.dtype == "int8" else None
    accuracy = _accuracy(workload, options.bundle / "model.onnx", path)
    return (errors or _half_errors(pruned, path)) | accuracy


def calibration_of(network: Network, workload: Workload, count: int) -> list[tuple[Tensor]]:
    """Return inputs of the calibration split in calls of the network's batch; what does not fill a
    fixed batch is left out."""
    size = BATCH if network.graph.dynamic_batch else _batch(network)
    samples = workload.calibration.head(min(count, len(workload.calibration)))
    calls = [
        (inputs,)
        for inputs, _ in samples.batches(size)
        if network.graph.dynamic_batch or len(inputs) == size
    ]
    if not calls:
        raise UserError(
            f"{len(samples)} calibration inputs do not fill a batch of {size}: give --calibration "
            f"{size}"
        )
    return calls


def _half_errors(network: Network, path: Path) -> dict[str, Any]:
    """Measure how far the outputs of a file in half precision are from the network's, on random
    inputs, and may be."""
    inputs = fixed_inputs(
        network.graph, CHECKED if network.graph.dynamic_batch else _batch(network)
    )
    found = tensor_leaves(OnnxNetwork(path)(*inputs))
    error, allowed = check_half(network.graph, network.weights, found, inputs)
    return {"error": error, "allowed_error": allowed}


def _int8_errors(network: Network, path: Path, workload: Workload) -> dict[str, Any]:
    """Measure how far the outputs of a file are from the network's, on data: random numbers leave
    the calibrated ranges."""
    size = BATCH if network.graph.dynamic_batch else _batch(network)
    inputs, _ = next(workload.test.batches(size))
    with torch.no_grad():
        exact = tensor_leaves(build_module(network.graph, network.weights)(inputs))
    return {"error": apart(tensor_leaves(OnnxNetwork(path)(inputs)), exact)}


def _accuracy(workload: Workload, before: Path, after: Path) -> dict[str, Any]:
    """Return the scores of two files on the test split."""
    scores = [workload.score(OnnxNetwork(path), "test") for path in (before, after)]
    return {
        "metric": metric_name(workload),
        "data": plain(workload.describe()),
        "before": scores[0],
        "after": scores[1],
    }


def _workload(options: argparse.Namespace) -> Workload | None:
    """Return the data: --data, or what the model file names; half precision does without."""
    record = data_of(options.bundle, "run.json")
    spec = options.original or str(record.get("model"))
    if options.original is None and not is_library_network(spec):
        if options.dtype != "int8" and options.data is None:
            return None
        raise UserError(
            f"{options.bundle} was made of {spec}, and no code runs because a file names it: give "
            "it yourself by --original"
        )
    loaded = load_model(spec, trusted=options.trust)
    if options.data is None and loaded.data is None:
        if options.dtype == "int8":
            raise UserError(
                "int8 needs data, which the ranges of activations are taken from: give --data"
            )
        return None
    return loaded.workload(options.data, seed=int(record.get("seed") or 0))


def _batch(network: Network) -> int:
    """Return the batch that a network was captured at, 1 where it may vary."""
    dims = network.graph.inputs[0].type.dims if network.graph.inputs else ()
    return 1 if network.graph.dynamic_batch or not dims else dim_size(dims[0])


def _lines(record: dict[str, Any], path: Path) -> list[str]:
    full, small = record["bytes"].values()
    lines = [
        f"{path}: {small / 1e6:.2f} MB ({percent(small / full)} of model.onnx), outputs off by "
        f"{record['error']:.2g}"
    ]
    if "before" in record:
        shown = [
            score_text(score, record["metric"]) for score in (record["before"], record["after"])
        ]
        lines.append(f"{record['metric']} on the test split: {shown[0]} before, {shown[1]} after")
    return lines
