"""Values around a kernel's arithmetic: affine maps, activations, residuals, statistics."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.kernels.library import ACTIVATIONS

__all__ = [
    "Affine",
    "Epilogue",
    "Output",
    "Partials",
    "Prologue",
    "Scores",
    "tiles",
]


def tiles(images: int, pixels: int, tile_rows: int) -> int:
    """Tiles, hence rows of partial statistics, of a segment with `images` output images of `pixels`
    each."""
    return -(-images * pixels // tile_rows)


def _check_activation(name: str) -> None:
    if name not in ACTIVATIONS:
        raise UserError(f"activation {name!r} is unknown: use one of {', '.join(ACTIVATIONS)}")


@dataclass(frozen=True, slots=True)
class Affine:
    """`x * scale + shift` per channel: a batch norm with known statistics.

    Attributes:
        scale: float32 tables, one after another; a segment's begins at its `in_table` (or
            `residual_table`).
        shift: likewise. Both are zero for pad channels, so that these stay zero.
    """

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True, slots=True)
class Prologue:
    """The work on an input while it is read: `activation(affine(x) + residual_affine(residual))`.

    Attributes:
        affine: of the input; None leaves it as it is.
        activation: applied last.
        residual: shaped as the input; None adds nothing.
        residual_affine: of the residual; None adds it as it is.
        materialised: where the finished input is written as well, for readers that need it later;
            shaped as the input, and overlapping nothing that is read.
    """

    affine: Affine | None = None
    activation: str = "identity"
    residual: Tensor | None = None
    residual_affine: Affine | None = None
    materialised: Tensor | None = None

    def __post_init__(self) -> None:
        _check_activation(self.activation)
        if self.residual_affine is not None and self.residual is None:
            raise UserError("residual_affine is given without a residual")


@dataclass(frozen=True, slots=True)
class Partials:
    """Epilogue of a training-mode pass: mean and sum of squared deviations of every tile of rows,
    centred in the tile.

    Attributes:
        mean: float32; a segment's part begins at its `partials` and is `[tiles, padded(n_out)]`.
        m2: likewise.
        tile_rows: rows of a tile, as the launch's `Tile` says; the last tile of a segment may have
            fewer.
    """

    mean: Tensor
    m2: Tensor
    tile_rows: int


@dataclass(frozen=True, slots=True)
class Output:
    """Epilogue of an evaluation pass: `activation(y + bias + residual)`.

    Attributes:
        bias: float32, a segment's begins at its `params`; None adds none.
        activation: applied last.
        residual: shaped as the output; a segment's begins at its `residual`. None adds nothing.
    """

    bias: Tensor | None = None
    activation: str = "identity"
    residual: Tensor | None = None

    def __post_init__(self) -> None:
        _check_activation(self.activation)


Epilogue = Partials | Output


@dataclass(frozen=True, slots=True)
class Scores:
    """Buffers of scores: per image from a segment's `out_table` on, and one sum per segment.

    Attributes:
        correct: int32 per image, 1 where the first largest logit is the label's.
        likelihood: float32 per image, the logarithm of the label's softmax probability.
        correct_sum: int32 `[segments]`.
        likelihood_sum: float64 `[segments]`.
        divergence: float32 per image, KL(teacher || candidate) of the softmax; None with no
            teacher.
        divergence_sum: float64 `[segments]`; None with no teacher.
    """

    correct: Tensor
    likelihood: Tensor
    correct_sum: Tensor
    likelihood_sum: Tensor
    divergence: Tensor | None = None
    divergence_sum: Tensor | None = None
