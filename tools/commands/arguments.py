"""The options of every command, and the checks of their texts. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruneopt.passes.analysis.cost.units import FORMS, UNITS, on_target

__all__ = [
    "add_bench_options",
    "add_compile_options",
    "add_inspect_options",
    "add_latency_options",
    "add_new_options",
    "add_passes_options",
    "add_profile_options",
    "add_quantise_options",
    "add_search_options",
    "add_targets_options",
]

REPAIRS = ("bias", "lstsq", "bn")
MODEL = (
    "file.py, file.py:factory, torchvision:NAME, timm:NAME, zoo:NAME or program.pt2; options "
    "go behind a '?'"
)
ROUND_TO = (
    "widths are multiples of K where they can be; auto: of what the device likes, "
    "auto:cuda-fp16: another target"
)
BUDGET = f"{FORMS}; repeat it for several".replace("%", "%%")


def add_compile_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pruneopt compile`."""
    parser.epilog = """examples:
  pruneopt compile zoo:digits_resnet --data digits --pass abn --budget 50%FLOPs --out small
  pruneopt compile model.py --pass 'l1{criterion=l2 round-to=8}' --budget 50%FLOPs --budget 1Mparams

A FLOP is one multiply-accumulate, batch 1, as in the papers.
"""
    _model(parser)
    _budget(parser)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--pass",
        dest="pass_text",
        metavar="NAME[{key=value ...}]",
        default="l1",
        help="what chooses the channels (l1)",
    )
    choice.add_argument(
        "--pipeline", metavar="'A,B{k=v}'", help="a whole pipeline instead, from couple to verify"
    )
    choice.add_argument(
        "--from-front",
        metavar="K",
        type=_positive,
        help="point K of the front in the folder that MODEL names instead",
    )
    parser.add_argument(
        "--original",
        metavar="MODEL",
        help="the network that was searched: needed with --from-front where it is no network of a "
        "library",
    )
    parser.add_argument(
        "--finetune-epochs",
        metavar="N",
        type=_count,
        default=0,
        help="train the pruned network for N epochs (0)",
    )
    parser.add_argument(
        "--repair",
        metavar="METHOD",
        type=_repairs,
        action="extend",
        default=[],
        help="mend the pruned network without training, on inputs alone: lstsq, bias or bn; "
        "several joined by commas",
    )
    _run_options(parser, "bundle", "pruned", "the verdict", "a search or training that was stopped")


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pruneopt search`."""
    parser.epilog = """examples:
  pruneopt search zoo:digits_resnet --data digits --out front
  pruneopt search model.py --against params --against flops --range 10:60 --out front
  pruneopt compile front --from-front 7 --out small
"""
    _model(parser)
    _budget(parser)
    parser.add_argument(
        "--against",
        metavar="COST",
        action="append",
        default=[],
        help=f"{', '.join(UNITS)} or {on_target('ort-cpu')} (flops); repeat it: the front spreads "
        "over the first",
    )
    parser.add_argument(
        "--range",
        metavar="A:B",
        type=_range,
        help="percent of the first cost that are explored (a fifth to all)",
    )
    parser.add_argument(
        "--candidates", metavar="N", type=_positive, help="structures to judge (200)"
    )
    parser.add_argument(
        "--population", metavar="N", type=_positive, help="structures in a generation (20)"
    )
    parser.add_argument(
        "--searcher", metavar="NAME[{key=value ...}]", help="what proposes structures (nsga2)"
    )
    parser.add_argument(
        "--evaluator", metavar="NAME[{key=value ...}]", help="what judges structures (abn)"
    )
    parser.add_argument(
        "--criterion",
        metavar="NAME",
        help="which channels of a group go: those it scores lowest (l1)",
    )
    parser.add_argument(
        "--before",
        metavar="'A,B{k=v}'",
        default="couple,cost",
        help="the passes before the search (couple,cost)",
    )
    _run_options(parser, "front", "fronts", "the last line", "the search")


def add_inspect_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pruneopt inspect`."""
    _model(parser)
    _budget(parser)
    parser.add_argument(
        "--plan",
        metavar="FILE",
        type=Path,
        help="show what this plan.json (or pns result) keeps, and what it costs",
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--groups",
        action="store_true",
        help="list the channel groups instead of printing the graph",
    )
    shown.add_argument(
        "--lowered",
        action="store_true",
        help="print how searches judge a candidate, in fused operations, instead",
    )
    parser.add_argument(
        "--pns-schema",
        metavar="FILE",
        type=Path,
        help="also write the network's pns pruning schema",
    )
    parser.add_argument(
        "--pns-result", metavar="FILE", type=Path, help="also write --plan as a pns pruning result"
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def add_profile_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pruneopt profile`."""
    parser.epilog = """examples:
  where the time goes, op by op:
    pruneopt profile model.py --target ort-cpu --picture roofline.svg
  the additive table of layers alone (MetaPruning), and a search by it:
    pruneopt profile model.py --out table.json
    pruneopt compile model.py --budget 4ms \\
      --pipeline 'couple,cost{latency=table.json},l1,slice,verify'
"""
    _model(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--target", metavar="T", help="print every op's time, work and rate on T, such as ort-cpu"
    )
    what.add_argument(
        "--out",
        metavar="FILE.json",
        type=Path,
        help="write the table of layers; options below are for it",
    )
    parser.add_argument(
        "--picture", metavar="FILE.svg", type=Path, help="with --target: the roofline as a picture"
    )
    parser.add_argument("--json", action="store_true", help="with --target: the same as JSON")
    parser.add_argument(
        "--points", metavar="K", type=_positive, default=4, help="widths measured on each axis (4)"
    )
    parser.add_argument(
        "--batch", metavar="N", type=_positive, default=1, help="inputs at once (1)"
    )
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=_positive,
        default=10,
        help="timed calls; their median counts",
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=_positive,
        help="CPU threads while measuring (torch's number)",
    )
    parser.add_argument(
        "--device", metavar="D", default="cpu", help="where layers run: cpu, cuda:1 (cpu)"
    )


