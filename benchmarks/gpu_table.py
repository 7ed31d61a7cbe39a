"""The table of the GPU benchmark: the statistics pass of a network's candidates, by every way there
is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from gpu_counts import Ceilings, Work, work_of
from gpu_device import Device, interleaved, spread
from gpu_guard import Clock, Row, guarded
from gpu_networks import KEEPS, MAIN_KEEP, Candidate, Network, Sizes, network
from gpu_ways import EAGER, MISSING, Way, compiled, deviation, fused, make, recorded, whole_network

from pruneopt.passes.lowering.backends import TritonKernels
from pruneopt.passes.lowering.lower_statistics import lower_statistics
from pruneopt.passes.lowering.run_statistics import run_statistics

__all__ = ["compile_part", "repeat_part", "table_part", "widths_part"]

B6 = "a graph for each convolution's shape, not a network: see the part `layers`"


@contextmanager
def tuned(on: bool) -> Iterator[None]:
    """Let cuDNN try its algorithms on every new shape, or not; its first run then takes long."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def table_part(
    name: str,
    device: Device,
    sizes: Sizes,
    clock: Clock,
    ceilings: Ceilings | None,
    save: Callable[[], None],
    row: Row,
) -> None:
    """Measure one network at every share that is kept; all ways interleaved."""
    net = network(name, sizes, device)
    row |= {
        "batches": len(net.batches),
        "images": sizes.images,
        "dtype": str(device.half),
        "keep": {},
    }
    # What the goals are about comes first.
    for keep in sorted(KEEPS, key=lambda keep: keep != MAIN_KEEP):
        found: Row = row["keep"].setdefault(str(keep), {})
        if clock.left < 15:
            found["skipped"] = f"{max(clock.left, 0):.0f} s were left"
            continue
        main, ways = keep == MAIN_KEEP, (*EAGER, "P1", "P2", "P3")
        guarded(
            found, partial(measured, net.uniform(keep), ways, device, sizes, ceilings, main, found)
        )
        if main:
            absent = (*MISSING.items(), ("B6", B6))
            found.setdefault("ways", {}).update({way: {"skipped": why} for way, why in absent})
        save()


def measured(
    candidate: Candidate,
    names: tuple[str, ...],
    device: Device,
    sizes: Sizes,
    ceilings: Ceilings | None,
    inspect: bool,
    found: Row,
) -> None:
    """Measure a candidate by the ways that are named: times, and what else can be told of each.

    Args:
        inspect: also kernels, memory and deviations.
        found: is filled.
    """
    rows: dict[str, Row] = {name: {} for name in names}
    found |= {"widths": widths(candidate), "ways": rows}
    ways: dict[str, Way] = {}

    def ready(name: str) -> None:
        ways[name] = (
            compiled(candidate, device)
            if name == "B5c"
            else make(name, candidate, device, sizes.together)
        )

    with tuned(True):  # a CUDA graph is captured here
        for name in names:
            guarded(rows[name], partial(ready, name))
    with tuned(True):
        times = interleaved(
            device, {name: way.run for name, way in ways.items()}, sizes.warmups, sizes.repeats
        )
    for name, way in ways.items():
        rows[name] |= {
            "prepared_ms": way.prepared_ms,
            **_per_candidate(times[name], way.candidates),
        }
        if way.told():
            rows[name]["told"] = way.told()
        if "error" in rows[name]:
            continue
        if inspect and name != "P3":
            guarded(rows[name], partial(_inspect, way, candidate, device, rows[name]))
        elif inspect:
            guarded(rows[name], partial(_weigh, way, device, rows[name]))
    work = works(candidate)
    for kind, one in work.items():
        found[kind] = {"bytes": one.bytes, "operations": one.operations}
        if ceilings is not None:
            found[kind]["roof_ms"] = round(one.roof_ms(ceilings), 4)
    for name, one_row in rows.items():
        if "ms" in one_row:
            kind = "fused" if name.startswith("P") else "dense" if name in ("B1", "B2") else "eager"
            _achieved(one_row, work[kind], ceilings)


def _weigh(way: Way, device: Device, row: Row) -> None:
    """Measure the peak memory, with what is kept between runs."""
    peak = device.peak(way.run)
    row["peak_bytes"] = None if peak is None else peak + way.held()


def _inspect(way: Way, candidate: Candidate, device: Device, row: Row) -> None:
    """Measure peak memory, kernels, the share of time in which no kernel ran, and how far off the
    means are."""
    _weigh(way, device, row)
    row |= device.launches(way.run)
    if row.get("busy_ms"):
        row["idle_share"] = round(max(0.0, 1 - row["busy_ms"] / row["ms"]), 4)
    row["off"] = deviation(way, candidate, device)


def _achieved(row: Row, work: Work, ceilings: Ceilings | None) -> None:
    """Note bytes and operations per second, by what the way has to do as counted, and its share of
    the best possible."""
    row["bytes_per_s"] = round(1e3 * work.bytes / row["ms"])
    row["operations_per_s"] = round(1e3 * work.operations / row["ms"])
    if ceilings is not None:
        row["roofline"] = round(work.roof_ms(ceilings) / row["ms"], 4)


