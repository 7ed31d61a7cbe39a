"""The base class of targets: a runtime on a device, whose text names all that times depend on.

``ort-cpu{threads=2 batch=1}`` is text for such a target and reads back; the text is the key under
which measurements, budgets and tables speak of it. Options at their defaults are left out, so that
one target has one text.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pruneopt.errors import UserError
from pruneopt.passes.options.configured import Part, option
from pruneopt.passes.options.registry import part_class, part_names
from pruneopt.passes.options.spec import parse_part, pass_text

if TYPE_CHECKING:
    from torch import Tensor

    from pruneopt.ir.graph import Graph
    from pruneopt.passes.targets.session import Session

__all__ = ["Calibration", "Target", "parse_target", "target_classes"]

Calibration = Sequence[Sequence["Tensor"]]
"""Inputs of several calls, each as the network takes them."""


@dataclass(frozen=True)
class Target(Part):
    """A runtime on a device, at a batch size and a precision."""

    kind: ClassVar[str] = "target"

    batch: int = option(1, "inputs at once")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("batch", self.batch)

    def __str__(self) -> str:
        return pass_text(self)

    @abstractmethod
    def unavailable(self) -> str | None:
        """Return why this machine does not offer it, without a full stop; None where it does."""

    @abstractmethod
    def runtime(self) -> str:
        """Return the runtime, its version and its device, which measurements are kept with."""

    @abstractmethod
    def load(
        self, graph: Graph, weights: Mapping[str, Tensor], *, calibration: Calibration | None = None
    ) -> Session:
        """Return the network as it would be deployed here, ready to run.

        Args:
            graph: the network, such as one that was cut.
            weights: every parameter, buffer and constant of the graph.
            calibration: inputs that the ranges of activations are taken from; int8 needs them,
                nothing else reads them.

        Raises:
            UserError: this machine does not offer the target, or the network cannot run on it.
        """

    def need(self) -> None:
        """Raise a `UserError` that says why this machine does not offer the target."""
        reason = self.unavailable()
        if reason is not None:
            raise UserError(f"{self} is not available: {reason}; `pruneopt targets` lists what is")

    def _at_least_one(self, name: str, value: int) -> None:
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")


def parse_target(text: str) -> Target:
    """Return the target that a text such as ``ort-cpu{threads=2}`` names, and ``str`` of it is.

    Raises:
        UserError: ``target:1:COLUMN: error: ...`` for a name or an option that does not exist.
    """
    found = parse_part(Target, text)
    assert isinstance(found, Target)
    return found


def target_classes() -> list[type[Target]]:
    """Return every kind of target, those of other packages too."""
    found = [part_class(Target.kind, name) for name in part_names(Target.kind)]
    return [item for item in found if issubclass(item, Target)]
