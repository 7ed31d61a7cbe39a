"""Help for testing passes, parts and op rules of your own: a pytest plugin, there once pruneopt is
installed.

The fixture `ir_snapshot` compares a graph with a readable file beside the test, `assert_pruned` and
`assert_same_function` compare networks. PyTorch is loaded by the first use, not when pytest starts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pruneopt.ir.graph import Graph
from pruneopt.ir.text.printer import print_graph

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pruneopt.passes.result import Result

__all__ = ["IrSnapshot", "assert_pruned", "assert_same_function", "ir_snapshot"]

UPDATE = "--snapshot-update"
_owners = pytest.StashKey[dict[Path, Path]]()
"""Snapshots without a name of their own, and the test file that each belongs to."""


@pytest.hookimpl(trylast=True)
def pytest_load_initial_conftests(parser: pytest.Parser) -> None:
    """Add the option, unless another snapshot plugin or a conftest file has it: theirs counts for
    both."""
    _, unknown = parser.parse_known_and_unknown_args([UPDATE])
    if unknown:
        parser.getgroup("pruneopt").addoption(
            UPDATE, action="store_true", help="write snapshots anew; review them as a diff"
        )


class IrSnapshot:
    """Compares graphs, results of passes and texts with files in ``snapshots/`` beside a test."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self._folder = request.path.parent / "snapshots"
        self._update = request.config.getoption(UPDATE, default=False)
        self._unnamed = 0

    def __call__(self, what: Graph | Result | str, name: str | None = None) -> None:
        """Compare with ``snapshots/NAME.pir``; ``--snapshot-update`` writes the file instead.

        Args:
            what: a graph, the result of a pipeline (its graph), or a text.
            name: of the file, with a suffix other than ``.pir`` if need be; the test's own name if
                left out.

        Raises:
            Failed: the file is missing, or differs; a difference is shown as a diff.
        """
        path = self._folder / ((name if "." in name else f"{name}.pir") if name else self._own())
        text = _text(what)
        if self._update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            return
        if not path.exists():
            pytest.fail(
                f"no snapshot {path.name}: run pytest with {UPDATE}, and review what it wrote",
                pytrace=False,
            )
        expected = path.read_text(encoding="utf-8")
        if text != expected:
            pytest.fail(_difference(path, expected, text), pytrace=False)

    def _own(self) -> str:
        """Return the name of the test's one unnamed snapshot; two test files must not share it."""
        name = re.sub(r"[^\w.-]+", "-", self._request.node.name).strip("-") + ".pir"
        owners = self._request.config.stash.setdefault(_owners, {})
        owner = owners.setdefault(self._folder / name, self._request.path)
        self._unnamed += 1
        if owner != self._request.path or self._unnamed > 1:
            pytest.fail(f"two snapshots would be called {name}: give one of them a name")
        return name


@pytest.fixture
def ir_snapshot(request: pytest.FixtureRequest) -> IrSnapshot:
    """Return what compares a graph, or a pass's result, with a file beside the test:
    ``ir_snapshot(graph)``."""
    return IrSnapshot(request)


def _text(what: Graph | Result | str) -> str:
    if isinstance(what, str):
        return what if what.endswith("\n") else what + "\n"
    return print_graph(what if isinstance(what, Graph) else what.graph, locations=False)


def _difference(path: Path, expected: str, text: str) -> str:
    lines = difflib.unified_diff(
        expected.splitlines(), text.splitlines(), f"snapshots/{path.name}", "now", lineterm=""
    )
    return "\n".join([f"{path.name} differs; {UPDATE} writes it anew", *lines])


def assert_same_function(
    one: nn.Module | Graph,
    other: nn.Module | Graph,
    inputs: Sequence[Tensor] | Tensor | None = None,
    *,
    tolerance: float = 1e-4,
) -> None:
    """Check that two networks give the same outputs, in evaluation mode and at several batch sizes.

    Args:
        one, other: modules, or graphs with their weights.
        inputs: positional inputs of both; random ones where one of the two is a graph, if left
            out. Other batch sizes are tried as far as ``one`` takes them.
        tolerance: largest difference of an output, as a share of its largest element; whole numbers
            must be equal.

    Raises:
        AssertionError: they differ; the message names the first output that does, and by how much.
        ValueError: two modules without inputs.
    """
    from pruneopt.same_function import why_different

    __tracebackhide__ = True
    reason = why_different(one, other, inputs, tolerance)
    if reason is not None:
        raise AssertionError(reason)


def assert_pruned(original: nn.Module | Graph, result: Result) -> None:
    """Check that a result is the original with channels removed, and nothing else.

    The graph and its weights are proved as the pass ``verify`` does it: every value in float64
    against the original with removed channels masked where they are read. The module is compared
    with the graph. For pipelines that only cut: training, repairs and dropped blocks change more.

    Raises:
        AssertionError: what else changed, or that nothing was removed; the message names the op.
    """
    from pruneopt.same_function import why_different, why_not_pruned

    __tracebackhide__ = True
    reason = why_not_pruned(original, result) or why_different(result.graph, result.module)
    if reason is not None:
        raise AssertionError(reason)
