"""greg1 and greg2 as passes, on a network trained on digits: what goes, when it is picked, and what
is left."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.models import zoo
from pruneopt.models.data import load_data
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.channels.plan import save_plan
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.importance.importance import score_units
from pruneopt.passes.manager import PassManager
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.pipeline.text import parse_pipeline
from pruneopt.passes.regularised.greg import GReg1, GReg2, GRegRecord
from pruneopt.passes.regularised.growing import Growing, GrowingReport
from pruneopt.passes.result import Result
from pruneopt.passes.training.recipe import SGD
from pruneopt.passes.training.trainer import train
from pruneopt.tools.main import main

FAST = (
    "regulariser=growing{iterations=50 interval=2} recipe=sgd{lr=0.02 batch-size=64 "
    "schedule=constant}"
)
INSIDE = {
    "layer1.0.conv1",
    "layer1.1.conv1",
    "layer2.0.conv1",
    "layer2.1.conv1",
    "layer3.0.conv1",
    "layer3.1.conv1",
}


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_data("digits", input_shape=(1, 1, 8, 8))


@pytest.fixture(scope="module")
def graph(workload: Workload) -> Graph:
    """A quarter of the demo's network, trained a little."""
    torch.manual_seed(0)
    module = zoo.create("digits_resnet", width=0.25)
    train(module, workload, SGD(epochs=3, lr=0.1, batch_size=64, augment=False))
    return capture(module.eval(), (torch.randn(1, 1, 8, 8),))


def run(graph: Graph, workload: Workload, text: str, **options: Any) -> Result:
    return PassManager.parse(f"couple,cost,{text},slice,verify").run(
        graph, workload=workload, **options
    )


def state_after(graph: Graph, workload: Workload, text: str) -> State:
    state = State(graph, graph.copy(), workload=workload)
    for step in parse_pipeline(text):
        step.run(state)
    return state


def record_of(result: Result) -> GRegRecord:
    found = next(record for record in result.records.values() if isinstance(record, GRegRecord))
    assert isinstance(found.regulariser, GrowingReport)
    return found


@pytest.mark.parametrize(
    "choice",
    [
        "greg1{ratios=[0,0.5,0.5,0.25,0] %s}",
        "greg1{budget=60%%FLOPs granularity=channel %s}",
        "greg1{budget=50%%FLOPs scope=coupled round-to=2 %s}",
        "greg1{budget=30%%params granularity=weight %s}",
        "greg2{budget=60%%FLOPs skip=1.0 %s}",
        "greg2{ratios=0.5 granularity=channel %s}",
        "greg2{budget=70%%FLOPs budget=60%%params scope=coupled %s}",
        "greg2{ratios=[0,.9,.9,.9,.5] granularity=weight %s}",
        "greg2{budget=70%%FLOPs criterion=taylor{batches=2} %s}",
    ],
)
def test_every_way_is_proved(graph: Graph, workload: Workload, choice: str) -> None:
    state = state_after(graph, workload, f"couple,cost,{choice % FAST},slice,verify")
    coupling, plan = state.need_coupling(), state.plan
    assert state.verification is not None
    assert state.verification.equivalent
    assert plan is not None
    result = Result.of(state)
    for use in result.budgets:
        assert use.value <= use.limit * (1 + 1e-9)
        assert use.kept < 1
    if result.budgets:
        assert max(use.share for use in result.budgets) > 0.93
    record = record_of(result)
    assert all(
        layer.penalty > 1 and layer.finished is not None for layer in record.regulariser.layers
    )
    removed = {layer.name: layer.removed for layer in record.layers if layer.removed}
    if state.masks is not None:
        assert {
            name.removesuffix(".weight"): int((~mask).sum()) for name, mask in state.masks.items()
        } == removed
        assert all(len(kept) == coupling.group(name).width for name, kept in plan.items())
    else:
        cut = {name for name, kept in plan.items() if len(kept) < coupling.group(name).width}
        assert "scope" in choice or cut <= INSIDE
        assert len(cut) == len(removed)
    assert result.module(torch.randn(3, 1, 8, 8)).shape == (3, 10)
    # What went had been driven away from what stayed: against the same weights before training.
    apart = [
        driven / before
        for before, driven in ratios_before_and_after(graph, state, "=channel" in choice)
    ]
    assert min(apart) > 1.1
    assert np.mean(apart) > 1.5


