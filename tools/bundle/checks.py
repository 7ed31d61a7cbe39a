"""Every artefact is loaded back and held to the pruned network before a compile reports success.

The generated module, the exported program and the ONNX file run at batch 1 and 3 (at the captured
batch where that is fixed); the plan is applied to the original once more. A difference names the
artefact.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from pruneopt.errors import VerificationError
from pruneopt.ir.compare import same_outputs, tensor_leaves
from pruneopt.ir.export.export import run_onnx
from pruneopt.ir.graph import Graph
from pruneopt.ir.types import dim_size
from pruneopt.models.workload import seeded
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.plan import load_plan
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.selection.masks import MASKS, check_saved_masks
from pruneopt.tools.bundle.artefacts import drawing_ops, foreign_ops

__all__ = ["TOLERANCES", "Check", "check_artefacts", "check_inputs"]

BATCHES = (1, 3)
TOLERANCES = {"model.py": 1e-6, "model.pt2": 1e-5, "model.onnx": 1e-3}
"""Largest difference of an output, relative to the largest output: the module and the program run
the same kernels, an ONNX runtime its own, after folding batch norm into convolutions."""


@dataclass(frozen=True, slots=True)
class Check:
    """An artefact that was loaded back, at which batch sizes, and how far its outputs are off (0:
    the same bits)."""

    artefact: str
    batches: tuple[int, ...]
    max_abs_error: float
    tolerance: float


def check_artefacts(
    folder: Path,
    module: nn.Module,
    graph: Graph,
    examples: Sequence[Tensor],
    *,
    seed: int = 0,
    replay: tuple[Graph, Coupling, Mapping[str, Tensor]] | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> list[Check]:
    """Load back what lies in a bundle's folder and compare it with the pruned network.

    Args:
        module: the pruned network.
        graph: its graph.
        examples: inputs of one call.
        replay: the original graph, its coupling, and the weights right after slicing: the plan must
            give these again.
        masks: which weights must be zero, in the file of masks and in that of weights.

    Raises:
        VerificationError: an artefact that cannot be loaded, or whose outputs differ.
    """
    sizes = BATCHES if graph.dynamic_batch else (_fixed_batch(graph),)
    inputs = [check_inputs(graph, examples, size, seed) for size in sizes]
    expected = [_run(module, item) for item in inputs]
    runners: dict[str, Callable[[], Callable[..., Any]]] = {
        "model.py": lambda: _generated(folder, type(module).__name__),
        "model.pt2": lambda: _program(folder / "model.pt2"),
        "model.onnx": lambda: lambda *item: run_onnx(folder / "model.onnx", item),
    }
    if foreign_ops(graph) or drawing_ops(graph):
        del runners["model.onnx"]
    found = [_check(name, load, inputs, expected, sizes) for name, load in runners.items()]
    if replay is not None:
        found.append(_check_plan(folder / "plan.json", *replay))
    if masks is not None:
        with _naming(MASKS):
            check_saved_masks(folder, masks)
        found.append(Check(MASKS, (), 0.0, 0.0))
    return found


def check_inputs(
    graph: Graph, examples: Sequence[Tensor], batch: int, seed: int
) -> tuple[Tensor, ...]:
    """Return inputs of one call at a batch size: random numbers, and the rows of the example for
    integers (they are codes)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for value, example in zip(graph.inputs, examples, strict=True):
        shape = value.type.shape(batch)
        if example.is_floating_point():
            inputs.append(torch.randn(shape, generator=generator).to(example.dtype))
        else:
            rows = example.repeat(
                *(-(-size // have) for size, have in zip(shape, example.shape, strict=True))
            )
            inputs.append(rows[tuple(slice(size) for size in shape)])
    return tuple(inputs)


def _fixed_batch(graph: Graph) -> int:
    dims = graph.inputs[0].type.dims if graph.inputs else ()
    return dim_size(dims[0]) if dims else 1


def _check(
    name: str,
    load: Callable[[], Callable[..., Any]],
    inputs: Sequence[tuple[Tensor, ...]],
    expected: Sequence[Any],
    sizes: tuple[int, ...],
) -> Check:
    tolerance = TOLERANCES[name]
    worst = 0.0
    with _naming(name):
        run = load()
        for item, wanted in zip(inputs, expected, strict=True):
            worst = max(
                worst,
                same_outputs(
                    _run(run, item), wanted, atol=tolerance * _scale(wanted), rtol=tolerance
                ),
            )
    return Check(name, sizes, worst, tolerance)


def _run(network: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
    """Run a network and return the outputs; one that draws numbers draws the same each time."""
    with torch.no_grad(), seeded(0):
        return network(*inputs)


def _scale(outputs: Any) -> float:
    """Return the largest finite absolute output."""
    leaves = [leaf for leaf in tensor_leaves(outputs) if leaf.numel()]
    finite = [torch.nan_to_num(leaf.abs().double(), posinf=0.0).max() for leaf in leaves]
    return max((float(item) for item in finite), default=1.0)


def _generated(folder: Path, class_name: str) -> nn.Module:
    """Return the module of the written source, in a namespace of its own, with the written
    weights."""
    namespace = runpy.run_path(str(folder / "model.py"))
    module = namespace[class_name]()
    module.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))
    loaded: nn.Module = module.eval()
    return loaded


def _program(path: Path) -> nn.Module:
    return torch.export.load(path).module()


def _check_plan(
    path: Path, original: Graph, coupling: Coupling, sliced: Mapping[str, Tensor]
) -> Check:
    with _naming("plan.json"):
        again = slice_graph(original, coupling, load_plan(path, coupling)).weights
        if again.keys() != sliced.keys():
            raise VerificationError("it names other weights")
        for name, tensor in sliced.items():
            if again[name].shape != tensor.shape or not torch.equal(again[name], tensor):
                raise VerificationError(f"applied to the original it gives another {name}")
    return Check("plan.json", (), 0.0, 0.0)


@contextmanager
def _naming(artefact: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into an error that names the artefact."""
    try:
        yield
    except VerificationError as error:
        raise VerificationError(
            f"{artefact} is not the pruned network: {error}; nothing is delivered"
        ) from error
    except Exception as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise VerificationError(
            f"{artefact} cannot be loaded back: {text}; nothing is delivered"
        ) from error
