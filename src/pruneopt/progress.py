"""How long work tells how far it is."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "silent"]


class Progress(Protocol):
    """Told how far a pass is: a line of text, and steps done out of ``total`` (None: unknown)."""

    def __call__(self, text: str, done: int = 0, total: int | None = None) -> None: ...


def silent(text: str, done: int = 0, total: int | None = None) -> None:
    """Show nothing."""
