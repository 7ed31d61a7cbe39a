"""The directory that a run leaves: a finished result, or what the next run goes on from.

A result is written into a folder inside, checked there, and takes its place file by file at the
very end; `Manifest` says which files are ours, and is the journal of that swap. Only a search's
journal, the states of training runs and measured times lie in the directory before that, so that a
killed run can be resumed. The journal and the times stay with the result; the states are there for
as long as the run is unfinished.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import SoftFileLock, Timeout

from pruneopt.errors import UserError
from pruneopt.files import is_sealed, remove_leftovers, sync_folder
from pruneopt.manifest import MANIFEST, Entry, Manifest, Swap, claim
from pruneopt.passes.search.journal import is_journal
from pruneopt.passes.search.search_loop import JOURNAL
from pruneopt.passes.selection.masks import MASKS
from pruneopt.passes.training.checkpoint import SUFFIX

__all__ = [
    "ARTEFACTS",
    "BUNDLE",
    "LATENCY_DB",
    "LATENCY_ROUNDS",
    "PASSES",
    "PIPELINE",
    "OutputDirectory",
    "adding",
    "fingerprint",
    "fingerprints",
    "locked",
]

ARTEFACTS = (
    *("plan.json", "model.py", "weights.safetensors", MASKS, "model.pt2", "model.onnx"),
    *("ir.before.txt", "ir.after.txt"),
)
RECORDS = ("report.json", "report.html", "run.json")
LATENCY_DB, LATENCY_ROUNDS = "latency.db", "latency-round"
"""Times measured for budgets on targets, and how the names of what each round of a compile leaves
begin."""
QUANTISED = tuple(
    f"model.{dtype}.{suffix}" for dtype in ("int8", "fp16") for suffix in ("onnx", "json")
)
"""The files that `pruneopt quantise` adds."""
BUNDLE = (*ARTEFACTS, *RECORDS, "model.onnx.data")
"""The names that a compile writes."""
STATE = (JOURNAL, LATENCY_DB, f"{LATENCY_DB}-journal", f"{LATENCY_ROUNDS}s.json")
NEW, OLD = ".pruneopt-new", ".pruneopt-old"
"""The folders of a result that is being written, and of the one that it replaces."""
PASSES, PIPELINE = "passes", "pipeline"
"""What a run says of its passes: their names, and all of their options."""
LOCK = ".pruneopt-lock"
LOCK_SECONDS = 0.5
"""How long another process may take to let go, or a dead one's lock to be found dead."""


