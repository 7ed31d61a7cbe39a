"""Masks: which weights go, that they stay zero through training, cutting and files, and what is
reported."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.workloads import noise
from torch import Tensor, nn

from pruneopt.errors import BudgetError, UserError, VerificationError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.graph import Graph
from pruneopt.models import zoo
from pruneopt.models.workload import Workload
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.manager import PassManager
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.result import Result
from pruneopt.passes.selection.masks import (
    MASKS,
    check_masks,
    check_saved_masks,
    deliver,
    masked,
    save_masks,
    slice_masks,
    sparsity,
)
from pruneopt.passes.training.hooks import TrainingRun
from pruneopt.passes.training.keep_masks import KeepMasks
from pruneopt.passes.training.recipe import SGD
from pruneopt.passes.training.trainer import train
from pruneopt.passes.transform.stages import Slice, Verify


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 12, 3, padding=1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.norm(self.a(x)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(Small().eval(), (torch.randn(2, 1, 6, 6),))


@pytest.fixture(scope="module")
def workload() -> Workload:
    return noise(32, 4, channels=1, size=6)


LAYERS = {"a": 72, "b": 864, "head": 48}


def run(
    graph: Graph, text: str, workload: Workload | None = None, tail: str = ",slice,verify"
) -> Result:
    return PassManager.parse(f"couple,cost,{text}{tail}").run(graph, workload=workload)


def zeros_of(result: Result) -> dict[str, int]:
    assert result.masks is not None
    return {name.removesuffix(".weight"): int((~mask).sum()) for name, mask in result.masks.items()}


# Which weights go


def test_by_layer_the_smallest_of_every_layer_go(graph: Graph) -> None:
    result = run(graph, "l1{granularity=weight ratios=a:0.5,b:0.9,head:0.33}")
    assert zeros_of(result) == {"a": 36, "b": math.ceil(0.9 * 864), "head": math.ceil(0.33 * 48)}
    for name, mask in (result.masks or {}).items():
        magnitude = graph.weights[name].abs()
        assert magnitude[~mask].max() <= magnitude[mask].min()


def test_globally_the_smallest_of_all_go_over_the_mean_of_their_layer(graph: Graph) -> None:
    for text, divided in (
        ("l1{granularity=weight budget=30%params}", True),
        ("prune{granularity=weight}", False),
    ):
        full = f"{text[:-1]} normalise=false budget=30%params}}" if not divided else text
        result = run(graph, full)
        values = {name: graph.weights[f"{name}.weight"].abs().double() for name in LAYERS}
        scores = {name: value / (value.mean() if divided else 1) for name, value in values.items()}
        total = sum(p.numel() for p in Small().parameters())
        removed = sum(zeros_of(result).values())
        assert removed == total - math.floor(0.3 * total)
        masks = result.masks or {}
        gone = torch.cat([scores[name][~masks[f"{name}.weight"]] for name in LAYERS])
        kept = torch.cat([scores[name][masks[f"{name}.weight"]] for name in LAYERS])
        assert gone.max() <= kept.min()
        (use,) = result.budgets
        assert use.value == total - removed <= use.limit


def test_largest_and_random_ones(graph: Graph) -> None:
    most = run(graph, "l1{granularity=weight ratios=0.25 pick=max}")
    for name, mask in (most.masks or {}).items():
        magnitude = graph.weights[name].abs()
        assert magnitude[~mask].min() >= magnitude[mask].max()
    chance = [
        PassManager.parse("couple,cost,random{granularity=weight ratios=0.25}").run(
            graph, seed=seed
        )
        for seed in (0, 0, 1)
    ]
    first, again, other = ((result.masks or {})["b.weight"] for result in chance)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert [zeros_of(result) for result in chance] == [zeros_of(most)] * 3


def test_every_layer_keeps_a_weight(graph: Graph) -> None:
    """Three layers of very different magnitude, and a budget of little more than one weight
    each."""
    scaled = graph.copy()
    scaled.weights = {**graph.weights, "head.weight": graph.weights["head.weight"] * 1e-6}
    rest = sum(p.numel() for p in Small().parameters()) - sum(LAYERS.values())
    text = (
        "prune{granularity=weight normalise=false scope=%s budget="
        + f"{(rest + 5) / 1000}kparams"
        + "}"
    )
    assert {
        name: LAYERS[name] - zeros for name, zeros in zeros_of(run(scaled, text % "global")).items()
    }["head"] == 1
    for scope in ("global", "local"):
        zeros = zeros_of(run(scaled, text % scope))
        assert sum(LAYERS.values()) - sum(zeros.values()) == 5
        assert all(zeros[name] < LAYERS[name] for name in LAYERS)
    with pytest.raises(BudgetError, match=r"out of reach: at least 43 params stay"):
        run(graph, "l1{granularity=weight budget=42params}")


def test_one_ratio_meets_a_budget_to_the_weight(graph: Graph) -> None:
    result = run(graph, "prune{granularity=weight scope=local budget=40%params}")
    total = sum(p.numel() for p in Small().parameters())
    zeros = zeros_of(result)
    assert sum(zeros.values()) == total - math.floor(0.4 * total)
    shares = [zeros[name] / LAYERS[name] for name in LAYERS]
    assert max(shares) - min(shares) < 2 / 48


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "l1{granularity=weight budget=50%FLOPs}",
            "cannot be met by single weights: zeros change no shape",
        ),
        (
            "l1{granularity=weight budget=50%params round-to=8}",
            "round-to and minimum count channels",
        ),
        (
            "prune{granularity=weight criterion=l2 ratio=0.5}",
            "single weights are scored by their magnitude",
        ),
        ("prune{granularity=weight ratio=1.5}", "ratio=1.5 must be the share of weights"),
        (
            "prune{granularity=weight ratio=0.5 budget=50%params}",
            "a budget and a ratio contradict each other",
        ),
        ("prune{granularity=weight}", "there is nothing to aim at"),
        (
            "greg1{granularity=weight criterion=taylor ratios=0.5}",
            "criterion=taylor scores channels",
        ),
        ("l1{budget=50%FLOPs skip=a}", "skip and compat go with ratios"),
    ],
)
def test_impossible_demands(graph: Graph, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(graph, text)


def test_ratios_that_miss_a_budget(graph: Graph) -> None:
    with pytest.raises(
        BudgetError, match="that are not zero, more than the budget '20%params' allows"
    ):
        run(graph, "l1{granularity=weight ratios=0.5 budget=20%params}")


def test_what_is_ignored_keeps_all(graph: Graph) -> None:
    by_run = PassManager.parse("couple,cost,l1{granularity=weight ratios=0.5}").run(
        graph, ignore=["b"]
    )
    by_pass = run(graph, "prune{granularity=weight scope=local ratio=0.5 ignore=b.weight}")
    by_skip = run(graph, "l1{granularity=weight ratios=0.5 skip=1}")
    assert zeros_of(by_run) == zeros_of(by_pass) == zeros_of(by_skip) == {"a": 36, "head": 24}


def test_what_an_earlier_pass_masked_stays_at_zero(graph: Graph, workload: Workload) -> None:
    """Two passes over different layers and one over both: masks add up, also through a training in
    between."""
    first = run(graph, "l1{granularity=weight ratios=a:0.5}")
    kept = (first.masks or {})["a.weight"]
    for train_between in ("", ",finetune{epochs=1 batch-size=8 distil=0}"):
        text = (
            f"l1{{granularity=weight ratios=a:0.5}}{train_between},l1{{granularity=weight "
            f"ratios=b:0.25}}"
        )
        result = run(graph, text, workload)
        assert zeros_of(result) == {"a": 36, "b": 216}
        assert torch.equal((result.masks or {})["a.weight"], kept)
        assert int((result.graph.weights["a.weight"] == 0).sum()) == 36
    other = run(graph, "random{granularity=weight ratios=0.5},l1{granularity=weight ratios=a:0.5}")
    chance = run(graph, "random{granularity=weight ratios=0.5}")
    mask, of_chance = ((result.masks or {})["a.weight"] for result in (other, chance))
    assert not (mask & ~of_chance).any()
    assert torch.equal((other.masks or {})["b.weight"], (chance.masks or {})["b.weight"])


def test_a_group_that_is_no_module_says_nothing_about_single_weights() -> None:
    """A linear layer whose outputs are split makes two groups; the second has a name that only
    groups have."""

    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.left, self.right = nn.Linear(4, 16), nn.Linear(4, 4), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.both(x).split([4, 12], 1)
            return self.left(left) + self.right(torch.relu(right))

    graph = capture(Split().eval(), (torch.randn(2, 4),))
    (name,) = (
        group.name for group in couple(graph).free if f"{group.name}.weight" not in graph.params
    )
    for text in ("l1{granularity=weight ratios=0.5}", "l1{granularity=2:4}"):
        with pytest.raises(
            UserError, match=f"ignore={name} is a channel group, but single weights go"
        ):
            PassManager.parse(f"couple,cost,{text}").run(graph, ignore=[name])
    kept = PassManager.parse("couple,cost,l1{granularity=weight ratios=0.5}").run(
        graph, ignore=["both"]
    )
    assert set(zeros_of(kept)) == {"left", "right"}


# The network afterwards


def test_nothing_but_zeros_changes(graph: Graph) -> None:
    """The plan keeps all channels; masked weights are zero, all others the same bits."""
    result = run(graph, "l1{granularity=weight ratios=0.7}")
    assert result.verification is not None
    assert result.plan is not None
    assert all(len(kept) == size for kept, size in zip(result.plan.values(), (8, 12), strict=True))
    for name, tensor in graph.weights.items():
        mask = (result.masks or {}).get(name, torch.ones(tensor.shape, dtype=torch.bool))
        assert torch.equal(
            result.graph.weights[name], torch.where(mask, tensor, torch.zeros_like(tensor))
        )
    report = result.records["masks"]
    assert report == sparsity(result.graph, result.masks or {})
    total = sum(LAYERS.values())
    assert report.share == pytest.approx(
        sum(math.ceil(0.7 * size) for size in LAYERS.values()) / total
    )


def test_infinite_weights_are_masked_too() -> None:
    weights = {"w": torch.tensor([math.inf, math.nan, 1.0])}
    assert masked(weights, {"w": torch.tensor([False, False, True])})["w"].tolist() == [
        0.0,
        0.0,
        1.0,
    ]
    with pytest.raises(UserError, match="the mask of v does not fit"):
        masked(weights, {"v": torch.ones(3, dtype=torch.bool)})


def test_masked_weights_stay_zero_in_fine_tuning(graph: Graph, workload: Workload) -> None:
    tail = ",slice,verify,finetune{epochs=3 lr=0.1 batch-size=8 distil=0 ema=0.9}"
    result = run(graph, "l1{granularity=weight ratios=0.7}", workload, tail)
    assert result.masks is not None
    for name, mask in result.masks.items():
        tensor = result.graph.weights[name]
        assert not tensor[~mask].any()
        assert (tensor[mask] != graph.weights[name][mask]).float().mean() > 0.9, (
            "what stays is trained"
        )
    # Without the hook nothing keeps them there: momentum and decay alone would move them.
    module = copy.deepcopy(run(graph, "l1{granularity=weight ratios=0.7}").module)
    train(module, workload, SGD(epochs=1, lr=0.1, batch_size=8, augment=False))
    assert dict(module.named_parameters())["b.weight"][~result.masks["b.weight"]].any()


def test_masks_hold_after_every_single_step(graph: Graph, workload: Workload) -> None:
    result = run(graph, "l1{granularity=weight ratios=0.7}")
    masks = result.masks or {}
    seen = []

    class Look(KeepMasks):
        def after_step(self, run: TrainingRun) -> None:
            super().after_step(run)
            parameters = dict(run.module.named_parameters())
            seen.append(all(not parameters[name][~mask].any() for name, mask in masks.items()))

    module = Small()
    train(
        module, workload, SGD(epochs=2, lr=0.1, batch_size=8, augment=False), hooks=(Look(masks),)
    )
    assert seen == [True] * 9, "before the first step, and after each of eight"


def test_masks_are_cut_with_the_channels(graph: Graph) -> None:
    """A decision may hold both; the sliced masks are those of the weights that stay."""
    coupling = couple(graph)
    state = State(graph, graph.copy(), coupling=coupling, cost=CostModel(coupling.graph, coupling))
    state.graph = PassManager.parse("couple").run(graph).graph
    plan = {"a": np.array([1, 2, 5]), "b": np.arange(12)}
    masks = {"b.weight": torch.rand(12, 8, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5}
    assert deliver(state, plan, masks)
    Slice().run(state)
    assert state.masks is not None
    assert torch.equal(state.masks["b.weight"], masks["b.weight"][:, [1, 2, 5]])
    weight = graph.weights["b.weight"][:, [1, 2, 5]]
    assert torch.equal(state.graph.weights["b.weight"], weight * state.masks["b.weight"])
    Verify().run(state)
    assert torch.equal(
        slice_masks(coupling, coupling.kept_units(plan), masks)["b.weight"], state.masks["b.weight"]
    )


def broken(graph: Graph, change: Callable[[Tensor, Tensor], None]) -> State:
    state = State(graph, graph.copy())
    for step in PassManager.parse("couple,cost,l1{granularity=weight ratios=0.7},slice").passes:
        step.run(state)
    assert state.masks is not None
    tensor = state.graph.weights["b.weight"] = state.graph.weights["b.weight"].clone()
    change(tensor, state.masks["b.weight"])
    return state


def test_the_proof_notices_what_is_not_as_masked(graph: Graph) -> None:
    def wake(tensor: Tensor, mask: Tensor) -> None:
        tensor[tuple(torch.nonzero(~mask)[0])] = 1e-30

    def move(tensor: Tensor, mask: Tensor) -> None:
        tensor[tuple(torch.nonzero(mask)[0])] *= 1.001

    check_masks(broken(graph, lambda tensor, mask: None))
    with pytest.raises(VerificationError, match=r"masked elements of b\.weight are not zero"):
        Verify().run(broken(graph, wake))
    with pytest.raises(
        VerificationError, match=r"elements of b\.weight that its mask keeps have changed"
    ):
        Verify().run(broken(graph, move))


# Files


def test_masks_are_read_back(tmp_path: Path) -> None:
    masks = {"w": torch.tensor([[True, False], [False, True]])}
    save_masks(tmp_path / MASKS, masks)

    def weights(*values: float) -> None:
        tensor = torch.tensor(values).reshape(2, 2)
        (tmp_path / "weights.safetensors").write_bytes(safetensors.torch.save({"w": tensor}))

    weights(1, 0, 0, 2)
    check_saved_masks(tmp_path, masks)
    with pytest.raises(VerificationError, match="its mask of w is another one"):
        check_saved_masks(tmp_path, {"w": ~masks["w"]})
    with pytest.raises(VerificationError, match="masks of other weights"):
        check_saved_masks(tmp_path, {"v": masks["w"]})
    weights(1, 0, 3, 2)
    with pytest.raises(VerificationError, match="weights that it masks in w are not zero"):
        check_saved_masks(tmp_path, masks)


# The bundle


def test_a_bundle_with_masks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from pruneopt.tools.main import main

    torch.manual_seed(0)
    weights = tmp_path / "w.safetensors"
    model = zoo.create("digits_resnet", width=0.25)
    weights.write_bytes(safetensors.torch.save(dict(model.state_dict())))
    out = tmp_path / "out"
    words = [
        "compile",
        "zoo:digits_resnet?width=0.25",
        "--weights",
        weights,
        "--pass",
        "l1{granularity=weight}",
    ]
    assert main([str(word) for word in [*words, "--budget", "30%params", "--out", out]]) == 0
    shown = capfd.readouterr().out
    assert "Sparsity: " in shown
    assert "Zeros change no shape" in shown
    assert "not zero; verified" in shown
    assert "masks.safetensors loaded back equal" in shown
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["pruned"] == report["original"], "no size changes"
    masks = safetensors.torch.load_file(out / MASKS)
    delivered = safetensors.torch.load_file(out / "weights.safetensors")
    zeros = sum(int((~mask).sum()) for mask in masks.values())
    assert (
        report["sparsity"]["zeros"]
        == zeros
        == sum(layer["zeros"] for layer in report["sparsity"]["layers"])
    )
    left = report["original"]["params"] - zeros
    assert report["sparsity"]["nonzero_params"] == report["budgets"][0]["achieved"] == left
    assert report["budgets"][0]["met"]
    assert not any(delivered[name][~mask].any() for name, mask in masks.items())
    assert MASKS in report["artefacts"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<h2>Sparsity</h2>" in page
    assert page.count("layer1.0.conv1") >= 1
