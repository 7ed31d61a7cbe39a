"""The network in a bundle: plan, source, weights, exported programs, and the graph as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from pruneopt.errors import InternalError
from pruneopt.files import atomic_path, write_text
from pruneopt.ir.codegen.module import generate_source
from pruneopt.ir.export.export import export_onnx, export_pt2
from pruneopt.ir.graph import Graph
from pruneopt.ir.text.parser import parse_graph
from pruneopt.ir.text.printer import print_graph
from pruneopt.passes.analysis.channels.groups import Coupling, Plan
from pruneopt.passes.analysis.channels.plan import save_plan
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.table import has_trait
from pruneopt.passes.selection.masks import MASKS, save_masks

__all__ = ["drawing_ops", "foreign_ops", "onnx_notes", "write_artefacts"]


def foreign_ops(graph: Graph) -> list[str]:
    """Return the ops of users' libraries in a graph: ONNX has no word for them, so their networks
    are delivered without it."""
    return sorted({op.base for op in graph.ops if "." in op.base})


def drawing_ops(graph: Graph) -> list[str]:
    """Return the ops of a graph that draw random numbers in evaluation mode too: another runtime
    draws others."""
    return sorted({op.base for op in graph.ops if has_trait(op, Trait.RANDOM)})


def onnx_notes(graph: Graph) -> list[str]:
    """Return notes on what sets the ONNX file of a network apart from its other artefacts."""
    if foreign := foreign_ops(graph):
        return [f"there is no model.onnx: ONNX has no word for {', '.join(foreign)}"]
    if drawing := drawing_ops(graph):
        return [
            "model.onnx was not compared: it draws random numbers of its own "
            f"({', '.join(drawing)})"
        ]
    return []


def write_artefacts(
    folder: Path,
    *,
    module: nn.Module,
    before: Graph,
    after: Graph,
    coupling: Coupling,
    plan: Plan,
    examples: Sequence[Tensor],
    masks: Mapping[str, Tensor] | None = None,
    dropped: Mapping[str, str] | None = None,
) -> None:
    """Write everything but the reports.

    Args:
        module: the pruned network, of the class that ``after`` generates.
        before: the original's graph with its channel groups and what the plan keeps of them.
        after: the pruned graph.
        masks: which of its weights are held at zero, if any are.
        dropped: whole blocks that ``before`` lacks, see `save_plan`.
    """
    save_plan(folder / "plan.json", plan, coupling, dropped=dropped)
    write_text(folder / "model.py", generate_source(after))
    # A safetensors file holds no shared memory: a tied weight is written under each of its names.
    state = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in module.state_dict().items()
    }
    with atomic_path(folder / "weights.safetensors") as path:
        path.write_bytes(safetensors.torch.save(state))
    if masks is not None:
        save_masks(folder / MASKS, masks)
    export_pt2(module, examples, folder / "model.pt2", dynamic_batch=after.dynamic_batch)
    if not foreign_ops(after):
        export_onnx(module, examples, folder / "model.onnx", dynamic_batch=after.dynamic_batch)
    for name, graph in (("ir.before.txt", before), ("ir.after.txt", after)):
        text = print_graph(graph)
        if parse_graph(text) != graph:
            raise InternalError(f"{name} does not read back to the graph it was written from")
        write_text(folder / name, text)
