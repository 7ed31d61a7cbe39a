"""Each part of a search is replaceable: pipelines with every one of them, from the text to the
proved network."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pruneopt.errors import UserError
from pruneopt.ir.graph import Graph
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.residual.gene_order import metapruning_genes
from pruneopt.passes.manager import PassManager
from pruneopt.passes.options.registry import part_class, part_names
from pruneopt.passes.pipeline.text import parse_pipeline
from pruneopt.passes.result import Result
from pruneopt.passes.search.outcome import Outcome
from pruneopt.passes.search.searchers.searcher import Searcher

SEARCHERS = {
    "random": "random{candidates=5}",
    "evolution": "evolution{population=3 iterations=2 parents=2 mutations=1 crossovers=1}",
    "tpe": "tpe{candidates=5 startup=2}",
    "cma-es": "cma-es{candidates=5}",
}
SMALL = "batch-size=32 subval-limit=100"
EVALUATORS = {
    "abn": f"abn{{calibration-batches=2 race=40 {SMALL}}}",
    "reference": f"reference{{calibration-batches=2 {SMALL}}}",
    "stale": f"stale{{{SMALL}}}",
    "finetune": f"finetune{{epochs=1 calibration-batches=2 {SMALL}}}",
}
CRITERIA = ["l1", "l2", "bn-scale", "taylor{batches=2}", "fpgm", "random"]


@pytest.fixture(scope="module")
def little(workload: Workload) -> Workload:
    """The same with 96 training images, for trials that train."""
    return replace(workload, train=workload.train.head(96))


def run(text: str, graph: Graph, workload: Workload, **options: Any) -> Result:
    return PassManager.parse(text).run(graph, workload=workload, **options)


def checked(result: Result, workload: Workload, name: str = "abn") -> Outcome:
    """Return what a search gave, after checking the things that hold whatever it was made of."""
    outcome = result.records[name]
    assert isinstance(outcome, Outcome)
    assert outcome.winner.fitness == max(item.fitness for item in outcome.candidates)
    assert [item.index for item in outcome.candidates] == list(range(len(outcome.candidates)))
    assert all(0 <= item.score <= 1 for item in outcome.candidates)
    assert all(use.share <= 1 for use in result.budgets)
    assert result.verification is not None
    assert result.plan is not None
    assert {group: len(kept) for group, kept in result.plan.items()} == outcome.winner.widths
    with torch.no_grad():
        assert result.module(next(workload.subval.batches(4))[0]).shape == (4, 10)
    return outcome


def test_the_lists_are_complete() -> None:
    """A part that is added later must be tried here too; those that need more than a network are
    tried elsewhere."""
    fitting = {
        name
        for name in part_names("searcher")
        if issubclass(part_class("searcher", name), Searcher)
    }
    assert fitting == set(SEARCHERS)
    assert set(part_names("evaluator")) - set(EVALUATORS) == {"pruning-net"}


@pytest.mark.parametrize(("searcher", "evaluator"), list(itertools.product(SEARCHERS, EVALUATORS)))
def test_any_searcher_with_any_evaluator(
    trained: Graph, little: Workload, searcher: str, evaluator: str
) -> None:
    if searcher in ("tpe", "cma-es"):
        pytest.importorskip("optuna")
        pytest.importorskip("cmaes")
    text = (
        f"abn{{searcher={SEARCHERS[searcher]} evaluator={EVALUATORS[evaluator]} finetune-epochs=0}}"
    )
    result = run(
        f"couple,cost,{text},slice,verify,recalibrate", trained, little, budgets=["50%FLOPs"]
    )
    outcome = checked(result, little)
    assert len(outcome.candidates) == (6 if searcher == "evolution" else 5)
    assert outcome.ranked_by == "accuracy"
    said = {
        "abn": "race from 40 of 100",
        "reference": "module by module",
        "stale": "stale",
        "finetune": "1 epochs of",
    }
    assert said[evaluator] in outcome.averaging


def test_evaluators_judge_differently(trained: Graph, workload: Workload) -> None:
    """Of the same plans: stale statistics are worst, fresh ones better, and training is best."""
    means = {}
    for name, text in EVALUATORS.items():
        result = run(
            f"couple,cost,abn{{searcher=random{{candidates=2}} evaluator={text} "
            f"finetune-epochs=0}}",
            trained,
            workload,
            budgets=["40%FLOPs"],
        )
        outcome = result.records["abn"]
        assert isinstance(outcome, Outcome)
        means[name] = np.mean([item.score for item in outcome.candidates])
    assert means["stale"] + 0.1 < means["abn"] < means["finetune"]


@pytest.mark.parametrize(
    "ranking",
    ["accuracy", "reward", "reward{accuracy-base=101 flops-base=5 exponent=1}", "function"],
)
@pytest.mark.parametrize("searcher", ["random", "evolution"])
def test_any_ranking(
    trained: Graph, workload: Workload, tmp_path: Path, ranking: str, searcher: str
) -> None:
    if ranking == "function":
        path = tmp_path / "mine.py"
        path.write_text(
            "def rank(measured):\n    return -measured.cost('params')\n", encoding="utf-8"
        )
        ranking = f"function{{path={path}:rank}}"
    text = (
        f"abn{{searcher={SEARCHERS[searcher]} {EVALUATORS['abn'][4:-1]} ranking={ranking} "
        f"finetune-epochs=0}}"
    )
    result = run(f"couple,cost,{text},slice,verify", trained, workload, budgets=["50%FLOPs"])
    outcome = checked(result, workload)
    assert outcome.ranked_by == ranking.partition("{")[0]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", ["abn", "prune"])
def test_any_criterion(trained: Graph, workload: Workload, criterion: str, name: str) -> None:
    inside = "candidates=2 calibration-batches=1 batch-size=32 subval-limit=50 finetune-epochs=0 "
    text = f"{name}{{{inside if name == 'abn' else ''}criterion={criterion}}}"
    result = run(f"couple,cost,{text},slice,verify", trained, workload, budgets=["50%FLOPs"])
    assert all(use.share <= 1 for use in result.budgets)
    assert result.verification is not None


def test_the_criterion_decides_which_channels_go(trained: Graph, workload: Workload) -> None:
    plans = []
    for criterion in ("l1", "taylor{batches=2}"):
        text = (
            f"abn{{candidates=1 evaluator={EVALUATORS['stale']} criterion={criterion} "
            f"finetune-epochs=0}}"
        )
        result = run(f"couple,cost,{text}", trained, workload, budgets=["50%FLOPs"])
        assert result.plan is not None
        plans.append({name: kept.tolist() for name, kept in result.plan.items()})
    assert {name: len(kept) for name, kept in plans[0].items()} == {
        name: len(kept) for name, kept in plans[1].items()
    }
    assert plans[0] != plans[1]


def test_finalists_of_an_evolution_are_fine_tuned(trained: Graph, little: Workload) -> None:
    text = (
        f"abn{{searcher={SEARCHERS['evolution']} evaluator={EVALUATORS['abn']} "
        f"finetune-epochs=1 top=2}}"
    )
    result = run(
        f"couple,cost,{text},slice,verify,recalibrate", trained, little, budgets=["50%FLOPs"]
    )
    outcome = result.records["abn"]
    assert isinstance(outcome, Outcome)
    assert len(outcome.finalists) == 2
    assert outcome.winning_finalist is not None
    assert outcome.winning_finalist.tuned == max(item.tuned or 0.0 for item in outcome.finalists)


@pytest.mark.parametrize("searcher", ["random", "evolution", "tpe"])
def test_metapruning_with_other_parts(trained: Graph, workload: Workload, searcher: str) -> None:
    """Its genes tie the widths whoever proposes them, and without a PruningNet the trained weights
    judge."""
    if searcher == "tpe":
        pytest.importorskip("optuna")
    parts = f"searcher={SEARCHERS[searcher]} evaluator={EVALUATORS['abn']}"
    text = f"metapruning{{{parts} window=0.2 weights=inherit epochs=0}}"
    result = run(f"couple,cost,{text},slice,verify", trained, workload, budgets=["50%FLOPs"])
    outcome = checked(result, workload, "metapruning")
    assert result.coupling is not None
    genes = metapruning_genes(result.coupling)
    assert any(gene.frozen for gene in genes)
    for item in outcome.candidates:
        for gene in genes:
            widths = {item.widths[name] for name in gene.groups}
            assert len(widths) == 1
            assert gene.frozen is None or widths == {gene.width}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abn{searcher=evolution compat=floor}", "they need searcher=random"),
        ("abn{searcher=evolution compat=sampling}", "they need searcher=random"),
        ("abn{evaluator=stale compat=momentum}", "they need evaluator=abn or finetune"),
        ("abn{evaluator=stale compat=augment}", "they need evaluator=abn or finetune"),
        ("abn{criterion=random compat=leader}", "random scores have no leader"),
        ("abn{ranking=accuracy-under-latency}", "give the limit in milliseconds"),
        ("abn{ranking=function}", "must name a function"),
        ("abn{evaluator=finetune{epochs=0}}", "use the evaluator abn"),
        ("abn{searcher=nsga2}", "the searcher 'nsga2' does not fit here"),
    ],
)
def test_parts_that_do_not_go_together(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_pipeline(text)
