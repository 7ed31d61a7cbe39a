"""Scores of candidates of a trained network: from fused statistics against PyTorch's (T7), and by a
race (P5)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import evaluate_setups
import numpy as np
import torch
from evaluate_setups import Setup
from gpu_device import Device
from gpu_guard import Clock, Row, Skipped
from gpu_networks import TOY, Candidate, Network, Sizes, network
from gpu_ways import half_precision
from scipy.stats import kendalltau, spearmanr
from torch import Tensor, nn

from pruneopt import Graph, Workload
from pruneopt.extend import Averaging, Evaluation, EvaluationSettings, TensorSplit
from pruneopt.models.workload import logits_of
from pruneopt.passes.evaluation.evaluation_backends import EvaluationBackend, Fused, PyTorch
from pruneopt.passes.evaluation.race import Race
from pruneopt.passes.graph_rewrites.folding import fold_batch_norms
from pruneopt.passes.lowering.backends import TritonKernels

__all__ = ["RULES", "agreement", "ranks_part", "search_part", "within"]

NETWORK = "resnet56"
RULES = {
    "largest difference, points": 0.3,
    "mean signed difference, points": 0.05,
    "spearman": 0.99,
}
Plan = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A trained network with plans and images, and how its candidates are judged."""

    setup: Setup
    ours: EvaluationSettings
    published: EvaluationSettings
    race: int


def _case(device: Device, data: Path | None, sizes: Sizes) -> Case:
    """Return the trained network, or in a rehearsal a toy with random labels.

    Raises:
        Skipped: no trained network is named.
    """
    place, candidates = device.place.type, max(sizes.ranked, sizes.searched)
    if device.rehearsal:
        ours = EvaluationSettings(batches=2, batch_size=3, device=place, kernels="reference")
        published = replace(ours, batches=3, averaging=Averaging("ema", 0.1, reset=False))
        return Case(_toy(device, candidates), ours, published, 4)
    if data is None:
        raise Skipped("needs trained weights and images: name their folder by --data")
    ours = EvaluationSettings(batches=20, batch_size=128, device=place)
    published = replace(ours, batches=102, averaging=Averaging("ema", 0.1, reset=False))
    return Case(_trained(data, candidates), ours, published, 512)


@cache
def _trained(data: Path, candidates: int) -> Setup:
    evaluate_setups.SHARED = data
    return evaluate_setups.setup(NETWORK, candidates, seed=0)


def _toy(device: Device, candidates: int) -> Setup:
    net = network("resnet50", TOY, device)
    generator = torch.Generator().manual_seed(2)
    images, labels = (
        torch.randn(20, 3, 5, 5, generator=generator),
        torch.randint(5, (20,), generator=generator),
    )
    calibration, subval = (
        TensorSplit(images, labels, torch.arange(*ends)) for ends in ((0, 10), (10, 20))
    )
    workload = Workload("toy", 5, calibration, calibration, subval, subval)
    plans = [net.random(number).plan for number in range(candidates)]
    return Setup("toy", net.graph, net.coupling, workload, plans)


def _evaluation(case: Case, settings: EvaluationSettings) -> Evaluation:
    return Evaluation(case.setup.graph, case.setup.coupling, case.setup.workload, settings)


# T7


def ranks_part(device: Device, sizes: Sizes, clock: Clock, data: Path | None, row: Row) -> None:
    """Compare every candidate's top-1 from statistics in float32 by PyTorch and in half precision
    by the kernels.

    ``statistics`` takes fused statistics alone and scores as the reference does, ``throughout``
    scores on the kernels.
    """
    case = _case(device, data, sizes)
    evaluation = _evaluation(case, replace(case.ours, kernels="off"))
    batches = list(evaluation.calibration.part(0, case.ours.batches))
    averaging = case.ours.averaging
    kernels = Fused(
        case.setup.graph, averaging, TritonKernels(device.place, device.half), 1, device.place
    )
    kinds: dict[str, EvaluationBackend] = {"eager": PyTorch(averaging), "fused": kernels}
    ways = {
        "eager": ("eager", "eager"),
        "statistics": ("fused", "eager"),
        "throughout": ("fused", "fused"),
    }
    hits: dict[str, list[Tensor]] = {name: [] for name in ways}
    with device.exact():
        for plan in case.setup.plans[: sizes.ranked]:
            if clock.left < 10:
                row["cut short"] = (
                    f"{len(hits['eager'])} of {sizes.ranked} candidates, as time ran out"
                )
                break
            graph, weights = evaluation.cut(plan)
            fresh = {
                kind: way.statistics([graph], [weights], batches)[0] for kind, way in kinds.items()
            }
            for name, (measure, score) in ways.items():
                network_ = _folded(graph, {**weights, **fresh[measure]}, kinds[score])
                ((_, metric),) = evaluation.signals(network_, 0, len(evaluation.images))
                hits[name].append(metric.cpu())
    row |= {
        "network": case.setup.name,
        "images": len(evaluation.images),
        "averaging": str(case.ours.averaging),
    }
    scores = {name: torch.stack(found).double() for name, found in hits.items()}
    for name in ("statistics", "throughout"):
        row[name] = agreement(scores["eager"], scores[name])
        if not device.rehearsal:
            row[name]["within the rules"] = within(row[name])


def _folded(
    graph: Graph, weights: dict[str, Tensor], way: EvaluationBackend
) -> Callable[[Tensor], Sequence[Any]]:
    """Return the network in evaluation mode, as the only one of its kind."""
    folded = fold_batch_norms(graph)
    return way.networks([folded.graph], [folded.weights(weights)])


