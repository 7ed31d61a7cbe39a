"""Measurements in a SQLite file: networks that ran on targets, and every op of them.

What a time depends on stands beside it: the target's text (runtime, threads, batch, precision), the
machine (processor, runtime version and device, format), the network (the digest of its regions),
the widths, and for every op what it does and the shapes that it ran with. Regions are held under
their keys, so that networks which have some in common learn from each other. A file may hold
several targets and networks; for one target it holds one machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from msgspec import Meta, convert
from msgspec.json import decode

from pruneopt.errors import UserError
from pruneopt.files import atomic_path
from pruneopt.passes.latency.machine import FORMAT, describe
from pruneopt.passes.latency.predictor import Measured
from pruneopt.passes.latency.regions import Region
from pruneopt.passes.latency.sample import NodeTime, Sample

__all__ = ["Database", "merge", "network_digest"]

APPLICATION = 0x70726E6C
"""Marks the file as ours (``prnl``)."""
SCHEMA = """
CREATE TABLE network (
    id INTEGER PRIMARY KEY, target TEXT NOT NULL, machine TEXT NOT NULL, digest TEXT NOT NULL,
    name TEXT NOT NULL, widths TEXT NOT NULL, seconds REAL NOT NULL
);
CREATE INDEX network_by_target ON network (target, digest);
CREATE TABLE op (
    network INTEGER NOT NULL REFERENCES network (id), place INTEGER NOT NULL, name TEXT NOT NULL,
    kind TEXT NOT NULL, region INTEGER NOT NULL, shapes TEXT NOT NULL, seconds REAL NOT NULL,
    moved INTEGER NOT NULL,
    PRIMARY KEY (network, place)
) WITHOUT ROWID;
CREATE TABLE key (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE region (
    network INTEGER NOT NULL REFERENCES network (id), number INTEGER NOT NULL,
    key INTEGER NOT NULL REFERENCES key (id), lengths TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (network, number)
) WITHOUT ROWID;
CREATE INDEX region_by_key ON region (key);
"""


Seconds = Annotated[float, Meta(ge=0)]
Size = Annotated[int, Meta(ge=0, lt=2**48)]
T = TypeVar("T")


class NetworkSummary(NamedTuple):
    """A network on a target: how many sub-networks and ops of it were measured, and the seconds of
    the fastest and the slowest."""

    target: str
    machine: str
    """In words."""
    network: str
    networks: int
    ops: int
    fastest: float
    slowest: float


def network_digest(regions: Sequence[Region]) -> str:
    """Digest what tells networks apart: the keys of their regions and how these depend on the
    widths."""
    digest = hashlib.sha256()
    for region in regions:
        digest.update(region.key.encode() + np.round(region.forms, 9).tobytes() + b"\0")
    return digest.hexdigest()[:16]


class Database:
    """A file of measurements; use it as a context manager. It is made when it is not there."""

    def __init__(self, path: str | os.PathLike[str], *, must_exist: bool = False) -> None:
        """Open a database; `UserError` for a file that is not there, is no database of times, or is
        of another format."""
        self.path = Path(path)
        if must_exist and not self.path.exists():
            raise UserError(
                f"there is no latency database {self.path}: measure one with `pruneopt latency "
                "measure`"
            )
        try:
            self._connection = sqlite3.connect(self.path)
            self._open()
        except sqlite3.Error as error:
            raise UserError(f"{self.path} cannot be used as a latency database: {error}") from error

    def _open(self) -> None:
        application = self._one("PRAGMA application_id")
        if application == 0 and not self._one("SELECT count(*) FROM sqlite_master"):
            with self._connection:
                self._connection.executescript(
                    f"{SCHEMA} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = "
                    f"{FORMAT};"
                )
        elif application != APPLICATION:
            raise UserError(f"{self.path} is no latency database of pruneopt: name another file")
        elif self._one("PRAGMA user_version") != FORMAT:
            raise UserError(
                f"the latency database {self.path} is of format "
                f"{self._one('PRAGMA user_version')}, and this pruneopt "
                f"reads format {FORMAT}: measure again into a new file"
            )

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _one(self, query: str, *values: Any) -> Any:
        row = self._connection.execute(query, values).fetchone()
        return None if row is None else row[0]

    # Writing

    def add(
        self,
        target: str,
        machine: str,
        name: str,
        regions: Sequence[Region],
        widths: np.ndarray,
        sample: Sample,
    ) -> None:
        """Add one measured network; whole or not at all."""
        times = sample.by_region(len(regions))
        with self._connection as connection:
            row = (
                target,
                machine,
                network_digest(regions),
                name,
                json.dumps(np.asarray(widths).tolist()),
                sample.seconds,
            )
            number = connection.execute(
                "INSERT INTO network (target, machine, digest, name, widths, seconds) VALUES (?, "
                "?, ?, ?, ?, ?)",
                row,
            ).lastrowid
            connection.executemany(
                "INSERT INTO op VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        number,
                        place,
                        n.name,
                        n.kind,
                        n.region,
                        json.dumps(n.shapes),
                        n.seconds,
                        n.moved,
                    )
                    for place, n in enumerate(sample.nodes)
                ],
            )
            if not sample.nodes:
                return
            for place, region in enumerate(regions):
                connection.execute("INSERT OR IGNORE INTO key (text) VALUES (?)", (region.key,))
                lengths = json.dumps(region.lengths(np.asarray(widths)[None])[0].tolist())
                connection.execute(
                    "INSERT INTO region SELECT ?, ?, id, ?, ? FROM key WHERE text = ?",
                    (number, place, lengths, float(times[place]), region.key),
                )

    # Reading

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what a damaged file raises in a block into a `UserError`."""
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(
                f"the latency database {self.path} is damaged: measure again into a new file "
                f"({error})"
            ) from error

    def _rows(self, kind: type[T], query: str, *values: Any) -> list[T]:
        """Return the rows of a query, each of the types that it must have."""
        with self._reading():
            return convert(self._connection.execute(query, values).fetchall(), list[kind])  # type: ignore[valid-type]

    def check(self, target: str, machine: str) -> None:
        """Raise `UserError` where the file holds times of a target from another machine or
        version."""
        query = "SELECT DISTINCT machine FROM network WHERE target = ?"
        for (other,) in self._rows(tuple[str], query, target):
            if other != machine:
                raise UserError(
                    f"the latency database {self.path} is stale: its times of {target} were "
                    "measured with "
                    f"{describe(other)}, and here it is {describe(machine)}; measure again into a "
                    "new file"
                )

    def measured(self, target: str, regions: Sequence[Region]) -> Measured:
        """Return what is known of a network on a target, in the order in which it was measured."""
        rows = self._rows(
            tuple[int, str, Seconds],
            "SELECT id, widths, seconds FROM network WHERE target = ? AND digest = ? ORDER BY id",
            target,
            network_digest(regions),
        )
        samples = tuple(Sample(seconds, tuple(self._nodes(number))) for number, _, seconds in rows)
        with self._reading():
            widths = np.array([decode(text, type=list[Size]) for _, text, _ in rows], np.int64)
            return Measured(widths.reshape(len(rows), regions[0].forms.shape[1] - 1), samples)

    def _nodes(self, network: int) -> Iterator[NodeTime]:
        query = (
            "SELECT name, kind, region, seconds, shapes, moved FROM op WHERE network = ? "
            "ORDER "
            "BY place"
        )
        for name, kind, region, seconds, shapes, moved in self._rows(
            tuple[str, str, int, Seconds, str, int], query, network
        ):
            with self._reading():
                found = decode(shapes, type=tuple[tuple[Size, ...], ...])
            yield NodeTime(name, kind, region, seconds, found, moved)

    def others(
        self, target: str, regions: Sequence[Region]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return times of regions with the same keys in other networks on a target: key -> lengths
        `[N, V]`, seconds `[N]`."""
        digest = network_digest(regions)
        found = {}
        for key in {region.key for region in regions}:
            rows = self._rows(
                tuple[str, Seconds],
                "SELECT region.lengths, region.seconds FROM region JOIN network ON network.id = "
                "region.network "
                "JOIN key ON key.id = region.key WHERE key.text = ? AND target = ? AND digest != ?",
                key,
                target,
                digest,
            )
            if not rows:
                continue
            with self._reading():
                lengths = np.array([decode(text, type=list[float]) for text, _ in rows])
            found[key] = lengths, np.array([time for _, time in rows])
        return found

    def summary(self) -> list[NetworkSummary]:
        """Return what is known of each network on each target."""
        rows = self._rows(
            tuple[str, str, str, int, Seconds, Seconds, str],
            "SELECT target, machine, name, count(*), min(seconds), max(seconds), digest FROM "
            "network "
            "GROUP BY target, machine, digest ORDER BY min(id)",
        )
        found = []
        for target, machine, name, count, low, high, digest in rows:
            ((ops,),) = self._rows(
                tuple[int],
                "SELECT count(*) FROM op JOIN network ON network.id = op.network WHERE target = ? "
                "AND digest = ?",
                target,
                digest,
            )
            machine = describe(machine)
            found.append(NetworkSummary(target, machine, name, count, ops, low, high))
        return found

    def _copy_into(self, other: Database) -> None:
        """Add everything to another file that it does not hold yet."""
        with self._reading(), other._connection as connection:
            for number, *row in self._connection.execute(
                "SELECT * FROM network ORDER BY id"
            ).fetchall():
                other.check(row[0], row[1])
                same = (
                    "target = ? AND machine = ? AND digest = ? AND name = ? AND widths = ? AND "
                    "seconds = ?"
                )
                if connection.execute(f"SELECT 1 FROM network WHERE {same}", row).fetchone():
                    continue
                values = (
                    "INSERT INTO network (target, machine, digest, name, widths, seconds) "
                    "VALUES (?, ?, ?, ?, ?, ?)"
                )
                new = connection.execute(values, row).lastrowid
                for _, *op in self._connection.execute(
                    "SELECT * FROM op WHERE network = ?", (number,)
                ).fetchall():
                    connection.execute("INSERT INTO op VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (new, *op))
                query = (
                    "SELECT number, text, lengths, seconds FROM region JOIN key ON key.id = "
                    "key WHERE network = ?"
                )
                for place, text, lengths, seconds in self._connection.execute(
                    query, (number,)
                ).fetchall():
                    connection.execute("INSERT OR IGNORE INTO key (text) VALUES (?)", (text,))
                    region = "INSERT INTO region SELECT ?, ?, id, ?, ? FROM key WHERE text = ?"
                    connection.execute(region, (new, place, lengths, seconds, text))


def merge(sources: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> None:
    """Write one database with what several hold, each measurement once; the file appears when it is
    whole.

    Raises:
        UserError: a source that is no database, or sources with times of one target from different
            machines.
    """
    with atomic_path(Path(out)) as path:
        path.unlink(missing_ok=True)
        with Database(path) as whole:
            for source in sources:
                with Database(source, must_exist=True) as part:
                    part._copy_into(whole)
