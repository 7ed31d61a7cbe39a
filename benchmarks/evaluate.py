"""Candidates per minute: how fast plans are judged on a processor, and whether the fast way chooses
as the slow one.

    python benchmarks/evaluate.py  # ResNet-20; needs torch-pruning for rival (b)
    python benchmarks/evaluate.py resnet56 --candidates 60
    python benchmarks/evaluate.py mobilenet_v2 --candidates 12
    python benchmarks/evaluate.py --markdown  # only print the table of what was measured

Random plans at half of the FLOPs (MobileNetV2: nine tenths; at three quarters it knows nothing
without training), judged in these ways, in processor seconds of one thread:

a  the published way: the dense network with masks behind its batch norms, 102 batches of 128
through a `DataLoader` in
   training mode (moving average, momentum 0.1), all validation images (EagleEye's code).
   MobileNetV2 has 500 images for batches and 500 for scores: its batches are of 32, in all ways;
b  the way of tools: a deep copy, cut with torch-pruning (or by slicing, where torch-pruning fails
on the network),
   `torch.optim.swa_utils.update_bn` on the same 102 batches, all validation images;
c  ours by modules: `evaluator=reference`, with 20 batches and all validation images;
d  ours: `evaluator=abn`, 20 batches, all validation images;
e  ours with a race from 512 images (MobileNetV2, which has 500: 64);
f  ours with a race from 2048 images (MobileNetV2: 128);
g  ours in bfloat16, `abn{precision=bf16}`;
h  ours in bfloat16 with the race of (f).

(a) and (b) are measured on a few candidates, for each costs the same. What they would choose is
known for all: sliced and masked networks have the same scores, so (d) with the statistics and
batches of (a) gives the scores of (a). Regret is the full score of the best candidate less that of
the chosen one, in points; tau is Kendall's, between the scores of a way and those of (a) over all
candidates. Full scores that are done are kept in ``--log`` and not run again.

Networks and images of (a) and (b) lie channels-last, as those of ours do. Every way of a row has
what it was measured by; ways that are not measured again keep theirs.

Then (d) on 16 candidates that resemble each other, side by side and one by one, on 2,000 images:
children of an evolution (every width of one plan changes with a probability of 0.1), moves (one
width changes), and the random plans.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import stamped
from evaluate_setups import Setup, setup
from markdown_table import markdown_table
from scipy.stats import kendalltau
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from pruneopt import build_module
from pruneopt.extend import Averaging, Evaluation, EvaluationSettings, slice_graph
from pruneopt.files import write_json
from pruneopt.passes.evaluation.merged import merge
from pruneopt.passes.evaluation.resident_images import channels_last
from pruneopt.passes.search.evaluators.cut_networks import CutNetworks

Plan = Mapping[str, np.ndarray]
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "evaluate.json"
WAYS = {
    "a": "published",
    "b": "tools",
    "c": "ours by modules",
    "d": "ours",
    "e": "ours, race",
    "f": "ours, longer race",
    "g": "ours in bfloat16",
    "h": "ours in bfloat16, longer race",
}
KIN = {"children of an evolution": 0.1, "moves": None, "random plans": 1.0}


def published(case: Setup) -> EvaluationSettings:
    """Return how (a) takes statistics."""
    return EvaluationSettings(
        batches=102, batch_size=case.batch_size, averaging=Averaging("ema", 0.1, reset=False)
    )


def plain(case: Setup) -> EvaluationSettings:
    """Return how (d) judges."""
    return EvaluationSettings(batches=20, batch_size=case.batch_size)


def ways(case: Setup) -> dict[str, EvaluationSettings]:
    """Return how ours judge."""
    short, long = case.races
    ours = plain(case)
    half = replace(ours, precision="bf16")
    return {
        "d": ours,
        "e": replace(ours, race=short),
        "f": replace(ours, race=long),
        "g": half,
        "h": replace(half, race=long),
    }


@dataclass
class Loaders:
    """What the rivals read: every image decoded and normalised beforehand, which is in their
    favour; batches lie channels-last, as ours do."""

    calibration: DataLoader[tuple[Tensor, ...]]
    validation: DataLoader[tuple[Tensor, ...]]

    @classmethod
    def of(cls, case: Setup) -> Loaders:
        drawn = list(
            Evaluation(case.graph, case.coupling, case.workload, published(case)).calibration.part(
                0, 102
            )
        )
        images = [
            torch.cat(parts) for parts in zip(*case.workload.subval.batches(256), strict=True)
        ]
        calibration = TensorDataset(torch.cat(drawn).contiguous())
        size = case.batch_size
        return cls(
            DataLoader(calibration, size, collate_fn=collated),
            DataLoader(TensorDataset(*images), 2 * size, collate_fn=collated),
        )

    def accuracy(self, network: nn.Module) -> float:
        network.eval()
        hits = sum(int((network(x).argmax(1) == y).sum()) for x, y in self.validation)
        return hits / len(self.validation.dataset)  # type: ignore[arg-type]


def collated(samples: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Return a batch whose images lie channels-last."""
    return [channels_last(part) for part in default_collate(samples)]