class OutputDirectory:
    """The place of a result, from opening to closing this run's alone.

    Opening it finishes, or takes back, what a killed run was replacing, removes what that left
    over, and checks that the result can go there; nothing that we did not write is touched.

    Args:
        run: what decides the result, in words, for a later ``resume``.
        names: the files that the result may have.

    Raises:
        UserError: another run is at work here, a file of somebody else has the name of one of ours,
            an earlier run is here, or nothing can be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        run: Mapping[str, str] | None = None,
        resume: bool = False,
        force: bool = False,
        names: Collection[str] = BUNDLE,
    ) -> None:
        self.path = path
        self._run, self._resume, self._force, self._names = dict(run or {}), resume, force, names
        self._made: list[Path] = []

    def __enter__(self) -> OutputDirectory:
        path = self.path
        if path.is_symlink() and not path.exists():
            raise UserError(f"--out {path} is a link to nothing: name a directory")
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {path} is a file: name a directory")
        if self._resume and not path.is_dir():
            raise UserError(f"there is nothing to resume: {path} does not exist")
        with _writing(path):
            self._make()
            self._lock = locked(path)
            try:
                self._open()
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _make(self) -> None:
        for folder in (self.path, *self.path.parents):
            if folder.exists():
                break
            self._made.append(folder)
        self.path.mkdir(parents=True, exist_ok=True)
        # Written into later on; better to know now than after hours of searching.
        with tempfile.TemporaryFile(dir=self.path) as file:
            file.write(b"x")

    def _close(self) -> None:
        """Leave the directory to others; one in which nothing was left is as it was before."""
        try:
            manifest = Manifest.read(self.path)
            if manifest is not None and not any(
                (self.path / name).exists() for name in (*manifest.files, *manifest.state)
            ):
                (self.path / MANIFEST).unlink()
        finally:
            self._lock.release()
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:
                return

    # Opening

    def _open(self) -> None:
        remove_leftovers(self.path, ".partial-")
        remove_leftovers(Path(tempfile.gettempdir()), "pruneopt-")
        found = Manifest.read(self.path)
        if found is None and self._resume:
            raise UserError(
                f"there is nothing to resume: {self.path} holds no {JOURNAL} and no state of a "
                f"training that {MANIFEST} lists"
            )
        if found is not None:
            self._recover(found)
        manifest = found or Manifest(self.path)
        self._check_owner(manifest)
        if found is not None and not (self._resume or self._force):
            raise UserError(
                f"--out {self.path} holds an earlier run: --force replaces it{self._hint(found)}"
            )
        if self._resume:
            self._check_same(manifest)
        else:
            self._discard(manifest)
        manifest.run, manifest.finished = self._run, False
        kept = {name for name in manifest.files if _is_state(name)}
        manifest.state |= kept | set(STATE)
        manifest.files = {name: entry for name, entry in manifest.files.items() if name not in kept}
        manifest.write()

    def _recover(self, manifest: Manifest) -> None:
        """Finish what a killed run was replacing, and remove what it was writing."""
        if manifest.swap is not None:
            _finish(manifest)
        for name in (NEW, OLD):
            if name in manifest.state:
                shutil.rmtree(self.path / name, ignore_errors=True)
                manifest.state.discard(name)

    def _check_owner(self, manifest: Manifest) -> None:
        """Refuse a directory where something of somebody else has a name that is needed."""
        names = {*self._names, *STATE, *manifest.files, *manifest.state, NEW, OLD}
        for name in sorted(names):
            path = self.path / name
            if not (path.exists() or path.is_symlink()) or _is_ours(path, name, manifest):
                continue
            raise UserError(
                f"{path} is not what pruneopt wrote there, and stays: move it away, or name "
                "another --out"
            )

    def _discard(self, manifest: Manifest) -> None:
        """Remove the states of an earlier run; measured times stay true."""
        # What lies in a folder goes before the folder.
        for name in sorted({*manifest.files, *manifest.state}, reverse=True):
            if _is_state(name) and name != LATENCY_DB:
                _remove(self.path / name)
                manifest.files.pop(name, None)
                manifest.state.discard(name)

    def _check_same(self, manifest: Manifest) -> None:
        """Refuse to go on with another run, and say how it differs.

        Journals and states know which options of the passes they depend on, so where there is one
        the names of the passes are enough here.
        """
        then, now = manifest.run, self._run
        less = PIPELINE if self._has_state(manifest) else PASSES
        differing = [
            f"{key} {then.get(key, 'none')} there, {now.get(key, 'none')} here"
            for key in dict.fromkeys([*then, *now])
            if key != less and then.get(key) != now.get(key)
        ]
        if differing:
            raise UserError(
                f"{self.path} belongs to another run ({'; '.join(differing)}): go on with the "
                "same options, or --force replaces it"
            )

    def _has_state(self, manifest: Manifest) -> bool:
        """Return whether a journal or the state of a training lies here."""
        return any(
            (self.path / name).exists()
            for name in {*manifest.files, *manifest.state}
            if name.endswith((JOURNAL, SUFFIX))
        )

    def _hint(self, manifest: Manifest) -> str:
        names = [name for name in {*manifest.files, *manifest.state} if (self.path / name).exists()]
        if any(name.endswith(JOURNAL) for name in names):
            return ", --resume continues its search"
        if any(name.endswith(SUFFIX) for name in names):
            return ", --resume continues its training"
        return "" if manifest.finished else ", --resume continues it"

    # Writing

    @property
    def can_resume(self) -> bool:
        """True where something lies here that ``--resume`` goes on from."""
        return self._has_state(_read(self.path))

    @contextmanager
    def replacing(self, *, unfinished: bool = False) -> Iterator[Path]:
        """Give a folder to write the result into; its files take the places of the earlier ones
        when the block ends without error.

        Args:
            unfinished: keep the states of training runs, for --resume.

        Raises:
            UserError: it cannot be written (a full disk, a missing permission), or somebody else
                has put a file of such a name there meanwhile.
        """
        with _writing(self.path):
            manifest = _read(self.path)
            manifest.state |= {NEW, OLD}
            manifest.write()
            new = self.path / NEW
            new.mkdir()
            try:
                yield new
                shutil.rmtree(new / "__pycache__", ignore_errors=True)
                manifest = _read(self.path)
                self._check_owner(manifest)
                self._swap(manifest, unfinished)
            finally:
                self._tidy()

    def _swap(self, manifest: Manifest, unfinished: bool) -> None:
        """Put a written result in its place; the old one is put back if that fails."""
        new = {path.name: Entry.of(path) for path in (self.path / NEW).iterdir()}
        for name in new:
            _sync(self.path / NEW / name)
        sync_folder(self.path / NEW)
        manifest.swap = Swap(new, dict(manifest.files))
        manifest.write()
        try:
            _replace(manifest)
        except BaseException:
            _put_back(manifest)
            raise
        manifest.files, manifest.swap = new, None
        manifest.finished = not unfinished
        self._keep(manifest, unfinished)
        manifest.write()

    def _keep(self, manifest: Manifest, unfinished: bool) -> None:
        """Enter what stays of a run's states beside its result, and remove the rest."""
        for name in sorted(manifest.state - {LATENCY_DB, NEW, OLD}):
            path = self.path / name
            if not unfinished and name.endswith(SUFFIX):
                _remove(path)
            elif path.is_file():
                manifest.files[name] = Entry.of(path)
        manifest.state &= {LATENCY_DB, NEW, OLD}

    def _tidy(self) -> None:
        """Remove the folders of a swap, and their names."""
        for name in (NEW, OLD):
            shutil.rmtree(self.path / name, ignore_errors=True)
        manifest = _read(self.path)
        manifest.state -= {NEW, OLD}
        manifest.write()


