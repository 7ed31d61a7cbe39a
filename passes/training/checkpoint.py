"""The state of a training run in a file: written whole or not at all, and taken up only by the same
run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.files import atomic_path, is_sealed, seal
from pruneopt.manifest import claim
from pruneopt.passes.training.identity import tensors_of
from pruneopt.passes.training.parallel import Processes

__all__ = ["SUFFIX", "Checkpoint", "Keeper", "write_tensors"]

SUFFIX = ".ckpt"
FORMAT = 2
SAVE_SECONDS = 300.0
"""Inside an epoch the state is written when the last writing is this long ago."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file for the state of a run, and what tells this run from others beside what the trainer
    knows itself.

    The trainer compares the recipe, the data, the initial weights, the teacher's weights, which
    weights decay, the kinds of hooks, the seed, the kind of device and the number of processes.
    ``identity`` is any text for the rest, such as the options of the hooks.
    """

    path: Path
    identity: str = ""


def write_tensors(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set parameters and buffers in place."""
    with torch.no_grad():
        for name, tensor in tensors_of(module).items():
            tensor.copy_(values[name])


class Keeper:
    """Reads and writes the checkpoint of one run; process 0 alone touches the file. Without a place
    it does nothing.

    Raises:
        UserError: the folder of the file cannot be made.
    """

    def __init__(
        self, place: Checkpoint | None, identity: Mapping[str, Any], processes: Processes
    ) -> None:
        self._path = None if place is None else place.path
        self._identity = dict(identity) | {"options": "" if place is None else place.identity}
        self._processes = processes
        self._saved = time.monotonic()
        if self._path is not None and processes.rank == 0:
            try:  # now, not after the first epoch
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"cannot make {self._path.parent}: {error.strerror or error}"
                ) from error

    @property
    def active(self) -> bool:
        """Return whether anything is kept."""
        return self._path is not None

    @property
    def due(self) -> bool:
        """Return whether the state has not been written for long."""
        return self.active and time.monotonic() - self._saved >= SAVE_SECONDS

    def save(self, content: Mapping[str, Any]) -> None:
        """Write the state: tensors and plain values.

        Raises:
            UserError: the file cannot be written.
        """
        if self._path is not None and self._processes.rank == 0:
            claim(self._path)
            with atomic_path(self._path) as temporary:
                try:
                    torch.save({"format": FORMAT, "identity": self._identity, **content}, temporary)
                except RuntimeError as error:  # how torch reports a full disk
                    raise OSError(str(error)) from error
                seal(temporary)
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return what `save` wrote last, on the CPU, for all processes; None if nothing was.

        Raises:
            UserError: the file cannot be read, or belongs to another run.
        """
        if self._path is None:
            return None
        found: Any = None
        if self._processes.rank == 0 and self._path.exists():
            try:
                found = self._read(self._path)
            except UserError as error:
                found = str(error)
        found = self._processes.share(found)
        if isinstance(found, str):
            raise UserError(found)
        return found  # type: ignore[no-any-return]

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file fails in many ways
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path} cannot be read: remove it to train anew ({reason})") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise UserError(f"{path} is not a checkpoint of this version: remove it to train anew")
        if not is_sealed(path):
            raise UserError(f"{path} is damaged (its hash differs): remove it to train anew")
        theirs = found["identity"]
        for key in dict.fromkeys([*self._identity, *theirs]):
            old, new = theirs.get(key), self._identity.get(key)
            if old != new:
                raise UserError(
                    f"{path} was left by another training run ({_difference(key, old, new)}): go "
                    "on with the same "
                    "settings, data and weights, or remove it to train anew"
                )
        return found


def _difference(key: str, old: object, new: object) -> str:
    for value in (old, new):
        if not isinstance(value, int | float | str | tuple) or len(str(value)) > 60:
            return f"other {key}"
    return f"{key} {old!r} there, {new!r} here"
