"""The other half of judging a candidate: its logits in evaluation mode, by the padded slice and on
the kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from gpu_device import Device, Run, interleaved
from gpu_guard import Clock, Row, guarded
from gpu_networks import MAIN_KEEP, Candidate, Sizes, network, on_device
from torch import Tensor

from pruneopt import Graph, build_module
from pruneopt.extend import Interpreter
from pruneopt.passes.graph_rewrites.folding import fold_batch_norms
from pruneopt.passes.lowering.backends import TritonKernels
from pruneopt.passes.lowering.lower_evaluation import lower_evaluation
from pruneopt.passes.lowering.run_evaluation import PreparedEvaluation

__all__ = ["validation_part"]

Logits = Callable[[Tensor], Tensor]


def validation_part(
    names: Sequence[str],
    device: Device,
    sizes: Sizes,
    clock: Clock,
    save: Callable[[], None],
    row: Row,
) -> None:
    """Compare B4 (padded, batch norms folded, eager, half precision), the kernels (P1), and several
    candidates at once (P3)."""
    row["networks"] = {}
    for name in names:
        found: Row = row["networks"].setdefault(name, {})
        if clock.left < 10:
            found["skipped"] = f"{max(clock.left, 0):.0f} s were left"
            continue
        guarded(found, partial(_measure, name, device, sizes, found))
        save()


def _measure(name: str, device: Device, sizes: Sizes, found: Row) -> None:
    net = network(name, sizes, device)
    candidate = net.uniform(MAIN_KEEP)
    ways = {
        "B4": (1, (lambda: None), _eager(candidate.padded_graph(), device)),
        "P1": (1, *_fused([candidate], device)),
        "P3": (sizes.together, *_fused([candidate] * sizes.together, device)),
    }

    def over_all(load: Run, logits: Logits) -> Run:
        def run() -> None:
            load()
            for batch in net.batches:
                logits(batch)

        return run

    runs = {way: over_all(load, logits) for way, (_, load, logits) in ways.items()}
    times = interleaved(device, runs, sizes.warmups, sizes.repeats)
    wanted = _wanted(candidate, device)
    found |= {"images": sum(len(batch) for batch in net.batches), "ways": times}
    for way, (several, _, logits) in ways.items():
        for key in ("first_ms", "ms", "iqr_ms", "wall_ms"):
            if key in times[way]:
                times[way][key] = round(times[way][key] / several, 4)
        guarded(times[way], partial(_compare, times[way], logits, net.batches[0], wanted))


@torch.no_grad()
def _compare(row: Row, logits: Logits, batch: Tensor, wanted: Tensor) -> None:
    """Note the largest difference from float32, relative to the largest logit."""
    row["off"] = float((logits(batch).double() - wanted).abs().max() / wanted.abs().max())


@torch.no_grad()
def _wanted(candidate: Candidate, device: Device) -> Tensor:
    graph = candidate.sliced()
    with device.exact():
        found: Tensor = Interpreter(graph).run(
            on_device(graph, device), candidate.network.batches[0].float()
        )
    return found.double()


def _eager(graph: Graph, device: Device) -> Logits:
    folded = fold_batch_norms(graph)
    module = build_module(folded.graph, folded.weights(graph.weights)).to(device.place, device.half)
    return torch.no_grad()(module.to(memory_format=torch.channels_last))


def _fused(candidates: Sequence[Candidate], device: Device) -> tuple[Run, Logits]:
    """Return what loads candidates, and the first one's logits; all are computed."""
    lowered, weights = [], []
    for candidate in candidates:
        graph = candidate.sliced()
        folded = fold_batch_norms(graph)
        lowered.append(lower_evaluation(folded.graph))
        weights.append(folded.weights(on_device(graph, device)))
    prepared = PreparedEvaluation(lowered, TritonKernels(device.place, device.half))

    def logits(batch: Tensor) -> Tensor:
        found: Tensor = prepared.run(batch)[0]
        return found

    return partial(prepared.load, lowered, weights), logits
