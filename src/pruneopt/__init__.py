"""pruneopt: a pruning compiler for PyTorch.

A trained network and a budget go in; a smaller network comes out, proved to be the same function
with channels removed. The public names load on first use, so that `import pruneopt` does not start
PyTorch. What a pass, a part or an op of your own needs is in `pruneopt.extend`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pruneopt.public_api import lazy, places

__version__ = "0.1.0"
__all__ = ["__version__", *places(__name__)]

if TYPE_CHECKING:
    from pruneopt.errors import BudgetError as BudgetError
    from pruneopt.errors import InternalError as InternalError
    from pruneopt.errors import PruneoptError as PruneoptError
    from pruneopt.errors import UserError as UserError
    from pruneopt.errors import VerificationError as VerificationError
    from pruneopt.ir.capture.capture import capture as capture
    from pruneopt.ir.codegen.module import build_module as build_module
    from pruneopt.ir.codegen.module import generate_source as generate_source
    from pruneopt.ir.export.export import export_onnx as export_onnx
    from pruneopt.ir.export.export import export_pt2 as export_pt2
    from pruneopt.ir.export.export import run_onnx as run_onnx
    from pruneopt.ir.graph import Graph as Graph
    from pruneopt.ir.text.parser import parse_graph as parse_graph
    from pruneopt.ir.text.printer import print_graph as print_graph
    from pruneopt.models.data import load_data as load_data
    from pruneopt.models.source import LoadedModel as LoadedModel
    from pruneopt.models.source import load_model as load_model
    from pruneopt.models.workload import Workload as Workload
    from pruneopt.passes.analysis.channels.plan import load_plan as load_plan
    from pruneopt.passes.analysis.channels.plan import save_plan as save_plan
    from pruneopt.passes.analysis.residual.branches import find_branches as find_branches
    from pruneopt.passes.manager import PassManager as PassManager
    from pruneopt.passes.result import Result as Result
    from pruneopt.passes.selection.semi_structured import to_semi_structured as to_semi_structured
    from pruneopt.passes.targets.target import parse_target as parse_target
else:
    # Hidden from type checkers: to them a module-level __getattr__ makes every misspelt name valid.
    __getattr__, __dir__ = lazy(__name__, globals())
