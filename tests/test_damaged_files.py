"""Whatever a file holds, reading it ends in what it says or in one sentence: every reader, mutated.

A mutation is a flipped byte, a cut, a repeated or inserted piece; in JSON a value of another type,
another or a missing key, deep nesting, numbers that are huge or none.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.latency_fakes import MACHINE, Stack, cost_of
from PIL import Image
from torch import nn

from pruneopt.errors import UserError, VerificationError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.ir.text.json_form import graph_from_dict, graph_to_dict
from pruneopt.ir.text.parser import parse_graph
from pruneopt.ir.text.printer import print_graph
from pruneopt.ir.verifier import IRError, verify_graph
from pruneopt.kernels.tuning import _read as read_tiles
from pruneopt.models.data import load_data
from pruneopt.models.weights import read_weights
from pruneopt.passes.analysis.channels.plan import load_plan, save_plan
from pruneopt.passes.analysis.cost.latency_table import load_table
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.front.front_file import load_front
from pruneopt.passes.front.front_point import FrontPoint
from pruneopt.passes.latency.database import Database, merge
from pruneopt.passes.latency.deliver import Delivered, _Rounds
from pruneopt.passes.latency.regions import find_regions
from pruneopt.passes.latency.sample import NodeTime, Sample
from pruneopt.passes.pns.reader import read_schema
from pruneopt.passes.pns.schema import write_schema
from pruneopt.passes.search.strategy import read_strategies
from pruneopt.passes.transform.given_plan import read_plan
from pruneopt.reading import read_record
from pruneopt.tools.commands.from_front import SearchRun

SWAPS: list[Any] = [
    None, True, False, 0, -1, 1.5, 2**31, 2**63, -(2**63), 10**30, "", "x", "\0", "\u2028", "../..",
    [], {}, [[]], [None], {"a": 1}, {"batch": [1, 0, 0]}, {"word": "mode"}, float("nan"),
    float("inf"), -float("inf"), "\ud800", "9" * 5000, [1, 2, 3],
]  # fmt: skip


class Convs(nn.Sequential):
    """A chain that pns can describe."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)),
        )


@dataclass(frozen=True)
class Reader:
    """How to read a file of a kind, and how to make a valid one."""

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value if isinstance(value, list) else ())
    )
    for key, item in items:
        yield from paths(item, (*at, key))


