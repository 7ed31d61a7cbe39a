"""Writing a decided plan into the state of a run, with what it uses of the budgets."""

from __future__ import annotations

from pruneopt.passes.analysis.channels.annotate import write_plan
from pruneopt.passes.analysis.channels.groups import Plan
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.selection.rounding import record_rounding
from pruneopt.passes.selection.select import budget_report

__all__ = ["set_plan", "set_plan_for_budgets"]


def set_plan(state: State, plan: Plan) -> bool:
    """Make a plan that of the state and the graph's header, and return if the header changed.

    Raises:
        UserError: the plan is outside of the limits on widths that the user set.
    """
    state.limits.check(state.need_coupling(), plan)
    before = state.graph.channels
    state.plan = dict(plan)
    write_plan(state.graph, state.plan)
    record_rounding(state)
    return state.graph.channels != before


def set_plan_for_budgets(state: State, plan: Plan, *, filled: bool = True) -> bool:
    """Do `set_plan`, and record what the plan uses of the budgets (`budget_report`)."""
    changed = set_plan(state, plan)
    if state.budgets:
        state.records["budget"] = budget_report(
            state.budgets, state.need_cost(), plan, filled=filled
        )
    return changed
