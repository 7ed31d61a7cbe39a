"""Two results count as the same, or the difference is named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from pruneopt.errors import VerificationError
from pruneopt.ir.compare import CHUNK, difference, same_outputs, tensor_leaves

INF, NAN = math.inf, math.nan
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(arrays.arrays(np.float32, st.integers(0, 5), elements=FLOATS), st.data())
def test_the_difference_is_that_of_numpy(a: np.ndarray, data: st.DataObject) -> None:
    b = data.draw(arrays.arrays(np.float32, a.shape, elements=FLOATS))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(a == b, 0.0, np.abs(a.astype(np.float64) - b))
    error, size = difference(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(error, apart.max(initial=0.0), rtol=1e-6)
    assert size == np.abs(a[np.isfinite(a)]).max(initial=0.0)


@pytest.mark.parametrize("place", [0, CHUNK, 2 * CHUNK + 2])
def test_large_tensors_are_compared_to_the_end(place: int) -> None:
    one = torch.zeros(2 * CHUNK + 3)
    one[place] = -3.0
    assert difference(one, torch.zeros_like(one)) == (3.0, 3.0)
    one[-1] = INF
    assert difference(one, torch.zeros_like(one))[0] == INF


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        (torch.tensor([1.0, INF]), torch.tensor([1.5, INF]), (0.5, 1.0)),
        (torch.tensor([INF]), torch.tensor([-INF]), (INF, 0.0)),
        (torch.tensor([1 + 1j]), torch.tensor([1 + 3j]), (2.0, 1.0)),
        (torch.tensor([1, 7]), torch.tensor([1, 2]), (1.0, 0.0)),
        (torch.tensor([True]), torch.tensor([True]), (0.0, 0.0)),
        (torch.zeros(2, 3), torch.zeros(6), (0.0, 0.0)),
        (torch.zeros(2), torch.zeros(3), (INF, 0.0)),
        (torch.zeros(0), torch.zeros(0), (0.0, 0.0)),
    ],
)
def test_difference(one: Tensor, other: Tensor, wanted: tuple[float, float]) -> None:
    assert difference(one, other) == wanted


def test_nan_is_no_agreement() -> None:
    for one, other in ((NAN, 0.0), (0.0, NAN), (NAN, NAN)):
        error, size = difference(torch.tensor([one, 2.0]), torch.tensor([other, 2.0]))
        assert math.isnan(error)
        assert size == 2.0


def test_tensor_leaves() -> None:
    x, y = torch.zeros(1), torch.ones(2)
    assert list(map(id, tensor_leaves({"a": [x, None, 3], "b": (y,)}))) == [id(x), id(y)]


def test_same_outputs() -> None:
    a = {"x": torch.tensor([1.0, float("inf")]), "y": [torch.tensor(2)]}
    b = [np.array([1.0625, np.inf]), np.array(2)]
    assert same_outputs(a, b, 0.1, 0.0) == 0.0625
    with pytest.raises(VerificationError, match=r"output 0 is off by 0\.0625"):
        same_outputs(a, b, 1e-3, 0.0)
    with pytest.raises(VerificationError, match="off by nan"):
        same_outputs(torch.tensor(float("nan")), torch.tensor(0.0), 1.0, 0.0)
    with pytest.raises(VerificationError, match="off by nan"):
        same_outputs(torch.tensor([float("nan")]), np.array([np.nan]), 1.0, 0.0)
    with pytest.raises(VerificationError, match="outputs of shape"):
        same_outputs(torch.zeros(2), torch.zeros(3), 1.0, 0.0)
