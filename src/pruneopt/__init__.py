"""pruneopt: a pruning compiler for PyTorch.

A trained network and a budget go in; a smaller network comes out, proved to be the same function
with channels removed. The public names load on first use, so that `import pruneopt` does not start
PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pruneopt.errors import BudgetError, InternalError, PruneoptError, UserError, VerificationError

__all__ = [
    "BudgetError",
    "Graph",
    "InternalError",
    "PassManager",
    "PruneoptError",
    "UserError",
    "VerificationError",
    "__version__",
    "capture",
    "parse_graph",
    "print_graph",
]

__version__ = "0.1.0"

_HOMES = {
    "Graph": "pruneopt.ir.graph",
    "PassManager": "pruneopt.passes.manager",
    "capture": "pruneopt.ir.capture.capture",
    "parse_graph": "pruneopt.ir.text.parser",
    "print_graph": "pruneopt.ir.text.printer",
}

if TYPE_CHECKING:
    from pruneopt.ir.capture.capture import capture
    from pruneopt.ir.graph import Graph
    from pruneopt.ir.text.parser import parse_graph
    from pruneopt.ir.text.printer import print_graph
    from pruneopt.passes.manager import PassManager
else:
    # Hidden from type checkers: to them a module-level __getattr__ makes every misspelt name valid.
    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
