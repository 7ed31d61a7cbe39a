"""The networks that several tests share; a network of one test stands beside it."""

from __future__ import annotations

from torch import nn

from pruneopt.models.source import load_model


def zoo(name: str) -> nn.Module:
    """Return the network of the model zoo with this name, in evaluation mode."""
    module = load_model(f"zoo:{name}").module
    assert isinstance(module, nn.Module)
    return module.eval()