def _per_candidate(times: Row, candidates: int) -> Row:
    return {
        key: round(value / candidates, 4) if key.endswith("ms") else value
        for key, value in times.items()
    }


def works(candidate: Candidate) -> dict[str, Work]:
    """Return what the whole network's ops, the padded network's, and the fused pass have to do on
    all batches."""
    batches = candidate.network.batches
    images, item = sum(len(batch) for batch in batches), batches[0].element_size()
    return {
        "dense": work_of(candidate.network.graph, images, item),
        "eager": work_of(candidate.padded_graph(), images, item),
        "fused": work_of(lower_statistics(candidate.sliced()).graph, images, item),
    }


def widths(candidate: Candidate) -> int:
    """Return channels that are kept, of all groups together."""
    return sum(map(len, candidate.plan.values()))


def compile_part(
    names: tuple[str, ...],
    device: Device,
    sizes: Sizes,
    clock: Clock,
    ceilings: Ceilings | None,
    save: Callable[[], None],
    row: Row,
) -> None:
    """Measure B4, B5c and P1 interleaved; seconds of compilation apart (the first run)."""
    row["keep"] = MAIN_KEEP
    row["networks"] = {}
    for name in names:
        found: Row = row["networks"].setdefault(name, {})
        if clock.left < 75:
            found["skipped"] = (
                f"{max(clock.left, 0):.0f} s were left, and compiling may take a minute"
            )
            continue
        guarded(found, partial(_compiled, name, device, sizes, ceilings, found))
        save()


def _compiled(
    name: str, device: Device, sizes: Sizes, ceilings: Ceilings | None, found: Row
) -> None:
    candidate = network(name, sizes, device).uniform(MAIN_KEEP)
    measured(candidate, ("B4", "B5c", "P1"), device, sizes, ceilings, False, found)


def widths_part(
    names: tuple[str, ...],
    device: Device,
    sizes: Sizes,
    clock: Clock,
    save: Callable[[], None],
    row: Row,
) -> None:
    """Measure random candidates: B4 as a search meets it, each width new to cuDNN, against P1 and
    P2, and P3 over several."""
    row["networks"] = {}
    for name in names:
        found: Row = row["networks"].setdefault(name, {"sets": []})
        guarded(found, partial(_sets, name, device, sizes, clock, found))
        save()


def _sets(name: str, device: Device, sizes: Sizes, clock: Clock, found: Row) -> None:
    net = network(name, sizes, device)
    prepared = whole_network(net, device)
    for number in range(sizes.width_sets):
        if clock.left < 15:
            found["skipped"] = (
                f"{len(found['sets'])} of {sizes.width_sets} sets, {max(clock.left, 0):.0f} s were "
                "left"
            )
            break
        candidate = net.random(number)
        ways = {way: make(way, candidate, device) for way in ("B4", "P1")}
        ways["P2"] = recorded(candidate, device, prepared)
        with tuned(False):
            times = interleaved(
                device, {way: ways[way].run for way in ways}, 0, min(3, sizes.repeats)
            )
        found["sets"].append({"widths": widths(candidate), **times})
    for way in ("P1", "P2"):
        pairs = [(times["B4"].get("ms"), times[way].get("ms")) for times in found["sets"]]
        ratios = [base / own for base, own in pairs if base and own]
        if ratios:
            found[f"{way} times faster than B4"], found[f"quartiles of {way}"] = spread(ratios)
    found["told"] = prepared.launches.told
    _together(net, device, sizes, found)


def _together(net: Network, device: Device, sizes: Sizes, found: Row) -> None:
    """Measure P3 over candidates of different widths."""
    several = fused([net.random(number) for number in range(sizes.together)], device)
    times = interleaved(device, {"P3": several.run}, 0, min(3, sizes.repeats))["P3"]
    alone = [item["P1"]["ms"] for item in found["sets"][: sizes.together] if "ms" in item["P1"]]
    found["P3"] = _per_candidate(times, several.candidates)
    if alone and "ms" in found["P3"]:
        found["P3 times faster than P1"] = round(statistics.mean(alone) / found["P3"]["ms"], 3)


def repeat_part(names: tuple[str, ...], device: Device, sizes: Sizes, row: Row) -> None:
    """Check that two runs of the fused pass of several candidates give the same bits."""
    row["networks"] = {}
    for name in names:
        found: Row = row["networks"].setdefault(name, {})
        guarded(found, partial(_same_bits, name, device, sizes, found))


def _same_bits(name: str, device: Device, sizes: Sizes, found: Row) -> None:
    net = network(name, sizes, device)
    graphs = [net.random(number).sliced() for number in range(2)]
    weights = [
        {key: tensor.to(device.place) for key, tensor in graph.weights.items()} for graph in graphs
    ]
    lowered = [lower_statistics(graph) for graph in graphs]
    backend = TritonKernels(device.place, device.half)
    runs = []
    for _ in range(2):
        made = run_statistics(lowered, weights, net.batches[:2], backend)
        items = [item for of_candidate in made for of_batch in of_candidate for item in of_batch]
        runs.append(
            torch.cat([part.flatten() for item in items for part in (item.mean, item.variance)])
        )
    found |= {
        "numbers": len(runs[0]),
        "finite": bool(runs[0].isfinite().all()),
        "bit equal": torch.equal(*runs),
    }
