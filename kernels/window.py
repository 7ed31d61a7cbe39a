"""The window of a convolution: sizes, strides, padding and dilation, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass

from pruneopt.errors import UserError

__all__ = ["POINT", "Window"]


@dataclass(frozen=True, slots=True)
class Window:
    """A window that moves over images of `height` x `width`; pairs are (vertical, horizontal).

    Raises:
        UserError: sizes that are impossible, or a window larger than the padded image.
    """

    height: int
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        positive = (self.height, self.width, *self.kernel, *self.stride, *self.dilation)
        if min(positive) < 1 or min(self.padding) < 0:
            raise UserError(
                f"{self} is impossible: sizes, strides and dilations are at least 1, paddings at "
                "least 0"
            )
        if min(self.out_height, self.out_width) < 1:
            raise UserError(
                f"{self} is larger than the padded image: use a smaller kernel or larger images"
            )

    @property
    def taps(self) -> int:
        """Positions in the window."""
        return self.kernel[0] * self.kernel[1]

    @property
    def out_height(self) -> int:
        return self._out(self.height, 0)

    @property
    def out_width(self) -> int:
        return self._out(self.width, 1)

    @property
    def in_pixels(self) -> int:
        """Pixels of one input image."""
        return self.height * self.width

    @property
    def out_pixels(self) -> int:
        """Pixels of one output image: rows of the matrix product that it adds."""
        return self.out_height * self.out_width

    @property
    def identity_tap(self) -> int | None:
        """The tap that reads at every output the input pixel of the same place; None where there is
        none."""
        if self.stride != (1, 1):
            return None
        rows, columns = (p / d for p, d in zip(self.padding, self.dilation, strict=True))
        if (self.out_height, self.out_width) != (self.height, self.width):
            return None
        if (
            rows != int(rows)
            or columns != int(columns)
            or rows >= self.kernel[0]
            or columns >= self.kernel[1]
        ):
            return None
        return int(rows) * self.kernel[1] + int(columns)

    def _out(self, size: int, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (size + 2 * self.padding[axis] - reach) // self.stride[axis] + 1


POINT = Window(1, 1)
"""One pixel: a convolution over it is a matrix product."""
