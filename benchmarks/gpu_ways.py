"""The ways to take a candidate's batch-norm statistics that the GPU benchmark compares.

B1  the dense network, masks multiplied behind its batch norms, eager under autocast
B2  the dense network, the masks in scale and shift
B3  sliced as the plan says
B4  sliced, widths padded to multiples of 8
B5  B4 as a CUDA graph of one batch
B5c B4 by torch.compile
P1  the fused pass of one candidate, all batches at once, laid out before; every run loads its
weights and widths P2  P1 laid out for the whole network, by launches that were recorded once for
all candidates P3  the fused pass of several candidates at once; times are per candidate

Networks of B2 to B5c are in half precision, but for their batch norms' parameters, and channels
last. Only batch norms are in training mode, and they count no batches: both is in the baselines'
favour. B1 to B5c go through the whole network, the fused pass ends at the last batch norm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from gpu_device import Device
from gpu_networks import Candidate, Network, lowered_on
from torch import Tensor, nn

from pruneopt import Graph, build_module
from pruneopt.extend import Averaging
from pruneopt.passes.evaluation.fresh_statistics import Statistics, fresh_statistics
from pruneopt.passes.lowering.backends import TritonKernels
from pruneopt.passes.lowering.lower_statistics import lower_statistics
from pruneopt.passes.lowering.run_statistics import BatchStatistics, PreparedStatistics

__all__ = [
    "EAGER",
    "MISSING",
    "Way",
    "compiled",
    "deviation",
    "fused",
    "half_precision",
    "make",
    "recorded",
    "whole_network",
]

EAGER = ("B1", "B2", "B3", "B4", "B5")
MISSING = {
    "P4": "not there: no sharing of prefixes between candidates",
}
MOMENTUM = 0.1

Means = dict[str, Tensor]
Flags = Mapping[str, np.ndarray] | None


@dataclass(frozen=True)
class Way:
    """One way, ready to run.

    Attributes:
        run: takes the statistics of all batches; of ``candidates`` candidates.
        means: of the first batch, of the kept channels, by the name of the running mean; float64 on
            the host.
        prepared_ms: what it took to make it ready, on the host.
        told: how its launches are started; known after a run.
        held: bytes that it keeps between runs.
    """

    run: Callable[[], object]
    means: Callable[[], Means]
    candidates: int = 1
    prepared_ms: float = 0.0
    told: Callable[[], str] = str
    held: Callable[[], int] = int


def make(name: str, candidate: Candidate, device: Device, together: int = 1) -> Way:
    """Return a way by its name in the table."""
    makers: dict[str, Callable[[], Way]] = {
        "B1": partial(_dense, candidate, device),
        "B2": partial(_module, candidate, candidate.masked, candidate.flags, device),
        "B3": partial(_module, candidate, candidate.sliced, None, device),
        "B4": partial(_module, candidate, candidate.padded_graph, candidate.padded_flags, device),
        "B5": partial(
            _module, candidate, candidate.padded_graph, candidate.padded_flags, device, graph=True
        ),
        "B5c": partial(
            _module, candidate, candidate.padded_graph, candidate.padded_flags, device, compile=True
        ),
        "P1": partial(fused, [candidate], device),
        "P2": partial(recorded, candidate, device),
        "P3": partial(fused, [candidate] * together, device),
    }
    started = time.perf_counter()
    way = makers[name]()
    device.synchronise()
    return replace(way, prepared_ms=round(1e3 * (time.perf_counter() - started), 1))


def _placed(graph: Graph, device: Device) -> nn.Module:
    network = build_module(graph, graph.weights)
    # One step for each: together they have no annotation.
    return network.to(device.place).to(memory_format=torch.channels_last)


def half_precision(graph: Graph, device: Device) -> nn.Module:
    """Return a network whose batch norms learn from every batch, in half precision but for their
    parameters."""
    network = _placed(graph, device)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.train()
            part.momentum, part.num_batches_tracked = MOMENTUM, None
        elif not list(part.children()):
            part.to(device.half)
    return network


def _norms(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Return batch norms by the name of their running mean."""
    found = network.named_modules()
    return {
        f"{name}.running_mean": part for name, part in found if isinstance(part, nn.BatchNorm2d)
    }


def _first_means(
    network: nn.Module, run: Callable[[Tensor], object], batch: Tensor, flags: Flags
) -> Means:
    """Return the running means after one batch, which began at zero."""
    norms = _norms(network)
    for norm in norms.values():
        assert norm.running_mean is not None
        norm.running_mean.zero_()
    with torch.no_grad():
        run(batch)
    means = {}
    for name, norm in norms.items():
        assert norm.running_mean is not None
        mean = norm.running_mean.double().cpu() / MOMENTUM
        means[name] = mean if flags is None else mean[torch.from_numpy(flags[name])]
    return means


