"""The pass slimming, end to end on small networks: what it trains, what it cuts, what it says."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.workloads import workload_of
from torch import Tensor, nn

from pruneopt.errors import BudgetError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph
from pruneopt.models import zoo
from pruneopt.models.data import load_data
from pruneopt.models.workload import Workload, seeded
from pruneopt.passes.analysis.channels.sizes import gather_kept
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.manager import PassManager
from pruneopt.passes.options.option_types import option_fields
from pruneopt.passes.options.spec import pass_text
from pruneopt.passes.pipeline.text import parse_pipeline
from pruneopt.passes.pns.schema import write_schema
from pruneopt.passes.regularised.scales import gamma_scales, ratio_threshold
from pruneopt.passes.regularised.slimming import Slimming, SlimmingRecord, unit_masks
from pruneopt.passes.result import Result

FAST = "recipe=sgd{epochs=2 lr=0.1 batch-size=64} regulariser=gamma-l1{scale=0.01}"

SHORT = FAST.replace("epochs=2", "epochs=1")


@pytest.fixture(scope="module")
def digits() -> Workload:
    return load_data("digits?subval=300&calibration=200", input_shape=(1, 1, 8, 8))


@pytest.fixture(scope="module")
def graph() -> Graph:
    with seeded(0):
        return capture(zoo.create("digits_resnet").eval(), (torch.randn(2, 1, 8, 8),))


def run(
    graph: Graph, text: str, workload: Workload, *budgets: str, **options: Any
) -> tuple[Result, SlimmingRecord]:
    manager = PassManager.parse(f"couple,cost,{text},slice,verify")
    result = manager.run(graph, workload=workload, budgets=budgets, **options)
    assert result.verification is not None
    assert result.verification.equivalent
    record = result.records["slimming"]
    assert isinstance(record, SlimmingRecord)
    return result, record


def test_sparse_training_cut_and_proof(graph: Graph, digits: Workload) -> None:
    result, record = run(graph, f"slimming{{{FAST}}}", digits, "50%FLOPs")
    (use,) = result.budgets
    assert 0.99 <= use.share <= 1
    (trained,) = record.rounds
    assert trained.after < 0.95 * trained.before
    assert trained.training.steps == 2 * (len(digits.train) // 64)
    assert trained.training.epochs[-1].metric > 0.6
    assert (record.variant, record.scales, trained.regulariser.reached) == (
        "network slimming",
        560,
        15,
    )
    assert result.plan is not None
    assert {g.group: g.after for g in record.groups} == {
        name: len(kept) for name, kept in result.plan.items()
    }
    assert all(g.before >= g.after for g in record.groups)


def test_the_ratio_is_the_papers_on_the_trained_scales(graph: Graph, digits: Workload) -> None:
    """The threshold and survivors, recomputed from the weights that were cut."""
    manager = PassManager.parse(
        f"couple,cost,slimming{{ratio=0.4 min-channels=1 min-ratio=0 {FAST}}}"
    )
    result = manager.run(graph, workload=digits)
    record = result.records["slimming"]
    assert isinstance(record, SlimmingRecord)
    assert result.coupling is not None
    assert result.plan is not None
    scales = gamma_scales(result.coupling, result.graph.weights)
    threshold = ratio_threshold(scales, 0.4)
    assert record.threshold == threshold
    gammas = {name: w for name, w in result.graph.weights.items() if ".bn1.weight" in name}
    for name, gamma in gammas.items():
        group = name.replace("bn1.weight", "conv1")
        survivors = np.flatnonzero(gamma.abs().double().numpy() > threshold)
        assert result.plan[group].tolist() == survivors.tolist() or len(survivors) == 0


def test_fine_tuning_is_without_the_penalty(graph: Graph, digits: Workload) -> None:
    """Under a loss that is always 0 nothing but the penalty moves weights: it does in slimming, not
    in finetune."""
    flat = dataclasses.replace(digits, loss=lambda outputs, targets: outputs.sum() * 0.0)
    still = "epochs=1 lr=0.5 batch-size=64 schedule=constant momentum=0.0 weight-decay=0.0"
    text = (
        f"couple,cost,slimming{{ratio=0.3 regulariser=gamma-l1{{scale=0.01}} "
        f"recipe=sgd{{{still}}}}},slice,verify"
    )
    sparse = PassManager.parse(text).run(graph, workload=flat)
    steps = len(digits.train) // 64
    for name in ("bn1.weight", "layer3.1.bn1.weight"):
        moved = torch.full_like(sparse.graph.weights[name], 1 - steps * 0.5 * 0.01)
        torch.testing.assert_close(sparse.graph.weights[name], moved)
    tuned = PassManager.parse(f"{text},finetune{{{still}}}").run(graph, workload=flat)
    for name in (name for name, value in sparse.graph.params.items() if value.kind == "param"):
        assert torch.equal(tuned.graph.weights[name], sparse.graph.weights[name])


def test_rounds_remove_more_and_bring_nothing_back(graph: Graph, digits: Workload) -> None:
    result, record = run(graph, f"slimming{{passes=2 {SHORT}}}", digits, "40%FLOPs")
    first, second = record.rounds
    assert first.removed < second.removed
    assert result.budgets[0].share >= 0.99
    # The first round alone, run by itself, aims half way; what it removed is removed in the end as
    # well.
    alone, half = run(graph, f"slimming{{{SHORT}}}", digits, "70%FLOPs")
    assert (half.rounds[0].removed, half.threshold) == (first.removed, first.threshold)
    assert result.plan is not None
    assert alone.plan is not None
    for name, kept in result.plan.items():
        assert set(kept.tolist()) <= set(alone.plan[name].tolist())


def test_a_later_round_trains_the_cut_network(graph: Graph, digits: Workload) -> None:
    """Channels held at zero compute as if they were cut: one step of training gives the kept
    weights the same values."""
    coupling = couple(graph)
    plan = {g.name: np.arange(g.width)[:: 2 if g.step == 1 else 1] for g in coupling.free}
    masks = unit_masks(coupling, plan)
    full = build_module(
        graph, {n: w * masks[n] if n in masks else w for n, w in graph.weights.items()}
    ).train()
    cut = slice_graph(graph, coupling, plan)
    small = build_module(cut, cut.weights).train()
    x, y = next(digits.train.batches(32, seed=0))
    for module in (full, small):
        nn.functional.cross_entropy(module(x), y).backward()
    kept = coupling.kept_units(plan)
    mine = dict(small.named_parameters())
    for name, p in full.named_parameters():
        assert p.grad is not None
        masked = p.grad * masks[name] if name in masks else p.grad
        wanted = gather_kept(masked, coupling.slots_of(graph.params[name]), kept)
        torch.testing.assert_close(mine[name].grad, wanted, rtol=1e-4, atol=1e-5)


def test_scales_can_be_set_first(graph: Graph, digits: Workload) -> None:
    text = "slimming{ratio=0.2 gamma-init=0.5 recipe=sgd{epochs=0}}"
    result = PassManager.parse(f"couple,cost,{text}").run(graph, workload=digits)
    weights = result.graph.weights
    assert all(
        bool((weights[n] == 0.5).all()) for n in weights if n.endswith(("bn1.weight", "bn2.weight"))
    )
    assert all(not weights[n].any() for n in weights if n.endswith(("bn1.bias", "bn2.bias")))
    record = result.records["slimming"]
    assert isinstance(record, SlimmingRecord)
    assert any("meant for training from scratch" in note for note in record.notes)


def test_floors_are_noted(graph: Graph, digits: Workload) -> None:
    """All scales are alike and none is greater than the threshold: every group is at its floor."""
    text = "slimming{ratio=0.5 gamma-init=0.5 min-channels=3 recipe=sgd{epochs=0}}"
    _, record = run(graph, text, digits)
    assert {(g.survivors, g.after, g.reason) for g in record.groups} == {(0, 3, "floor")}
    assert "group layer3: 0 of 64 channels survive the threshold; its floor keeps 3" in record.notes
    assert sum("floor" in note for note in record.notes) == len(record.groups)


def test_training_that_does_not_shrink_the_scales_is_noted(graph: Graph, digits: Workload) -> None:
    text = (
        "slimming{ratio=0.5 regulariser=gamma-l1{scale=1e-9} recipe=sgd{epochs=1 lr=0.3 "
        "weight-decay=0.0}}"
    )
    _, record = run(graph, text, digits)
    assert record.rounds[0].after > 0.99 * record.rounds[0].before
    assert any("training hardly shrank the scales" in note for note in record.notes)
    _, record = run(graph, f"slimming{{ratio=0.5 {FAST}}}", digits)
    assert not any("hardly" in note for note in record.notes)


class Bare(nn.Module):
    """No batch norm at all, or one that covers a part of the network."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12) if norm else nn.Identity()
        self.conv2, self.conv3 = nn.Conv2d(12, 16, 3, stride=2), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x)))))
        return self.head(torch.relu(self.conv3(x)).mean((2, 3)))