def rival_network(case: Setup) -> nn.Module:
    """Return the dense network with its weights channels-last."""
    module = build_module(case.graph, case.graph.weights)
    return module.to(memory_format=torch.channels_last)


def masked_way(case: Setup, loaders: Loaders) -> Callable[[int], float]:
    """Return way (a): one dense network; masks behind its batch norms are changed from candidate to
    candidate."""
    dense = rival_network(case)
    trained = copy.deepcopy(dense.state_dict())
    masks: dict[str, Tensor] = {}
    for name, part in dense.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_hook(lambda _, inputs, out, name=name: out * masks[name])

    def judge(index: int) -> float:
        kept = case.coupling.kept_units(case.plans[index])
        for name, flags in case.kept_channels(kept).items():
            masks[name] = torch.from_numpy(flags).float()[:, None, None]
        dense.load_state_dict(trained)
        dense.train()
        for (inputs,) in loaders.calibration:
            dense(inputs)
        return loaders.accuracy(dense)

    return judge


def tool_way(case: Setup, loaders: Loaders) -> Callable[[int], float]:
    """Return way (b): a deep copy is cut, and gets its statistics by `update_bn`."""
    whole = rival_network(case)

    def judge(index: int) -> float:
        small = case.cut(copy.deepcopy(whole), index).to(memory_format=torch.channels_last)
        torch.optim.swa_utils.update_bn(loaders.calibration, small)
        return loaders.accuracy(small)

    return judge


def module_way(case: Setup) -> Callable[[int], float]:
    """Return way (c): the reference evaluator."""
    networks = CutNetworks(case.graph, case.coupling, case.workload, plain(case))

    def judge(index: int) -> float:
        module = networks.network(case.plans[index])
        networks.recalibrate(module, case.plans[index])
        return networks.score(module)

    return judge


def timed(judge: Callable[[int], float], count: int) -> dict[str, Any]:
    """Return seconds per candidate of the first few, after one that warms up, and their scores."""
    judge(0)
    seconds, scores = [], []
    for index in range(count):
        started = time.process_time()
        scores.append(judge(index))
        seconds.append(round(time.process_time() - started, 3))
    return {"seconds": seconds, "scores": scores}


def judged(
    case: Setup, settings: EvaluationSettings, plans: Sequence[Plan]
) -> Iterator[dict[str, Any]]:
    """Judge by ours, and yield seconds and scores; of candidates that are judged side by side, the
    first has the seconds of all."""
    evaluation = Evaluation(case.graph, case.coupling, case.workload, settings)
    started = time.process_time()
    for score in evaluation.evaluate(plans):
        seconds = round(time.process_time() - started, 3)
        yield {"value": score.value, "images": score.images, "seconds": seconds}
        started = time.process_time()


