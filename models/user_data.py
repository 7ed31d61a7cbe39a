"""The data sets a user's model file returns, as a workload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset

from pruneopt.errors import UserError
from pruneopt.models.workload import (
    DatasetSplit,
    Indices,
    Split,
    TensorSplit,
    Workload,
    balanced_order,
    cut,
    dataset_length,
)

__all__ = ["workload_of"]

WANTED = (
    "(train, test), (train, calibration, test), or a dictionary of train, test and "
    "optionally "
    "calibration, subval"
)


def workload_of(name: str, parts: object, *, seed: int) -> Workload:
    """A workload of the user's own data sets; what is not given of calibration and subval is cut
    from train.

    Args:
        name: for messages and reports.
        parts: `(train, test)`, `(train, calibration, test)`, a dictionary with `train`, `test` and
            optionally `calibration`, `subval`, `num_classes`, or a finished `Workload`. Each part
            is a map-style data set of `(input, target)` samples, a DataLoader (whose data set is
            used), or a pair of tensors `(inputs, targets)`.
        seed: decides which training samples are held out.

    Raises:
        UserError: anything else.
    """
    if isinstance(parts, Workload):
        return parts
    given = _named(name, parts)
    num_classes = given.pop("num_classes", None)
    if num_classes is not None and not isinstance(num_classes, int):
        raise UserError(
            f"num_classes in the data of {name} must be a whole number, not {num_classes!r}"
        )
    whole = {key: _whole(name, key, value) for key, value in given.items()}
    count, labels = len(whole["train"]), _labels(given["train"])
    if "subval" in whole:
        order = balanced_order(labels, count, seed)
        train, calibration = order, order[: max(1, min(6_400, count // 5))]
        subval = whole["subval"]
    else:
        train, calibration, held = cut(labels, count, seed=seed)
        subval = _select(whole["train"], held)
    return Workload(
        name=name,
        num_classes=num_classes if num_classes is not None else _class_count(given["train"]),
        train=_select(whole["train"], train),
        calibration=whole.get("calibration") or _select(whole["train"], calibration),
        subval=subval,
        test=whole["test"],
        seed=seed,
    )


def _named(name: str, parts: object) -> dict[str, object]:
    if isinstance(parts, Mapping):
        named = {str(key): value for key, value in parts.items() if value is not None}
    elif (
        isinstance(parts, tuple | list)
        and len(parts) in (2, 3)
        and not isinstance(parts[0], Tensor)
    ):
        keys = ("train", "test") if len(parts) == 2 else ("train", "calibration", "test")
        named = dict(zip(keys, parts, strict=True))
    else:
        raise UserError(f"the data of {name} is a {type(parts).__name__}: it must be {WANTED}")
    odd = named.keys() - {"train", "calibration", "subval", "test", "num_classes"}
    if odd or not {"train", "test"} <= named.keys():
        raise UserError(
            f"the data of {name} has the parts {', '.join(sorted(named))}: it must be {WANTED}"
        )
    return named


def _whole(name: str, key: str, part: object) -> Split:
    if isinstance(part, DataLoader):
        part = part.dataset
    if _is_pair(part):
        inputs, targets = part
        if len(inputs) != len(targets) or not len(inputs):
            raise UserError(
                f"'{key}' of {name} has {len(inputs)} inputs and {len(targets)} targets: they must "
                "pair up"
            )
        return TensorSplit(inputs, targets, torch.arange(len(inputs)))
    length = dataset_length(part)
    if not length:
        raise UserError(f"'{key}' of {name} is empty: give it at least one sample")
    # Any object with a length and [] will do.
    return DatasetSplit(part, torch.arange(length))  # type: ignore[arg-type]


def _is_pair(part: object) -> TypeGuard[tuple[Tensor, Tensor]]:
    return (
        isinstance(part, tuple | list)
        and len(part) == 2
        and all(isinstance(item, Tensor) for item in part)
    )


def _select(split: Split, indices: Indices) -> Split:
    return split.select(torch.from_numpy(indices))


def _labels(part: object) -> Indices | None:
    """Return class numbers where they can be had without decoding a sample: tensors, or
    torchvision's `targets`."""
    if isinstance(part, DataLoader):
        part = part.dataset
    if isinstance(part, Subset):
        labels = _labels(part.dataset)
        return None if labels is None else labels[np.asarray(part.indices)]
    found = part.tensors[1] if isinstance(part, TensorDataset) else getattr(part, "targets", None)
    if _is_pair(part):
        found = part[1]
    array = np.asarray(found) if found is not None else np.empty(0)
    whole = array.ndim == 1 and len(array) and np.issubdtype(array.dtype, np.integer)
    return array.astype(np.int64) if whole else None


def _class_count(part: object) -> int | None:
    """Return the length of torchvision's `classes`; labels alone only bound the number of classes
    from below."""
    if isinstance(part, DataLoader | Subset):
        return _class_count(part.dataset)
    classes = getattr(part, "classes", None)
    return len(classes) if isinstance(classes, list | tuple) else None
