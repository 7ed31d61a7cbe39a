"""Tables of `latency_search.py`, and why a network did not become as much faster as it lost
FLOPs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from markdown_table import markdown_table

__all__ = ["tables"]

LEAST = 0.1
"""The share of the time missing to the full speed-up from which on a class of ops is named."""
RIVALS = ("FLOPs", "FLOPs, multiples")
Row = dict[str, Any]
ARMS = (
    "search",
    "FLOPs kept",
    "measured ms",
    "predicted ms",
    "times as fast as FLOPs (95 %)",
    "times as fast as FLOPs, multiples (95 %)",
    "test accuracy",
    "fine-tuned",
)
SPEEDUPS = (
    "network",
    "cut to",
    "FLOPs kept",
    "ms before",
    "ms after",
    "speed-up (95 %)",
    "speed-up by FLOPs lost",
)


def tables(accuracy: Sequence[Row], speedups: Sequence[Row]) -> str:
    """Return Markdown of both parts."""
    return "\n\n".join([*_accuracy(accuracy), *_speedups(speedups)])


# Accuracy at equal time


def _accuracy(rows: Sequence[Row]) -> Iterable[str]:
    for network in dict.fromkeys(row["network"] for row in rows):
        here = [row for row in rows if row["network"] == network and "times" in row]
        if here:
            seeds = ", ".join(str(row["seed"]) for row in here)
            arms = markdown_table(ARMS, _arms(here))
            yield "\n".join([f"{network}, seeds {seeds}:\n", arms, "", *_noise(here)])


def _arms(rows: Sequence[Row]) -> Iterable[Sequence[str]]:
    whole = [row["times"]["original"] for row in rows]
    took = f"{_mean(time['ms'] for time in whole):.3f}"
    yield [
        "the original",
        "100 %",
        took,
        "",
        *(_against("original", rival, rows) for rival in RIVALS),
    ]
    for arm in dict.fromkeys(arm for row in rows for arm in row["arms"]):
        found = [(row["arms"][arm], row["times"][arm]) for row in rows if arm in row["times"]]
        missed = sum("missed" in row["arms"].get(arm, {}) for row in rows)
        name = arm + (f" ({missed} of {len(rows)} missed their budget)" if missed else "")
        if not found:
            yield [name]
            continue
        yield [
            name,
            f"{100 * _mean(item['flops_share'] for item, _ in found):.1f} %",
            f"{_mean(time['ms'] for _, time in found):.3f}",
            _predicted([item["rounds"] for item, _ in found]),
            *(_against(arm, rival, rows) for rival in RIVALS),
            _percent([item["test"] for item, _ in found]),
            _percent([item["finetuned"] for item, _ in found if "finetuned" in item]),
        ]


def _against(arm: str, rival: str, rows: Sequence[Row]) -> str:
    """Return how many times as fast as a rival an arm's winner is, seed by seed.

    From pairs of runs; where pairs with this rival were not kept, from the medians of the same
    turns, without an interval.
    """
    cells = []
    for times in (row["times"] for row in rows):
        if arm not in times or rival not in times:
            continue
        pairs = times[arm]["against"].get(rival)
        ratio = times[rival]["ms"] / times[arm]["ms"]
        cells.append(f"{ratio:.2f}" if pairs is None else _interval(pairs))
    return ", ".join(cells)


def _predicted(rounds: Sequence[Sequence[Row]]) -> str:
    last = [items[-1]["predicted_ms"] for items in rounds if items]
    return f"{_mean(last):.3f}" if last else ""


def _percent(shares: Sequence[float]) -> str:
    if not shares:
        return ""
    spread = f" ± {100 * statistics.stdev(shares):.2f}" if len(shares) > 1 else ""
    return f"{100 * _mean(shares):.2f}{spread}"


def _mean(values: Iterable[float]) -> float:
    return statistics.mean(values)


# Speed-ups


def _speedups(rows: Sequence[Row]) -> Iterable[str]:
    if not rows:
        return
    yield markdown_table(SPEEDUPS, map(_speedup, rows), left=(0, 1))
    yield "\n".join([*(f"- {text}" for text in map(explained, rows) if text), *_noise(rows)])


def _speedup(row: Row) -> Sequence[str]:
    if "speedup" not in row:
        best = min((item["measured_ms"] / item["limit_ms"] for item in row["rounds"]), default=None)
        reached = "" if best is None else f", the best took {best:.2f} times the budget"
        return [row["network"], row["way"], f"missed{reached}"]
    share = row["flops_share"]
    cells = [row["network"], row["way"], f"{100 * share:.1f} %"]
    cells += [f"{row['before_ms']:.2f}", f"{row['after_ms']:.2f}", _interval(row["speedup"])]
    return [*cells, f"{row['speedup']['ratio'] * share:.2f}"]


def explained(row: Row) -> str | None:
    """Say where the time went that a network should have lost with its FLOPs, by the times of its
    ops; None where it lost as much time as FLOPs.

    A class of ops should take the share of its time that is left of the network's FLOPs.
    """
    share = row.get("flops_share")
    if share is None or row["speedup"]["ratio"] * share >= 1:
        return None
    before, after = (
        {kind: pair[index] or {} for kind, pair in row["ops"].items()} for index in (0, 1)
    )
    excess = {kind: _ms(after[kind]) - share * _ms(before[kind]) for kind in row["ops"]}
    total = sum(excess.values())
    if total <= 0:
        return (
            f"{row['network']}, {row['way']}: the ops under the profiler took no more than "
            "their share."
        )
    named = sorted(
        (kind for kind in excess if excess[kind] > LEAST * total), key=lambda kind: -excess[kind]
    )
    parts = [f"{kind} {_change(before, after, kind)}" for kind in named]
    return f"{row['network']}, {row['way']} ({total:.2f} ms too many): {'; '.join(parts)}."


def _ms(item: Row) -> float:
    return float(item.get("ms", 0.0))


def _change(before: dict[str, Row], after: dict[str, Row], kind: str) -> str:
    """Return times before and after, and at what rate the ops worked: of arithmetic where there is
    any, else of memory.

    What fell out of the blocked layout is held against that.
    """
    old, new = before[kind], after[kind]
    amounts = " to ".join(f"{item.get('ops', 0):.0f} ops {_ms(item):.2f} ms" for item in (old, new))
    blocked = before.get(kind.replace("plain", "blocked"), {})
    name, unit = ("mmacs", "GMAC/s") if new.get("mmacs") else ("mb", "GB/s")
    rates = [_rate(item, name) for item in (old or blocked, new) if item]
    return (
        f"{amounts} ({' to '.join(rates)} "
        f"{unit}{'' if old or not blocked else ', before in blocks'})"
    )


def _rate(item: Row, name: str) -> str:
    rate = item[name] / max(item["ms"], 1e-6)
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}"


def _interval(item: Row) -> str:
    return f"{item['ratio']:.2f} ({item['low']:.2f} to {item['high']:.2f})"


def _noise(rows: Sequence[Row]) -> Iterable[str]:
    """Yield how many measurements met a machine that was not quiet, and the largest share that any
    of them names."""
    found = [row["speedup"] for row in rows if "speedup" in row]
    times = [item for row in rows for item in row.get("times", {}).values()]
    found += [next(iter(item["against"].values())) for item in times]
    noisy = sorted({item["noisy"] for item in found if item["noisy"]})
    if noisy:
        count = sum(bool(item["noisy"]) for item in found)
        yield (
            f"- {count} of {len(found)} measurements met a machine that was not quiet, as in: "
            f"{noisy[-1]}."
        )