def bare(norm: bool) -> Graph:
    with seeded(0):
        return capture(Bare(norm).eval(), (torch.randn(2, 1, 8, 8),))


def test_networks_without_batch_norm(digits: Workload) -> None:
    with pytest.raises(
        UserError,
        match=r"group conv1 has no batch-norm scale .*regulariser=group-norm criterion=l2",
    ):
        run(bare(False), f"slimming{{{FAST}}}", digits, "50%FLOPs")
    options = (
        "regulariser=group-norm{scale=0.01} criterion=l2 recipe=sgd{epochs=2 lr=0.1 batch-size=64}"
    )
    result, record = run(bare(False), f"slimming{{{options}}}", digits, "50%FLOPs")
    assert result.budgets[0].share <= 1
    assert (
        record.variant == "group-norm training, threshold over l2 (a variant of network slimming)"
    )
    assert record.notes[0] == f"not the paper's method: {record.variant}"
    assert record.rounds[0].regulariser.reached == 3
    _, record = run(bare(False), f"slimming{{ratio=0.5 {options}}}", digits)
    # Norms over their group's mean; strictly more than half of all units survive nowhere.
    assert sum(g.survivors for g in record.groups) == record.scales - int(record.scales * 0.5) - 1


def test_networks_with_some_batch_norms(digits: Workload) -> None:
    with pytest.raises(UserError, match=r"group conv2 has no batch-norm scale .*ignore=conv2"):
        run(bare(True), f"slimming{{ratio=0.5 {FAST}}}", digits)
    result, record = run(bare(True), f"slimming{{ratio=0.5 ignore=conv2,conv3 {FAST}}}", digits)
    assert result.plan is not None
    assert {g.group: g.reason for g in record.groups} == {
        "conv1": "threshold",
        "conv2": "kept",
        "conv3": "kept",
    }
    # Half of 12 is 6: seven are not greater than the one at place 6.
    assert len(result.plan["conv1"]) == 12 - 7


