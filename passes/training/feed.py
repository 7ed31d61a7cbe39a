"""The batches of a training run, from any place of any epoch, for one of several processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pruneopt.models.workload import Split

__all__ = ["Feed"]


class Feed:
    """Shuffled batches of a split, epoch by epoch; process ``rank`` of ``world`` gets
    ``rank::world`` of each.

    With one process these are the batches of `Split.batches`, bit for bit. With several the samples
    of each batch are the same; each process draws its own augmentation.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int,
        augment: bool,
        device: torch.device,
        rank: int,
        world: int,
    ) -> None:
        self._split, self._seed, self._augment, self._device = split, seed, augment, device
        self._rank, self._world = rank, world
        # An incomplete last batch would weigh as much as a full one, and batch norm refuses a
        # single sample.
        self.batch_size = min(batch_size, len(split))
        self.steps = len(split) // self.batch_size
        """Batches in an epoch."""
        self._generator = torch.Generator()

    def epoch(
        self, number: int, start: int = 0, state: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's `(inputs, targets)` of the batches of epoch ``number`` (from 1),
        from batch ``start`` on.

        ``state`` is what `state` gave after batch ``start`` - 1.
        """
        order_seed = self._seed * 100_003 + number
        self._generator = torch.Generator().manual_seed(order_seed)
        order = torch.randperm(len(self._split), generator=self._generator)
        if self._rank:
            self._generator.manual_seed(order_seed + self._rank * 15_485_863)
        if state is not None:
            self._generator.set_state(state)
        for index in range(start, self.steps):
            positions = order[index * self.batch_size :][: self.batch_size][
                self._rank :: self._world
            ]
            yield self._split.fetch(
                positions, augment=self._augment, generator=self._generator, device=self._device
            )

    def state(self) -> Tensor:
        """Return the state of the random numbers behind the augmentation, after the batch that was
        given last."""
        return self._generator.get_state()
