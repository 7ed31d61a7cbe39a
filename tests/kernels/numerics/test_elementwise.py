"""`add_act` against the reference, `pack` against indexing."""

import pytest
import torch
from ragged.buffers import Setting, close
from ragged.convolutions import Case, build

pytest.importorskip("triton")

from pruneopt.kernels import elementwise, reference
from pruneopt.kernels.library import ACTIVATIONS
from pruneopt.kernels.window import Window

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", ["none", "raw", "affine"])
def test_add_act(activation: str, residual: str, setting: Setting, device: str) -> None:
    case = Case(
        "add",
        Window(5, 7),
        ((40, 40, (2,)), (1, 1, (1,))),
        affine=True,
        activation=activation,
        residual=residual != "none",
        residual_affine=residual == "affine",
        materialise=True,
    )
    found = build(case, setting, device, 32)
    expected = found.float64()
    elementwise.add_act(found.x, found.segments, case.window.in_pixels, found.prologue)
    reference.add_act(expected.x, expected.segments, case.window.in_pixels, expected.prologue)
    assert found.prologue.materialised is not None
    assert expected.prologue.materialised is not None
    close(found.prologue.materialised, expected.prologue.materialised, setting.value, activation)


def packed_weight(
    weight: torch.Tensor, out: torch.Tensor, into: torch.Tensor, device: str, rows: int
) -> torch.Tensor:
    packed = torch.full(
        (weight[0, 0].numel(), rows, 48), float("nan"), dtype=weight.dtype, device=device
    )
    elementwise.pack(weight.to(device), out, into, packed)
    return packed.cpu()


def test_pack_gathers_and_fills_with_zeros(setting: Setting, device: str) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(40, 35, 3, 2, generator=generator).to(setting.dtype)
    out, into = (
        torch.randperm(40, generator=generator)[:33],
        torch.randperm(35, generator=generator)[:17],
    )
    packed = packed_weight(weight, out, into, device, 32)
    chosen = weight[out][:, into].flatten(2).permute(2, 1, 0)
    assert torch.equal(packed[:, :17, :33], chosen)
    assert (packed[:, 17:] == 0).all()
    assert (packed[:, :, 33:] == 0).all()


def test_pack_of_groups_and_of_a_depthwise_weight(device: str) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(12, 5, 3, 3, generator=generator)
    out = torch.tensor([0, 2, 3, 4, 5, 7, 9, 11])
    into = torch.tensor([[0, 1, 4], [1, 2, 3]])
    packed = packed_weight(weight, out, into, device, 16)
    for group in (0, 1):
        mine = slice(4 * group, 4 * group + 4)
        chosen = weight[out[mine]][:, into[group]].flatten(2).permute(2, 1, 0)
        assert torch.equal(packed[:, :3, mine], chosen)
    assert packed[:, 3:].abs().max() == 0
    depthwise = torch.randn(20, 1, 3, 3, generator=generator)
    keep = torch.arange(0, 20, 2)
    packed = packed_weight(depthwise, keep, torch.tensor([0]), device, 1)
    assert torch.equal(packed[:, 0, :10], depthwise[keep, 0].flatten(1).T)
    assert (packed[:, 0, 10:] == 0).all()


def test_a_packed_weight_changes_its_dtype(device: str) -> None:
    weight = torch.randn(16, 16, 1, 1, generator=torch.Generator().manual_seed(4))
    packed = torch.full((1, 16, 16), float("nan"), dtype=torch.float16, device=device)
    elementwise.pack(weight.to(device), torch.arange(16), torch.arange(16), packed)
    assert torch.equal(packed[0].cpu(), weight[:, :, 0, 0].T.half())
