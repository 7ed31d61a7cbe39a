"""All that a pass, a part, or a rule for an op of your own is made of; see docs/add-a-method.md.

The names of `pruneopt` are here too. All load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pruneopt.public_api import lazy, places

__all__ = [*places("pruneopt"), *places(__name__)]

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
    from pruneopt.ir.graph import Op as Op
    from pruneopt.ir.graph import Value as Value
    from pruneopt.ir.interpreter import Interpreter as Interpreter
    from pruneopt.ir.text.parser import parse_graph as parse_graph
    from pruneopt.ir.text.printer import print_graph as print_graph
    from pruneopt.ir.types import TensorType as TensorType
    from pruneopt.ir.verifier import verify_graph as verify_graph
    from pruneopt.kernels.bn_statistics import Averaging as Averaging
    from pruneopt.models.data import load_data as load_data
    from pruneopt.models.source import LoadedModel as LoadedModel
    from pruneopt.models.source import load_model as load_model
    from pruneopt.models.workload import Split as Split
    from pruneopt.models.workload import TensorSplit as TensorSplit
    from pruneopt.models.workload import Workload as Workload
    from pruneopt.passes.analysis.channels.groups import Coupling as Coupling
    from pruneopt.passes.analysis.channels.groups import Group as Group
    from pruneopt.passes.analysis.channels.groups import Plan as Plan
    from pruneopt.passes.analysis.channels.labels import Labels as Labels
    from pruneopt.passes.analysis.channels.plan import load_plan as load_plan
    from pruneopt.passes.analysis.channels.plan import save_plan as save_plan
    from pruneopt.passes.analysis.channels.units import Slot as Slot
    from pruneopt.passes.analysis.cost.budget import Budget as Budget
    from pruneopt.passes.analysis.cost.budget import BudgetUse as BudgetUse
    from pruneopt.passes.analysis.cost.budget import parse_budget as parse_budget
    from pruneopt.passes.analysis.cost.cost import CostModel as CostModel
    from pruneopt.passes.analysis.couple import couple as couple
    from pruneopt.passes.analysis.importance.importance import Criterion as Criterion
    from pruneopt.passes.analysis.importance.importance import Given as Given
    from pruneopt.passes.analysis.importance.importance import Measure as Measure
    from pruneopt.passes.analysis.importance.importance import SlotCriterion as SlotCriterion
    from pruneopt.passes.analysis.importance.importance import score_units as score_units
    from pruneopt.passes.analysis.importance.importance import summed as summed
    from pruneopt.passes.analysis.ops.custom_ops import elementwise as elementwise
    from pruneopt.passes.analysis.ops.custom_ops import like as like
    from pruneopt.passes.analysis.ops.custom_ops import moves as moves
    from pruneopt.passes.analysis.ops.custom_ops import per_channel as per_channel
    from pruneopt.passes.analysis.ops.custom_ops import register_op as register_op
    from pruneopt.passes.analysis.ops.definition import Rule as Rule
    from pruneopt.passes.analysis.residual.branches import find_branches as find_branches
    from pruneopt.passes.evaluation.evaluate import Evaluation as Evaluation
    from pruneopt.passes.evaluation.evaluate import Score as Score
    from pruneopt.passes.evaluation.settings import EvaluationSettings as EvaluationSettings
    from pruneopt.passes.graph_rewrites.slice import slice_graph as slice_graph
    from pruneopt.passes.graph_rewrites.verify import Verification as Verification
    from pruneopt.passes.graph_rewrites.verify import verify_pruned as verify_pruned
    from pruneopt.passes.manager import PassManager as PassManager
    from pruneopt.passes.options.configured import Part as Part
    from pruneopt.passes.options.configured import option as option
    from pruneopt.passes.options.registry import register_part as register_part
    from pruneopt.passes.options.spec import parse_part as parse_part
    from pruneopt.passes.pipeline.base import Pass as Pass
    from pruneopt.passes.pipeline.instrument import Instrument as Instrument
    from pruneopt.passes.pipeline.registry import register_pass as register_pass
    from pruneopt.passes.pipeline.state import State as State
    from pruneopt.passes.pipeline.text import parse_pipeline as parse_pipeline
    from pruneopt.passes.regularised.regularised import Decision as Decision
    from pruneopt.passes.regularised.regularised import Regularised as Regularised
    from pruneopt.passes.regularised.regularised import Regulariser as Regulariser
    from pruneopt.passes.regularised.regularised import RegulariserHook as RegulariserHook
    from pruneopt.passes.regularised.regularised import RegulariserTask as RegulariserTask
    from pruneopt.passes.result import Result as Result
    from pruneopt.passes.search.evaluators.evaluator import AdaptiveStatistics as AdaptiveStatistics
    from pruneopt.passes.search.evaluators.evaluator import Evaluator as Evaluator
    from pruneopt.passes.search.evaluators.scorer import Scorer as Scorer
    from pruneopt.passes.search.evaluators.scorer import ScoringContext as ScoringContext
    from pruneopt.passes.search.evaluators.scorer import StructureScore as StructureScore
    from pruneopt.passes.search.rankings.ranking import Measured as Measured
    from pruneopt.passes.search.rankings.ranking import Ranking as Ranking
    from pruneopt.passes.search.searchers.searcher import AskTell as AskTell
    from pruneopt.passes.search.searchers.searcher import Searcher as Searcher
    from pruneopt.passes.search.searchers.space import Proposal as Proposal
    from pruneopt.passes.search.searchers.space import Space as Space
    from pruneopt.passes.selection.alignment import RoundTo as RoundTo
    from pruneopt.passes.selection.prune import Choose as Choose
    from pruneopt.passes.selection.prune import add_budgets as add_budgets
    from pruneopt.passes.selection.select import keep_best as keep_best
    from pruneopt.passes.selection.select import select as select
    from pruneopt.passes.selection.semi_structured import to_semi_structured as to_semi_structured
    from pruneopt.passes.selection.set_plan import set_plan as set_plan
    from pruneopt.passes.targets.session import Session as Session
    from pruneopt.passes.targets.target import Calibration as Calibration
    from pruneopt.passes.targets.target import Target as Target
    from pruneopt.passes.targets.target import parse_target as parse_target
    from pruneopt.passes.timing.clock import Clock as Clock
    from pruneopt.passes.timing.clock import WallClock as WallClock
    from pruneopt.passes.training.hooks import Hook as Hook
    from pruneopt.passes.training.hooks import TrainingRun as TrainingRun
    from pruneopt.passes.training.recipe import SGD as SGD
    from pruneopt.passes.training.recipe import AdamW as AdamW
    from pruneopt.passes.training.recipe import Recipe as Recipe
    from pruneopt.passes.training.trainer import train as train
    from pruneopt.progress import Progress as Progress
else:
    __getattr__, __dir__ = lazy(__name__, globals())