def add_targets_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pruneopt targets`."""
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def add_latency_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pruneopt latency`."""
    parser.epilog = """examples:
  pruneopt latency measure model.py --target ort-cpu --minutes 5 --db times.db
  pruneopt compile model.py --budget 4ms@ort-cpu --latency-db times.db
"""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    measure = actions.add_parser(
        "measure", help="run sub-networks of a network, and keep the times of all ops"
    )
    _model(measure)
    measure.add_argument(
        "--target",
        metavar="T",
        dest="targets",
        action="append",
        required=True,
        help="such as ort-cpu",
    )
    measure.add_argument(
        "--minutes", metavar="N", type=_minutes, default=5.0, help="for each target (5)"
    )
    measure.add_argument(
        "--db", metavar="FILE", type=Path, required=True, help="where the times go, or are added"
    )
    _seed(measure)
    merge = actions.add_parser("merge", help="make one database of several")
    merge.add_argument(
        "files", metavar="FILE", nargs="+", type=Path, help="databases of one machine"
    )
    merge.add_argument("--out", metavar="FILE", type=Path, required=True, help="the new one")
    show = actions.add_parser("show", help="list what a database holds")
    show.add_argument("file", metavar="FILE", type=Path)


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pruneopt bench`."""
    parser.epilog = """example:
  pruneopt bench small --target ort-cpu --target 'torch-cpu{threads=2 batch=8}'
"""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="what pruneopt compile wrote")
    parser.add_argument(
        "--target",
        metavar="NAME[{key=value ...}]",
        action="append",
        help="where to run, see pruneopt targets; may be repeated (ort-cpu)",
    )
    parser.add_argument(
        "--original",
        metavar="MODEL",
        help=f"the original network: {MODEL} (its graph in the bundle)",
    )
    parser.add_argument("--weights", metavar="FILE", type=Path, help="a state dict for --original")
    _trust(parser)
    parser.add_argument(
        "--input", metavar="1x3x224x224", type=_shape, help="the shape of one input of --original"
    )
    parser.add_argument(
        "--seconds", metavar="S", type=_seconds, default=5.0, help="time for each target (5)"
    )
    parser.add_argument(
        "--out", metavar="FILE.json", type=Path, help="also write the measurements here"
    )
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")


