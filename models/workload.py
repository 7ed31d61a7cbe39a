"""The view that passes have of data: a `Workload` of four splits, a loss, a metric, and a score.

Splits
    `train`        what a network is trained on;
    `calibration`  a class-balanced part of `train`, for batch-norm statistics and least squares;
    `subval`       class-balanced images cut *out of* the training set and not in `train`: searches
                   score on them;
    `test`         never touched by a search.

`calibration` stays part of `train` (BN statistics are taken on data the network may be trained on,
as in MetaPruning and EagleEye); it is disjoint from `subval`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from pruneopt.errors import UserError

__all__ = [
    "DatasetSplit",
    "Loss",
    "Metric",
    "Split",
    "SplitName",
    "TensorSplit",
    "Workload",
    "balanced_order",
    "cross_entropy",
    "cut",
    "logits_of",
    "placed",
    "seeded",
    "top1",
]

Loss = Callable[..., Tensor]
Metric = Callable[..., Tensor]
SplitName = Literal["train", "calibration", "subval", "test"]
Device = str | torch.device
Indices = NDArray[np.int64]
# Turns a stored batch into the network's input: (stored, augment, generator) -> input.
Prepare = Callable[[Tensor, bool, torch.Generator], Tensor]


@contextmanager
def seeded(seed: int, device: Device = "cpu") -> Iterator[None]:
    """Run a block with torch's global generators (CPU and `device`) set to `seed`; the caller's
    state comes back."""
    place = torch.device(device)
    devices = []
    if place.type == "cuda":
        devices.append(torch.cuda.current_device() if place.index is None else place.index)
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed: it would seed every GPU, and only `devices` are restored.
        torch.default_generator.manual_seed(seed)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


class Split(ABC):
    """An ordered list of samples. `indices[i]` is the place of sample i in the data set it was cut
    from."""

    def __init__(self, indices: Tensor) -> None:
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    @abstractmethod
    def fetch(
        self, positions: Tensor, *, augment: bool, generator: torch.Generator, device: Device
    ) -> tuple[Tensor, Tensor]:
        """Return the samples at `positions` (int64 `[n]`, of this split) as `(inputs, targets)` on
        `device`."""

    @abstractmethod
    def select(self, positions: Tensor) -> Split:
        """Return the split of only these samples, in this order, sharing storage."""

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        augment: bool = False,
        device: Device = "cpu",
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of `(inputs, targets)`; the same arguments give the same batches, bit for
        bit.

        Args:
            batch_size: samples in a batch; the last one may be smaller unless `drop_last`.
            seed: shuffles, and drives the augmentation; None keeps the order of the split.
            augment: random shifts, flips or crops, where the data set has them.
            device: where the batches are put.
            drop_last: leave an incomplete last batch out.

        Raises:
            UserError: `batch_size` below 1.
        """
        if batch_size < 1:
            raise UserError(f"a batch size of {batch_size} is impossible: use at least 1")
        generator = torch.Generator().manual_seed(0 if seed is None else seed)
        count = len(self)
        order = torch.arange(count) if seed is None else torch.randperm(count, generator=generator)
        for start in range(0, count, batch_size):
            positions = order[start : start + batch_size]
            if drop_last and len(positions) < batch_size:
                return
            yield self.fetch(positions, augment=augment, generator=generator, device=device)

    def head(self, count: int) -> Split:
        """Return the first `count` samples (all of them if there are fewer)."""
        return self.select(torch.arange(min(count, len(self))))


