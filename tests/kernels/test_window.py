"""Sizes of windows against what a convolution gives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from pruneopt.errors import UserError
from pruneopt.kernels.window import Window

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=pairs,
    stride=pairs,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=pairs,
)
def test_sizes_and_the_identity_tap(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    fits = all(
        n + 2 * p >= d * (k - 1) + 1
        for n, k, p, d in zip(size, kernel, padding, dilation, strict=True)
    )
    if not fits:
        with pytest.raises(UserError, match="larger than the padded image"):
            Window(*size, kernel, stride, padding, dilation)
        return
    window = Window(*size, kernel, stride, padding, dilation)
    image = torch.arange(1.0, size[0] * size[1] + 1).view(1, 1, *size)
    taps = torch.eye(window.taps).view(window.taps, 1, *kernel)
    made = functional.conv2d(image, taps, None, stride, padding, dilation)
    assert made.shape[2:] == (window.out_height, window.out_width)
    same = [tap for tap in range(window.taps) if torch.equal(made[0, tap], image[0, 0])]
    # A stride beyond the image reads one pixel and looks like the identity; such a window just has
    # none.
    assert (
        window.identity_tap in same
        if window.identity_tap is not None
        else not same or stride != (1, 1)
    )


@pytest.mark.parametrize(
    "bad", [{"stride": (0, 1)}, {"padding": (-1, 0)}, {"dilation": (1, 0)}, {"kernel": (0, 1)}]
)
def test_impossible_windows_are_refused(bad: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(UserError, match="is impossible"):
        Window(5, 5, **bad)