def test_every_regulariser_works(graph: Graph, digits: Workload) -> None:
    growing = (
        "regulariser=growing{iterations=8 stabilise=1} recipe=sgd{lr=0.01 epochs=1 batch-size=64}"
    )
    result, record = run(graph, f"slimming{{criterion=l1 {growing}}}", digits, "60%FLOPs")
    assert result.budgets[0].share <= 1
    assert {g.reason for g in record.groups} == {"regulariser"}
    assert record.threshold is None
    assert record.variant.startswith("growing training, threshold over l1")


# Schemas


def test_a_schema_decides_merging_and_more(graph: Graph, digits: Workload, tmp_path: Path) -> None:
    graph = graph.copy()
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in graph.weights if "bn" in name or "project.1" in name]:
        if name.endswith(".weight"):
            graph.weights[name] = torch.rand(len(graph.weights[name]), generator=generator)
    coupling = couple(graph)
    data = write_schema(coupling)
    path = tmp_path / "schema.json"
    options = "ratio=0.6 min-channels=1 min-ratio=0.0 recipe=sgd{epochs=0}"

    def widths(text: str, **changes: Any) -> dict[str, int]:
        path.write_text(json.dumps({**copy.deepcopy(data), **changes}))
        pipeline = PassManager.parse(f"couple,cost,slimming{{{options} {text}}}")
        record = pipeline.run(graph, workload=digits).records["slimming"]
        assert isinstance(record, SlimmingRecord)
        return {g.group: g.after for g in record.groups}

    plain = widths("")
    assert widths(f"schema={path}") == plain
    both = [{**tie, "method": "and"} for tie in data["shortcuts"]]
    assert widths(f"schema={path}", shortcuts=both) == widths("merge=and")
    assert widths(f"schema={path}", shortcuts=both) != plain
    one = [both[0], *data["shortcuts"][1:]]
    mixed = widths(f"schema={path}", shortcuts=one)
    assert {name for name in plain if mixed[name] != plain[name]} == {"conv1"}
    assert widths(f"schema={path}", channel_rounding="eight") == widths("round=eight")
    fixed = widths(f"schema={path}", fixed_bn_ratio=[{"name": "layer2.0.bn1", "ratio": 0.25}])
    assert fixed == {**plain, "layer2.0.conv1": 24}


def test_a_schema_leaves_whole_what_it_does_not_prune(digits: Workload, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(write_schema(couple(bare(True)))))
    _, record = run(
        bare(True), f"slimming{{ratio=0.5 schema={tmp_path / 's.json'} {FAST}}}", digits
    )
    assert {g.group: g.reason for g in record.groups} == {
        "conv1": "threshold",
        "conv2": "kept",
        "conv3": "kept",
    }


