"""Weights without values are enough for everything but scores."""

import numpy as np
import pytest
import torch
from torch import nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture
from pruneopt.passes.analysis.cost.cost import CostModel
from pruneopt.passes.analysis.cost.units import UNITS
from pruneopt.passes.analysis.couple import couple
from pruneopt.passes.analysis.importance.importance import score_units
from pruneopt.passes.selection.select import select


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(288, 4),
    )


def test_groups_costs_and_plans_need_no_values_and_scores_say_so() -> None:
    x = torch.randn(2, 3, 8, 8)
    with torch.device("meta"):
        empty = network()
    pairs = []
    for module in (empty, network()):
        graph = capture(module, x)
        coupling = couple(graph)
        cost = CostModel(graph, coupling)
        costs = {unit: cost.measure(unit, [[8], [3]]).tolist() for unit in UNITS}
        plan = select({"0": np.arange(8.0)}, coupling, cost, ratio=0.5, scope="local")
        pairs.append(
            ([(g.name, g.width, g.frozen) for g in coupling.groups], costs, plan["0"].tolist())
        )
    assert pairs[0] == pairs[1]
    assert pairs[0][2] == [4, 5, 6, 7]
    graph = capture(empty, x)
    with pytest.raises(UserError, match=r"0\.weight has no values \(device meta\)"):
        score_units(couple(graph), graph.weights, "l1")
