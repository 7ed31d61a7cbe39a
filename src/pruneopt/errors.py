"""The errors pruneopt raises: what the user did, and what we broke.

A `UserError` carries one clear sentence: what is wrong, where in the user's file, what to do. The
command line prints it without a traceback and exits with `exit_code`. An `InternalError` is ours: a
broken invariant, please report it.
"""

from __future__ import annotations

__all__ = ["BudgetError", "InternalError", "PruneoptError", "UserError", "VerificationError"]


class PruneoptError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UserError(PruneoptError):
    """Bad input: the message is one sentence that says what, where and what to do."""

    exit_code = 2


class BudgetError(UserError):
    """A budget below what the constraints allow; the message names the smallest reachable value."""

    exit_code = 3


class VerificationError(PruneoptError):
    """A transformed network is not the original with channels removed; nothing is delivered."""


class InternalError(PruneoptError):
    """A broken invariant of pruneopt itself."""
