"""The kernels on a GPU: are they right there, how fast are they, and what reaches which goal. Under
ten minutes.

    python benchmarks/gpu.py  # benchmarks/results/gpu.json, and tables in gpu.md
    python benchmarks/gpu.py --data DIR  # also scores of a trained network (ranks, search)
    python benchmarks/gpu.py --only ceilings resnet50 layers  # these parts; others in the file stay
    python benchmarks/gpu.py --only tuner  # benchmarks/results/gpu_tiles.json, for this very GPU
    python benchmarks/gpu.py --rehearse --out FILE  # every part on the CPU, with toys, interpreted

Works from a bare checkout too, with a Python that has PyTorch, Triton, torchvision and pytest. DIR
holds `weights/` and `cifar10/` as `evaluate.py` takes them. A part that fails leaves the others'
results: its error stands in its row. One that kills its process or the GPU's context costs a new
process. The file is written after every part.

What is measured: the statistics pass, in bfloat16, on batches that lie on the GPU; its ways are
said in `gpu_ways.py`. Ways take turns in every repeat; figures are medians of 7 after 4 runs,
between CUDA events and by the wall clock, with the distance of the quartiles. cuDNN tunes itself on
every shape (the first run, given apart), but for random widths, where a search would meet each
shape once. Bytes and operations are counted from shapes; the roof is the sum over ops of the longer
of moving (at the copy's rate) and computing (at the matrix product's). ``off`` is how far a way's
batch means are from those in float32, in deviations.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bare_checkout  # noqa: F401 - for what it does
from environment import environment
from gpu_guard import Clock, Part, Results, Row, perform, supervise
from gpu_report import report
from gpu_tests import environment_for, tests_part

from pruneopt.files import write_text

if TYPE_CHECKING:
    from gpu_device import Device
    from gpu_networks import Sizes

RESULTS = Path(__file__).resolve().parent / "results" / "gpu.json"
NETWORKS = ("resnet50", "mobilenet_v2", "resnet56", "mobilenet_v1")
PARTS = {
    "ceilings": ("copy and matrix products of this machine", 5),
    "tests": ("the kernels' own tests (T6), and what the rest needs compiled", 30),
    "repeat": ("two runs of a fused pass give the same bits", 10),
    **{name: (f"the statistics pass of {name} by every way", 40) for name in NETWORKS},
    "validation": ("logits in evaluation mode by padded slices and by the kernels", 20),
    "layers": ("single convolutions, and the open questions about them", 20),
    "ranks": ("scores from fused against eager statistics (T7)", 30),
    "compiled": ("torch.compile against the fused pass", 75),
    "search": ("a search by padded slices and by a race", 45),
    "widths": ("random widths", 20),
    "tuner": (
        "the fastest of the shipped tiles for each class of convolutions, kept in a file",
        60,
    ),
}


class Session:
    """A process that performs parts. What needs PyTorch is imported in the part that needs it,
    under its guard."""

    def __init__(self, options: argparse.Namespace, clock: Clock, results: Results) -> None:
        from gpu_device import Device
        from gpu_networks import FULL, TOY

        self.options, self.clock, self.results = options, clock, results
        self.device: Device = Device(options.rehearse)
        self.sizes: Sizes = TOY if options.rehearse else FULL

    def _few(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the networks to measure: in a rehearsal one, as the same toys stand for
        several."""
        return names[1:2] if self.options.rehearse else names

    @property
    def _ceilings(self) -> Any:
        from gpu_ceilings import ceilings_of

        return ceilings_of(self.results.parts.get("ceilings"))

    def parts(self, names: Sequence[str]) -> list[Part]:
        runs: dict[str, Callable[[Row], None]] = {
            name: partial(self.table, name) for name in NETWORKS
        }
        runs |= {name: getattr(self, name) for name in PARTS if name not in NETWORKS}
        seconds = 0 if self.options.rehearse else 1
        return [Part(name, PARTS[name][0], seconds * PARTS[name][1], runs[name]) for name in names]

    def ceilings(self, row: Row) -> None:
        from gpu_ceilings import ceilings_part

        ceilings_part(self.device, self.sizes, row)

    def tests(self, row: Row) -> None:
        ahead = ("mobilenet_v2",) if self.options.rehearse else (*NETWORKS, "layers")
        script = [
            sys.executable,
            str(Path(__file__).resolve()),
            *(["--rehearse"] if self.options.rehearse else []),
        ]
        with tempfile.TemporaryDirectory() as logs:
            lines = {name: [*script, "--build", name] for name in ahead}
            tests_part(self.options.rehearse, self.clock, Path(logs), lines, row)

    def repeat(self, row: Row) -> None:
        from gpu_table import repeat_part

        repeat_part(self._few(NETWORKS), self.device, self.sizes, row)

    def table(self, name: str, row: Row) -> None:
        from gpu_table import table_part

        table_part(
            name, self.device, self.sizes, self.clock, self._ceilings, self.results.write, row
        )

    def validation(self, row: Row) -> None:
        from gpu_validation import validation_part

        names = self._few(NETWORKS)
        validation_part(names, self.device, self.sizes, self.clock, self.results.write, row)

    def layers(self, row: Row) -> None:
        from gpu_layers import layers_part

        layers_part(self.device, self.sizes, self.results.write, row)

    def ranks(self, row: Row) -> None:
        from gpu_scores import ranks_part

        ranks_part(self.device, self.sizes, self.clock, self.options.data, row)

    def search(self, row: Row) -> None:
        from gpu_scores import search_part

        search_part(self.device, self.sizes, self.clock, self.options.data, row)

    def compiled(self, row: Row) -> None:
        from gpu_table import compile_part

        names = self._few(NETWORKS)
        compile_part(
            names, self.device, self.sizes, self.clock, self._ceilings, self.results.write, row
        )

    def widths(self, row: Row) -> None:
        from gpu_table import widths_part

        widths_part(
            self._few(NETWORKS), self.device, self.sizes, self.clock, self.results.write, row
        )

    def tuner(self, row: Row) -> None:
        from gpu_tuner import tuner_part

        path = self.results.path.with_name(f"{self.results.path.stem}_tiles.json")
        tuner_part(
            self._few(NETWORKS), self.device, self.sizes, self.clock, path, self.results.write, row
        )


