"""Digests by which what was left on the disk is known again: of values, of tensors, of files."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["digest", "file_digest", "source_digest", "weights_digest"]


def digest(value: object) -> str:
    """Return the SHA-256 of a value as sorted JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors by name: names, types, shapes and content."""
    import torch

    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_digest(path: str | Path) -> str:
    """Return the SHA-256 of what Python source says: blank lines and comments have no part in it;
    of what is no source, that of its bytes."""
    content = Path(path).read_bytes()
    with suppress(SyntaxError, ValueError):
        content = ast.dump(ast.parse(content)).encode()
    return hashlib.sha256(content).hexdigest()
