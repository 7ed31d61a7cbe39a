"""Running a user's model file: its own imports work, it cannot disturb others, and its failures
become one sentence.

The file's folder is first on `sys.path`, and modules found there are in `sys.modules`, only while
the file is imported and while its factory, `data`, `example_inputs` or `evaluate` runs. Afterwards
both are as before, so two files may each have their own `utils`. Modules that a file loaded are
kept with it and put back whenever its code runs again. One limit: an import of a sibling inside
`forward`, `loss` or `metric` is not found; write it at the top of the file.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import linecache
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from pruneopt.errors import PruneoptError, UserError

__all__ = ["UserFile", "failure"]


class UserFile:
    """A Python file of the user, executed once as a module of its own.

    Raises:
        UserError: the file is missing, cannot be compiled, or raises while it runs.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        self.path = path.resolve()
        self.folder = self.path.parent
        self._modules: dict[str, ModuleType] = {}
        self._depth = 0
        self.module = self._execute()

    def _execute(self) -> ModuleType:
        try:
            code = compile(self.path.read_bytes(), str(self.path), "exec")
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            place = f"{self.path} line {line}" if line else str(self.path)
            raise UserError(
                f"{place} is not valid Python: {getattr(error, 'msg', error)}"
            ) from error
        # The name is the file's own: classes in it keep a home in sys.modules, for pickling and
        # dataclasses.
        digest = hashlib.sha256(str(self.path).encode()).hexdigest()[:8]
        module = ModuleType(f"pruneopt_user_{self.path.stem}_{digest}")
        module.__file__ = str(self.path)
        linecache.checkcache(str(self.path))
        sys.modules[module.__name__] = module
        self.run(f"while {self.path.name} was imported", exec, code, module.__dict__)
        return module

    def run(self, doing: str, function: Callable[..., Any], *args: object) -> Any:
        """Call `function(*args)` as this file's code; what it raises becomes a UserError with file
        and line."""
        try:
            with self._active():
                return function(*args)
        except PruneoptError:
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a file may raise what it likes
            raise failure(error, self.folder, self.path, doing) from error

    def bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, to be called from anywhere, with this file's imports in force; errors
        pass unchanged."""

        @functools.wraps(function)
        def call(*args: object, **options: object) -> Any:
            with self._active():
                return function(*args, **options)

        return call

    def line_of(self, name: str) -> int | None:
        """Return the line where a top-level name is first assigned or defined, for messages."""
        starts = (
            f"{name} =",
            f"{name}:",
            f"{name}=",
            f"def {name}(",
            f"class {name}(",
            f"class {name}:",
        )
        for number, line in enumerate(linecache.getlines(str(self.path)), 1):
            if line.startswith(starts):
                return number
        return None

    def at(self, name: str) -> str:
        """Return `"model.py line 12"` for a top-level name."""
        line = self.line_of(name)
        return f"{self.path.name} line {line}" if line else self.path.name

    @contextmanager
    def _active(self) -> Iterator[None]:
        if self._depth:
            yield
            return
        self._depth += 1
        local = self._local_names()
        already = {name for name in local if self._owns(sys.modules[name], name)}
        hidden = {
            name: sys.modules.pop(name)
            for name in local
            if name not in already and self._hides(name)
        }
        sys.modules.update(self._modules)
        sys.path.insert(0, str(self.folder))
        importlib.invalidate_caches()
        try:
            yield
        finally:
            owned = [name for name in self._local_names() if self._owns(sys.modules[name], name)]
            self._modules = {name: sys.modules[name] for name in owned if name not in already}
            for name in self._modules:
                del sys.modules[name]
            sys.modules.update(hidden)
            if str(self.folder) in sys.path:
                sys.path.remove(str(self.folder))
            self._depth -= 1

    def _local_names(self) -> list[str]:
        """Return the loaded modules whose top-level name is also that of a file or folder beside
        the user's file."""
        beside = {
            entry.stem if entry.suffix == ".py" else entry.name for entry in self.folder.iterdir()
        }
        beside -= {"pruneopt", "__main__"} | sys.stdlib_module_names
        return [name for name in sys.modules if name.partition(".")[0] in beside]

    def _owns(self, module: ModuleType, name: str) -> bool:
        """Return whether a loaded module's top-level package or file lies directly in the user's
        folder."""
        return _place(sys.modules.get(name.partition(".")[0], module)) == self.folder

    def _hides(self, name: str) -> bool:
        """Return whether a module loaded from elsewhere would stand in for the user's own file or
        folder of that name.

        Installed packages stay: a second copy of torch in one process would be worse than the name
        clash.
        """
        place = _place(sys.modules.get(name.partition(".")[0], sys.modules[name]))
        return place is not None and place not in _INSTALLED


def _place(module: ModuleType) -> Path | None:
    """Return the folder in which a top-level module's file or package lies."""
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        path = Path(file).resolve()
        return path.parent.parent if path.stem == "__init__" else path.parent
    try:
        first = next(iter(getattr(module, "__path__", ())), None)
    except Exception:  # a foreign module's own __path__ object may do anything
        return None
    return Path(first).resolve().parent if isinstance(first, str) else None


_INSTALLED = {
    Path(sysconfig.get_path(key)).resolve()
    for key in ("purelib", "platlib", "stdlib", "platstdlib")
}


def failure(error: BaseException, folder: Path, path: Path, doing: str) -> UserError:
    """Return an error of user code as one sentence with the last place in the user's own files."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return UserError(
            f"{Path(error.filename).name} line {error.lineno} is not valid Python: {error.msg}"
        )
    place = _last_place(error.__traceback__, folder) or str(path)
    if isinstance(error, SystemExit):
        return UserError(
            f"{place} ends the program {doing}: put it under if __name__ == '__main__'"
        )
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return UserError(f"{place} raised {kind} {doing}{': ' if text else ''}{text}")


def _last_place(trace: TracebackType | None, folder: Path) -> str | None:
    for frame in reversed(traceback.extract_tb(trace)):
        file = Path(frame.filename)
        if file.is_absolute() and file.is_relative_to(folder) and "site-packages" not in file.parts:
            return f"{file.relative_to(folder)} line {frame.lineno}"
    return None
