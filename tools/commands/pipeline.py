"""From the options of compile to the passes that run: couple, cost, the chosen one, slice, verify,
and what follows."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from pruneopt.errors import UserError
from pruneopt.passes.front.front_point import FrontPoint
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.registry import pass_class
from pruneopt.passes.pipeline.text import parse_pipeline
from pruneopt.passes.repair.repair import METHODS
from pruneopt.passes.selection.prune import Choose
from pruneopt.passes.transform.recalibrate import Recalibrate
from pruneopt.passes.transform.scratch import Scratch
from pruneopt.passes.transform.stages import Cost

__all__ = ["chosen_pass", "needs_data", "passes_of"]

NEEDED = ("couple", "cost", "slice", "verify")


def passes_of(options: argparse.Namespace) -> list[Pass]:
    """Return the passes to run.

    Raises:
        UserError: no such pass or option, a pipeline without a stage that a result needs, or
            nothing to aim at.
    """
    steps = (
        parse_pipeline(options.pipeline)
        if options.pipeline
        else _standard(options.pass_text, options.repair)
    )
    names = [step.name for step in steps]
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise UserError(f"the pipeline lacks {missing[0]}: write it as couple,cost,l1,slice,verify")
    if options.finetune_epochs:
        steps.append(_pass("finetune", epochs=options.finetune_epochs))
    steps = _with_options(_repaired(steps, options.repair), options)
    chooser = chosen_pass(steps)
    if not (options.budgets or chooser.aims):
        raise UserError("there is nothing to aim at: give a budget, such as --budget 50%FLOPs")
    return steps


def chosen_pass(steps: list[Pass]) -> Choose:
    """Return the pass that decides which channels stay; `UserError` where there is none."""
    found = next((step for step in steps if isinstance(step, Choose)), None)
    if found is None:
        raise UserError(
            "no pass chooses channels: add one such as l1 (`pruneopt passes` lists them)"
        )
    return found


def needs_data(steps: list[Pass]) -> str | None:
    """Return what of the first pass that cannot run without data needs them; None where all can."""
    return next((step.needs_data for step in steps if step.needs_data is not None), None)


def _standard(text: str, repairs: list[str]) -> list[Pass]:
    """Return the pipeline around one pass.

    Layers fitted by least squares belong to the statistics under which they were fitted: the fresh
    ones that a search gives its winner would undo the fit, and are left out.
    """
    given = parse_pipeline(text)
    if len(given) != 1 or not isinstance(given[0], Choose):
        raise UserError(
            f"--pass takes one pass that chooses channels, not '{text}': give several with "
            "--pipeline"
        )
    if repairs and any(isinstance(step, Scratch) for step in given[0].finishing_passes()):
        raise UserError(
            f"{given[0].name} trains its result from new weights, which leaves nothing to repair: "
            "leave --repair out, "
            "or give weights=inherit"
        )
    after = [
        step
        for step in given[0].finishing_passes()
        if not ("lstsq" in repairs and isinstance(step, Recalibrate))
    ]
    before = (
        given[0].before() if isinstance(given[0], FrontPoint) else [_pass("couple"), _pass("cost")]
    )
    return [*before, given[0], _pass("slice"), _pass("verify"), *after]


def _repaired(steps: list[Pass], methods: list[str]) -> list[Pass]:
    """Return the steps with one repair for each method right after the proof, in the order in which
    they can follow."""
    place = [step.name for step in steps].index("verify") + 1
    repairs = [_pass("repair", method=method) for method in METHODS if method in methods]
    return [*steps[:place], *repairs, *steps[place:]]


def _pass(name: str, **values: Any) -> Pass:
    return pass_class(name)(**values)


def _with_options(steps: list[Pass], options: argparse.Namespace) -> list[Pass]:
    """Return the passes with what --round-to, --min-channels and --flops-convention say;
    `UserError` for a pass without."""
    found = []
    for step in steps:
        if isinstance(step, Choose):
            known = {field.name for field in dataclasses.fields(step)}
            least = "min_channels" if "min_channels" in known else "minimum"
            given = {"round_to": options.round_to, least: options.min_channels}
            wanted = {name: value for name, value in given.items() if value is not None}
            for name in wanted.keys() - known:
                flag = "--round-to" if name == "round_to" else "--min-channels"
                raise UserError(
                    f"the pass {step.name} has no {name.replace('_', '-')}: leave {flag} out"
                )
            step = dataclasses.replace(step, **wanted)
        if isinstance(step, Cost) and options.flops_convention != "macs":
            step = dataclasses.replace(step, convention=options.flops_convention)
        found.append(step)
    return found
