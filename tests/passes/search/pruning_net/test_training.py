"""PruningNet in training, and as an evaluator: which widths are drawn, what decays, what a
candidate's score is."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.states import coupled
from torch import nn

from pruneopt.errors import UserError
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.residual.gene_order import metapruning_genes
from pruneopt.passes.options.spec import parse_part, pass_text
from pruneopt.passes.search.evaluators.evaluator import Evaluator
from pruneopt.passes.search.evaluators.scorer import ScoringContext
from pruneopt.passes.search.pruning_net.generated_weights import META, PruningNetWeights
from pruneopt.passes.search.pruning_net.hypernet import Sizes
from pruneopt.passes.search.pruning_net.pruning_network import PruningNet
from pruneopt.passes.search.pruning_net.training import (
    DrawWidths,
    PruningNetReport,
    Settings,
    train_pruning_net,
)
from pruneopt.passes.search.searchers.space import Space
from pruneopt.passes.training.hooks import TrainingRun
from pruneopt.passes.training.recipe import SGD

TWO_EPOCHS = dataclasses.replace(META, epochs=2, batch_size=64)
SHORT = SGD(epochs=1, lr=0.05, batch_size=256, label_smoothing=0.1)


def trial_of(graph: Graph, workload: Workload, **fields: object) -> ScoringContext:
    """Return a context with MetaPruning's genes after couple and cost."""
    state = coupled(graph, workload, **fields)
    coupling = state.need_coupling()
    space = Space(coupling, state.need_cost(), [], {}, genes=metapruning_genes(coupling))
    return ScoringContext(state, space, state.seed)


def settings(**changes: object) -> Settings:
    return dataclasses.replace(Settings(Sizes(), "bank", False, SHORT), **changes)  # type: ignore[arg-type]


def drawn(context: ScoringContext, seed: int, iterations: range) -> tuple[np.ndarray, np.ndarray]:
    """Widths and scales that the hook chooses, `[iterations, G]` each."""
    space = context.space
    searched = [name for gene in space.genes for name in gene.groups]
    net = PruningNet(space.coupling, space.cost.groups, searched, (space.grid / 100).tolist())
    hook, found = DrawWidths(net, space), []
    chosen: list[tuple[np.ndarray, np.ndarray]] = []

    def noted(widths: np.ndarray, scales: np.ndarray | None = None) -> None:
        assert scales is not None
        chosen.append((widths, scales))

    net.choose = noted  # type: ignore[method-assign]
    module = nn.Linear(1, 1)
    run = TrainingRun(
        module,
        torch.optim.SGD(module.parameters(), lr=1.0),
        torch.device("cpu"),
        seed,
        0,
        1,
        len(iterations),
    )
    for run.iteration in iterations:
        hook.before_forward(run)
        found.append(chosen[-1])
    return np.array([widths for widths, _ in found]), np.array([scales for _, scales in found])


def test_every_iteration_draws_another_vector_by_seed_and_number(
    trained: Graph, workload: Workload
) -> None:
    context = trial_of(trained, workload)
    widths, scales = drawn(context, 3, range(20))
    assert len({row.tobytes() for row in scales}) == 20
    again, _ = drawn(context, 3, range(10, 20))
    assert np.array_equal(again, widths[10:]), "a resumed run draws what the first would have"
    other, _ = drawn(context, 4, range(20))
    assert not np.array_equal(other, widths)


def test_free_genes_are_uniform_and_frozen_ones_full(trained: Graph, workload: Workload) -> None:
    context = trial_of(trained, workload)
    count = 3100
    widths, scales = drawn(context, 0, range(count))
    cost = context.space.cost
    for column, name in enumerate(cost.groups):
        if name == "layer3":  # read by the classifier
            assert (widths[:, column] == cost.full[column]).all()
            continue
        times = np.bincount(np.rint((scales[:, column] - 0.1) / 0.03).astype(int), minlength=31)
        assert len(times) == 31
        # 100 of each are expected; six standard deviations
        assert np.abs(times - count / 31).max() < 6 * math.sqrt(count / 31)
        exact = cost.full[column] * np.rint(100 * scales[:, column]).astype(int) // 100
        assert (widths[:, column] == np.maximum(exact, 1)).all()