def agreement(eager: Tensor, fused: Tensor) -> Row:
    """Return how two sets of scores agree, by the rules for them.

    Args:
        eager, fused: 1 where an image's class was right, `[candidates, images]`.
    """
    one, other = (part.mean(1).numpy() for part in (eager, fused))
    points = 100 * (other - one)
    best, fifth = np.argsort(-one, kind="stable")[:5], np.sort(one)[::-1][min(4, len(one) - 1)]
    error = math.sqrt(fifth * (1 - fifth) / eager.shape[1])
    chosen = np.argsort(-other, kind="stable")[:5]
    return {
        "candidates": len(one),
        "eager": one.round(5).tolist(),
        "fused": other.round(5).tolist(),
        "largest difference, points": round(float(abs(points).max()), 4),
        "mean signed difference, points": round(float(points.mean()), 4),
        "spearman": _correlation(spearmanr, one, other),
        "same five best": set(best) == set(chosen),
        "same five best but for ties": all(one[index] >= fifth - error for index in chosen),
        "images judged otherwise": round(float((eager != fused).double().mean()), 6),
    }


def within(found: Row) -> bool:
    """Return whether an agreement is as the rules want it."""
    return bool(
        found["largest difference, points"] <= RULES["largest difference, points"]
        and abs(found["mean signed difference, points"]) <= RULES["mean signed difference, points"]
        and (found["spearman"] or 0) >= RULES["spearman"]
        and found["same five best but for ties"]
    )


def _correlation(kind: Callable[..., Any], one: np.ndarray, other: np.ndarray) -> float | None:
    """Return a rank correlation; None where all values of one side are the same."""
    return (
        None
        if min(np.ptp(one), np.ptp(other)) == 0
        else round(float(kind(one, other).statistic), 5)
    )


# P5


def search_part(device: Device, sizes: Sizes, clock: Clock, data: Path | None, row: Row) -> None:
    """Run a search judged by B4, by PyTorch in float32, by our evaluation, all on all images, and
    by a race of the last.

    Full scores are those in float32.
    """
    case = _case(device, data, sizes)
    plans = case.setup.plans[: sizes.searched]
    judges: dict[str, Callable[[Plan], float]] = {
        "B4": _padded_judge(case, device, plans[0]),
        "eager": _judge(_evaluation(case, replace(case.ours, kernels="off")), plans[0]),
        "ours": _judge(_evaluation(case, case.ours), plans[0]),
        "P5 race": _judge(_evaluation(case, replace(case.ours, race=case.race)), plans[0]),
        "published statistics": _judge(_evaluation(case, case.published), plans[0]),
    }
    found: dict[str, Row] = {}
    for name, judge in judges.items():
        few = plans if name != "published statistics" else plans[: max(3, len(plans) // 3)]
        found[name] = _judged(judge, few, device, clock)
    row |= {"network": case.setup.name, "of": len(plans), "race from": case.race, "ways": found}
    full = np.array(found["eager"]["values"])
    for item in found.values():
        item |= _choice(np.array(item["values"]), full)
    if all(len(found[name]["values"]) == len(plans) for name in ("B4", "P5 race")):
        row["P5 times faster than B4"] = round(
            found["B4"]["seconds"] / found["P5 race"]["seconds"], 3
        )


def _judge(evaluation: Evaluation, first: Plan) -> Callable[[Plan], float]:
    """Return our evaluation, its images prepared by a first candidate that the race then
    forgets."""

    def judge(plan: Plan) -> float:
        return next(iter(evaluation.evaluate([plan]))).value

    judge(first)
    evaluation.race = Race(evaluation.rungs, evaluation.settings.keep)
    return judge


def _judged(
    judge: Callable[[Plan], float], plans: Sequence[Plan], device: Device, clock: Clock
) -> Row:
    """Return values, and seconds for all candidates together."""
    values: list[float] = []
    device.synchronise()
    started = time.perf_counter()
    for plan in plans:
        if clock.left < 5:
            break
        values.append(judge(plan))
    device.synchronise()
    return {
        "candidates": len(values),
        "seconds": round(time.perf_counter() - started, 4),
        "values": values,
    }


def _choice(values: np.ndarray, full: np.ndarray) -> Row:
    """Return the regret of what would be chosen, in points, and how the order agrees with full
    scores of the same candidates."""
    count = min(len(values), len(full))
    if count < 3:
        return {}
    values, full = values[:count], full[:count]
    return {
        "regret, points": round(100 * float(full.max() - full[int(values.argmax())]), 4),
        "spearman": _correlation(spearmanr, values, full),
        "tau": _correlation(kendalltau, values, full),
    }


def _padded_judge(case: Case, device: Device, first: Plan) -> Callable[[Plan], float]:
    """Judge by B4 on resident images: the padded slice in half precision, a plain mean over the
    batches, all images."""
    setup, images = case.setup, _evaluation(case, case.ours)
    whole = Network(setup.name, setup.graph, setup.coupling, {}, [])

    def judge(plan: Plan) -> float:
        small = half_precision(Candidate(whole, plan).padded_graph(), device)
        norms = [part for part in small.modules() if isinstance(part, nn.BatchNorm2d)]
        right = 0.0
        with torch.no_grad():
            for number, batch in enumerate(images.calibration.part(0, case.ours.batches)):
                for norm in norms:
                    norm.momentum = 1 / (number + 1)
                small(batch.to(device.half))
            small.eval()
            for inputs, targets in images.images.part(0, len(images.images)):
                right += float(
                    (logits_of(small(inputs.to(device.half))).argmax(1) == targets).sum()
                )
        return right / len(images.images)

    judge(first)
    return judge