def _dense(candidate: Candidate, device: Device) -> Way:
    """Return way B1."""
    graph = candidate.network.graph
    network = _placed(graph, device)
    for name, norm in _norms(network).items():
        norm.train()
        norm.momentum, norm.num_batches_tracked = MOMENTUM, None
        mask = torch.from_numpy(candidate.flags[name]).to(device.place, device.half)[:, None, None]
        norm.register_forward_hook(lambda _, inputs, out, mask=mask: out * mask)

    def step(batch: Tensor) -> object:
        with torch.autocast(device.place.type, dtype=device.half):
            return network(batch.to(device.half))

    return _way(network, step, candidate, candidate.flags)


def _module(
    candidate: Candidate,
    cut: Callable[[], Graph],
    flags: Flags,
    device: Device,
    *,
    graph: bool = False,
    compile: bool = False,
) -> Way:
    """Return ways B2 to B5c."""
    network = half_precision(cut(), device)
    step: Callable[[Tensor], object] = network
    if compile:
        # The interpreter's process cannot compile for a GPU: a rehearsal goes as far as the graph
        # that is traced.
        step = torch.compile(
            network, dynamic=False, backend="eager" if device.rehearsal else "inductor"
        )
    if graph:
        held = candidate.network.batches[0].clone(memory_format=torch.preserve_format)
        with torch.no_grad():
            replay = device.captured(lambda: network(held))

        def step(batch: Tensor) -> object:
            held.copy_(batch)
            return replay()

    return _way(network, step, candidate, flags)


def _way(
    network: nn.Module, step: Callable[[Tensor], object], candidate: Candidate, flags: Flags
) -> Way:
    batches = candidate.network.batches

    def run() -> None:
        with torch.no_grad():
            for batch in batches:
                step(batch)

    return Way(run, lambda: _first_means(network, step, batches[0], flags))


def compiled(candidate: Candidate, device: Device) -> Way:
    """Return way B5c, with nothing kept from networks before."""
    torch.compiler.reset()
    return make("B5c", candidate, device)


def fused(candidates: list[Candidate], device: Device) -> Way:
    """Return ways P1 and P3."""
    lowered = [lower_statistics(candidate.sliced()) for candidate in candidates]
    return _loading(
        candidates, PreparedStatistics(lowered, TritonKernels(device.place, device.half)), device
    )


def whole_network(network: Network, device: Device) -> PreparedStatistics:
    """Return the fused pass with room for every candidate of a network."""
    return PreparedStatistics(
        [lower_statistics(network.graph)], TritonKernels(device.place, device.half), device.recorder
    )


def recorded(
    candidate: Candidate, device: Device, prepared: PreparedStatistics | None = None
) -> Way:
    """Return way P2."""
    ready = whole_network(candidate.network, device) if prepared is None else prepared
    way = _loading([candidate], ready, device)
    way.run()  # recorded now, for all batches
    return way


def _loading(candidates: list[Candidate], prepared: PreparedStatistics, device: Device) -> Way:
    """Return a way that loads candidates in every run, as a search does."""
    lowered, weights = zip(
        *(lowered_on(candidate.sliced(), device) for candidate in candidates), strict=True
    )
    batches = candidates[0].network.batches

    def run(some: list[Tensor] = batches) -> list[list[list[BatchStatistics]]]:
        prepared.load(lowered, weights)
        return prepared.run(some)

    def means() -> Means:
        return {item.name: item.mean.double().cpu() for item in run(batches[:1])[0][0]}

    return Way(
        run,
        means,
        len(candidates),
        told=lambda: prepared.launches.told,
        held=lambda: prepared.launches.bytes,
    )


def deviation(way: Way, candidate: Candidate, device: Device) -> float:
    """Return how far a way's means are from those in float32, in deviations, in the mean over
    channels and batch norms."""
    graph = candidate.sliced()
    weights = {name: tensor.to(device.place) for name, tensor in graph.weights.items()}
    wanted = Statistics()
    with device.exact():
        batch = candidate.network.batches[0].float()
        fresh_statistics(graph, weights, [batch], Averaging("mean"), into=wanted)
    found, errors = way.means(), []
    for name, (mean,) in wanted.means.items():
        deviations = wanted.variances[name][0].double().cpu().sqrt()
        error = (found[name] - mean.double().cpu()).abs() / deviations.clamp_min(
            1e-3 * float(deviations.max())
        )
        errors.append(float(error.mean()))
    return sum(errors) / len(errors)
