"""Only the room of ops knows ops by name: everything else asks for a property.

Every file of the sources and benchmarks is parsed. Found are comparisons of an op's ``role``,
``base`` or ``target`` (or a call such as ``startswith``, or a look-up) with the name of an op, with
a part of one, or with a collection that holds one.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pruneopt.passes.analysis.ops.table import OPS

ROOT = Path(__file__).parents[1]
FOLDERS = ("ir", "kernels", "models", "passes", "tools", "benchmarks")
ROOM = "passes/analysis/ops/"
EXCEPTIONS = {
    "ir/capture/": "reads calls of PyTorch, which it must tell apart to write them down",
    "ir/codegen/": "writes every op as PyTorch's own Python, which has a form for each",
    "ir/finite.py": "judges values by what PyTorch's ops compute, below the room of ops",
    "passes/lowering/": "names its own fused ops, and the activations that its kernels have",
    "benchmarks/gpu_counts.py": "counts by itself, to share nothing with what it measures",
    "benchmarks/gpu_tuner.py": "looks for a fused op of pruneopt",
}
NAMED = ("role", "base", "target")
METHODS = ("startswith", "endswith", "get", "removeprefix", "removesuffix", "count", "index")
FUSED = "pruneopt."


def is_name(text: Any) -> bool:
    """Return whether a text names an op, with a namespace and an overload or without."""
    if not isinstance(text, str):
        return False
    base = text.removeprefix("aten.").partition(".")[0]
    return text.startswith(FUSED) or base in OPS or hasattr(torch.ops.aten, base or "-")


def is_part(text: Any) -> bool:
    """Return whether a text is a part of an op's name that says what the op does."""
    return isinstance(text, str) and len(text) > 2 and any(text in name for name in OPS)


def reads_op(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in NAMED


def value_of(node: ast.expr, module: str) -> Any:
    """Return a literal's value, or that of a name of the module; None for anything else."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        pass
    if not isinstance(node, ast.Name):
        return None
    return getattr(importlib.import_module(module), node.id, None)


def names_op(node: ast.expr, module: str, *, part: bool) -> bool:
    """Return whether an expression is the name of an op (or a part of one), or a collection with
    one."""
    value = value_of(node, module)
    if isinstance(value, Collection) and not isinstance(value, str):
        return any(map(is_name, value))
    return is_part(value) if part else is_name(value)


def comparisons(tree: ast.AST, module: str) -> Iterator[ast.expr]:
    """Yield the comparisons and look-ups of ops with names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            part = any(isinstance(op, ast.In | ast.NotIn) for op in node.ops) and reads_op(sides[1])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            sides, part = [node.func.value, *node.args], node.func.attr.endswith("with")
            if node.func.attr not in METHODS:
                continue
        elif isinstance(node, ast.Subscript):
            sides, part = [node.value, node.slice], False
        else:
            continue
        others = [side for side in sides if not reads_op(side)]
        if len(others) < len(sides) and any(names_op(o, module, part=part) for o in others):
            yield node


def found_in(path: Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    module = name.removesuffix(".py").replace("/", ".")
    package = path.stem if name.startswith("benchmarks/") else f"pruneopt.{module}"
    tree = ast.parse(path.read_text())
    return [f"{name}:{node.lineno}: {ast.unparse(node)}" for node in comparisons(tree, package)]


SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def test_ops_are_asked_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    paths = [path for path in SOURCES if not path.relative_to(ROOT).as_posix().startswith(ROOM)]
    found = [line for path in paths for line in found_in(path)]
    wrong = [line for line in found if not line.startswith(tuple(EXCEPTIONS))]
    assert not wrong, "ask has_trait() or definition_of() instead:\n" + "\n".join(wrong)
    unused = [start for start in EXCEPTIONS if not any(line.startswith(start) for line in found)]
    assert not unused, f"these exceptions are needed no more: {unused}"


KINDS = ("conv2d", "linear")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('op.role == "conv2d"', True),
        ('op.base not in ("cat", "concat")', True),
        ("op.role in KINDS", True),
        ("KINDS.index(op.base)", True),
        ('"batch_norm" in op.base', True),
        ('op.target == "aten.add.Tensor"', True),
        ('op.role.startswith("conv")', True),
        ('{"relu": 1}[op.base]', True),
        ('op.base == "pruneopt.conv_output"', True),
        ('"." in op.base', False),
        ('place.role == "output"', False),
        ("old.target != new.target", False),
        ('name == "conv2d"', False),
    ],
)
def test_what_counts_as_a_name(text: str, wrong: bool) -> None:
    assert bool(list(comparisons(ast.parse(text), __name__))) == wrong
