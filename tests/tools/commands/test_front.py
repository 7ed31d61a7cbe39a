"""`pruneopt search` and `compile --from-front` as users run them."""

import json
import signal
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from helpers.commands import relist, unfinished, wait_for

from pruneopt.tools.report.front_plot import front_svg, ticks

Call = Callable[..., Any]
EVALUATOR = "abn{calibration-batches=1 batch-size=64 subval-limit=64}"
COUNT = 16
FILES = [
    *("front.html", "front.json", "front.svg", "pruneopt.json", "run.json", "search.jsonl"),
]
SVG = "{http://www.w3.org/2000/svg}"


def words(example: str, out: Path, candidates: int = COUNT) -> list[object]:
    sizes = ["--candidates", candidates, "--population", 8]
    return ["search", example, "--evaluator", EVALUATOR, *sizes, "--out", out]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def searched(
    tmp_path_factory: pytest.TempPathFactory, command: Call, example: str
) -> tuple[Path, str]:
    """The folder of a search that ran to its end, and what the terminal showed."""
    out = tmp_path_factory.mktemp("searched") / "front"
    done = command(*words(example, out))
    assert (done.code, done.err) == (0, "")
    return out, done.out


def test_it_writes_the_front_and_shows_it(searched: tuple[Path, str]) -> None:
    folder, text = searched
    assert sorted(path.name for path in folder.iterdir()) == FILES
    front = read(folder / "front.json")
    assert front["judged"] == COUNT
    assert [item["point"] for item in front["points"]] == list(range(1, len(front["points"]) + 1))
    rows = [line.split() for line in text.splitlines()]
    assert rows[0][:4] == ["point", "FLOPs", "left", "accuracy"]
    for item, row in zip(front["points"], rows[2:], strict=False):
        assert row[0] == str(item["point"])
        assert f"{100 * item['costs']['flops'] / front['original']['flops']:.1f}" in row
        assert f"{100 * item['score']:.1f}" in row
        assert row[-1] == str(item["candidate"])
    assert (
        f"{len(front['points'])} points of {COUNT} judged structures; hypervolume "
        f"{front['hypervolume']:.4f}" in text
    )
    assert read(folder / "run.json")["searched"]["seed"] == 0


