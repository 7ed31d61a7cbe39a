"""Ranking by a function of the user's own, from an installed module or from a file."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

from pruneopt.digest import source_digest
from pruneopt.errors import PruneoptError, UserError
from pruneopt.models.user_code import UserFile, failure
from pruneopt.passes.options.configured import option
from pruneopt.passes.search.rankings.ranking import Measured, Ranking

if TYPE_CHECKING:
    from pruneopt.passes.analysis.cost.budget import Budget
    from pruneopt.passes.analysis.cost.cost import CostModel

__all__ = ["Function"]

DOING = "while a candidate was ranked"


@dataclass(frozen=True)
class Function(Ranking):
    """A function of the user's own: it takes a `Measured` and returns a number, larger is
    better."""

    name: ClassVar[str] = "function"
    summary: ClassVar[str] = (
        "a function of your own, by import path or file: takes a Measured, gives a number"
    )

    path: str = option("", "module:function, or file.py:function")

    def __post_init__(self) -> None:
        super().__post_init__()
        place, _, attribute = self.path.rpartition(":")
        if not place or not attribute:
            raise UserError(
                f"path={self.path!r} must name a function as module:function or file.py:function"
            )

    def fitness(self, measured: Measured) -> float:
        value = self._call(measured)
        if (
            not isinstance(value, numbers.Real)
            or isinstance(value, bool)
            or not math.isfinite(value)
        ):
            raise UserError(f"{self.path} must return a finite number, not {value!r}")
        return float(value)

    def check(self, cost: CostModel, budgets: list[Budget]) -> None:
        """Load the function, so that a mistake in its name does not wait for the first
        candidate."""
        self._load()

    def source(self) -> str:
        """Return the hash of the code that holds the function; modules without one have none."""
        file = self._home()
        return "" if file is None else source_digest(file)

    def _call(self, measured: Measured) -> object:
        function = self._load()
        if self._file is not None:
            return self._file.run(DOING, function, measured)
        try:
            return function(measured)
        except PruneoptError:
            raise
        except Exception as error:
            file = self._home() or Path(self._module.__name__)
            raise failure(error, file.parent, file, DOING) from error

    def _home(self) -> Path | None:
        """Return the file of the function's module; built-in ones have none."""
        file = getattr(self._module, "__file__", None)
        return Path(file) if isinstance(file, str) else None

    @cached_property
    def _file(self) -> UserFile | None:
        """The file of a path that names one, executed."""
        place = self.path.rpartition(":")[0]
        return UserFile(Path(place)) if place.endswith(".py") else None

    @cached_property
    def _module(self) -> ModuleType:
        if self._file is not None:
            return self._file.module
        try:
            return import_module(self.path.rpartition(":")[0])
        except Exception as error:
            raise UserError(
                f"the ranking function {self.path} cannot be loaded: {error} (a file is named as "
                "file.py:function)"
            ) from error

    def _load(self) -> Callable[[Measured], object]:
        attribute = self.path.rpartition(":")[2]
        found = getattr(self._module, attribute, None)
        if found is None:
            raise UserError(f"{self.path.rpartition(':')[0]} has no function {attribute!r}")
        if not callable(found):
            raise UserError(f"{self.path} is no function")
        checked: Callable[[Measured], object] = found
        return checked
