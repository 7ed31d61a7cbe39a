"""A network's time as a sum over a table of layers: by hand, by a naive loop, and as budgets in
milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruneopt.errors import BudgetError, UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.channels.naming import freeze_named
from pruneopt.passes.analysis.cost.budget import check_reachable, format_value, parse_budget, within
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.latency_measure import layer_grid, measure_table, table_of
from pruneopt.passes.analysis.cost.latency_table import (
    LatencyTable,
    LayerTimes,
    TimedLayer,
    load_table,
    monotone,
    timed_layers,
)
from pruneopt.passes.analysis.cost.units import UNITS
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.importance.importance import score_units
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.selection.select import select
from pruneopt.passes.transform.stages import Cost, Couple


class Net(nn.Module):
    """Every kind of layer that has times: plain, grouped, depthwise, transposed, linear after a
    flatten, one shared."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 16, 3, padding=1, groups=4, bias=False)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up = nn.ConvTranspose2d(16, 10, 2, stride=2)
        self.hidden = nn.Linear(10 * 64, 20)
        self.tied = nn.Linear(20, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.up(torch.relu(self.depthwise(self.grouped(self.stem(x))))))
        x = torch.relu(self.hidden(x.flatten(1)))
        return self.head(self.tied(torch.relu(self.tied(x))))


@pytest.fixture(scope="module")
def coupling() -> Coupling:
    torch.manual_seed(0)
    return couple(capture(Net().eval(), torch.randn(1, 3, 4, 4)))


def microseconds(layer: TimedLayer, inputs: int, outputs: int) -> float:
    """Linear in the product of the widths (in the width of a depthwise layer), at another rate for
    every layer."""
    rate = 1 + len(layer.name)
    return 1e-6 * (3 + rate * (inputs if layer.depthwise else inputs * outputs))


def timed(coupling: Coupling, timer: Any = microseconds, points: int = 4) -> CostModel:
    table = table_of(CostModel(coupling.graph, coupling), timer, points=points)
    return CostModel(coupling.graph, coupling, latency=table)