def related(case: Setup, changed: float | None, count: int) -> list[Plan]:
    """Return plans that differ from the first in a share of its groups; in one group for None."""
    rng = np.random.default_rng(0)
    first, names = case.plans[0], list(case.plans[0])
    found: list[Plan] = []
    for other in case.plans[1 : count + 1]:
        if changed is None:
            chosen = {names[rng.integers(len(names))]}
        else:
            chosen = {name for name in names if rng.random() < changed}
        found.append({name: other[name] if name in chosen else first[name] for name in names})
    return found


def side_by_side(case: Setup, count: int) -> dict[str, dict[str, float]]:
    """Return seconds per candidate one by one and side by side, for each degree of kinship."""
    found = {}
    settings = replace(plain(case), subval_limit=2000)
    for name, changed in KIN.items():
        plans = related(case, changed, count)
        graphs = [slice_graph(case.graph, case.coupling, plan) for plan in plans]
        shared = merge(graphs, [graph.weights for graph in graphs]).shared
        evaluation = Evaluation(case.graph, case.coupling, case.workload, settings)
        evaluation.together(plans[:1])  # reads the images
        started = time.process_time()
        alone = [evaluation.together([plan])[0].value for plan in plans]
        between = time.process_time()
        together = [score.value for score in evaluation.together(plans)]
        ended = time.process_time()
        if alone != together:
            raise RuntimeError(
                f"{case.name}: {name} score {together} side by side and {alone} one by one"
            )
        seconds = {"alone": between - started, "together": ended - between}
        each = {key: round(value / len(plans), 3) for key, value in seconds.items()}
        found[name] = stamped({**each, "shared": shared})
        print(case.name, name, each, flush=True)
    return found


