"""Networks that are cut at named channels, with data but without labels worth anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from helpers.states import coupled
from helpers.workloads import workload_of
from torch import Tensor, nn

from pruneopt.ir.capture.capture import capture
from pruneopt.passes.analysis.channels.groups import Coupling
from pruneopt.passes.analysis.cost.budget import parse_budget
from pruneopt.passes.analysis.ops.layers import layer_weight
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.transform.stages import Slice

CutState = Callable[..., State]


def plan_without(coupling: Coupling, removed: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """The plan that removes output channels of layers, by the layers' names."""
    plan = {group.name: np.arange(group.width) for group in coupling.free}
    for name, channels in removed.items():
        weight = coupling.graph.params[f"{name}.weight"]
        layer = layer_weight(weight.users[0])
        assert layer is not None
        (slot,) = (slot for slot in coupling.slots_of(weight) if layer.makes(slot.axes))
        for unit in slot.units.reshape(-1)[list(channels)]:
            group, rank = coupling.groups[coupling.unit_group[unit]], coupling.unit_rank[unit]
            plan[group.name] = plan[group.name][plan[group.name] != rank]
    return plan


@pytest.fixture
def cut_state() -> CutState:
    """``cut_state(module, images, {"conv1": [0, 3]})``: the state after slice, with the images as
    every split."""

    def make(
        module: nn.Module,
        images: Tensor,
        removed: Mapping[str, Sequence[int]],
        *,
        targets: Tensor | None = None,
        budgets: Sequence[str] = (),
    ) -> State:
        graph = capture(module.eval(), (images[:2],))
        state = coupled(
            graph,
            workload_of(images, targets),
            budgets=[parse_budget(text) for text in budgets],
        )
        state.plan = plan_without(state.need_coupling(), removed)
        Slice().run(state)
        return state

    return make