def test_any_searcher_may_propose_the_structures(
    tmp_path: Path, command: Call, example: str
) -> None:
    evolution = "evolution{population=4 iterations=1 parents=2}"
    done = command(*words(example, tmp_path / "front"), "--searcher", evolution)
    assert (done.code, done.err) == (0, "")
    lines = (tmp_path / "front" / "search.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    assert [json.loads(line)["origin"] for line in lines[8:]] == ["evolution"] * 8
    assert "evolution at 2 levels" in read(tmp_path / "front" / "front.json")["found_by"]


def test_a_searcher_that_does_not_exist_is_named(
    tmp_path: Path, command: Call, example: str
) -> None:
    done = command(*words(example, tmp_path / "front"), "--searcher", "evolutoin")
    assert done.code == 2
    assert "there is no searcher 'evolutoin'" in done.err
    assert "did you mean evolution" in done.err


def test_an_original_that_guesses_is_named(searched: tuple[Path, str]) -> None:
    """The example has random weights."""
    folder, text = searched
    (note,) = (line for line in text.splitlines() if "is it trained" in line)
    first = json.loads((folder / "search.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert first["origin"] == "original"
    assert f"the original scores {first['score']:.1%}, and guessing among 10 classes 10.0%" in note


def test_the_picture_shows_every_structure_and_says_what_it_is(searched: tuple[Path, str]) -> None:
    folder = searched[0]
    front = read(folder / "front.json")
    root = ET.parse(folder / "front.svg").getroot()
    names = {item.attrib["id"]: item.text or "" for item in root.iter() if "id" in item.attrib}
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-labelledby"].split() == list(names)
    assert names["title"] == "accuracy against FLOPs of small_cnn"
    assert f"{len(front['points'])} points on the front of {COUNT} judged" in names["about"]
    dots = [item.attrib for item in root.iter(f"{SVG}circle")]
    assert sum(dot["r"] == "2.2" for dot in dots) == COUNT + 1  # and one in the legend
    assert sum(dot["r"] == "4" for dot in dots) == len(front["points"]) + 1
    assert sum(dot["r"] == "7" for dot in dots) == 2
    for dot in dots:
        assert 0 < float(dot["cx"]) < 760
        assert 0 < float(dot["cy"]) < 440
    assert (folder / "front.svg").read_text() in (folder / "front.html").read_text()


@pytest.fixture(scope="module")
def bundle(searched: tuple[Path, str], command: Call, example: str) -> Path:
    """Point 2 as a bundle."""
    out = searched[0].parent / "small"
    done = command("compile", searched[0], "--from-front", 2, "--original", example, "--out", out)
    assert (done.code, done.err) == (0, "")
    assert "verified, and model.py, model.pt2, model.onnx, plan.json loaded back equal" in done.out
    return out


def test_a_point_of_it_is_a_bundle_like_any(searched: tuple[Path, str], bundle: Path) -> None:
    entry = read(searched[0] / "front.json")["points"][1]
    report = read(bundle / "report.json")
    kept = {group["name"]: group["kept"] for group in report["groups"] if group["frozen"] is None}
    assert kept == entry["widths"]
    assert {unit: report["pruned"][unit] for unit in entry["costs"]} == entry["costs"]
    assert report["verification"]["max_abs_error"] < 1e-9
    assert [item["after"] for item in report["scores"]] == ["original", "slice", "recalibrate"]
    assert report["search"]["point"] == entry["point"]
    assert report["search"]["score"] == entry["score"]
    weights = safetensors.torch.load_file(bundle / "weights.safetensors")
    trained = sum(
        tensor.numel() for name, tensor in weights.items() if name.endswith(("weight", "bias"))
    )
    assert trained == entry["costs"]["params"]


def test_the_pass_with_the_model_gives_the_same(
    searched: tuple[Path, str], bundle: Path, call: Call, example: str, tmp_path: Path
) -> None:
    text = f"front{{file={searched[0]} point=2}}"
    assert call("compile", example, "--pass", text, "--out", tmp_path / "o", "--quiet").code == 0
    for name in ("plan.json", "weights.safetensors"):
        assert (tmp_path / "o" / name).read_bytes() == (bundle / name).read_bytes()


def test_killed_and_resumed_it_gives_the_same(
    searched: tuple[Path, str],
    start: Callable[..., subprocess.Popen[str]],
    call: Call,
    example: str,
    tmp_path: Path,
) -> None:
    out = tmp_path / "front"
    process = start(*words(example, out))
    wait_for(out / "search.jsonl", 3, process)
    process.kill()
    process.communicate()
    assert unfinished(out) == ["search.jsonl"]
    done = call(*words(example, out), "--quiet")
    assert done.code == 2
    assert "--resume continues its search" in done.sentence
    done = call(*words(example, out), "--quiet", "--resume")
    assert done.code == 0, done.err
    for name in ("front.json", "front.svg", "front.html"):
        assert (out / name).read_bytes() == (searched[0] / name).read_bytes(), name


def test_interrupted_it_writes_the_front_so_far_and_goes_on_later(
    searched: tuple[Path, str],
    start: Callable[..., subprocess.Popen[str]],
    call: Call,
    example: str,
    tmp_path: Path,
) -> None:
    out = tmp_path / "front"
    process = start(*words(example, out, candidates=100_000))
    wait_for(out / "search.jsonl", 2, process)
    process.send_signal(signal.SIGINT)
    text, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    front = read(out / "front.json")
    assert front["interrupted"]
    assert (
        f"interrupted, the front so far: {len(front['points'])} points of {front['judged']}" in text
    )
    lines = (out / "search.jsonl").read_bytes().splitlines(keepends=True)
    (out / "search.jsonl").write_bytes(b"".join(lines[:4]))
    relist(out, "search.jsonl")
    assert call(*words(example, out), "--resume", "--quiet").code == 0
    assert read(out / "front.json") == read(searched[0] / "front.json")


def test_several_costs_and_json(call: Call, example: str, tmp_path: Path) -> None:
    options = [
        "--against",
        "params",
        "--against",
        "memory",
        "--range",
        "25:75",
        "--budget",
        "60%FLOPs",
    ]
    done = call(*words(example, tmp_path / "front"), *options, "--json")
    assert (done.code, done.err) == (0, "")
    front = json.loads(done.out)
    assert front["against"] == ["params", "memory"]
    assert front == read(tmp_path / "front" / "front.json")
    for item in front["points"]:
        assert item["costs"]["flops"] <= 0.6 * front["original"]["flops"]
        assert item["costs"]["params"] <= 0.75 * front["original"]["params"]
    root = ET.parse(tmp_path / "front" / "front.svg").getroot()
    assert len(root.findall(f"{SVG}g")) == 2
    assert "peak memory" in [item.text for item in root.iter(f"{SVG}text")]


def test_what_comes_before_the_search_comes_before_the_cut(
    call: Call, example: str, tmp_path: Path
) -> None:
    out = tmp_path / "front"
    options = ["--before", "couple,cost{convention=2x}", "--ignore", "stem"]
    assert call(*words(example, out, 8), *options, "--quiet").code == 0
    front = read(out / "front.json")
    assert front["before"] == "couple,cost{convention=2x}"
    own = ["--from-front", 1, "--original", example]
    done = call("compile", out, *own, "--out", tmp_path / "small", "--quiet")
    assert done.code == 0, done.err
    report = read(tmp_path / "small" / "report.json")
    assert report["flops_convention"] == "2x"
    assert report["pruned"]["flops"] == front["points"][0]["costs"]["flops"]
    stem = [
        group for group in report["groups"] if group["frozen"] is None and "stem" in group["name"]
    ]
    assert all(group["kept"] == group["width"] for group in stem)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--against", "speed"], 2, "there is no cost unit 'speed'"),
        (["--against", "latency"], 2, "needs a latency table"),
        (
            ["--range", "50:20"],
            2,
            "'50:20' is no range: write two percentages up to 100, as in 20:100",
        ),
        (["--range", "0.001:50"], 3, "cannot be made smaller than"),
        (["--budget", "0.01%FLOPs"], 3, "cannot be made smaller than"),
        (["--population", 2], 2, "population=2 must be at least 8"),
        (["--before", "couple"], 2, "--before lacks cost"),
        (["--before", "couple,cost,l1"], 2, "--before must not hold l1"),
        (["--evaluator", "abn{race=64}"], 2, "a race gives up what scores below the best so far"),
        (["--evaluator", "abm"], 2, "abm"),
        (["--against", "latency@moon"], 2, "moon"),
        (["--latency-minutes", 1], 2, "--latency-minutes is for times on targets"),
        (["--resume"], 2, "there is nothing to resume"),
    ],
)
def test_mistakes_in_a_search(
    call: Call, example: str, tmp_path: Path, options: list[object], code: int, message: str
) -> None:
    done = call(*words(example, tmp_path / "front"), *options)
    assert done.code == code
    assert message in done.sentence
    assert not (tmp_path / "front").exists()


def test_a_search_without_data(call: Call, tiny: Path, tmp_path: Path) -> None:
    done = call(*words(str(tiny), tmp_path / "front"))
    assert done.code == 2
    assert done.sentence.startswith("search needs data: give --data")


def test_an_earlier_front_is_replaced_only_by_force(
    searched: tuple[Path, str], call: Call, example: str
) -> None:
    before = (searched[0] / "front.json").read_bytes()
    done = call(*words(example, searched[0]))
    assert done.code == 2
    assert "holds an earlier run: --force replaces it" in done.sentence
    assert (searched[0] / "front.json").read_bytes() == before


def test_mistakes_with_a_point(
    searched: tuple[Path, str], call: Call, example: str, tiny: Path, tmp_path: Path
) -> None:
    folder, out = searched[0], ["--out", tmp_path / "o"]
    count = len(read(folder / "front.json")["points"])
    done = call("compile", folder, "--from-front", count + 1, *out)
    assert done.code == 2
    assert (
        f"there is no point {count + 1} in {folder}/front.json, which has points 1 to {count}"
        in done.sentence
    )
    done = call("compile", example, "--from-front", 1, *out)
    assert "--from-front takes the folder of a search in the place of MODEL" in done.sentence
    done = call("compile", tiny, "--data", "digits", "--pass", f"front{{file={folder}}}", *out)
    assert done.code == 2
    assert "belongs to another network (the graph and the weights differ)" in done.sentence
    done = call("compile", folder, "--from-front", 1, *out)
    assert done.code == 2
    assert "no code runs because a file names it: give it yourself by --original" in done.sentence
    done = call("compile", example, "--original", example, *out)
    assert "--original goes with --from-front" in done.sentence
    own = ["--original", example]
    done = call("compile", folder, "--from-front", 1, *own, "--round-to", 8, *out)
    assert "the pass front has no round-to" in done.sentence
    done = call("compile", folder, "--from-front", 1, "--pass", "l1", *out)
    assert "--from-front decides which channels stay: leave --pass out" in done.sentence
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "front.json").write_bytes((folder / "front.json").read_bytes())
    (tmp_path / "moved" / "run.json").write_text("{}")
    done = call("compile", tmp_path / "moved", "--from-front", 1, *out)
    assert "does not say what was searched" in done.sentence
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (3.0, 7.1, [3.0, 4.0, 5.0, 6.0, 7.0]),
        (0.031, 0.052, [0.035, 0.04, 0.045, 0.05]),
        (2e8, 1.1e9, [2e8, 4e8, 6e8, 8e8, 1e9]),
        (5.0, 5.0, [5.0]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, wanted: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(wanted)


def test_a_picture_of_one_structure_and_of_odd_names() -> None:
    entry = {
        "point": 1,
        "candidate": 0,
        "origin": "original",
        "score": 0.5,
        "costs": {"latency@<ort>": 3_000_000},
    }
    front = {
        "network": "a<b>&c",
        "against": ["latency@<ort>"],
        "original": {"latency@<ort>": 3_000_000},
        "points": [entry],
        "baselines": [entry],
    }
    odd = {**entry, "score": float("nan")}
    root = ET.fromstring(front_svg(front, [entry, odd], "score"))
    texts = [item.text for item in root.iter(f"{SVG}text")]
    assert "latency@<ort>" in texts
    assert "a<b>&c" in (root.findtext(f"{SVG}title") or "")
    assert any(text and text.endswith(" ms") for text in texts)


@pytest.mark.slow
def test_the_time_on_a_target_is_a_cost(call: Call, example: str, tmp_path: Path) -> None:
    out = tmp_path / "front"
    options = [
        "--against",
        "latency@ort-cpu{threads=1}",
        "--budget",
        "99%latency@ort-cpu",
        "--latency-minutes",
        0.2,
    ]
    done = call(*words(example, out), *options, "--quiet")
    assert done.code == 0, done.err
    front = read(out / "front.json")
    assert front["against"] == ["latency@ort-cpu"]
    for item in front["points"]:
        assert 0 < item["costs"]["latency@ort-cpu"] <= 0.99 * front["original"]["latency@ort-cpu"]
    assert call(*words(example, out), *options, "--quiet", "--resume").code == 0
    assert read(out / "front.json") == front
    bundle = tmp_path / "bundle"
    own = ["--from-front", 1, "--original", example]
    assert call("compile", out, *own, "--out", bundle, "--quiet").code == 0
    (item,) = read(bundle / "report.json")["latency"]["targets"]
    predicted = front["points"][0]["costs"]["latency@ort-cpu"] / 1e9
    assert (item["target"], item["limit"], item["predicted"]) == (
        "ort-cpu",
        None,
        pytest.approx(predicted),
    )
    assert item["measured"] > 0
    assert "ort-cpu measured" in (bundle / "report.html").read_text(encoding="utf-8")
