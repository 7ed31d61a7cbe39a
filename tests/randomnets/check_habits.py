"""A network with habits is refused with a line, or its result gives what the user's module gives:
at other batch sizes, twice in a row, pickled, and cast."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.ir.codegen.module import build_module
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.graph_rewrites.slice import slice_graph
from pruneopt.passes.graph_rewrites.verify import verify_pruned
from randomnets.base import Dice
from randomnets.check import COUNTS, Failure, awaken, compare, run, stage
from randomnets.habits import Habit
from randomnets.network import Network
from randomnets.plans import make_plan

LINE = re.compile(r"\.py[:\", ]+(line )?\d+")


def check_habits(model: Network, dice: Dice) -> None:
    """Raises `Failure`, which names the habits: WRONG where a result differs without a word."""
    try:
        _check(model, dice)
    except Failure as failure:
        habits = sorted(module.name for module in model.modules() if isinstance(module, Habit))
        where = f"{failure.where} with habits {habits}"
        raise Failure(failure.kind, where, failure.what) from failure


def _check(model: Network, dice: Dice) -> None:
    seed = dice.whole(0, 99)
    awaken(model, seed)
    model.eval()
    inputs = model.examples(2, seed)
    kept = copy.deepcopy(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = capture(model, [x.clone() for x in inputs])
    except UserError as error:
        _same_state(model, kept)
        if not LINE.search(str(error)):
            raise Failure("NO LINE", "capture", str(error)) from error
        COUNTS["networks with habits that are refused"] += 1
        return
    except Exception as error:
        raise Failure("CRASH", "capture", f"{type(error).__name__}: {error}") from error
    _same_state(model, kept)
    COUNTS["networks with habits that are taken"] += 1
    with stage("generate"):
        twin = build_module(graph, graph.weights)
    for batch in (2, 1, 3, 5):
        _in_a_row(twin, kept, [model.examples(batch, seed + row) for row in range(3)], batch)
    again = pickle.loads(pickle.dumps(twin))
    compare(run(again, inputs), run(copy.deepcopy(twin), inputs), "pickled")
    with stage("prune"):
        coupling = couple(graph)
        plan = make_plan(coupling, "random", seed)
        verify_pruned(graph, coupling, plan, slice_graph(graph, coupling, plan), inputs)


def _same_state(model: Network, kept: Network) -> None:
    """The user's module is as it was: tensors, and what its habits have noted."""
    before, after = kept.state_dict(), model.state_dict()
    if before.keys() != after.keys() or any(not torch.equal(before[k], after[k]) for k in before):
        raise Failure("TOUCHED", "capture", "a weight or buffer of the user's module changed")
    for one, other in zip(kept.modules(), model.modules(), strict=True):
        for name in ("calls", "log", "cache", "last", "training"):
            mine, theirs = (vars(item).get(name) for item in (one, other))
            if repr(mine) != repr(theirs):
                raise Failure("TOUCHED", "capture", f"{name} was {mine!r}, is {theirs!r}")


def _in_a_row(
    twin: nn.Module, model: nn.Module, rows: Sequence[tuple[Tensor, ...]], batch: int
) -> None:
    """Both from the beginning, called several times; the result may refuse another batch."""
    mine, theirs = copy.deepcopy(twin), copy.deepcopy(model)
    for inputs in rows:
        try:
            wanted = run(theirs, inputs)
        except Exception:
            COUNTS["batches that a network does not take"] += 1
            return
        try:
            found = run(mine, inputs)
        except (ValueError, RuntimeError):
            if batch == 2:
                raise
            COUNTS["batches that a result refuses"] += 1
            return
        compare(found, wanted, f"habits at a batch of {batch}")
