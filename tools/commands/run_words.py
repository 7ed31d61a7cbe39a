"""Words for what decides the result of a run: ``--resume`` goes on with the same run only."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pruneopt.passes.options.spec import pass_text
from pruneopt.passes.pipeline.base import Pass
from pruneopt.tools.bundle.bundle import PASSES, PIPELINE

__all__ = ["run_words"]

DECIDING = ("input", "data", "seed", "flops_convention", "budgets")
LIMITS = ("ignore", "width", "max_ratio", "tie")


def run_words(options: argparse.Namespace, network: str, steps: Sequence[Pass]) -> dict[str, str]:
    """Return what decides a result, by name; what is not given has no entry.

    The content of files is not among it: journals and states of training runs know the graph, the
    weights and the data.
    """
    found = {
        "network": network,
        PASSES: ", ".join(step.name for step in steps),
        PIPELINE: ",".join(map(pass_text, steps)),
        "device": options.device.partition(":")[0],
    }
    for name in (*DECIDING, *LIMITS):
        value = getattr(options, name)
        if value is not None and value != []:
            many = isinstance(value, list | tuple)
            found[name] = " ".join(map(str, value)) if many else str(value)
    return found
