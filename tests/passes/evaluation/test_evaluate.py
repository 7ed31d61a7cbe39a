"""The evaluation against the modules that would be delivered, on digits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.graph import Graph
from pruneopt.kernels.bn_statistics import Averaging
from pruneopt.models.data import load_data
from pruneopt.models.digits_resnet import DigitsResNet
from pruneopt.models.workload import TensorSplit, Workload
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.evaluation.evaluate import Evaluation, Score
from pruneopt.passes.evaluation.resident_images import (
    CalibrationImages,
    ValidationImages,
    calibration_inputs,
)
from pruneopt.passes.evaluation.settings import EvaluationSettings
from pruneopt.passes.search.evaluators.cut_networks import CutNetworks
from pruneopt.passes.training.recipe import SGD
from pruneopt.passes.training.trainer import train

SETTINGS = EvaluationSettings(batches=4, batch_size=32)


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_data("digits?subval=300&calibration=200", input_shape=(1, 1, 8, 8))


@pytest.fixture(scope="module")
def graph(workload: Workload) -> Graph:
    torch.manual_seed(0)
    network = DigitsResNet((6, 8, 12))
    train(network, workload, SGD(epochs=4, lr=0.1, batch_size=64))
    return capture(network, torch.zeros(2, 1, 8, 8))


@pytest.fixture(scope="module")
def coupling(graph: Graph) -> Coupling:
    return couple(graph)


def plans(coupling: Coupling, count: int) -> list[dict[str, np.ndarray]]:
    """Random plans, each group losing up to half."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        plan = {}
        for group in coupling.free:
            kept = rng.integers((group.width + 1) // 2, group.width + 1)
            plan[group.name] = np.sort(rng.choice(group.width, kept, replace=False))
        found.append(plan)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"averaging": Averaging("ema", 0.1, reset=False)},
        {"augment": True},
        {"subval_limit": 70, "batches": 1},
        {"averaging": Averaging("population")},
        {"averaging": Averaging("mean_biased")},
        {"kernels": "reference"},
    ],
)
def test_scores_are_those_of_the_modules(
    graph: Graph, coupling: Coupling, workload: Workload, changes: dict[str, object]
) -> None:
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    evaluation = Evaluation(graph, coupling, workload, settings)
    networks = CutNetworks(graph, coupling, workload, settings)
    chosen = plans(coupling, 3)
    images = settings.subval_limit or 300
    for plan, score in zip(chosen, evaluation.evaluate(chosen), strict=True):
        module = networks.network(plan)
        assert evaluation.stale(plan).value == pytest.approx(
            networks.score(module), abs=1.01 / images
        )
        networks.recalibrate(module, plan)
        # Folding rounds otherwise: at most one image may change sides.
        assert score.value == pytest.approx(networks.score(module), abs=1.01 / images)
        assert score == Score(
            score.value, score.value, images, settings.batches, str(settings.averaging)
        )


def test_likelihood_and_agreement(graph: Graph, coupling: Coupling, workload: Workload) -> None:
    (plan,) = plans(coupling, 1)
    networks = CutNetworks(graph, coupling, workload, SETTINGS)
    module = networks.network(plan)
    networks.recalibrate(module, plan)
    module.eval()
    original = build_module(graph, graph.weights).eval()
    ((inputs, targets),) = list(workload.subval.batches(300))
    with torch.no_grad():
        logits, wanted = module(inputs), original(inputs).argmax(1)
    likelihood, agreement = (
        next(
            iter(
                Evaluation(graph, coupling, workload, replace(SETTINGS, signal=signal)).evaluate(
                    [plan]
                )
            )
        )
        for signal in ("likelihood", "agreement")
    )
    assert likelihood.value == pytest.approx(-float(F.cross_entropy(logits, targets)), rel=1e-4)
    assert agreement.value == pytest.approx(
        float((logits.argmax(1) == wanted).float().mean()), abs=1.01 / 300
    )
    assert (
        likelihood.metric
        == agreement.metric
        == pytest.approx(networks.score(module), abs=1.01 / 300)
    )


