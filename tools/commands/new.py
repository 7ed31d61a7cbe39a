"""``pruneopt new``: a commented model file to start from."""

from __future__ import annotations

import argparse

from pruneopt.errors import UserError
from pruneopt.files import write_text
from pruneopt.models.template import starting_file

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Write the file; `UserError` where one is already there."""
    path = options.path
    if path.suffix != ".py":
        raise UserError(f"{path} must end in .py: other endings are not read as model files")
    if path.exists() and not options.force:
        raise UserError(
            f"{path} exists already: choose another name, or give --force to replace it"
        )
    write_text(path, starting_file())
    print(f"{path} is a small network on scanned digits; put your own in its place. Try it:")
    print(f"  pruneopt inspect {path}")
    print(f"  pruneopt compile {path} --budget 50%FLOPs")
    return 0
