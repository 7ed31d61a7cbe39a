"""Every op of a network against the ceilings of the machine: the table and the picture of `pruneopt
profile`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from pruneopt.ir.graph import Graph
from pruneopt.passes.latency.ceilings import Ceilings
from pruneopt.passes.latency.regions import region_numbers
from pruneopt.passes.latency.sample import NodeTime, Sample

__all__ = ["OpLine", "macs_of", "op_lines", "roofline_svg"]

CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "conv1d", "conv2d", "conv3d", "convolution")
PRODUCTS = ("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "linear", "matmul", "mm", "bmm")
WIDTH, HEIGHT, LEFT, BOTTOM = 760, 460, 70, 50


@dataclass(frozen=True, slots=True)
class OpLine:
    """One op as the target ran it.

    Attributes:
        layer: the module of the layer in whose region it lies.
        kind: what it is, in the target's words.
        seconds, share: its time, and that of the sum of all ops.
        macs, moved: multiply-accumulates, and bytes read and written.
        efficiency: the least possible time by the ceilings, as a share of its time.
        bound: ``compute`` or ``memory``: the ceiling that binds.
    """

    layer: str
    kind: str
    seconds: float
    share: float
    macs: float
    moved: int
    efficiency: float
    bound: str


def macs_of(node: NodeTime) -> float:
    """Return multiply-accumulates by the shapes of an op; 0 for ops that are no products."""
    if len(node.shapes) < 3:
        return 0.0
    first, second, out = node.shapes[0], node.shapes[1], node.shapes[-1]
    if node.kind in CONVOLUTIONS and len(second) > 1:
        return float(math.prod(out) * math.prod(second[1:]))
    if node.kind in PRODUCTS and first:
        return float(math.prod(out) * first[-1])
    if "scaled_dot_product" in node.kind and len(second) > 1:
        return float((math.prod(first) + math.prod(out)) * second[-2])
    return 0.0


def op_lines(graph: Graph, sample: Sample, ceilings: Ceilings) -> list[OpLine]:
    """Return the ops of a measured network, in the order in which they ran."""
    layers: dict[int, str] = {}
    for op, number in region_numbers(graph).items():
        layers.setdefault(number, (op.loc.module or op.results[0].name) if number else "input")
    total = sum(node.seconds for node in sample.nodes)
    found = []
    for node in sample.nodes:
        macs = macs_of(node)
        least = ceilings.seconds(macs, node.moved)
        bound = (
            "compute"
            if macs / ceilings.macs > node.moved / ceilings.bandwidth(node.moved)
            else "memory"
        )
        efficiency = least / node.seconds if node.seconds > 0 else 0.0
        layer = layers.get(node.region, "")
        found.append(
            OpLine(
                layer,
                node.kind,
                node.seconds,
                node.seconds / total,
                macs,
                node.moved,
                efficiency,
                bound,
            )
        )
    return found


def roofline_svg(lines: Sequence[OpLine], ceilings: Ceilings, title: str) -> str:
    """Draw multiply-accumulates per byte against those per second, both logarithmic; a spot for
    each op that has some, as large as its share of the time."""
    spots = [line for line in lines if line.macs and line.seconds]
    across = [line.macs / line.moved for line in spots] or [1.0]
    up = [line.macs / line.seconds for line in spots] or [ceilings.macs]
    x = _Scale(min(*across, 0.1), max(*across, 100.0), LEFT, WIDTH - 20)
    y = _Scale(min(*up, ceilings.macs / 1e3), 1.5 * max(*up, ceilings.macs), HEIGHT - BOTTOM, 40)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" '
        f'font-size="11"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>',
        *_axes(x, y),
        *_roofs(x, y, ceilings),
    ]
    for line in spots:
        radius = 2.5 + 25 * math.sqrt(line.share)
        words = (
            f"{line.layer} ({line.kind}): {1e3 * line.seconds:.3f} ms, {100 * line.share:.1f} "
            "% of the time"
        )
        parts.append(
            f'<circle cx="{x(line.macs / line.moved):.1f}" cy="{y(line.macs / line.seconds):.1f}" '
            f'r="{radius:.1f}" '
            f'fill="#3b7dbd" fill-opacity="0.5"><title>{escape(words)}</title></circle>'
        )
    return "\n".join([*parts, "</svg>\n"])


class _Scale:
    """From amounts to places in the picture, logarithmically."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.high = math.log10(low), math.log10(high)
        self.start, self.stop = start, stop

    def __call__(self, amount: float) -> float:
        share = (math.log10(amount) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def decades(self) -> Iterator[float]:
        """Yield the powers of ten inside."""
        return (10.0**power for power in range(math.ceil(self.low), math.floor(self.high) + 1))


def _axes(x: _Scale, y: _Scale) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    yield f'<path d="M{LEFT} 40V{bottom}H{WIDTH - 20}" fill="none" stroke="#444"/>'
    for amount in x.decades():
        yield f'<text x="{x(amount):.1f}" y="{bottom + 16}" text-anchor="middle">{amount:g}</text>'
    for amount in y.decades():
        yield (
            f'<text x="{LEFT - 6}" y="{y(amount) + 4:.1f}" '
            f'text-anchor="end">{amount / 1e9:g}</text>'
        )
    yield (
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 14}" '
        'text-anchor="middle">multiply-accumulates per byte</text>'
    )
    yield (
        f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        "billion multiply-accumulates per second</text>"
    )


def _roofs(x: _Scale, y: _Scale, ceilings: Ceilings) -> Iterator[str]:
    """Draw the lines that no op gets above: of the products, and of the copies by size."""
    right, top = 10**x.high, ceilings.macs
    for size, rate in ceilings.copies:
        low, knee = max(10**x.low, 10**y.low / rate), min(top / rate, right)
        if low < knee:
            yield (
                f'<path d="M{x(low):.1f} {y(low * rate):.1f}L{x(knee):.1f} {y(knee * rate):.1f}" '
                'stroke="#b3731b" '
                f'fill="none"><title>{rate / 1e9:.1f} GB/s for {size / 1024:g} KiB</title></path>'
            )
    left = top / max(rate for _, rate in ceilings.copies)
    if left < right:
        yield (
            f'<path d="M{x(max(left, 10**x.low)):.1f} {y(top):.1f}H{x(right):.1f}" '
            'stroke="#b3731b" fill="none"/>'
        )
        yield (
            f'<text x="{x(right):.1f}" y="{y(top) - 5:.1f}" text-anchor="end">{top / 1e9:.0f} '
            "GMAC/s</text>"
        )
