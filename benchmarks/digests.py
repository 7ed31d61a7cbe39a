"""Digest everything a compile delivers, so that two checkouts can be compared byte by byte.

Each network of a list is compiled by the command line; the digests of its plan, graph texts,
weights, generated source and ONNX file are written as JSON. Line numbers of the project's own
networks, which any edit above them moves, are left out. A refactoring is right when nothing
differs:

    python benchmarks/digests.py --out before.json             # in the old checkout
    python benchmarks/digests.py --out after.json --compare before.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = (
    "plan.json",
    "ir.before.txt",
    "ir.after.txt",
    "model.py",
    "weights.safetensors",
    "model.onnx",
)
OWN_LINE = re.compile(rb'("models/\w+\.py"):\d+')
COMMAND = (sys.executable, "-m", "pruneopt.tools.main", "compile")


def digests(network: str, options: list[str]) -> dict[str, str]:
    """Return the digest of every file of a network's bundle, or what the command said where it
    failed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        done = subprocess.run(
            [*COMMAND, network, *options, "--out", str(out)],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            return {"failed": (done.stderr or done.stdout).strip()[-500:]}
        return {name: digest(out / name) for name in FILES}


def digest(path: Path) -> str:
    """Return the digest of a file, without the line numbers of our own networks in graph texts."""
    content = path.read_bytes()
    if path.suffix == ".txt":
        content = OWN_LINE.sub(rb"\1", content)
    return hashlib.sha256(content).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "networks", nargs="*", help="networks; default: those of networks/quick.txt"
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument(
        "--compare", type=Path, help="digests of another checkout; exits 1 where any differs"
    )
    parser.add_argument("--jobs", type=int, default=2, help="how many compiles run at a time")
    parser.add_argument(
        "--options", default="--pass l1 --budget 50%FLOPs", help="the options of compile"
    )
    arguments = parser.parse_args()
    quick = (ROOT / "benchmarks" / "networks" / "quick.txt").read_text(encoding="utf-8").split()
    networks = arguments.networks or quick
    with ThreadPoolExecutor(arguments.jobs) as pool:
        bundles = pool.map(partial(digests, options=arguments.options.split()), networks)
        found = dict(zip(networks, bundles, strict=True))
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if arguments.compare is None:
        return 0
    before = json.loads(arguments.compare.read_text(encoding="utf-8"))
    differ = {
        name: [
            key
            for key in {*found[name], *before[name]}
            if found[name].get(key) != before[name].get(key)
        ]
        for name in found
        if name in before and (found[name] != before[name] or "failed" in found[name])
    }
    for name, keys in differ.items():
        print(f"{name}: {', '.join(sorted(keys))}")
    same = sum(name in before for name in found) - len(differ)
    print(f"{same} of {len(found)} networks give the same bytes")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
