"""The database: what goes in comes out, files merge without doubles, and what is stale or foreign
is refused."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from helpers.latency_fakes import MACHINE, FakeProbe, Stack, cost_of
from torch import nn

from pruneopt.errors import UserError
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.latency.choose import random_widths
from pruneopt.passes.latency.database import Database, merge
from pruneopt.passes.latency.learn import learn
from pruneopt.passes.latency.regions import find_regions
from pruneopt.passes.targets.target import parse_target

TARGET = "ort-cpu{threads=2}"


@pytest.fixture(scope="module")
def cost() -> CostModel:
    return cost_of()


def fill(
    path: Path, cost: CostModel, seed: int, count: int = 6, machine: str = MACHINE
) -> np.ndarray:
    """Measure some networks into a file; their widths."""
    probe, rng = FakeProbe(cost, seed=seed), np.random.default_rng(seed)
    rows = np.array([random_widths(cost, rng) for _ in range(count)])
    with Database(path) as database:
        for row in rows:
            database.add(TARGET, machine, cost.graph.name, probe.regions, row, probe(row))
    return rows


def test_what_goes_in_comes_out(cost: CostModel, tmp_path: Path) -> None:
    probe, row = FakeProbe(cost), random_widths(cost, np.random.default_rng(0))
    sample = probe(row)
    with Database(tmp_path / "a.db") as database:
        database.add(TARGET, MACHINE, "net", probe.regions, row, sample)
    with Database(tmp_path / "a.db") as database:
        found = database.measured(TARGET, probe.regions)
        assert (found.widths == row).all()
        assert found.samples == (sample,)
        assert not database.measured("ort-cpu", probe.regions).samples, "another target"
        assert not database.others(TARGET, probe.regions), "no other network"


def test_networks_with_alike_layers_learn_from_each_other(cost: CostModel, tmp_path: Path) -> None:
    class Other(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(list(self.blocks)[:2])

    fill(tmp_path / "a.db", cost, 0)
    regions = find_regions(cost_of(Other()))
    with Database(tmp_path / "a.db") as database:
        assert not database.measured(TARGET, regions).samples
        others = database.others(TARGET, regions)
    block = next(region for region in regions if region.name == "blocks.0.2")
    lengths, seconds = others[block.key]
    assert lengths.shape == (18, 2), "three blocks of six networks"
    assert seconds.shape == (18,)


def test_merging_keeps_each_measurement_once(cost: CostModel, tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"{name}.db" for name in "abc")
    rows = [fill(a, cost, 0), fill(b, cost, 1)]
    merge([a, b, a], c)
    merge([c, b], c)
    with Database(c) as database:
        found = database.measured(TARGET, find_regions(cost))
        assert (found.widths == np.concatenate(rows)).all()
        ((target, machine, _, networks, ops, _, _),) = database.summary()
    assert (target, machine, networks) == (TARGET, "fake 1.0 on a fake (format 1)", 12)
    assert ops == 12 * len(find_regions(cost))


def test_a_stale_database_is_refused(cost: CostModel, tmp_path: Path) -> None:
    fill(tmp_path / "a.db", cost, 0)
    newer = MACHINE.replace("fake 1.0", "fake 2.0")
    says = (
        r"a.db is stale: its times of ort-cpu\{threads=2\} were measured with fake 1.0 on a "
        r"fake .* here it is fake 2.0"
    )
    with Database(tmp_path / "a.db") as database, pytest.raises(UserError, match=says):
        learn(cost, parse_target(TARGET), database, minutes=0, machine=newer)
    fill(tmp_path / "b.db", cost, 1, machine=newer)
    with pytest.raises(UserError, match="is stale"):
        merge([tmp_path / "a.db", tmp_path / "b.db"], tmp_path / "c.db")
    assert not (tmp_path / "c.db").exists()


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text(
        "not a database at all, but long enough to be read as one" * 50
    )
    with pytest.raises(UserError, match="cannot be used as a latency database"):
        Database(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(UserError, match="is no latency database of pruneopt"):
        Database(tmp_path / "other.db")
    with pytest.raises(
        UserError, match=r"there is no latency database .* `pruneopt latency measure`"
    ):
        Database(tmp_path / "none.db", must_exist=True)
    Database(tmp_path / "old.db").close()
    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.execute("PRAGMA user_version = 999")
    with pytest.raises(
        UserError, match="is of format 999, and this pruneopt reads format 1: measure again"
    ):
        Database(tmp_path / "old.db")


def test_learning_goes_on_where_it_stopped(cost: CostModel, tmp_path: Path) -> None:
    probe = FakeProbe(cost)
    target = parse_target(TARGET)
    fill(tmp_path / "a.db", cost, 0)
    with Database(tmp_path / "a.db") as database:
        learn(cost, target, database, minutes=1e-9, probe=probe, machine=MACHINE)
        assert probe.calls == 1, "what was measured before counts, and one is begun"
        assert len(database.measured(TARGET, probe.regions).samples) == 7
        predictor = learn(cost, target, database, minutes=0, machine=MACHINE)
    assert predictor.seconds(cost.full[None]).shape == (1,)
