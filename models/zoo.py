"""The networks that come with pruneopt, by name. A family's file is imported when one of its
networks is asked for."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from pruneopt.errors import UserError
from pruneopt.models.spec import did_you_mean

__all__ = ["ZooEntry", "create", "entry", "names"]

CIFAR = (1, 3, 32, 32)
IMAGENET = (1, 3, 224, 224)


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """One network: where its factory lives, and the shape of one example input `[1, C, H, W]`."""

    name: str
    file: str
    input_shape: tuple[int, ...]

    @property
    def factory(self) -> Callable[..., nn.Module]:
        """The factory function; it takes keyword options only (`num_classes`, `width`)."""
        found: Callable[..., nn.Module] = getattr(
            importlib.import_module(f"pruneopt.models.{self.file}"), self.name
        )
        return found


_ENTRIES = {
    item.name: item
    for item in (
        ZooEntry("digits_resnet", "digits_resnet", (1, 1, 16, 16)),
        ZooEntry("mobilenet_v1", "mobilenet_v1", IMAGENET),
        ZooEntry("mobilenet_v2_1_4", "mobilenet_v2", IMAGENET),
        ZooEntry("repvgg_a0", "repvgg", IMAGENET),
        ZooEntry("resnet20", "resnet_cifar", CIFAR),
        ZooEntry("resnet32", "resnet_cifar", CIFAR),
        ZooEntry("resnet56", "resnet_cifar", CIFAR),
        ZooEntry("vgg19_cifar", "vgg_cifar", CIFAR),
    )
}


def names() -> tuple[str, ...]:
    """Return every name `entry` and `create` accept, sorted."""
    return tuple(sorted(_ENTRIES))


def entry(name: str) -> ZooEntry:
    """Return the entry called `name`; UserError with the closest names when there is none."""
    if name not in _ENTRIES:
        raise UserError(f"the zoo has no network '{name}': {did_you_mean(name, _ENTRIES)}")
    return _ENTRIES[name]


def create(name: str, **options: object) -> nn.Module:
    """A freshly initialised network.

    Raises:
        UserError: unknown network, an option its factory does not take, or an option value it
            refuses.
    """
    factory = entry(name).factory
    known = inspect.signature(factory).parameters
    for key in options:
        if key not in known:
            raise UserError(f"zoo:{name} has no option '{key}': {did_you_mean(key, known)}")
    try:
        return factory(**options)
    except (TypeError, ValueError, RuntimeError) as error:
        shown = ", ".join(f"{key}={value}" for key, value in options.items())
        raise UserError(f"zoo:{name} cannot be built with {shown}: {error}") from error
