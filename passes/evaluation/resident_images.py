"""Images for scoring, prepared once and held in memory where they fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pruneopt.models.workload import DatasetSplit, Split, TensorSplit, Workload
from pruneopt.passes.evaluation.settings import EvaluationSettings

__all__ = ["RESIDENT_BYTES", "CalibrationImages", "ValidationImages", "calibration_inputs", "held"]

RESIDENT_BYTES = 2**30
CHUNK = 256
"""Images in a batch for scores."""
CHUNK_CPU, VALUES_CPU = 128, 8 * 3 * 224**2
"""The same on a processor, whose caches hold no more of a layer: images, and numbers in all of
them."""


def held(workload: Workload, settings: EvaluationSettings) -> Workload:
    """Return a workload with the calibration and sub-validation images that settings ask for, read
    once where they fit.

    Cut here once: every new split would be decoded again.
    """
    limit = len(workload.subval) if settings.subval_limit is None else settings.subval_limit
    return replace(
        workload,
        calibration=_resident(workload.calibration.head(settings.batches * settings.batch_size)),
        subval=_resident(workload.subval.head(limit)),
    )


def _resident(split: Split) -> Split:
    """Return a user's own data set read into memory once, where it fits; pruneopt's own splits keep
    their images."""
    if not isinstance(split, DatasetSplit) or not len(split):
        return split
    inputs, targets = next(split.batches(1))
    if inputs.nbytes * len(split) > RESIDENT_BYTES:
        return split
    parts: list[tuple[Tensor, Tensor]] = list(split.batches(CHUNK))
    inputs, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return TensorSplit(inputs, targets, torch.arange(len(split)))


def calibration_inputs(
    split: Split,
    batches: int,
    batch_size: int,
    *,
    seed: int,
    device: str | torch.device,
    augment: bool = False,
) -> Iterator[Tensor]:
    """Yield exactly ``batches`` shuffled batches of inputs; the same arguments give the same
    batches.

    Incomplete batches are left out (they would weigh as much as full ones) unless the split has no
    full one; a split that is too small is passed over again, shuffled anew.
    """
    # The first images of a split are class-balanced. A split that is cut already keeps what it has
    # decoded.
    if len(split) > batches * batch_size:
        split = split.head(batches * batch_size)
    whole_only = len(split) >= batch_size
    done, turn = 0, 0
    while done < batches:
        order = seed * 100_003 + turn
        drawn = split.batches(
            batch_size, seed=order, augment=augment, device=device, drop_last=whole_only
        )
        for inputs, _ in drawn:
            yield inputs
            done += 1
            if done == batches:
                return
        turn += 1


class CalibrationImages:
    """The calibration batches of a search: the same for all candidates.

    Args:
        split: where they come from; the first ``batches * batch_size`` images of it are used.
        batches, batch_size, seed, device, augment: as in `calibration_inputs`.
    """

    def __init__(
        self,
        split: Split,
        batches: int,
        batch_size: int,
        *,
        seed: int,
        device: str,
        augment: bool = False,
    ) -> None:
        self._split, self._batches, self._batch_size = split, batches, batch_size
        self._seed, self._device, self._augment = seed, device, augment
        self._held: list[Tensor] | None = None

    def part(self, start: int, stop: int) -> Iterator[Tensor]:
        """Yield batches ``start`` to ``stop`` (excluded)."""
        if self._held is not None:
            yield from self._held[start:stop]
            return
        held: list[Tensor] | None = []
        for number, inputs in enumerate(self._drawn()):
            if held is not None:
                held.append(inputs)
                if sum(batch.nbytes for batch in held) > RESIDENT_BYTES:
                    held = None
            if held is None and number >= stop:
                return
            if start <= number < stop:
                yield inputs
        self._held = held

    def _drawn(self) -> Iterator[Tensor]:
        drawn = calibration_inputs(
            self._split,
            self._batches,
            self._batch_size,
            seed=self._seed,
            device=self._device,
            augment=self._augment,
        )
        return (channels_last(inputs) for inputs in drawn)


class ValidationImages:
    """The images candidates are scored on, in one order for all; any part of them in batches.

    Args:
        split: all of it is used.
        device: where batches are put.
        augment_seed: read the images as in training, shuffled by this seed.
    """

    def __init__(self, split: Split, device: str, augment_seed: int | None = None) -> None:
        self._split, self._device, self._augment_seed = split, device, augment_seed
        self._parts: dict[tuple[int, int], Split] = {}
        self._held: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        self._chunk = _chunk(split) if torch.device(device).type == "cpu" else CHUNK

    def __len__(self) -> int:
        return len(self._split)

    def part(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of images ``start`` to ``stop`` (excluded) with their targets."""
        held = self._held.get((start, stop))
        if held is not None:
            yield from held
            return
        kept: list[tuple[Tensor, Tensor]] | None = []
        for inputs, targets in self._fetched(start, stop):
            batch = channels_last(inputs), targets
            yield batch
            if kept is not None:
                kept.append(batch)
                if self._bytes() + sum(x.nbytes for x, _ in kept) > RESIDENT_BYTES:
                    kept = None
        if kept is not None:
            self._held[start, stop] = kept

    def _bytes(self) -> int:
        return sum(inputs.nbytes for part in self._held.values() for inputs, _ in part)

    def _fetched(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        if self._augment_seed is not None:
            yield from self._augmented(start, stop)
            return
        part = self._parts.setdefault((start, stop), self._split.select(torch.arange(start, stop)))
        yield from part.batches(self._chunk, device=self._device)

    def _augmented(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images with random changes, whose random numbers run on from batch to batch: a part
        needs all batches before it."""
        seen = 0
        for inputs, targets in self._split.batches(
            CHUNK, seed=self._augment_seed, augment=True, device=self._device
        ):
            low, high = max(start - seen, 0), min(stop - seen, len(inputs))
            if low < high:
                yield inputs[low:high], targets[low:high]
            seen += len(inputs)
            if seen >= stop:
                return


def _chunk(split: Split) -> int:
    """Return how many images a batch for scores on a processor has."""
    if not len(split):
        return CHUNK_CPU
    image, _ = next(split.head(1).batches(1))
    return min(CHUNK_CPU, max(1, VALUES_CPU // max(1, image.numel())))


def channels_last(tensor: Tensor) -> Tensor:
    """Return a tensor in the memory format in which convolutions are fastest, with the same values
    and shape."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return (
        tensor.contiguous(memory_format=formats[tensor.ndim]) if tensor.ndim in formats else tensor
    )
