"""The networks that a bundle speaks of: the pruned one with its weights, and the original's
graph."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph, Value
from pruneopt.ir.schema import DTYPES
from pruneopt.ir.text.parser import parse_graph
from pruneopt.manifest import MANIFEST, Manifest
from pruneopt.passes.analysis.ops.batch_norm import running_norm

__all__ = [
    "Network",
    "checked_file",
    "data_of",
    "original_of",
    "pruned_of",
    "random_weights",
    "report_of",
]


@dataclass(frozen=True)
class Network:
    """A graph and a tensor for every weight that it names."""

    graph: Graph
    weights: Mapping[str, Tensor]


def pruned_of(folder: Path) -> Network:
    """Return the pruned network of a bundle; `UserError` where the folder is none."""
    graph = parse_graph(_text(folder, "ir.after.txt"), str(folder / "ir.after.txt"))
    checked_file(folder, "weights.safetensors")
    try:
        state = safetensors.torch.load_file(folder / "weights.safetensors")
    except Exception as error:
        raise _broken(folder, "weights.safetensors") from error
    missing = [name for name in graph.params if name not in state]
    if missing:
        raise UserError(
            f"{folder / 'weights.safetensors'} lacks {missing[0]}, which ir.after.txt names"
        )
    return Network(graph, {name: state[name] for name in graph.params})


def original_of(folder: Path) -> Network:
    """Return the original of a bundle with random weights: a bundle holds its graph, and not its
    weights.

    Raises:
        UserError: no bundle, or one whose original had whole blocks more than its graph.
    """
    dropped = data_of(folder, "plan.json").get("dropped")
    if dropped:
        raise UserError(
            f"{folder} leaves out whole blocks ({min(dropped)}): name the original network by "
            "--original"
        )
    graph = parse_graph(_text(folder, "ir.before.txt"), str(folder / "ir.before.txt"))
    return Network(graph, random_weights(graph))


def report_of(folder: Path) -> dict[str, Any]:
    """Read the report of a bundle; `UserError` where the folder holds none."""
    return data_of(folder, "report.json")


def data_of(folder: Path, name: str) -> dict[str, Any]:
    """Read a record of a bundle, such as ``run.json``; `UserError` where the folder holds none."""
    try:
        found = json.loads(_text(folder, name))
    except json.JSONDecodeError as error:
        raise _broken(folder, name) from error
    if not isinstance(found, dict):
        raise _broken(folder, name)
    return found


def random_weights(graph: Graph) -> dict[str, Tensor]:
    """Return weights for a network whose own are not there: signals keep about their size on the
    way through."""
    generator = torch.Generator().manual_seed(0)
    variances = {norm.variance for norm in map(running_norm, graph.ops) if norm is not None}
    return {
        name: _random(value, value in variances, generator) for name, value in graph.params.items()
    }


def _random(value: Value, variance: bool, generator: torch.Generator) -> Tensor:
    dtype, shape = DTYPES[value.type.dtype], value.type.shape()
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    if variance:
        return torch.ones(shape, dtype=dtype)
    random = torch.randn(shape, generator=generator) / math.sqrt(max(1, math.prod(shape[1:])))
    return random.to(dtype)


def checked_file(folder: Path, name: str) -> None:
    """Raise `UserError` for a file of a bundle that is not as it was written."""
    manifest = Manifest.read(folder)
    if manifest is None:
        raise _broken(folder, MANIFEST)
    if name not in manifest.files or not (folder / name).exists():
        raise _broken(folder, name)
    manifest.check([name])


def _text(folder: Path, name: str) -> str:
    checked_file(folder, name)
    try:
        return (folder / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _broken(folder, name) from error


def _broken(folder: Path, name: str) -> UserError:
    return UserError(
        f"{folder} is not a bundle of pruneopt compile: its {name} is missing or cannot be read"
    )