def measure(name: str, options: argparse.Namespace, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a network; ways that are not asked for stay as they are known."""
    case = setup(name, options.candidates, options.seed)
    count = len(case.plans)
    row: dict[str, Any] = {
        **known,
        "network": name,
        "candidates": count,
        "images": len(case.workload.subval),
    }
    full = recorded(case, options.log / f"evaluate_{name}_{options.seed}.jsonl", count)
    row |= rivals(case, options, full)
    for way, settings in ways(case).items():
        if way not in options.ways:
            continue
        plans = case.plans[: options.slow] if way == "d" else case.plans
        found = list(judged(case, settings, plans))
        row[way] = {key: [item[key] for item in found] for key in ("seconds", "value", "images")}
        row[way] |= choice(np.array(row[way]["value"]), np.array(full[: len(plans)]))
        row[way] = stamped(row[way])
        print(name, way, {key: row[way][key] for key in ("tau", "regret")}, flush=True)
    if options.family or "side by side" not in row:
        row["side by side"] = side_by_side(case, options.family) if options.family else {}
    started = time.process_time()
    for plan in case.plans:
        slice_graph(case.graph, case.coupling, plan)
    cutting = (time.process_time() - started) / count
    row["cutting"] = stamped({"seconds": cutting})
    print(name, f"cutting a candidate takes {1e3 * cutting:.1f} ms")
    return row


def rivals(case: Setup, options: argparse.Namespace, full: list[float]) -> dict[str, Any]:
    """Measure (a), (b) and (c), as far as they are asked for."""
    found: dict[str, Any] = {}
    others = {"a": (masked_way, "masks"), "b": (tool_way, case.cut_by)}
    asked = [way for way in others if way in options.ways]
    if asked:
        loaders = Loaders.of(case)
        for way in asked:
            make, cut_by = others[way]
            with torch.no_grad():
                found[way] = {**timed(make(case, loaders), options.rivals), "cut by": cut_by}
            found[way] = stamped({**found[way], "layout": "channels-last"})
            print(case.name, way, found[way], flush=True)
    if "a" in found:
        found["a"]["full"] = full[: options.rivals]
    if "c" in options.ways:
        found["c"] = stamped(timed(module_way(case), options.rivals))
    return found


def recorded(case: Setup, path: Path, count: int) -> list[float]:
    """Return the scores of (a), by (d) with (a)'s statistics; kept in a file, as they take
    hours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    evaluation = Evaluation(case.graph, case.coupling, case.workload, published(case))
    with path.open("a", encoding="utf-8") as log:
        for plan in case.plans[len(done) : count]:
            item = {"value": evaluation.together([plan])[0].value}
            log.write(json.dumps(item) + "\n")
            log.flush()
            done.append(item)
            print(f"{case.name}: full score of {len(done)} of {count}", flush=True)
    return [item["value"] for item in done[:count]]


def choice(values: np.ndarray, full: np.ndarray) -> dict[str, float]:
    """Return how a way's choice compares with that by full scores."""
    regret = float(full.max() - full[int(values.argmax())])
    return {
        "tau": round(float(kendalltau(values, full).statistic), 4),
        "regret": round(100 * regret, 3),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return seconds per candidate, candidates per minute, ratios to the rivals, and the choice."""
    columns = ["network, candidates", "way", "s each", "per minute", "times (a)", "times (b)"]
    columns += ["images", "tau", "regret, points"]
    lines = []
    for name, row in rows.items():
        mean = {way: float(np.mean(row[way]["seconds"])) for way in WAYS if way in row}
        for way in mean:
            found = row[way]
            images = float(np.mean(found["images"])) if "images" in found else row["images"]
            cells = [
                f"{name}, {len(found.get('value', found['seconds']))}",
                f"{way} {WAYS[way]}",
                f"{mean[way]:.2f}",
                f"{60 / mean[way]:.1f}",
            ]
            cells += [f"{mean[rival] / mean[way]:.1f}" if rival in mean else "" for rival in "ab"]
            cells.append(f"{images:.0f}")
            cells += [str(found.get("tau", "")), str(found.get("regret", ""))]
            lines.append(cells)
    beside = []
    for name, row in rows.items():
        for kind, item in row["side by side"].items():
            cells = [name, kind, f"{item['alone']:.2f}", f"{item['together']:.2f}"]
            cells += [f"{item['alone'] / item['together']:.2f}", f"{item['shared']:.0%}"]
            beside.append(cells)
    pairs = ["network", "candidates", "s one by one", "s side by side", "times", "ops in common"]
    tables = [
        markdown_table(columns, lines, left=(0, 1)),
        markdown_table(pairs, beside, left=(0, 1)),
    ]
    return "\n\n".join(tables)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "networks", nargs="*", default=["resnet20"], help="resnet20, resnet56, mobilenet_v2"
    )
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument(
        "--rivals", type=int, default=3, help="candidates on which (a), (b) and (c) are timed"
    )
    parser.add_argument(
        "--slow",
        type=int,
        default=50,
        help="candidates judged by (d), which neither races nor rounds",
    )
    parser.add_argument(
        "--family",
        type=int,
        default=16,
        help="candidates that resemble each other; 0 leaves them out",
    )
    parser.add_argument(
        "--ways",
        nargs="+",
        default=list(WAYS),
        choices=list(WAYS),
        help="the others stay as they were measured (all)",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides the plans")
    parser.add_argument("--log", type=Path, default=ROOT / "runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results")
    parser.add_argument(
        "--markdown", action="store_true", help="print the table of the saved rows and stop"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    saved: dict[str, Any] = (
        json.loads(options.out.read_text()) if options.out.exists() else {"networks": {}}
    )
    for name in () if options.markdown else options.networks:
        known = saved["networks"].get(name, {})
        if set(WAYS) - {*options.ways, *known}:
            raise SystemExit(
                f"error: --ways leaves out what was never measured of {name}: measure all of it "
                "first"
            )
        saved["networks"][name] = measure(name, options, known)
        write_json(options.out, saved)
    print(table(saved["networks"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
