"""The public names of pruneopt: where each lives, and how stable it is.

The fronts `pruneopt` and `pruneopt.extend` load their names from these places on first use. What
stable and provisional promise: docs/stability.md. What is not listed here may change at any time.
tests/public_api.txt records every name with its signature; a change of it belongs in the changelog.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["PROVISIONAL", "STABLE", "lazy", "places"]

STABLE: dict[str, tuple[str, ...]] = {
    "pruneopt": (
        "pruneopt.errors:BudgetError",
        "pruneopt.errors:InternalError",
        "pruneopt.errors:PruneoptError",
        "pruneopt.errors:UserError",
        "pruneopt.errors:VerificationError",
        "pruneopt.ir.capture.capture:capture",
        "pruneopt.ir.codegen.module:build_module",
        "pruneopt.ir.codegen.module:generate_source",
        "pruneopt.ir.export.export:export_onnx",
        "pruneopt.ir.export.export:export_pt2",
        "pruneopt.ir.graph:Graph",
        "pruneopt.ir.text.parser:parse_graph",
        "pruneopt.ir.text.printer:print_graph",
        "pruneopt.passes.manager:PassManager",
        "pruneopt.passes.result:Result",
        "pruneopt.passes.analysis.channels.plan:load_plan",
        "pruneopt.passes.analysis.channels.plan:save_plan",
    ),
    "pruneopt.extend": (
        "pruneopt.passes.analysis.ops.custom_ops:elementwise",
        "pruneopt.passes.analysis.ops.custom_ops:like",
        "pruneopt.passes.analysis.ops.custom_ops:moves",
        "pruneopt.passes.analysis.ops.custom_ops:per_channel",
        "pruneopt.passes.analysis.ops.custom_ops:register_op",
        "pruneopt.passes.options.configured:Part",
        "pruneopt.passes.pipeline.base:Pass",
        "pruneopt.passes.pipeline.state:State",
        "pruneopt.passes.options.configured:option",
        "pruneopt.passes.options.registry:register_part",
        "pruneopt.passes.pipeline.registry:register_pass",
    ),
    "pruneopt.testing": (),
}
"""The names that change only by the deprecation policy, as ``module:name``, by front."""

PROVISIONAL: dict[str, tuple[str, ...]] = {
    "pruneopt": (
        "pruneopt.ir.export.export:run_onnx",
        "pruneopt.models.data:load_data",
        "pruneopt.models.source:LoadedModel",
        "pruneopt.models.source:load_model",
        "pruneopt.models.workload:Workload",
        "pruneopt.passes.analysis.residual.branches:find_branches",
        "pruneopt.passes.selection.semi_structured:to_semi_structured",
        "pruneopt.passes.targets.target:parse_target",
    ),
    "pruneopt.extend": (
        # Graphs
        "pruneopt.ir.graph:Op",
        "pruneopt.ir.graph:Value",
        "pruneopt.ir.interpreter:Interpreter",
        "pruneopt.ir.types:TensorType",
        "pruneopt.ir.verifier:verify_graph",
        # Channels, how they pass through ops, and costs
        "pruneopt.passes.analysis.channels.labels:Labels",
        "pruneopt.passes.analysis.ops.definition:Rule",
        "pruneopt.passes.analysis.channels.groups:Coupling",
        "pruneopt.passes.analysis.channels.groups:Group",
        "pruneopt.passes.analysis.channels.groups:Plan",
        "pruneopt.passes.analysis.channels.units:Slot",
        "pruneopt.passes.analysis.cost.cost:CostModel",
        "pruneopt.passes.analysis.couple:couple",
        "pruneopt.passes.analysis.cost.budget:Budget",
        "pruneopt.passes.analysis.cost.budget:parse_budget",
        "pruneopt.passes.analysis.cost.budget:BudgetUse",
        # Passes, and the stages of the standard pipeline
        "pruneopt.passes.pipeline.instrument:Instrument",
        "pruneopt.progress:Progress",
        "pruneopt.passes.options.spec:parse_part",
        "pruneopt.passes.pipeline.text:parse_pipeline",
        "pruneopt.passes.selection.alignment:RoundTo",
        "pruneopt.passes.selection.prune:Choose",
        "pruneopt.passes.selection.prune:add_budgets",
        "pruneopt.passes.selection.select:keep_best",
        "pruneopt.passes.selection.select:select",
        "pruneopt.passes.selection.set_plan:set_plan",
        "pruneopt.passes.graph_rewrites.slice:slice_graph",
        "pruneopt.passes.graph_rewrites.verify:Verification",
        "pruneopt.passes.graph_rewrites.verify:verify_pruned",
        # Criteria
        "pruneopt.passes.analysis.importance.importance:Criterion",
        "pruneopt.passes.analysis.importance.importance:Given",
        "pruneopt.passes.analysis.importance.importance:Measure",
        "pruneopt.passes.analysis.importance.importance:SlotCriterion",
        "pruneopt.passes.analysis.importance.importance:score_units",
        "pruneopt.passes.analysis.importance.importance:summed",
        # Searchers
        "pruneopt.passes.search.searchers.searcher:AskTell",
        "pruneopt.passes.search.searchers.searcher:Searcher",
        "pruneopt.passes.search.searchers.space:Proposal",
        "pruneopt.passes.search.searchers.space:Space",
        # Evaluators, and what scores plans of your own
        "pruneopt.kernels.bn_statistics:Averaging",
        "pruneopt.passes.evaluation.evaluate:Evaluation",
        "pruneopt.passes.evaluation.evaluate:Score",
        "pruneopt.passes.evaluation.settings:EvaluationSettings",
        "pruneopt.passes.search.evaluators.evaluator:AdaptiveStatistics",
        "pruneopt.passes.search.evaluators.evaluator:Evaluator",
        "pruneopt.passes.search.evaluators.scorer:Scorer",
        "pruneopt.passes.search.evaluators.scorer:StructureScore",
        "pruneopt.passes.search.evaluators.scorer:ScoringContext",
        # Rankings
        "pruneopt.passes.search.rankings.ranking:Measured",
        "pruneopt.passes.search.rankings.ranking:Ranking",
        # Training: regularisers and recipes
        "pruneopt.passes.regularised.regularised:Decision",
        "pruneopt.passes.regularised.regularised:Regularised",
        "pruneopt.passes.regularised.regularised:Regulariser",
        "pruneopt.passes.regularised.regularised:RegulariserHook",
        "pruneopt.passes.regularised.regularised:RegulariserTask",
        "pruneopt.passes.training.hooks:Hook",
        "pruneopt.passes.training.hooks:TrainingRun",
        "pruneopt.passes.training.recipe:AdamW",
        "pruneopt.passes.training.recipe:Recipe",
        "pruneopt.passes.training.recipe:SGD",
        "pruneopt.passes.training.trainer:train",
        # Targets
        "pruneopt.passes.targets.session:Session",
        "pruneopt.passes.targets.target:Calibration",
        "pruneopt.passes.timing.clock:Clock",
        "pruneopt.passes.timing.clock:WallClock",
        "pruneopt.passes.targets.target:Target",
        # Data
        "pruneopt.models.workload:Split",
        "pruneopt.models.workload:TensorSplit",
    ),
    "pruneopt.testing": (
        "pruneopt.testing:IrSnapshot",
        "pruneopt.testing:assert_pruned",
        "pruneopt.testing:assert_same_function",
    ),
}
"""The names that a release may still change, with a line in the changelog."""


def places(front: str) -> dict[str, str]:
    """Return a front's own names and where each lives, ``module:name``."""
    listed = (*STABLE[front], *PROVISIONAL[front])
    return {place.partition(":")[2]: place for place in listed}


def lazy(
    front: str, namespace: dict[str, Any]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a front's ``__getattr__`` and ``__dir__``, which load names on first use: its own, and
    those of `pruneopt`.

    Args:
        front: a module named in `STABLE`.
        namespace: its ``globals()``, where loaded names are kept.
    """
    homes = places("pruneopt") | places(front)

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {front!r} has no attribute {name!r}")
        value = namespace[name] = getattr(import_module(homes[name].partition(":")[0]), name)
        return value

    def listed() -> list[str]:
        return sorted({*namespace, *homes})

    return load, listed