def test_training_is_repeatable_and_learns(trained: Graph, workload: Workload) -> None:
    nets, reports = [], []
    for _ in range(2):
        context = trial_of(trained, workload)
        net, report = train_pruning_net(
            context.state, context.space, settings(recipe=TWO_EPOCHS), 0
        )
        nets.append(net.state_dict())
        reports.append(report)
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])
    losses = [epoch.loss for epoch in reports[0].training.epochs]
    assert losses[-1] < losses[0]


def test_a_finished_training_is_taken_over(
    trained: Graph, workload: Workload, tmp_path: Path
) -> None:
    told: list[str] = []
    context = trial_of(
        trained,
        workload,
        run_dir=tmp_path,
        progress=lambda text, done=0, total=None: told.append(text),
    )
    first, _ = train_pruning_net(context.state, context.space, settings(), 0)
    assert (tmp_path / "pruning-net.ckpt").exists()
    assert any("gradients and the optimiser's state" in text for text in told), (
        "memory is said before training"
    )
    before = len(told)
    second, report = train_pruning_net(context.state, context.space, settings(), 0)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert report.training.steps == len(workload.train) // 256
    assert len(told) - before < before
    with pytest.raises(UserError, match="another training run"):
        train_pruning_net(context.state, context.space, settings(norms="recalibrate"), 0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_decay_shrinks_hypernetworks_and_classifier_alone(
    trained: Graph, workload: Workload, weight_decay: float
) -> None:
    """One step at a vanishing gradient: a constant loss leaves only the decay."""
    still = dataclasses.replace(workload, loss=lambda outputs, targets: outputs.sum() * 0.0)
    recipe = SGD(
        epochs=1, lr=0.1, momentum=0.0, weight_decay=weight_decay, batch_size=len(workload.train)
    )
    context = trial_of(trained, still)
    net, _ = train_pruning_net(
        context.state, context.space, settings(recipe=recipe, affine=True), 0
    )
    searched = [name for gene in context.space.genes for name in gene.groups]
    fresh = PruningNet(context.space.coupling, net.groups, searched, net.grid.tolist(), affine=True)
    for (name, after), before in zip(net.named_parameters(), fresh.parameters(), strict=True):
        factor = 1.0 if name.startswith("norms.") else 1 - 0.1 * weight_decay
        torch.testing.assert_close(after, factor * before)


@pytest.mark.parametrize(
    "extra", [{"ema": 0.9}, {"accumulate": 2}, {"schedule": "step", "milestones": (0.25, 0.5)}]
)
def test_other_recipes_work(trained: Graph, workload: Workload, extra: dict[str, object]) -> None:
    context = trial_of(trained, workload)
    recipe = dataclasses.replace(SHORT, **extra)  # type: ignore[arg-type]
    _, report = train_pruning_net(context.state, context.space, settings(recipe=recipe), 0)
    assert report.training.steps > 0


# As an evaluator


def judged(
    trained: Graph, workload: Workload, **options: object
) -> tuple[ScoringContext, PruningNetWeights]:
    fast = {
        "recipe": SHORT,
        "calibration_batches": 4,
        "batch_size": 32,
        "subval_limit": 150,
        **options,
    }
    return trial_of(trained, workload), PruningNetWeights(**fast)  # type: ignore[arg-type]


def test_a_candidate_is_scored_with_fresh_statistics(trained: Graph, workload: Workload) -> None:
    """Mean of the per-batch statistics, by a loop over nn.BatchNorm2d with momentum None on the
    same batches."""
    context, evaluator = judged(trained, workload, stale=True)
    scorer = evaluator.open(context)
    proposal = context.space.proposal(np.full(len(context.space.genes), 12))
    found = scorer.score(proposal)
    assert scorer.score(proposal) == found, "the same structure always gets the same score"
    net = scorer.net  # type: ignore[attr-defined]
    net.choose(proposal.widths, proposal.scales)
    module = net.candidate()
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    subset = workload.calibration.head(4 * 32)
    with torch.no_grad():
        for inputs, _ in subset.batches(32, seed=0):
            module(inputs)
    assert workload.score(module, limit=150) == pytest.approx(found.score, abs=1e-9)
    assert found.stale is not None
    assert "PruningNet" in scorer.describe()
    assert "mean(reset=true), n=4" in scorer.describe()


def test_the_reference_takes_a_moving_average(trained: Graph, workload: Workload) -> None:
    context, evaluator = judged(trained, workload, momentum=0.1)
    scorer = evaluator.open(context)
    assert "ema(momentum=0.1, reset=true), n=4" in scorer.describe()
    assert (
        0 <= scorer.score(context.space.proposal(np.full(len(context.space.genes), 30))).score <= 1
    )


def test_the_record_says_what_training_took_and_means(trained: Graph, workload: Workload) -> None:
    context, evaluator = judged(trained, workload)
    evaluator.open(context)
    report = context.state.records["pruning-net"]
    assert isinstance(report, PruningNetReport)
    assert report.bytes == 12 * report.parameters
    own = workload.score(build_module(trained, trained.weights), limit=150)
    assert report.original == pytest.approx(own, abs=1e-9)
    assert own > 0.5, "far from chance, so that there is something to lose"
    assert report.full_width < report.original / 2, "one epoch of four steps"
    text = " ".join(report.notes)
    assert "with stored batch-norm statistics means nothing" in text
    assert "trained too little" in text
    assert "optimiser's state" in text


def test_a_searcher_without_a_grid_can_use_it(trained: Graph, workload: Workload) -> None:
    """abn{evaluator=pruning-net}: every group is searched, and scales are shares of the full
    width."""
    context, evaluator = judged(trained, workload)
    cost = context.space.cost
    space = Space(context.space.coupling, cost, [], {})
    scorer = evaluator.open(ScoringContext(context.state, space, 0))
    proposal = dataclasses.replace(
        space.proposal(np.zeros(len(space.genes), dtype=int)), scales=None
    )
    assert 0 <= scorer.score(proposal).score <= 1


def test_options_read_back() -> None:
    text = "pruning-net{recipe=adamw{epochs=3} layer=low-rank rank=4 bn=recalibrate}"
    part = parse_part(Evaluator, text)
    assert pass_text(part) == text
    assert isinstance(part, PruningNetWeights)
    assert (part.rank, part.bn, part.recipe.epochs) == (4, "recalibrate", 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "hidden=0 must be at least 1"),
        ({"rank": 4}, "rank is for layer=low-rank"),
        ({"chunk": 4}, "chunk is for layer=chunked"),
        ({"reset": False}, "leave reset=false out"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PruningNetWeights(**options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_learns_digits_at_every_width(trained: Graph, workload: Workload) -> None:
    """A few epochs: with recomputed statistics candidates are far above chance, with stored ones
    they are not."""
    recipe = dataclasses.replace(META, epochs=20, batch_size=64)
    context = trial_of(trained, workload)
    scorer = PruningNetWeights(
        recipe=recipe, calibration_batches=6, batch_size=64, stale=True
    ).open(context)
    random = np.random.default_rng(0)
    found = [scorer.score(context.space.proposal(context.space.uniform(random))) for _ in range(10)]
    assert np.mean([item.score for item in found]) > 0.4
    assert context.state.records["pruning-net"].full_width > 0.5  # type: ignore[attr-defined]
    assert np.mean([item.score - item.stale for item in found]) > 0.1