def random_widths(cost: CostModel, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(1, cost.full // cost.step + 1, size=(count, len(cost.full))) * cost.step


def plan_of(cost: CostModel, widths: np.ndarray) -> dict[str, np.ndarray]:
    plan = {}
    for name, width in zip(cost.groups, widths, strict=True):
        blocks = cost.coupling.group(name).blocks
        plan[name] = np.sort(
            np.concatenate([block[: int(width) // len(blocks)] for block in blocks])
        )
    return plan


# The sum


def test_layers_and_their_names(coupling: Coupling) -> None:
    layers = timed_layers(coupling.graph)
    assert [layer.name for layer in layers] == [
        "stem",
        "grouped",
        "depthwise",
        "up",
        "hidden",
        "tied",
        "tied#2",
        "head",
    ]
    assert [layer.name for layer in layers if layer.depthwise] == ["depthwise"]


def test_what_is_linear_in_the_product_of_widths_is_summed_exactly(coupling: Coupling) -> None:
    """Against the shapes of networks that are really cut."""
    cost = timed(coupling)
    for widths in random_widths(cost, 12):
        graph = slice_graph(coupling.graph, coupling, plan_of(cost, widths))
        total = 0.0
        for layer, cut in zip(timed_layers(coupling.graph), timed_layers(graph), strict=True):
            channels = [value.type.shape()[axis] for value, axis in (cut.input, cut.output)]
            total += microseconds(layer, *channels)
        assert cost.measure("latency", widths) == pytest.approx(1e9 * total, abs=1)


def test_by_hand() -> None:
    """12 -> 7 -> 5 features, times known at three widths: an entry, and the middle between two."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 7), nn.Linear(7, 5))
    coupling = couple(capture(net, torch.zeros(1, 12)))
    first = LayerTimes(np.array([12]), np.array([1, 3, 7]), np.array([[1.0, 2.0, 6.0]]) / 1e3)
    last = LayerTimes(np.array([1, 3, 7]), np.array([5]), np.array([[1.0], [1.0], [2.0]]) / 1e3)
    table = LatencyTable("net", 1, "cpu", 1, {"0": first, "1": last})
    cost = CostModel(coupling.graph, coupling, latency=table)
    measured = cost.measure("latency", [[1], [3], [5], [7]]) / 1e6
    # At 5: halfway between 2 and 6, and between 1 and 2.
    assert measured.tolist() == [2.0, 3.0, 4.0 + 1.5, 8.0]


def test_against_a_naive_interpolation(coupling: Coupling) -> None:
    """Random times, looked up one by one."""
    rng = np.random.default_rng(3)
    table = table_of(
        CostModel(coupling.graph, coupling),
        lambda layer, x, y: float(rng.random()) + 1e-3,
        points=3,
    )
    cost = CostModel(coupling.graph, coupling, latency=table)
    for widths in random_widths(cost, 8, seed=1):
        total = 0.0
        for layer in timed_layers(coupling.graph):
            times = table.layers[layer.name]
            x, y = (float(cost.length(*axis, widths)) for axis in (layer.input, layer.output))
            rising = np.maximum.accumulate(times.seconds, axis=0)
            if times.outputs is None:
                total += float(np.interp(x, times.inputs, rising))
                continue
            rising = np.maximum.accumulate(rising, axis=1)
            rows = [np.interp(y, times.outputs, row) for row in rising]
            total += float(np.interp(x, times.inputs, rows))
        assert cost.measure("latency", widths) == pytest.approx(1e9 * total, rel=1e-9)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25)
def test_a_wider_network_is_never_faster(seed: int) -> None:
    """Whatever was measured: the searches rely on it."""
    coupling = small()
    rng = np.random.default_rng(seed)
    cost = timed(
        coupling,
        lambda layer, x, y: float(rng.exponential()) + 1e-9,
        points=int(rng.integers(2, 6)),
    )
    narrow, other = random_widths(cost, 2, seed)
    wide = np.maximum(narrow, other)
    assert cost.measure("latency", narrow) <= cost.measure("latency", wide)


@cache
def small() -> Coupling:
    torch.manual_seed(0)
    return couple(capture(Net().eval(), torch.randn(1, 3, 4, 4)))


def test_running_maxima_change_nothing_that_rises() -> None:
    rising = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert (monotone(rising) == rising).all()
    assert monotone(np.array([[1.0, 5.0], [3.0, 4.0]])).tolist() == [[1.0, 5.0], [3.0, 5.0]]


# Budgets


@pytest.mark.parametrize("scope", ["local", "global", "random"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_budget_in_milliseconds_is_met_and_used(
    coupling: Coupling, scope: Any, share: float
) -> None:
    cost = timed(coupling)
    limit = share * float(cost.measure("latency", cost.full))
    budget = parse_budget(f"{limit / 1e6}ms")
    scores = score_units(coupling, coupling.graph.weights, "l1", normalise=True)
    widths = cost.widths(select(scores, coupling, cost, [budget], scope=scope))
    assert cost.measure("latency", widths) <= limit
    for i in range(len(widths)):
        more = widths.copy()
        more[i] += cost.step[i]
        assert more[i] > cost.full[i] or not within([budget], cost, more)


def test_a_share_of_the_latency(coupling: Coupling) -> None:
    cost = timed(coupling)
    assert parse_budget("50%latency").limit(cost) == 0.5 * float(cost.measure("latency", cost.full))


def test_out_of_reach(coupling: Coupling) -> None:
    cost = timed(coupling)
    smallest = float(cost.measure("latency", cost.minimum))
    with pytest.raises(BudgetError, match=r"cannot be made smaller than [0-9.]+ ms") as caught:
        check_reachable([parse_budget("1us")], cost)
    named = str(caught.value).partition("smaller than ")[2].partition(" (")[0]
    check_reachable([parse_budget(named)], cost)
    assert parse_budget(named).value == pytest.approx(smallest, rel=1e-3)


def test_values_read_back() -> None:
    assert format_value("latency", 4.2e6) == "4.2 ms"
    assert parse_budget(format_value("latency", 123456.0)).value == pytest.approx(123456, rel=1e-3)


# Without a table


def test_without_a_table(coupling: Coupling) -> None:
    cost = CostModel(coupling.graph, coupling)
    assert cost.units == UNITS
    with pytest.raises(
        UserError, match=r"needs a latency table .* `pruneopt profile MODEL --out table.json`"
    ):
        within([parse_budget("4ms")], cost, cost.full)
    assert timed(coupling).units == (*UNITS, "latency")


# Files


@pytest.fixture
def stored(coupling: Coupling, tmp_path: Path) -> Path:
    path = tmp_path / "table.json"
    table_of(
        CostModel(coupling.graph, coupling), microseconds, batch=2, device="a board", threads=3
    ).save(path)
    return path


def test_a_table_reads_back(coupling: Coupling, stored: Path) -> None:
    table = load_table(stored)
    assert (table.network, table.batch, table.device, table.threads) == (
        coupling.graph.name,
        2,
        "a board",
        3,
    )
    again = CostModel(coupling.graph, coupling, latency=table)
    rows = random_widths(again, 20)
    assert (again.measure("latency", rows) == timed(coupling).measure("latency", rows)).all()


def test_the_pass_reads_it(coupling: Coupling, stored: Path) -> None:
    state = State(original=coupling.graph, graph=coupling.graph.copy())
    Couple().run(state)
    Cost(latency=str(stored)).run(state)
    assert state.records["cost"].costs["latency"] == float(  # type: ignore[attr-defined]
        timed(coupling).measure("latency", timed(coupling).full)
    )
    Cost().run(state)
    assert "latency" not in state.records["cost"].costs  # type: ignore[attr-defined]


def drop_layer(data: dict[str, Any]) -> None:
    del data["layers"]["head"]


def add_layer(data: dict[str, Any]) -> None:
    data["layers"]["other"] = data["layers"]["head"]


def narrow(data: dict[str, Any]) -> None:
    data["layers"]["stem"] |= {"inputs": [3], "outputs": [12], "seconds": [[1.0]]}


def no_depthwise(data: dict[str, Any]) -> None:
    data["layers"]["depthwise"] = data["layers"]["grouped"]


def descending(data: dict[str, Any]) -> None:
    data["layers"]["stem"]["inputs"] = [3, 2]


def halves(data: dict[str, Any]) -> None:
    data["layers"]["stem"]["inputs"] = [2.5]


def ragged(data: dict[str, Any]) -> None:
    data["layers"]["stem"]["seconds"] = [[1.0], [2.0, 3.0]]


def negative(data: dict[str, Any]) -> None:
    data["layers"]["stem"]["seconds"][0][0] = -1.0


def nameless(data: dict[str, Any]) -> None:
    del data["device"]


def newer(data: dict[str, Any]) -> None:
    data["version"] = 9


def another_file(data: dict[str, Any]) -> None:
    data["format"] = "pruneopt-plan"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_layer, "has no times of head of Net: it is of another network"),
        (add_layer, "names other, which is no layer of Net"),
        (
            narrow,
            r"has times of stem for output widths from 12 to 12, but here they are 4 to 12: .* "
            r"same --ignore",
        ),
        (no_depthwise, "holds another kind of layer depthwise"),
        (descending, "layer stem must hold ascending widths"),
        (halves, "layer stem must hold ascending widths"),
        (ragged, "layer stem must hold ascending widths"),
        (negative, "layer stem must hold 1 x 3 seconds above 0"),
        (nameless, "it does not say its device"),
        (newer, "of version 9; this pruneopt reads version 1"),
        (another_file, 'it lacks "format": "pruneopt-latency"'),
    ],
)
def test_refused_tables(
    coupling: Coupling, stored: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    data = json.loads(stored.read_text(encoding="utf-8"))
    change(data)
    stored.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        CostModel(coupling.graph, coupling, latency=load_table(stored))


def test_refused_files(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"cannot read the latency table .* measure it with `pruneopt profile`"
    ):
        load_table(tmp_path / "none.json")
    (tmp_path / "text").write_text("words", encoding="utf-8")
    with pytest.raises(UserError, match="it is not JSON"):
        load_table(tmp_path / "text")


def test_a_table_serves_a_network_of_which_less_is_free(coupling: Coupling, stored: Path) -> None:
    frozen = freeze_named(coupling, ["hidden"])
    cost = CostModel(frozen.graph, frozen, latency=load_table(stored))
    whole = timed(coupling)
    assert cost.measure("latency", cost.full) == whole.measure("latency", whole.full)


# Measuring


def test_grids_hold_widths_that_layers_can_have(coupling: Coupling) -> None:
    cost = CostModel(coupling.graph, coupling)
    grids = {layer.name: layer_grid(layer, cost, 3) for layer in timed_layers(coupling.graph)}
    assert [grid.tolist() for grid in grids["grouped"] if grid is not None] == [
        [4, 8, 12],
        [4, 8, 16],
    ]
    assert grids["depthwise"][0].tolist() == [4, 8, 16]
    assert grids["depthwise"][1] is None
    # An even step between one and ten channels, 64 values each.
    assert grids["hidden"][0].tolist() == [64, 64 * 5, 640]
    assert [grid.tolist() for grid in grids["head"] if grid is not None] == [[1, 10, 20], [5]]


def test_every_layer_is_measured(coupling: Coupling) -> None:
    cost = CostModel(coupling.graph, coupling)
    table = measure_table(cost, points=2, batch=3, repeats=1, threads=1)
    assert (table.batch, table.threads, table.device) == (3, 1, "cpu")
    assert set(table.layers) == {layer.name for layer in timed_layers(coupling.graph)}
    for times in table.layers.values():
        assert (times.seconds > 0).all()
        assert np.isfinite(times.seconds).all()
    model = CostModel(coupling.graph, coupling, latency=table)
    assert 0 < model.measure("latency", model.minimum) <= model.measure("latency", model.full)


def test_what_is_run_is_the_layer_of_the_cut_network(
    coupling: Coupling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shapes and attributes of the calls that are timed are those that slicing gives."""
    from pruneopt.passes.analysis.cost import latency_measure

    calls: list[tuple[str, list[tuple[int, ...]], object]] = []

    def record(target: str, operands: list[Any], attrs: dict[str, Any]) -> None:
        calls.append(
            (target, [tuple(t.shape) for t in operands if t is not None], attrs.get("groups"))
        )

    monkeypatch.setattr(latency_measure, "call", record)
    cost = CostModel(coupling.graph, coupling)
    measure_table(cost, points=2, batch=2, repeats=1)
    for widths in (cost.minimum, cost.full):
        graph = slice_graph(coupling.graph, coupling, plan_of(cost, widths))
        for layer in timed_layers(graph):
            shapes = [
                value.type.shape(2) if i == 0 else value.type.shape()
                for i, value in enumerate(layer.op.inputs)
            ]
            assert (layer.op.target, shapes, layer.op.attrs.get("groups")) in calls


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 1}, "points=1 must be at least 2"),
        ({"batch": 0}, "batch=0 must be at least 1"),
        ({"repeats": 0}, "repeats=0 must be at least 1"),
        ({"threads": -1}, "threads=-1 must be at least 1"),
    ],
)
def test_refused_options(coupling: Coupling, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure_table(CostModel(coupling.graph, coupling), **options)


def test_networks_that_cannot_be_measured() -> None:
    plain = couple(capture(nn.ReLU(), torch.zeros(1, 3)))
    with pytest.raises(UserError, match="has no convolution and no linear layer"):
        measure_table(CostModel(plain.graph, plain))
    fixed = couple(capture(nn.Linear(3, 4), torch.zeros(5, 3), dynamic_batch=False))
    with pytest.raises(
        UserError, match="was captured at a fixed batch of 5: measure at that batch"
    ):
        measure_table(CostModel(fixed.graph, fixed), batch=2)


@pytest.mark.gpu
def test_on_a_gpu(coupling: Coupling) -> None:
    table = measure_table(CostModel(coupling.graph, coupling), points=2, repeats=3, device="cuda")
    assert all((times.seconds > 0).all() for times in table.layers.values())