def mutated_json(content: bytes, chance: random.Random) -> bytes:
    """One place of a JSON value: another value, another key, without it, or nested deep."""
    data = json.loads(content)
    place = chance.choice(list(paths(data)))
    at, parent = data, None
    for key in place:
        parent, at = at, at[key]
    kind = chance.randrange(5)
    if parent is None:
        return json.dumps(chance.choice(SWAPS)).encode()
    if kind == 0 and isinstance(parent, dict):
        del parent[place[-1]]
    elif kind == 1 and isinstance(parent, dict):
        parent[f"{place[-1]}x"] = parent.pop(place[-1])
    elif kind == 2:
        parent[place[-1]] = "@here@"
        depth = chance.choice([10, 900, 60_000])
        nested = ("[" * depth + "]" * depth).encode()
        return json.dumps(data).encode().replace(b'"@here@"', nested)
    else:
        parent[place[-1]] = chance.choice(SWAPS)
    return json.dumps(data).encode()


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A file with other bytes somewhere."""
    if content[:1] in b"{[" and chance.random() < 0.7:
        return mutated_json(content, chance)
    kind, place = chance.randrange(5), chance.randrange(len(content))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return (
            content[:place] + content[place : place + 40] * chance.choice([2, 50]) + content[place:]
        )
    if kind == 2:
        piece = chance.choice([b"\0", b"\xff\xfe", b"9" * 400, b'"', b"\n", b"-", b"{", b"1e999"])
        return content[:place] + piece + content[place:]
    flipped = bytearray(content)
    # Headers decide more than data: half of the flips are in the first bytes.
    for _ in range(chance.choice([1, 1, 4])):
        limit = len(flipped) if chance.random() < 0.5 else min(len(flipped), 256)
        flipped[chance.randrange(limit)] = chance.randrange(256)
    return bytes(flipped)


@pytest.fixture(scope="module")
def readers() -> list[Reader]:
    torch.manual_seed(0)
    coupling = couple(capture(Convs().eval(), torch.randn(2, 3, 8, 8)))
    stack = Stack().eval()
    graph = capture(stack, torch.randn(2, 3, 16, 16))
    cost = cost_of()
    regions = find_regions(cost)
    tensors = {name: value.clone() for name, value in list(stack.state_dict().items())[:4]}
    group = coupling.free[0]
    plan = {group.name: np.arange(group.width)}
    front = {
        "format": "pruneopt-front", "version": 1, "graph_sha256": "0", "weights_sha256": "0",
        "before": "couple,cost", "after": "", "original": {"flops": 10, "latency@ort-cpu": 10},
        "order": {group.name: list(range(group.width))},
        "points": [
            {"point": 1, "candidate": 3, "origin": "x", "score": 0.5, "widths": {group.name: 1},
             "costs": {"flops": 4, "latency@ort-cpu": 5}},
        ],
    }  # fmt: skip
    times = {
        "format": "pruneopt-latency", "version": 1, "network": "g", "batch": 1, "device": "cpu",
        "threads": 1, "layers": {"a": {"inputs": [1, 2], "outputs": [1, 2],
                         "seconds": [[1, 2], [3, 4]]}},
    }  # fmt: skip
    rounds = {
        "originals": {"ort-cpu": 1.5},
        "rounds": [[vars_of(Delivered("a", 1.0, 1, 1, 1, 1, 1, 1, None))]],
    }
    run = {
        "searched": {
            "model": "zoo:resnet20",
            "seed": 1,
            "weights": "w",
            "input": [1, 3],
            "data": None,
        }
    }

    def write(data: Any) -> Callable[[Path], None]:
        return text(json.dumps(data))

    def text(content: str) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            path.write_text(content)

        return make

    def database(path: Path) -> None:
        path.unlink(missing_ok=True)
        nodes = tuple(
            NodeTime(f"n{i}", "conv", i, 1e-3, ((1, 2), (3,)), 5) for i in range(len(regions))
        )
        with Database(path) as found:
            found.add("t", MACHINE, "net", regions, cost.full, Sample(1.0, nodes))

    def read_database(path: Path) -> None:
        with Database(path, must_exist=True) as found:
            found.summary()
            found.check("t", MACHINE)
            found.measured("t", regions)
            found.others("t", regions[:2])
        merge([path], path.with_name("merged"))

    def archive(path: Path) -> None:
        chance = np.random.default_rng(0)
        np.savez_compressed(path, x=chance.random((40, 4), np.float32), y=np.arange(40) % 4)
        shutil.move(f"{path}.npz", path)

    def read_graph(path: Path) -> None:
        found = parse_graph(path.read_bytes().decode(errors="replace"))
        if sum(value.type.dims != () for value in found.values) < 200:
            try:
                verify_graph(found)
            except IRError:  # how the verifier says what is wrong
                return
            weights = {n: torch.zeros(v.type.shape()) for n, v in found.params.items() if small(v)}
            if weights.keys() == found.params.keys():
                build_module(found, weights)

    def small(value: Any) -> bool:
        return value.type.dtype == "f32" and bool(
            np.prod([float(n) for n in value.type.shape()]) < 1e6
        )

    def images(path: Path) -> None:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(
            path, "PNG"
        )

    def read_images(path: Path) -> None:
        folder = path.with_name("images")
        for kind in ("a", "b"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            for number in range(8):
                shutil.copy(path, folder / kind / f"{number}.png")
        next(load_data(f"folder:{folder}", input_shape=(1, 3, 8, 8)).test.batches(2))

    def read_front(path: Path) -> None:
        found = load_front(path)
        found.plan(1, coupling)
        point = FrontPoint(str(path), 1)
        point.before(), point.finishing_passes(), point.times()

    def save(path: Path) -> None:
        save_plan(path, plan, coupling)

    def save_tensors(path: Path) -> None:
        safetensors.torch.save_file(tensors, path)

    def read_json_graph(path: Path) -> None:
        graph_from_dict(read_record(path, "graph", dict[str, Any]))

    schema = write_schema(coupling)
    tiles = {"format": 1, "for": {}, "tiles": {}}
    return [
        Reader("plan", save, lambda path: load_plan(path, coupling)),
        Reader("plan or pns result", save, lambda path: read_plan(path, coupling)),
        Reader("front", write(front), read_front),
        Reader("run record", write(run), lambda path: read_record(path, "run record", SearchRun)),
        Reader("rounds", write(rounds), lambda path: read_record(path, "rounds", _Rounds)),
        Reader("latency table", write(times), load_table),
        Reader("pns schema", write(schema), lambda path: read_schema(path, coupling)),
        Reader("tuned tiles", write(tiles), lambda path: read_tiles(path, {})),
        Reader("strategies", text("0.5 0.1 0.2\n0.5, 0.3, 0.4\n"), read_strategies),
        Reader("graph text", text(print_graph(graph)), read_graph),
        Reader("graph JSON", write(graph_to_dict(graph)), read_json_graph),
        Reader("database", database, read_database),
        Reader("npz", archive, lambda path: load_data(f"npz:{path}", input_shape=(1, 4))),
        Reader("images", images, read_images),
        Reader(".safetensors", save_tensors, read_weights),
        Reader(".pt", lambda path: torch.save(tensors, path), read_weights),
    ]  # fmt: skip


def vars_of(item: Delivered) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__slots__}


def survey(reader: Reader, folder: Path, count: int) -> Counter[str]:
    """Read mutations of a file; count how they end."""
    suffix = reader.name if reader.name.startswith(".") else ""
    folder.mkdir()
    path = folder / f"file{suffix}"
    reader.make(path)
    reader.read(path)
    content, ends = path.read_bytes(), Counter[str]()
    chance = random.Random(reader.name)
    for _ in range(count):
        path.write_bytes(mutated(content, chance))
        try:
            reader.read(path)
            ends["read"] += 1
        except (UserError, VerificationError) as error:
            said = str(error)
            ends["refused" if said else "said nothing"] += 1
        except BaseException as error:  # counted, and shown with its name
            if isinstance(error, KeyboardInterrupt):
                raise
            ends[f"{type(error).__name__}: {str(error)[:80]}"] += 1
    return ends


ENDS = {"read", "refused"}


def check_all(readers: list[Reader], tmp_path: Path, count: int) -> None:
    table = {
        reader.name: survey(reader, tmp_path / f"r{number}", count)
        for number, reader in enumerate(readers)
    }
    lines = [f"{'reader':20} {'files':>6} {'read':>6} {'refused':>8} other"]
    for name, ends in table.items():
        other = {end: times for end, times in ends.items() if end not in ENDS}
        lines.append(
            f"{name:20} {ends.total():6} {ends['read']:6} {ends['refused']:8} {other or ''}"
        )
    print("\n".join(lines))
    assert all(ends.keys() <= ENDS for ends in table.values()), "\n".join(lines)
    assert all(ends["refused"] > count // 20 for ends in table.values()), "\n".join(lines)


def test_damaged_file_ends_in_one_sentence(readers: list[Reader], tmp_path: Path) -> None:
    check_all(readers, tmp_path, 20)


@pytest.mark.slow
def test_twenty_thousand_damaged_files_end_in_one_sentence(
    readers: list[Reader], tmp_path: Path
) -> None:
    check_all(readers, tmp_path, 1250)
