"""Capture leaves the model as it was, whether it succeeds or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.captured import Network, check
from torch import nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture


def state_of(model: nn.Module) -> dict[str, Any]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: (dict(m._forward_hooks), dict(m._forward_pre_hooks))
            for name, m in model.named_modules()
        },
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "identity": {name: id(tensor) for name, tensor in tensors.items()},
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "requires_grad": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "grads": {name: tensor.grad for name, tensor in tensors.items()},
        "devices": {name: tensor.device for name, tensor in tensors.items()},
        "versions": {name: tensor._version for name, tensor in tensors.items()},
        "random": torch.get_rng_state(),
    }


@pytest.mark.parametrize("training", [True, False])
def test_capture_leaves_the_model_as_it_was(training: bool) -> None:
    model = Network().train(training)
    model.bn.eval()
    model.conv.weight.requires_grad_(False)
    model.fc.register_forward_hook(lambda module, args, output: None)
    model.drop.register_forward_pre_hook(lambda module, args: None)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    x = torch.randn(2, 3, 8, 8)
    before = state_of(model)
    capture(model, x)
    after = state_of(model)
    for key in ("values", "grads"):
        assert all(
            x is y or torch.equal(x, y)
            for x, y in zip(before[key].values(), after[key].values(), strict=True)
        )
        del before[key], after[key]
    assert torch.equal(before.pop("random"), after.pop("random"))
    assert after == before


def test_capture_that_fails_leaves_the_mode_as_well() -> None:
    model = Network().train()
    with pytest.raises(UserError):
        capture(model, torch.randn(2, 4, 8, 8))
    assert all(module.training for module in model.modules())


def test_gradients_may_be_switched_off_and_stay_off() -> None:
    with torch.no_grad():
        check(Network(), torch.randn(2, 3, 8, 8))
        assert not torch.is_grad_enabled()