def ratios_before_and_after(
    graph: Graph, state: State, by_channel: bool
) -> list[tuple[float, float]]:
    """Return how much larger what stayed is than what went, in every layer, by the weights before
    and after training."""
    found = []
    if state.masks is not None and state.unmasked is not None:
        for name, mask in state.masks.items():
            both = [weights[name].abs() for weights in (graph.weights, state.unmasked)]
            found.append(tuple(float(size[mask].mean() / size[~mask].mean()) for size in both))
        return found  # type: ignore[return-value]
    assert state.uncut is not None
    for name in INSIDE:
        kept = torch.zeros(len(graph.weights[f"{name}.weight"]), dtype=torch.bool)
        kept[torch.from_numpy((state.plan or {})[name])] = True
        if not kept.all():
            # Filters of the one layer, or columns of the other: what removes a channel in either
            # way.
            layer, axes = (
                (name.replace("conv1", "conv2"), (0, 2, 3)) if by_channel else (name, (1, 2, 3))
            )
            sizes = [
                weights[f"{layer}.weight"].abs().mean(axes)
                for weights in (graph.weights, state.uncut.weights)
            ]
            found.append(tuple(float(size[kept].mean() / size[~kept].mean()) for size in sizes))
    return found  # type: ignore[return-value]


def test_greg1_picks_by_the_weights_before_training(graph: Graph, workload: Workload) -> None:
    def plan(pick: str, seed: int = 0) -> dict[str, list[int]]:
        quick = FAST.replace("iterations=50", "iterations=6")
        result = run(graph, workload, f"greg1{{ratios=0.5 pick={pick} {quick}}}", seed=seed)
        return {name: kept.tolist() for name, kept in (result.plan or {}).items() if name in INSIDE}

    least, most, chance, again = plan("min"), plan("max"), plan("rand", 1), plan("rand", 1)
    for name, kept in least.items():
        order = torch.argsort(graph.weights[f"{name}.weight"].abs().mean((1, 2, 3))).tolist()
        half = len(order) // 2
        assert kept == sorted(order[half:])
        assert most[name] == sorted(order[:half])
    assert chance == again
    assert chance not in (least, most)


