"""Every pass that rewrites a graph, by text: ``snapshots/NAME.before.pir`` becomes
``snapshots/NAME.after.pir``.

The text after is made by ``--snapshot-update``; read it before you commit it. Other tests prove
that the function stays what it should be: these show what the rewrite looks like.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.states import coupled

from pruneopt.ir.graph import Graph
from pruneopt.ir.text.parser import parse_graph
from pruneopt.ir.text.printer import print_graph
from pruneopt.ir.verifier import verify_graph
from pruneopt.passes.analysis.channels.annotate import annotate
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.residual.branches import find_branches
from pruneopt.passes.depth.drop import drop_branches
from pruneopt.passes.evaluation.merged import merge
from pruneopt.passes.graph_rewrites.folding import fold_batch_norms
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.lowering.lower_evaluation import lower_evaluation
from pruneopt.passes.lowering.lower_statistics import lower_statistics
from pruneopt.passes.selection.masks import deliver
from pruneopt.passes.transform.given_plan import take_plan
from pruneopt.testing import IrSnapshot

FOLDER = Path(__file__).parent / "snapshots"
FIRST = [0, 2, 3]
"""The places in every block of a group whose channels stay."""


def read(name: str) -> Graph:
    """Return the graph before a rewrite, with weights drawn from a fixed seed."""
    graph = parse_graph((FOLDER / f"{name}.before.pir").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    graph.weights = {
        key: torch.rand(value.type.shape()) + 0.5 for key, value in graph.params.items()
    }
    verify_graph(graph)
    return graph


def plan_of(graph: Graph) -> dict[str, np.ndarray]:
    """Return the plan that keeps the channels `FIRST` of every block of every group."""
    return {
        group.name: np.sort(np.concatenate([np.asarray(block)[FIRST] for block in group.blocks]))
        for group in couple(graph).free
    }


def sliced(graph: Graph) -> Graph:
    return slice_graph(graph, couple(graph), plan_of(graph))


def planned(graph: Graph) -> Graph:
    state = coupled(graph)
    take_plan(state, plan_of(graph), "the plan")
    return state.graph


def masked(graph: Graph) -> Graph:
    """Return a graph of which no channel goes, and half of one weight is kept at zero."""
    state = coupled(graph)
    everything = {group.name: np.sort(np.concatenate(group.blocks)) for group in couple(graph).free}
    mask = torch.arange(4 * 6 * 9).reshape(4, 6, 3, 3) % 2 == 0
    deliver(state, everything, {"b.weight": mask})
    assert int((state.graph.weights["b.weight"] == 0).sum()) == 4 * 6 * 9 // 2
    return state.graph


def merged(graph: Graph) -> Graph:
    """Return the graph of two candidates that differ in their last layer only."""
    other = graph.copy()
    other.weights = {**graph.weights, "c.weight": graph.weights["c.weight"] + 1}
    return merge([graph, other], [graph.weights, other.weights]).graph


def dropped(graph: Graph) -> Graph:
    return drop_branches(graph, find_branches(graph)[:1])


REWRITES: dict[str, Callable[[Graph], Graph]] = {
    "annotate": lambda graph: annotate(couple(graph)),
    "given-plan": planned,
    "masks": masked,
    "slice": sliced,
    "slice-sizes": sliced,
    "drop-blocks": dropped,
    "fold": lambda graph: fold_batch_norms(graph).graph,
    "merge": merged,
    "lower-statistics": lambda graph: lower_statistics(graph).graph,
    "lower-evaluation": lambda graph: lower_evaluation(graph).graph,
}


@pytest.mark.parametrize("name", REWRITES)
def test_a_rewrite_as_text(name: str, ir_snapshot: IrSnapshot) -> None:
    before = read(name)
    text = print_graph(before)
    after = REWRITES[name](before)
    verify_graph(after)
    ir_snapshot(after, f"{name}.after.pir")
    assert print_graph(before) == text, "a rewrite makes a new graph"


def test_every_text_before_is_a_rewrite() -> None:
    assert {path.name.split(".")[0] for path in FOLDER.glob("*.pir")} == REWRITES.keys()
