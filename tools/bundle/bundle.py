"""The directory that a compile leaves: complete, or not there at all.

Everything is written into a directory beside it, checked there, and takes the place of ``--out`` at
the very end. Only a search's journal and the states of training runs live in ``--out`` before that,
so that a killed run can be resumed. The journal stays with the bundle; the states are there for as
long as the run is unfinished.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pruneopt.errors import UserError
from pruneopt.passes.search.search_loop import JOURNAL
from pruneopt.passes.selection.masks import MASKS
from pruneopt.passes.training.checkpoint import SUFFIX

__all__ = [
    "ARTEFACTS",
    "LATENCY_DB",
    "LATENCY_ROUNDS",
    "OutputDirectory",
    "fingerprint",
    "fingerprints",
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
OWN = {*ARTEFACTS, *RECORDS, *QUANTISED, JOURNAL, LATENCY_DB, "model.onnx.data", "__pycache__"}
"""The names that may lie in a directory that --force replaces, beside the states of training
runs."""
PARTIAL = ".partial-"
"""The beginning of the name of a folder that was being written when its process was killed."""


class OutputDirectory:
    """The place of a bundle. Making one checks that it can go there, and changes nothing else.

    ``own``: names that may lie there already, and are replaced.

    Raises:
        UserError: the place is taken, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        resume: bool = False,
        force: bool = False,
        own: Collection[str] = frozenset(OWN),
    ) -> None:
        self.path, self.own = path, own
        self._made: list[Path] = []
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise UserError(f"--out {path} is a file or a link: name a directory")
        with _writing(path):
            self._check_content(resume, force)
            for folder in (path, *path.parents):
                if folder.exists():
                    break
                self._made.append(folder)
            path.mkdir(parents=True, exist_ok=True)
            # Written beside and inside later on; better to know now than after hours of searching.
            for folder in (path.parent, path):
                with tempfile.TemporaryFile(dir=folder) as file:
                    file.write(b"x")
            for entry in path.iterdir():
                if entry.name.startswith(PARTIAL):
                    shutil.rmtree(entry, ignore_errors=True)
                elif force and (_resumes(entry.name) or entry.name.startswith(LATENCY_ROUNDS)):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _check_content(self, resume: bool, force: bool) -> None:
        if not self.path.is_dir():
            if resume:
                raise UserError(f"there is nothing to resume: {self.path} does not exist")
            return
        names = sorted(entry.name for entry in self.path.iterdir())
        if resume and not any(map(_resumes, names)):
            raise UserError(
                f"there is nothing to resume: {self.path} holds no {JOURNAL} and no state of a "
                "training"
            )
        if not names or resume:
            return
        known = (PARTIAL, LATENCY_ROUNDS)
        foreign = [
            name
            for name in names
            if not (name in self.own or _resumes(name) or name.startswith(known))
        ]
        if foreign:
            raise UserError(
                f"--out {self.path} holds files of others, such as {foreign[0]}: name another "
                "directory"
            )
        if not force:
            what = "search" if JOURNAL in names else "training"
            hint = "--force replaces it" + (
                f", --resume continues its {what}" if any(map(_resumes, names)) else ""
            )
            raise UserError(f"--out {self.path} holds an earlier run: {hint}")

    @property
    def can_resume(self) -> bool:
        """True where something lies here that ``--resume`` goes on from."""
        return self.path.is_dir() and any(_resumes(entry.name) for entry in self.path.iterdir())

    def discard_if_empty(self) -> None:
        """Remove the directories that were made here and hold nothing (a run that failed before it
        wrote)."""
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:
                return

    @contextmanager
    def replacing(self, *, unfinished: bool = False) -> Iterator[Path]:
        """Give a directory to write the bundle into; it takes the place of ``--out`` when the block
        ends without error.

        Args:
            unfinished: keep the states of training runs, for --resume.

        Raises:
            UserError: it cannot be written (a full disk, a missing permission).
        """
        with _writing(self.path):
            partial = Path(
                tempfile.mkdtemp(prefix=f".{self.path.name}.partial-", dir=self.path.parent)
            )
            try:
                yield partial
                for entry in self.path.iterdir():
                    if entry.name in (JOURNAL, LATENCY_DB) or (unfinished and _resumes(entry.name)):
                        shutil.copy2(entry, partial / entry.name)
                    elif entry.name.startswith(LATENCY_ROUNDS):
                        copy = shutil.copytree if entry.is_dir() else shutil.copy2
                        copy(entry, partial / entry.name)
                shutil.rmtree(partial / "__pycache__", ignore_errors=True)
                partial.chmod(self.path.stat().st_mode & 0o777)
                self._swap(partial)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def _swap(self, partial: Path) -> None:
        """Put a finished directory in the place of the old one, which is put back if that fails."""
        old = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.old-", dir=self.path.parent))
        try:
            os.replace(self.path, old)
            try:
                os.replace(partial, self.path)
            except OSError:
                os.replace(old, self.path)
                raise
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _resumes(name: str) -> bool:
    """Return whether a file of this name is something that --resume goes on from."""
    return name == JOURNAL or name.endswith(SUFFIX)


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
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprints(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every artefact in a folder."""
    names = [name for name in (*ARTEFACTS, "model.onnx.data") if (folder / name).exists()]
    return {
        name: {"sha256": fingerprint(folder / name), "bytes": (folder / name).stat().st_size}
        for name in names
    }