def test_greg2_picks_the_smallest_when_the_uniform_penalty_is_high_enough(
    graph: Graph, workload: Workload
) -> None:
    """The pick is by the weights as they are in that very iteration, not by those at the start or
    the end."""
    seen: dict[str, Any] = {}

    class Spy(GReg2):
        def decide(self, state: State, weights: Any) -> Any:
            decision = super().decide(state, weights)
            seen["picks"] = [*seen.get("picks", []), {k: v.clone() for k, v in weights.items()}]
            return decision

    state = state_after(graph, workload, "couple,cost")
    growing = Growing(interval=2, stabilise=4, grow=0.1, pick_grow=0.01, pick_ceiling=0.05)
    Spy(
        ratios="0.5", regulariser=growing, recipe=SGD(lr=0.05, batch_size=64, schedule="constant")
    ).run(state)
    before, picked = seen["picks"]
    assert all(
        torch.equal(before[f"{name}.weight"], graph.weights[f"{name}.weight"]) for name in INSIDE
    )
    assert not any(
        torch.equal(picked[f"{name}.weight"], graph.weights[f"{name}.weight"]) for name in INSIDE
    )
    for name in INSIDE:
        order = torch.argsort(picked[f"{name}.weight"].abs().mean((1, 2, 3)))
        assert state.plan is not None
        assert state.plan[name].tolist() == sorted(order[len(order) // 2 :].tolist())
    record: Any = state.records["greg2"]
    assert {layer.finished for layer in record.regulariser.layers} == {2 * (5 + 10 - 1)}


def test_another_criterion_picks_channels(graph: Graph, workload: Workload) -> None:
    """GReg-1 with Taylor scores: half of every layer, the lowest scores of the network as it
    came."""
    quick = FAST.replace("iterations=50", "iterations=6")
    result = run(graph, workload, f"greg1{{ratios=0.5 criterion=taylor{{batches=2}} {quick}}}")
    scores = score_units(couple(graph), graph.weights, "taylor{batches=2}", workload=workload)
    for name in INSIDE:
        order = np.argsort(scores[name], kind="stable")
        assert (result.plan or {})[name].tolist() == sorted(order[len(order) // 2 :].tolist())


def test_batch_norm_statistics_of_kept_channels_stay(graph: Graph, workload: Workload) -> None:
    state = state_after(graph, workload, f"couple,cost,greg1{{ratios=0.5 {FAST}}},slice")
    assert state.uncut is not None
    assert state.plan is not None
    for name in INSIDE:
        norm, kept = name.replace("conv1", "bn1"), torch.from_numpy(state.plan[name])
        for part in ("running_mean", "running_var", "weight", "bias"):
            trained = state.uncut.weights[f"{norm}.{part}"]
            assert torch.equal(state.graph.weights[f"{norm}.{part}"], trained[kept])
        assert not torch.equal(
            state.uncut.weights[f"{norm}.running_mean"], graph.weights[f"{norm}.running_mean"]
        )


def test_the_penalty_decides_how_long_training_lasts(graph: Graph, workload: Workload) -> None:
    """As many epochs as the penalty may take, and not an iteration more than it takes."""
    steps = len(workload.train) // 64
    result = run(
        graph,
        workload,
        f"greg1{{ratios=0.5 {FAST.replace('iterations=50', 'stabilise=3 grow=0.09')}}}",
    )
    record = record_of(result)
    assert record.training.steps == record.regulariser.longest == 2 * (math.floor(1 / 0.09)) + 1 + 3
    assert len(record.training.epochs) == math.ceil(record.training.steps / steps)
    early = FAST.replace("iterations=50", "stabilise=3 limit=1.2 grow=0.01")
    apart = record_of(run(graph, workload, f"greg1{{ratios=0.5 {early}}}"))
    assert apart.training.steps < apart.regulariser.longest


def test_the_published_schedule_is_announced_and_own_epochs_must_be_enough(
    graph: Graph, workload: Workload
) -> None:
    said = []
    epochs = math.ceil(90_001 / (len(workload.train) // 64))

    def listen(text: str, done: int = 0, total: int | None = None) -> None:
        said.append(text)
        if "iterations" in text:
            raise KeyboardInterrupt  # hours would follow

    with pytest.raises(KeyboardInterrupt):
        run(graph, workload, "greg1{ratios=0.5}", progress=listen)
    assert said[-1] == f"greg1: up to 90,001 iterations, {epochs:,} epochs of this data"
    with pytest.raises(
        UserError, match=r"epochs=3 .* takes up to 90,001 .* leave epochs out, or shorten it by"
    ):
        run(graph, workload, "greg1{ratios=0.5 recipe=sgd{epochs=3 batch-size=64}}")


def test_without_anything_to_remove_nothing_is_trained_for_long(
    graph: Graph, workload: Workload
) -> None:
    result = run(graph, workload, f"greg1{{budget=100%FLOPs {FAST}}}")
    assert record_of(result).training.steps == 1
    assert all(
        len(kept) == (result.coupling.group(name).width)
        for name, kept in (result.plan or {}).items()
    )


def test_what_cannot_be_is_said_before_training(graph: Graph, workload: Workload) -> None:
    said: list[str] = []

    def listen(text: str, done: int = 0, total: int | None = None) -> None:
        said.append(text)

    for text, message in (
        ("greg2{budget=1%FLOPs}", "out of reach"),
        ("greg2{ratios=[0,0.5]}", "has 2 entries; this network takes 5"),
        ("greg2{}", "there is nothing to aim at"),
        ("greg2{granularity=weight budget=50%FLOPs}", "zeros change no shape"),
    ):
        with pytest.raises(UserError, match=message):
            run(graph, workload, text, progress=listen)
    assert not any(text.startswith("epoch") for text in said)
    with pytest.raises(UserError, match="greg2 cannot run here: it needs data"):
        PassManager.parse("couple,cost,greg2{ratios=0.5}").run(graph)


def test_picks_for_another_budget_are_not_taken_up(
    graph: Graph, workload: Workload, tmp_path: Path
) -> None:
    """The checkpoint holds the picks: for other budgets, frozen layers or another plan file they
    are wrong."""
    text = "greg1{%s" + FAST.replace("iterations=50", "iterations=6") + "}"
    plain = text % ""
    first = run(graph, workload, plain, budgets=["70%FLOPs"], run_dir=tmp_path)
    again = run(graph, workload, plain, budgets=["70%FLOPs"], run_dir=tmp_path)
    assert {name: kept.tolist() for name, kept in (first.plan or {}).items()} == {
        name: kept.tolist() for name, kept in (again.plan or {}).items()
    }
    for other in (
        {"budgets": ["60%FLOPs"]},
        {"budgets": ["70%FLOPs"], "ignore": ["layer1.0.conv1"]},
    ):
        with pytest.raises(
            UserError, match=r"greg1\.ckpt was left by another training run \(other options\)"
        ):
            run(graph, workload, plain, run_dir=tmp_path, **other)
    file = tmp_path / "plan.json"
    coupling = couple(graph)
    for half in (slice(0, None, 2), slice(1, None, 2)):
        plan = {name: np.arange(coupling.group(name).width)[half] for name in INSIDE}
        save_plan(file, plan, coupling)
        copied = text % f"ratios={file} pick=plan "
        if half.start == 0:
            run(graph, workload, copied, run_dir=tmp_path / "b")
        else:
            with pytest.raises(UserError, match="was left by another training run"):
                run(graph, workload, copied, run_dir=tmp_path / "b")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: GReg1(regulariser=Growing(picks="late")),
            "greg1 picks early: leave picks out, or take greg2",
        ),
        (
            lambda: GReg2(regulariser=Growing(picks="early")),
            "greg2 picks late: leave picks out, or take greg1",
        ),
        (lambda: GReg2(granularity="weight", round_to=8), "round-to and minimum count channels"),
        (lambda: GReg2(ratios="[0,2]"), "2 must be the share that goes"),
    ],
)
def test_contradictions(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    "choice",
    [
        "greg1{ratios=0.5 regulariser=gamma-l1 epochs=1}",
        "greg2{budget=60%FLOPs granularity=channel regulariser=group-norm epochs=1}",
        "slimming{budget=60%FLOPs regulariser=growing{iterations=20 picks=early} epochs=4}",
        "slimming{budget=60%FLOPs regulariser=growing{iterations=20} epochs=4}",
    ],
)
def test_regularisers_and_passes_go_together(graph: Graph, workload: Workload, choice: str) -> None:
    result = run(graph, workload, choice)
    assert result.verification is not None
    assert all(use.value <= use.limit * (1 + 1e-9) for use in result.budgets)
    assert any(
        len(kept) < result.coupling.group(name).width for name, kept in (result.plan or {}).items()
    )


def test_the_command_and_its_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [
        "compile",
        "zoo:digits_resnet?width=0.25",
        "--input",
        "1x1x8x8",
        "--data",
        "digits",
        "--quiet",
    ]
    chosen = [
        "--pass",
        "greg2{ratios=[0,.5,.5,.5,0] iterations=20 lr=0.02}",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*words, *chosen]) == 0
    report = json.loads((tmp_path / "o" / "report.json").read_text(encoding="utf-8"))
    grown = report["search"]["regulariser"]
    assert {item["name"]: item["removed"] for item in grown["layers"]} == {
        name: next(group["width"] for group in report["groups"] if group["name"] == name) // 2
        for name in INSIDE
    }
    page = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Growing penalty</h2>" in page
    assert "<h2>Search</h2>" not in page
    assert "verified" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["greg1", "greg2"])
def test_removing_what_a_grown_penalty_has_emptied_costs_little(
    workload: Workload, name: str
) -> None:
    """The demo's network at full width: half of the inner filters go, and accuracy stays without
    any fine-tuning."""
    torch.manual_seed(0)
    module = zoo.create("digits_resnet")
    train(module, workload, SGD(epochs=20, lr=0.05, batch_size=64))
    graph = capture(module.eval(), (torch.randn(1, 1, 8, 8),))
    full = workload.score(module, "test")
    penalty = (
        "regulariser=growing{iterations=800} recipe=sgd{lr=0.01 batch-size=64 schedule=constant}"
    )
    result = run(graph, workload, f"{name}{{ratios=0.5 {penalty}}}")
    at_once = run(graph, workload, "l1{ratios=0.5 granularity=filter}")
    assert full > 0.95
    assert workload.score(result.module, "test") > full - 0.02
    assert workload.score(at_once.module, "test") < full - 0.1
    assert all(layer.ratio > 8 for layer in record_of(result).regulariser.layers)