def test_a_schema_of_another_network_is_refused(
    graph: Graph, digits: Workload, tmp_path: Path
) -> None:
    (tmp_path / "s.json").write_text(json.dumps(write_schema(couple(bare(True)))))
    with pytest.raises(UserError, match=r"s.json: it names .*, but the network has no"):
        run(graph, f"slimming{{ratio=0.5 schema={tmp_path / 's.json'} {FAST}}}", digits)


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ratio=0", "ratio=0 must be the share of all scales to remove"),
        ("ratio=1", "ratio=1 must be the share of all scales to remove"),
        ("ratio=0.5 budget=50%FLOPs", "a budget and a ratio contradict each other"),
        ("passes=0", "passes=0 is impossible"),
        ("gamma-init=0", "gamma-init=0 must be above 0"),
        ("schema=nowhere.json", "the pns schema nowhere.json does not exist"),
        ("fixed=bn1", "fixed=bn1 must be NAME:SHARE"),
        ("fixed=bn1:half", "fixed=bn1:half must be NAME:SHARE"),
        ("fixed=bn1:1.0", "the fixed ratio of bn1 is 1; it must be above 0 and below 1"),
        ("min-channels=0", "min-channels=0 is impossible"),
        ("round=ten", "must be one of none, eight, two-pow"),
    ],
)
def test_impossible_options(options: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_pipeline(f"slimming{{{options}}}")
    assert message in str(caught.value)


def test_aims_are_checked_before_training(graph: Graph, digits: Workload) -> None:
    for text, budgets, error, message in [
        ("slimming", (), UserError, "nothing to aim at"),
        ("slimming{ratio=0.5}", ("50%FLOPs",), UserError, "contradict each other"),
        ("slimming{passes=3}", ("0.01%FLOPs",), BudgetError, "out of reach"),
        ("slimming{fixed=bn7:0.5}", ("50%FLOPs",), UserError, "fixed=bn7: no layer with scales"),
        (
            "slimming{ignore=bn7}",
            ("50%FLOPs",),
            UserError,
            "no parameter, module or channel group has this name",
        ),
    ]:
        with pytest.raises(error, match=message):
            run(graph, text, digits, *budgets)
    with pytest.raises(UserError, match="it needs data"):
        PassManager.parse("couple,cost,slimming{ratio=0.5}").run(graph)


def test_the_text_of_a_pass_reads_back() -> None:
    step = Slimming(
        ratio=0.7,
        passes=2,
        merge="and",
        round="two-pow",
        fixed=("bn1:0.5", "layer1:0.25"),
        compat=("floor", "rounding"),
        regulariser="gamma-l1{scale=1e-5 ignore=layer4}",  # type: ignore[arg-type]
    )
    assert parse_pipeline(pass_text(step)) == [step]


def test_the_commands_of_the_documentation_parse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "slimming.md").read_text(
        encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("result.json", "pruned.pth"):
        Path(name).touch()
    pipelines = re.findall(r"--(?:pipeline|pass) '(.*)'", text)
    assert sum("slimming{" in pipeline for pipeline in pipelines) == 4
    for pipeline in [*pipelines, *re.findall(r"^    (couple,.*)$", text, re.MULTILINE)]:
        assert parse_pipeline(pipeline)
    (section,) = re.findall(r"## Options\n(.*?)\n## ", text, re.DOTALL)
    named = set(
        re.findall(
            r"`([a-z-]+)`",
            "".join(line.split("|")[1] for line in section.splitlines() if "| `" in line),
        )
    )
    assert named == {field.name.replace("_", "-") for field in option_fields(Slimming)}


def test_a_stopped_run_goes_on(graph: Graph, digits: Workload, tmp_path: Path) -> None:
    """Two rounds in a folder, once straight through and once again over their finished states."""
    text = f"slimming{{passes=2 ratio=0.5 {SHORT}}}"
    once, first = run(graph, text, digits, run_dir=tmp_path)
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"slimming.1.ckpt", "slimming.2.ckpt"}
    again, second = run(graph, text, digits, run_dir=tmp_path)
    assert [r.threshold for r in first.rounds] == [r.threshold for r in second.rounds]
    assert [r.regulariser for r in first.rounds] == [r.regulariser for r in second.rounds]
    for name, tensor in once.graph.weights.items():
        assert torch.equal(again.graph.weights[name], tensor)


def test_a_split_without_images_of_its_own() -> None:
    """Nothing of a workload but its training split and loss is needed."""
    x = torch.randn(64, 1, 8, 8)
    workload = workload_of(x, torch.arange(64) % 10, 10)
    with seeded(0):
        graph = capture(zoo.create("digits_resnet").eval(), (torch.randn(2, 1, 8, 8),))
    _, record = run(graph, "slimming{ratio=0.3 recipe=sgd{epochs=1 batch-size=32}}", workload)
    assert record.rounds[0].training.steps == 2