class TensorSplit(Split):
    """Samples held in memory (images as uint8), put on a device once and prepared batch by batch.

    Args:
        inputs: `[n, ...]`, all samples of the source.
        targets: `[n]` or `[n, ...]`.
        indices: int64, the samples of this split.
        prepare: makes network inputs of stored ones (resize, augment, normalise); None feeds them
            as they are.
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor, indices: Tensor, prepare: Prepare | None = None
    ) -> None:
        super().__init__(indices)
        self._inputs = inputs
        self._targets = targets
        self._prepare = prepare
        self._resident: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def fetch(
        self, positions: Tensor, *, augment: bool, generator: torch.Generator, device: Device
    ) -> tuple[Tensor, Tensor]:
        inputs, targets, indices = self._on(torch.device(device))
        rows = indices[positions.to(indices.device)]
        batch = inputs[rows]
        return (
            batch if self._prepare is None else self._prepare(batch, augment, generator)
        ), targets[rows]

    def select(self, positions: Tensor) -> TensorSplit:
        return TensorSplit(self._inputs, self._targets, self.indices[positions], self._prepare)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if device.type == "cpu":
            return self._inputs, self._targets, self.indices
        if device not in self._resident:
            # Only this split's samples travel; they are then numbered from zero.
            renumbered = torch.arange(len(self), device=device)
            chosen = (
                self._inputs[self.indices].to(device),
                self._targets[self.indices].to(device),
                renumbered,
            )
            self._resident[device] = chosen
        return self._resident[device]


class DatasetSplit(Split):
    """Samples of a map-style `torch.utils.data.Dataset` of the user's own, giving `(input, target)`
    pairs.

    Such a data set applies the transforms it was built with, so `augment` selects nothing here; the
    transforms' use of torch's random numbers is seeded, hence repeatable.
    """

    def __init__(self, dataset: Dataset[tuple[object, object]], indices: Tensor) -> None:
        super().__init__(indices)
        self._dataset = dataset

    def fetch(
        self, positions: Tensor, *, augment: bool, generator: torch.Generator, device: Device
    ) -> tuple[Tensor, Tensor]:
        del augment
        seed = int(torch.randint(2**62, (1,), generator=generator))
        with seeded(seed):
            samples = [self._dataset[index] for index in self.indices[positions].tolist()]
        try:
            inputs, targets = default_collate(samples)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the samples of {type(self._dataset).__name__} cannot be stacked into a batch of "
                "(input, target) "
                f"pairs: {error}"
            ) from error
        if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
            raise UserError(
                f"{type(self._dataset).__name__} must give (tensor, number or tensor) pairs"
            )
        return inputs.to(device), targets.to(device)

    def select(self, positions: Tensor) -> DatasetSplit:
        return DatasetSplit(self._dataset, self.indices[positions])


def balanced_order(labels: Indices | None, count: int, seed: int) -> Indices:
    """A random order of `range(count)` in which every prefix holds the classes as evenly as
    possible, int64 `[count]`.

    Classes are dealt in turn, one sample of each per round; without labels the order is merely
    random.
    """
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(count)
    if labels is None:
        return shuffled
    classes = np.unique(labels[shuffled], return_inverse=True)[1]
    turn = generator.permutation(len(np.unique(classes)))
    return shuffled[np.lexsort((turn[classes], _rank_in_class(classes)))]


def _rank_in_class(classes: Indices) -> Indices:
    """Count the earlier samples of the same class, for each sample. Classes are numbered from 0
    without gaps."""
    totals = np.bincount(classes)
    ranks = np.empty_like(classes)
    ranks[np.argsort(classes, kind="stable")] = np.arange(len(classes)) - np.repeat(
        np.cumsum(totals) - totals, totals
    )
    return ranks


def cut(
    labels: Indices | None,
    count: int,
    *,
    seed: int,
    subval: int | None = None,
    calibration: int | None = None,
) -> tuple[Indices, Indices, Indices]:
    """Cut a training set of `count` samples into index lists `(train, calibration, subval)`.

    `subval` defaults to a tenth (at least 500 where a fifth allows it, at most 10,000, the papers'
    size) and takes at most half of any class; `calibration` defaults to a fifth, at most 6,400 (50
    batches of 128), a part of `train`.

    Raises:
        UserError: too few samples, or sizes the training set cannot give.
    """
    subval = min(10_000, max(count // 10, min(500, count // 5))) if subval is None else subval
    calibration = min(6_400, count // 5) if calibration is None else calibration
    order = balanced_order(labels, count, seed)
    # A rare class must not vanish from the training set.
    classes = (
        np.zeros(count, np.int64)
        if labels is None
        else np.unique(labels[order], return_inverse=True)[1]
    )
    spare = _rank_in_class(classes) < np.bincount(classes)[classes] // 2
    if not 1 <= subval <= int(spare.sum()) or not 1 <= calibration <= count - subval:
        raise UserError(
            f"a training set of {count} samples cannot give {subval} for search scores (subval, at "
            "most half of any "
            f"class: {int(spare.sum())}) and {calibration} for calibration: use more samples or "
            "smaller numbers above 0"
        )
    held = np.zeros(count, dtype=bool)
    held[np.flatnonzero(spare)[:subval]] = True
    train = order[~held]
    return train, train[:calibration], order[held]


def logits_of(outputs: object) -> Tensor:
    """Return the main tensor of what a network returned: itself, the first of a tuple, or
    `logits`/`out` of a dictionary."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, dict):
        for key in ("logits", "out"):
            if isinstance(outputs.get(key), Tensor):
                return cast(Tensor, outputs[key])
    if isinstance(outputs, Sequence) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]
    raise UserError(
        f"the network returns a {type(outputs).__name__} without a main tensor: define "
        "loss(outputs, targets) and "
        "metric(outputs, targets) in the model file"
    )