def add_quantise_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pruneopt quantise`."""
    parser.epilog = """example:
  pruneopt quantise small --data digits
  pruneopt quantise small --dtype fp16
"""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="what pruneopt compile wrote")
    parser.add_argument(
        "--dtype", choices=("int8", "fp16"), default="int8", help="the precision (int8)"
    )
    parser.add_argument(
        "--data",
        metavar="SPEC",
        help="to calibrate int8 and to score: digits, cifar10:DIR, ... (the model file's own)",
    )
    parser.add_argument(
        "--calibration", metavar="N", type=_positive, default=256, help="calibration inputs (256)"
    )
    parser.add_argument(
        "--original",
        metavar="MODEL",
        help="the network that was compiled: needed where it is no network of a library",
    )
    _trust(parser)
    parser.add_argument("--json", action="store_true", help="print the record as JSON")


def add_passes_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pruneopt passes`."""
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help="only these passes and parts, or those that a FILE.py registers",
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def add_new_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pruneopt new`."""
    parser.add_argument("path", metavar="FILE.py", type=Path, help="the file to write")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def _trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust",
        action="store_true",
        help="read a .pt2 file, although PyTorch may run code that it holds",
    )


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    _trust(parser)
    parser.add_argument(
        "--weights", metavar="FILE", type=Path, help="a state dict: .safetensors, .pt, .pth or .th"
    )
    parser.add_argument(
        "--input", metavar="1x3x224x224", type=_shape, help="the shape of one input, batch first"
    )
    parser.add_argument(
        "--ignore",
        metavar="NAME",
        nargs="+",
        action="extend",
        default=[],
        help="modules, parameters or groups that keep their channels; * stands for any text",
    )
    parser.add_argument(
        "--flops-convention",
        metavar="NAME",
        action=_Convention,
        default="macs",
        help="how FLOPs are counted: macs (conv and linear), 2x or as a paper does (macs)",
    )


def _budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--budget", metavar="B", dest="budgets", action="append", default=[], help=BUDGET
    )


def _run_options(
    parser: argparse.ArgumentParser, result: str, folder: str, last: str, resumed: str
) -> None:
    """Add what compile and search share: data, where the result goes, limits, and output."""
    parser.add_argument(
        "--data", metavar="SPEC", help="digits, cifar10:DIR, cifar100:DIR, folder:DIR or npz:FILE"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help=f"where the {result} goes ({folder}/ and the model's name)",
    )
    _seed(parser)
    parser.add_argument(
        "--device",
        metavar="D",
        default="cpu",
        help="where data runs through networks: cpu, cuda:1 (cpu)",
    )
    _latency(parser)
    parser.add_argument("--round-to", metavar="K", type=_multiple, help=ROUND_TO)
    parser.add_argument(
        "--min-channels", metavar="K", type=_positive, help="no group gets narrower than this"
    )
    _constraints(parser)
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help=f"continue {resumed} in --out")
    again.add_argument("--force", action="store_true", help=f"replace an earlier {result} in --out")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the result as JSON, and nothing else, on stdout",
    )
    parser.add_argument("--quiet", action="store_true", help=f"print nothing but errors and {last}")


def _seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", metavar="N", type=_count, default=0, help="drives every random choice (0)"
    )


def _latency(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the times on targets come from."""
    parser.add_argument(
        "--latency-db",
        metavar="FILE",
        type=Path,
        help="measured times, for budgets such as 4ms@ort-cpu (in --out)",
    )
    parser.add_argument(
        "--latency-minutes",
        metavar="N",
        type=_minutes,
        help="how long to measure for each target of a budget (3)",
    )


def _constraints(parser: argparse.ArgumentParser) -> None:
    """Add the options for what groups must obey beside the budgets, by names or patterns that
    `pruneopt inspect --groups` shows."""
    parser.add_argument(
        "--width",
        metavar="NAME=K",
        action="append",
        default=[],
        help="how many channels a group keeps; repeat it",
    )
    parser.add_argument(
        "--max-ratio",
        metavar="[NAME=]R",
        action="append",
        default=[],
        help="the largest share of channels that a group loses, or every group without a NAME; "
        "repeat it",
    )
    parser.add_argument(
        "--tie",
        metavar="A,B",
        action="append",
        default=[],
        help="groups that stay equally wide; may be a pattern",
    )


class _Convention(argparse.Action):
    """Checks the name of a convention where one is given: the table of them loads PyTorch."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        from pruneopt.passes.analysis.cost.conventions import convention_named

        setattr(namespace, self.dest, convention_named(str(values)).name)


def _repairs(text: str) -> list[str]:
    methods = text.split(",")
    for method in methods:
        if method not in REPAIRS:
            raise argparse.ArgumentTypeError(
                f"there is no repair {method!r}: use {', '.join(REPAIRS)}"
            )
    return methods


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a shape: write sizes above 0 joined by x, as in 1x3x224x224"
        )
    return sizes


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part.strip().removesuffix("%")) for part in text.split(":"))
    except ValueError:
        low = high = 0.0
    if not 0 < low < high <= 100:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no range: write two percentages up to 100, as in 20:100"
        )
    return low / 100, high / 100


def _count(text: str) -> int:
    return _whole(text, 0)


def _positive(text: str) -> int:
    return _whole(text, 1)


def _multiple(text: str) -> int | str:
    return text if text.startswith("auto") else _positive(text)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of minutes: 0 takes what was measured before"
        )
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    if int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is larger than 64 bits hold")
    return int(text)
