"""Whatever cannot be captured is refused in one sentence that says what to do."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.captured import Network, check, targets
from torch import Tensor, nn

from pruneopt.errors import UserError
from pruneopt.ir.capture.capture import capture


class DependsOnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


@dataclass
class Unknown:
    """No structure of tensors to PyTorch: it was not registered."""

    scores: Tensor


class ReturnsUnknown(nn.Module):
    def forward(self, x: Tensor) -> Unknown:
        return Unknown(x * 2)


class Counts(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def old_ways() -> tuple[Any, Any]:
    """A quantised network, and a TorchScript module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = nn.Sequential(nn.Linear(3, 2)).eval()
        return torch.ao.quantization.quantize_dynamic(network, {nn.Linear}), torch.jit.script(
            network
        )


QUANTISED, SCRIPTED = old_ways()


def program_with_free_width() -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    return torch.export.export(
        nn.Conv2d(3, 4, 1), (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes
    )


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (Network(), None, "needs example inputs"),
        (Network(), (), "example inputs must be tensors"),
        (Network(), ("x",), "example inputs must be tensors"),
        (
            Network(),
            (torch.randn(2, 4, 8, 8),),
            r"Network does not run on example inputs of shape \(2, 4, 8, 8\): ",
        ),
        (Network(), (torch.randn(2, 3, 8, 8),) * 2, "Network does not run on example inputs"),
        (
            DependsOnData(),
            (torch.randn(2, 3),),
            r"it reads the value of a tensor in Python at .*test_refusals\.py:\d",
        ),
        (Counts(), (torch.randn(2, 3),), "changes a buffer or an input"),
        (
            ReturnsUnknown(),
            (torch.randn(2, 3),),
            r"Unknown, whose .* call .*register_dataclass\(Unknown\)",
        ),
        (SCRIPTED, (torch.randn(2, 3),), "it is a TorchScript module; capture the Python module"),
        (QUANTISED, (torch.randn(2, 3),), "it is quantised, .* prune first, quantise the result"),
        (Path("nowhere.pt2"), None, "nowhere.pt2: no such file"),
        (
            program_with_free_width(),
            None,
            "this exported program cannot be captured: sizes depend on more than",
        ),
    ],
)
def test_refusal_is_one_sentence(
    model: Any, inputs: Any, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        capture(model, inputs)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("not a program")
    with pytest.raises(
        UserError, match=r"net\.pt2 is not an exported program that this torch can load"
    ):
        capture(path, trusted=True)


class Region(nn.Module):
    """A part in full precision, as attention of some libraries has it."""

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.one, self.two, self.enabled = nn.Linear(4, 6), nn.Linear(6, 3), enabled

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.enabled):
            y = self.two(y.float())
        return y * 2


def test_a_region_without_autocast_is_read_as_it_is() -> None:
    assert targets(check(Region(enabled=False), torch.randn(2, 4))).count("linear") == 2


def test_a_region_with_autocast_is_refused() -> None:
    with pytest.raises(UserError, match=r"autocast to bfloat16 on cpu"):
        capture(Region(enabled=True), torch.randn(2, 4))