def cross_entropy(outputs: object, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return mean cross-entropy of `logits_of(outputs)` `[N, C, ...]` and class numbers `[N, ...]`;
    a scalar."""
    return F.cross_entropy(logits_of(outputs), targets, label_smoothing=label_smoothing)


def top1(outputs: object, targets: Tensor) -> Tensor:
    """Return 1.0 where the largest logit is the target, per sample `[N]` (its mean over positions
    for dense outputs)."""
    hits = (logits_of(outputs).argmax(1) == targets).float()
    return hits.flatten(1).mean(1) if hits.ndim > 1 else hits


@contextmanager
def placed(module: nn.Module, device: Device) -> Iterator[None]:
    """Move a network to `device` for a block; afterwards its device and every submodule's mode are
    as before."""
    modes = [(part, part.training) for part in module.modules()]
    tensors = [*module.parameters(), *module.buffers()]
    before = {tensor.device for tensor in tensors}
    moved = len(before) == 1 and before != {torch.empty(0, device=device).device}
    if moved:
        module.to(device)
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        if moved:
            module.to(before.pop())


def set_mode(module: nn.Module, *, training: bool) -> None:
    """Call `module.train(training)`; the modules of an exported program refuse it, their mode is in
    the graph."""
    try:
        module.train(training)
    except NotImplementedError:
        return


@dataclass
class Workload:
    """Data, loss and metric of one task. Scores are means of `metric` over samples; larger is
    better.

    Attributes:
        name: for reports.
        num_classes: None if the task is not classification.
        train, calibration, subval, test: see the module's text.
        loss: `(outputs, targets) -> scalar`.
        metric: `(outputs, targets) -> [N]`, one score per sample.
        evaluate: the user's own test, `network -> float`, used for the complete test split.
        seed: what the training set was cut with.
    """

    name: str
    num_classes: int | None
    train: Split
    calibration: Split
    subval: Split
    test: Split
    loss: Loss = cross_entropy
    metric: Metric = top1
    evaluate: Callable[[nn.Module], float] | None = None
    seed: int = 0

    def split(self, name: str) -> Split:
        """Return the split called `name`; UserError for an unknown one."""
        if name not in ("train", "calibration", "subval", "test"):
            raise UserError(f"there is no split '{name}': use train, calibration, subval or test")
        return cast(Split, getattr(self, name))

    def score(
        self,
        module: nn.Module,
        split: str = "subval",
        *,
        batch_size: int = 256,
        device: Device = "cpu",
        limit: int | None = None,
        augment_seed: int | None = None,
    ) -> float:
        """Return the mean metric of a network in evaluation mode; device and modes of the network
        are restored.

        The user's `evaluate` decides on the complete test split; with `limit` (the first samples
        only) the per-sample metric is used there too. ``augment_seed`` reads the samples as in
        training, shuffled by this seed.

        Raises:
            UserError: the network does not fit the data, or the metric is not one number per
                sample.
        """
        samples = self.split(split)
        if limit is not None:
            if limit < 1:
                raise UserError(f"a limit of {limit} leaves nothing to score: use at least 1")
            samples = samples.head(limit)
        with placed(module, device):
            set_mode(module, training=False)
            with torch.inference_mode():
                if (
                    split == "test"
                    and limit is None
                    and augment_seed is None
                    and self.evaluate is not None
                ):
                    return _number(self.evaluate(module))
                total = torch.zeros((), dtype=torch.float64, device=device)
                augment = augment_seed is not None
                for inputs, targets in samples.batches(
                    batch_size, seed=augment_seed, augment=augment, device=device
                ):
                    total += self.scores(self.forward(module, inputs), targets).double().sum()
        return float(total) / len(samples)

    def forward(self, module: Callable[[Tensor], object], inputs: Tensor) -> object:
        """Call `module(inputs)`, and refuse in one sentence a network that does not fit this data.

        Raises:
            UserError: the input shape is not accepted, or the number of classes differs.
        """
        try:
            outputs = module(inputs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"the network does not take a batch of shape {list(inputs.shape)} from "
                f"{self.name}: {reason[0]}"
            ) from error
        if self.metric is top1 and self.num_classes is not None:
            found = logits_of(outputs).shape
            if len(found) < 2 or found[1] != self.num_classes:
                raise UserError(
                    f"the network's output has shape {list(found)} but {self.name} has "
                    f"{self.num_classes} classes: "
                    "use data with the network's classes, or build it with "
                    f"num_classes={self.num_classes}"
                )
        return outputs

    def scores(self, outputs: object, targets: Tensor) -> Tensor:
        """Return the metric of every sample `[N]`; `UserError` where it is something else."""
        scores = self.metric(outputs, targets)
        if not isinstance(scores, Tensor) or scores.shape != targets.shape[:1]:
            shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise UserError(
                f"metric(outputs, targets) must give one score per sample, [{len(targets)}], not "
                f"{shape}"
            )
        return scores

    @property
    def task(self) -> tuple[str, str]:
        """The names of the metric and of the loss."""
        metric, loss = (
            getattr(item, "__qualname__", type(item).__name__) for item in (self.metric, self.loss)
        )
        return metric, loss

    def describe(self) -> dict[str, object]:
        """Return what a run record needs to name this data exactly: sizes, and SHA-256 of the cut
        index lists."""
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            "seed": self.seed,
            "sizes": {
                name: len(self.split(name)) for name in ("train", "calibration", "subval", "test")
            },
            "calibration_sha256": _fingerprint(self.calibration),
            "subval_sha256": _fingerprint(self.subval),
        }


def _fingerprint(split: Split) -> str:
    return hashlib.sha256(split.indices.to(torch.int64).numpy().tobytes()).hexdigest()


def _number(value: object) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    if isinstance(value, int | float | np.floating):
        return float(value)
    raise UserError(
        f"evaluate(model) must return one number (larger is better), not a {type(value).__name__}"
    )


def dataset_length(dataset: object) -> int:
    """Return `len(dataset)`; UserError for something that is not a map-style data set."""
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise UserError(
            f"{type(dataset).__name__} is not a map-style data set: give one with __len__ and "
            "__getitem__, "
            "or a pair of tensors (inputs, targets)"
        )
    return len(dataset)