def build(name: str, rehearsal: bool) -> None:
    """Run what a part will run, small, so that Triton's cache on the disk has its kernels."""
    from dataclasses import replace

    from gpu_device import Device
    from gpu_layers import layers_part
    from gpu_networks import FULL, KEEPS, TOY, network
    from gpu_validation import validation_part
    from gpu_ways import fused

    device = Device(rehearsal)
    small = replace(
        TOY if rehearsal else FULL, images=2, batches=(1, 1), layer_images=1, warmups=0, repeats=0
    )
    if name == "layers":
        layers_part(device, replace(small, launches=1), lambda: None, {})
        return
    validation_part((name,), device, small, Clock(600), lambda: None, {})
    net = network(name, small, device)
    for keep in KEEPS[: 1 if rehearsal else None]:
        fused([net.uniform(keep)], device).run()


def work(options: argparse.Namespace) -> int:
    """Return what the process does that holds the GPU."""
    import torch

    if options.rehearse:
        quick_interpreter()
        torch.set_num_threads(1)
    if options.build:
        build(options.build, options.rehearse)
        return 0
    clock = Clock(options.left)
    results = Results(options.out)
    session = Session(options, clock, results)
    results.all["device"] = session.device.describe() | {
        "tuned tiles": os.environ.get("PRUNEOPT_TUNED_TILES", "none")
    }
    return perform(session.parts(options.only), results, clock, session.device.healthy)


def quick_interpreter() -> None:
    """Make Triton's interpreter quick: it computes twice whether an integer overflows, and looks at
    it in debugging only."""
    import dataclasses

    from triton.runtime.interpreter import interpreter_builder

    interpreter_builder.options = dataclasses.replace(
        interpreter_builder.options, sanitize_overflow=False
    )


def available(rehearse: bool) -> str:
    """Return why the benchmark cannot run here; empty where it can."""
    if rehearse:
        return ""
    seen = "import torch; print(torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=False)
    if done.stdout.strip() == "True":
        return ""
    return "there is no GPU that PyTorch can use here: try --rehearse --out FILE"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        metavar="PART",
        help=", ".join(PARTS),
    )
    parser.add_argument(
        "--minutes", type=float, default=10, help="a part is not begun when too little is left"
    )
    parser.add_argument("--data", type=Path, help="the folder of trained weights and images")
    parser.add_argument("--out", type=Path, help="the JSON file; tables go beside it")
    parser.add_argument(
        "--rehearse", action="store_true", help="on the processor, with toys; needs --out"
    )
    for name, kind in (("left", float), ("build", str)):  # of the processes that this one starts
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out = (options.out or RESULTS).resolve()
    if options.rehearse and options.build is None and options.out.parent == RESULTS.parent:
        parser.error(f"a rehearsal measures nothing: name a file outside {RESULTS.parent} by --out")
    options.data = options.data and options.data.resolve()
    return options


def main() -> int:
    options = arguments()
    if options.left is not None or options.build is not None:
        return work(options)
    reason = available(options.rehearse)
    if reason:
        print(reason, file=sys.stderr)
        return 2
    clock = Clock(60 * options.minutes)
    head = {"rehearsal": options.rehearse, "minutes": options.minutes, "environment": environment()}
    results = Results(options.out)
    kept = results.parts if results.all.get("rehearsal") == options.rehearse else {}
    results.all = {
        **head,
        "parts": {name: row for name, row in kept.items() if name not in options.only},
    }
    results.write()
    own = [sys.executable, str(Path(__file__).resolve()), "--out", str(options.out)]
    own += [
        *(["--rehearse"] if options.rehearse else []),
        *(["--data", str(options.data)] if options.data else []),
    ]
    supervise(
        options.only,
        results,
        clock,
        lambda names: [*own, "--left", str(clock.left), "--only", *names],
        environment_for(options.rehearse),
    )
    results.all["parts"] = {name: results.parts[name] for name in PARTS if name in results.parts}
    results.write()
    text = report(results.all)
    write_text(options.out.with_suffix(".md"), text)
    print(text)
    return int(any(row["state"] in ("partly", "failed") for row in results.parts.values()))


if __name__ == "__main__":
    raise SystemExit(main())