def test_a_race_gives_up_and_the_rest_have_their_full_scores(
    graph: Graph, coupling: Coupling, workload: Workload
) -> None:
    chosen = plans(coupling, 12)
    full = list(Evaluation(graph, coupling, workload, SETTINGS).evaluate(chosen))
    racing = Evaluation(graph, coupling, workload, replace(SETTINGS, race=60))
    raced = list(racing.evaluate(chosen))
    assert racing.rungs[0].batches == 1
    ended = [(one, other) for one, other in zip(raced, full, strict=True) if one.images == 300]
    assert 0 < len(ended) < len(chosen)
    assert all(one.value == other.value for one, other in ended)
    assert all((one.trace is None) == (one.images < 300) for one in raced)
    assert max(item.value for item in raced) >= max(item.value for item in full) - 0.01

    again = Evaluation(graph, coupling, workload, replace(SETTINGS, race=60))
    for item in raced[:9]:  # one alone, then eight side by side
        if item.trace is not None:
            again.recall(item.trace)
    assert again.together(chosen[9:]) == raced[9:]


@pytest.mark.parametrize(
    "changes", [{}, {"averaging": Averaging("population")}, {"precision": "bf16"}]
)
def test_candidates_side_by_side_have_the_scores_they_have_alone(
    graph: Graph, coupling: Coupling, workload: Workload, changes: dict[str, object]
) -> None:
    """Bit by bit, also where neighbours have layers in common: a plan, itself, and one group
    changed."""
    first, second = plans(coupling, 2)
    last = coupling.free[-1].name
    chosen = [first, second, first, {**first, last: second[last]}]
    settings = replace(SETTINGS, signal="likelihood", **changes)  # type: ignore[arg-type]
    together = Evaluation(graph, coupling, workload, settings).together(chosen)
    alone = [Evaluation(graph, coupling, workload, settings).together([plan])[0] for plan in chosen]
    assert together == alone
    assert len({score.value for score in alone}) == 3


def test_half_precision_moves_few_images(
    graph: Graph, coupling: Coupling, workload: Workload
) -> None:
    chosen = plans(coupling, 6)
    full, half = (
        list(
            Evaluation(graph, coupling, workload, replace(SETTINGS, precision=name)).evaluate(
                chosen
            )
        )
        for name in ("fp32", "bf16")
    )
    gaps = [abs(one.value - other.value) for one, other in zip(full, half, strict=True)]
    assert 0 < max(gaps) <= 0.03  # of 300 images


def test_how_many_are_judged_side_by_side() -> None:
    racing = replace(SETTINGS, race=60, keep=3)
    assert [racing.batch_size_at(index, 1) for index in (0, 1, 2, 3, 50)] == [3, 2, 1, 8, 8]
    assert SETTINGS.batch_size_at(0, 1) == 16
    assert SETTINGS.batch_size_at(0, 2**28) == 4
    assert (
        SETTINGS.batch_size_at(0, 2**40) == replace(SETTINGS, whole=True).batch_size_at(0, 1) == 1
    )


def test_agreement_needs_classes(graph: Graph, coupling: Coupling, workload: Workload) -> None:
    other = replace(
        workload, num_classes=None, metric=lambda outputs, targets: torch.zeros(len(targets))
    )
    with pytest.raises(UserError, match="signal=agreement is for classification"):
        Evaluation(graph, coupling, other, replace(SETTINGS, signal="agreement"))


def test_images_in_parts_are_the_images() -> None:
    split = TensorSplit(
        torch.arange(700.0).reshape(700, 1, 1, 1), torch.arange(700), torch.arange(700)
    )
    for start, stop in ((0, 700), (0, 100), (100, 650), (650, 700)):
        images = ValidationImages(split, "cpu")
        for _ in range(2):  # the second time from memory
            inputs, targets = (
                torch.cat(parts) for parts in zip(*images.part(start, stop), strict=True)
            )
            assert inputs.flatten().tolist() == targets.tolist() == list(range(start, stop))
        shuffled = ValidationImages(split, "cpu", augment_seed=3)
        whole = torch.cat([targets for _, targets in shuffled.part(0, 700)])
        part = torch.cat([targets for _, targets in shuffled.part(start, stop)])
        assert torch.equal(part, whole[start:stop])


def test_calibration_batches_in_parts_are_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    split = TensorSplit(torch.arange(90.0).reshape(90, 1, 1, 1), torch.arange(90), torch.arange(90))
    wanted = list(calibration_inputs(split, 5, 20, seed=1, device="cpu"))
    for limit in (2**30, 200):
        monkeypatch.setattr("pruneopt.passes.evaluation.resident_images.RESIDENT_BYTES", limit)
        images = CalibrationImages(split, 5, 20, seed=1, device="cpu")
        for start, stop in ((0, 2), (2, 5), (0, 5)):
            found = list(images.part(start, stop))
            assert len(found) == stop - start
            assert all(torch.equal(a, b) for a, b in zip(found, wanted[start:stop], strict=True))
