"""Shipped configurations as the compiler builds them, for GPUs that need not be there.

Nothing fails when a kernel spills registers, loses its 16-byte copies or wants more shared memory
than there is: it is slow, or stops at its first launch. So the numbers are checked here, in a
process without the interpreter. `golden_compile.json` holds registers and shared memory per minor
version of Triton; an unknown version has the hard limits only. To add one: `python
tests/kernels/test_compile.py`, and review what it wrote.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import triton

from pruneopt.kernels.compiling import REGISTERS, SHARED_MEMORY

FOLDER = Path(__file__).parent
GOLDEN = FOLDER / "golden_compile.json"
MINOR = ".".join(triton.__version__.split(".")[:2])
SLACK = 0.1
MATRIX = {
    80: "mma.sync",
    86: "mma.sync",
    89: "mma.sync",
    90: "wgmma.mma_async",
    100: "tcgen05.mma",
    120: "mma.sync",
}
OTHERS = (80, 86, 89, 100, 120)


def run(*arguments: str, cache: Path) -> str:
    """Build in a process of its own: under TRITON_INTERPRET=1 nothing would be compiled."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(FOLDER.parent), *filter(None, [kept.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "ragged.compiled", *arguments],
        env=kept | {"PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def compiled(*groups: tuple[str, int], cache: Path) -> list[dict[str, Any]]:
    """Return the report of the compiler on each configuration of groups, for an architecture
    each."""
    lines = run(*(str(word) for group in groups for word in group), cache=cache).splitlines()
    return [json.loads(line) for line in lines]


def faults(made: dict[str, Any], golden: dict[str, Any]) -> list[str]:
    """Return the faults of one build."""
    name, architecture = made["name"], made["architecture"]
    found = []
    if made["spills"]:
        found.append(f"{made['spills']} instructions spill registers")
    if made["registers"] * made["threads"] > REGISTERS:
        found.append(f"{made['registers']} registers times {made['threads']} threads do not fit")
    if made["shared"] > SHARED_MEMORY[architecture]:
        found.append(f"{made['shared']} bytes of shared memory do not fit")
    if (
        name.startswith(("conv", "dwconv", "add_act"))
        and "groups of" not in name
        and not made["wide_stores"]
    ):
        found.append("no store of 16 bytes: a fact about alignment was lost")
    if name.startswith("conv") and "groups of" not in name:
        products = "float32" not in name
        if products and made["matrix"] != MATRIX[architecture]:
            found.append(f"products by {made['matrix']}, expected {MATRIX[architecture]}")
        if not made["wide_copies"]:
            found.append("no asynchronous copy of 16 bytes: a fact about alignment was lost")
    before = golden.get(MINOR, {}).get(f"{name}, sm_{architecture}")
    if before is not None:
        for what in ("registers", "shared"):
            if made[what] > before[what] * (1 + SLACK) + 8:
                found.append(f"{what} grew from {before[what]} to {made[what]}")
    return [f"{name}, sm_{architecture}: {fault}" for fault in found]


def check(*groups: tuple[str, int], cache: Path) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    made = compiled(*groups, cache=cache)
    assert made
    wrong = [fault for build in made for fault in faults(build, golden)]
    assert not wrong, "\n".join(wrong)


def test_the_commonest_kernels(tmp_path: Path) -> None:
    """On the newest common architecture, and the commonest of them on an older one as well."""
    check(("fast", 90), ("commonest", 80), cache=tmp_path)


def test_what_is_built_is_what_a_launch_compiles(tmp_path: Path) -> None:
    """Otherwise these checks would be of other code: types, constants and alignment are inferred
    twice."""
    assert run("launched", cache=tmp_path).split() == ["True"]


@pytest.mark.slow
def test_the_other_kernels(tmp_path: Path) -> None:
    check(("slow", 90), cache=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", OTHERS)
def test_other_architectures(architecture: int, tmp_path: Path) -> None:
    check(("all", architecture), cache=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spills": 2}, "2 instructions spill"),
        ({"registers": 255, "threads": 512}, "255 registers times 512 threads"),
        ({"shared": 300_000}, "300000 bytes of shared memory do not fit"),
        ({"wide_stores": 0}, "no store of 16 bytes"),
        ({"wide_copies": 0}, "no asynchronous copy"),
        ({"matrix": "mma.sync"}, "products by mma.sync, expected wgmma.mma_async"),
        ({"registers": 200}, "registers grew from 150 to 200"),
        ({"shared": 60_000}, "shared grew from 50000 to 60000"),
    ],
)
def test_a_fault_is_seen(change: dict[str, Any], message: str) -> None:
    good = {
        "name": "conv",
        "architecture": 90,
        "registers": 150,
        "shared": 50_000,
        "threads": 256,
        "spills": 0,
        "matrix": "wgmma.mma_async",
        "wide_copies": 24,
        "wide_stores": 8,
    }
    golden = {MINOR: {"conv, sm_90": {"registers": 150, "shared": 50_000}}}
    assert not faults(good, golden)
    assert any(message in fault for fault in faults(good | change, golden))


def write_golden() -> None:
    """Record registers and shared memory of this Triton, beside what is known of others."""
    known = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    cache = Path(os.environ.get("TRITON_CACHE_DIR", ".triton-cache"))
    made = compiled(*(("all", number) for number in (90, *OTHERS)), cache=cache)
    known[MINOR] = {
        f"{build['name']}, sm_{build['architecture']}": {
            what: build[what] for what in ("registers", "shared")
        }
        for build in made
    }
    GOLDEN.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_golden()