def locked(path: Path) -> SoftFileLock:
    """Take the lock of a directory: one run at a time writes there.

    The lock of a process of this host that is dead is taken over.

    Raises:
        UserError: another process has it.
    """
    lock = SoftFileLock(path / LOCK)
    try:
        lock.acquire(timeout=LOCK_SECONDS, poll_interval=0.02)
    except Timeout as error:
        number, host = _holder(path / LOCK)
        raise UserError(
            f"another run is at work in {path}: process {number} on {host} (if there is none, "
            f"remove {path / LOCK})"
        ) from error
    return lock


@contextmanager
def adding(path: Path, names: Collection[str]) -> Iterator[None]:
    """Let files be added to a finished result, or replaced where they are ours, and list them.

    Raises:
        UserError: another run is at work there, or such a file is somebody else's.
    """
    lock = locked(path)
    try:
        for name in names:
            claim(path / name)
        yield
        manifest = _read(path)
        manifest.files |= {name: Entry.of(path / name) for name in names}
        manifest.state -= set(names)
        manifest.write()
    finally:
        lock.release()


def _holder(lock: Path) -> tuple[str, str]:
    """Return the number of the process and the host that a lock names."""
    try:
        number, host, *_ = lock.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return "unknown", socket.gethostname()
    return number, host


def _read(path: Path) -> Manifest:
    return Manifest.read(path) or Manifest(path)


def _is_state(name: str) -> bool:
    """Return whether a name is one of those whose bytes change while a run goes on."""
    return name in STATE or name.endswith((SUFFIX, JOURNAL)) or name.startswith(LATENCY_ROUNDS)


def _is_ours(path: Path, name: str, manifest: Manifest) -> bool:
    """Return whether a file is listed, with these bytes, or with the marks of what its kind
    holds."""
    if name in manifest.files:
        return manifest.files[name].fits(path)
    if name not in manifest.state or path.is_symlink():
        return False
    if name.endswith(SUFFIX):
        return is_sealed(path)
    return not name.endswith(JOURNAL) or is_journal(path)


def _remove(path: Path) -> None:
    """Remove a file, or a folder in which nothing else is left."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        path.rmdir()
    except OSError:
        return


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


# Swapping: each step may be the last one of a killed process, and may be repeated


def _replace(manifest: Manifest) -> None:
    """Move the files of a swap to their places, and those that they replace aside."""
    folder, swap = manifest.folder, manifest.swap
    if swap is None:
        return
    (folder / OLD).mkdir(exist_ok=True)
    for name, entry in swap.old.items():
        if entry.fits(folder / name) and (name not in swap.new or (folder / NEW / name).exists()):
            os.replace(folder / name, folder / OLD / name)
    for name, entry in swap.new.items():
        if (folder / NEW / name).exists():
            if (folder / name).exists():
                raise UserError(f"{folder / name} appeared meanwhile, and stays: move it away")
            os.replace(folder / NEW / name, folder / name)
        elif not entry.fits(folder / name):
            raise UserError(f"{folder / name} was changed while it was put in its place")
    sync_folder(folder)


def _put_back(manifest: Manifest) -> None:
    """Move the files of a swap back to where they came from."""
    folder, swap = manifest.folder, manifest.swap
    if swap is None:
        return
    for name, entry in swap.new.items():
        if not (folder / NEW / name).exists() and entry.fits(folder / name):
            os.replace(folder / name, folder / NEW / name)
    for name in swap.old:
        if (folder / OLD / name).exists() and not (folder / name).exists():
            os.replace(folder / OLD / name, folder / name)
    manifest.swap = None
    manifest.write()


def _finish(manifest: Manifest) -> None:
    """Finish the swap of a killed run, or take it back where that cannot be done."""
    swap = manifest.swap
    try:
        _replace(manifest)
    except (OSError, UserError):
        _put_back(manifest)
        return
    if swap is not None:
        manifest.files, manifest.swap, manifest.finished = dict(swap.new), None, True
        manifest.write()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot write --out {path}: {error.strerror or error}") from error


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return Entry.of(path).sha256


def fingerprints(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every artefact in a folder."""
    names = [name for name in (*ARTEFACTS, "model.onnx.data") if (folder / name).exists()]
    found = {name: Entry.of(folder / name) for name in names}
    return {name: {"sha256": entry.sha256, "bytes": entry.bytes} for name, entry in found.items()}
