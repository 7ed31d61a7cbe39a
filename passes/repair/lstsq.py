"""Repair by least squares: layer by layer, the weights that best give the original's outputs from
what is left.

In graph order, every layer whose inputs are no longer the original's is fitted: what it reads in
the cut network, as far as that is repaired, against what the same layer gave in the original,
before any norm or activation, at the output channels that are left. `repair_normal` has the
equations; a ridge pulls towards the weights as they were cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pruneopt.errors import UserError
from pruneopt.ir.graph import Value
from pruneopt.passes.analysis.ops.definition import Trait
from pruneopt.passes.analysis.ops.layers import layer_weights
from pruneopt.passes.analysis.ops.table import has_trait
from pruneopt.passes.repair.context import RepairContext
from pruneopt.passes.repair.forms import Form, form_of
from pruneopt.passes.repair.layers import BiasTarget, Site, add_constant
from pruneopt.passes.repair.normal import Normal, pooled, solve
from pruneopt.passes.repair.partial_forward import LockStep

__all__ = ["Fit", "LayerFit", "fit_layers"]

ROUNDING = 1e-6
"""A relative error below this is rounding: such a layer is left bit by bit as it is."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How layers are fitted.

    Attributes:
        ridge: pull towards the weights as they are, relative to the mean of the diagonal of X'X.
        positions: output positions per image that a layer is fitted on, drawn anew for every layer
            and batch.
        cut_only: fit only layers that lost inputs, not those behind them whose inputs merely
            changed.
        memory: bytes for the activations of all images; one layer's normal matrix may take a
            quarter of them.
        keep: whether the activations of all images fit (`LockStep`).
    """

    ridge: float
    positions: int
    cut_only: bool
    memory: float
    keep: bool


@dataclass(frozen=True, slots=True)
class LayerFit:
    """A fitted layer: root mean square error of its outputs over that of the original's outputs,
    before and after."""

    layer: str
    before: float
    after: float


@dataclass
class _Layer:
    """All calls of one weight, what their outputs are fitted by, and the sums so far, by where the
    bias shifts."""

    sites: list[Site]
    form: Form
    targets: dict[Site, BiasTarget | None]
    sums: dict[BiasTarget | None, Normal] = field(default_factory=dict)
    seen: int = 0


@torch.no_grad()
def fit_layers(context: RepairContext, fit: Fit) -> list[LayerFit]:
    """Fit the layers of ``context.cut`` one after another.

    Raises:
        UserError: norms of the cut network no longer expect the original's outputs.
    """
    _check_norms(context)
    layers = _layers(context, fit)
    order = [site for site in context.sites if site in layers]
    lock = LockStep(
        context.original,
        context.cut,
        context.weights,
        context.cut.weights,
        order,
        context.batches,
        keep=fit.keep,
    )
    found = []
    for number, site in enumerate(order, 1):
        layer = layers[site]
        _accumulate(context, fit, lock, layer, site, number)
        layer.seen += 1
        if layer.seen == len(layer.sites):
            found.append(_update(context, fit, layer))
            if len(layer.sites) > 1:
                lock.restart()  # its first calls ran with the weights of before
        context.progress(f"fitted {site.name}", number, len(order))
    return found


# Which layers


def _check_norms(context: RepairContext) -> None:
    """Outputs before a norm are a target only as long as the norm is the original's, but for its
    mean."""
    norms = [op for op in context.cut.ops if has_trait(op, Trait.BATCH_NORM)]
    values = [
        value
        for op in norms
        for value in (op.value(1), op.value(2), op.value(4))
        if value is not None
    ]
    for name, wanted in context.sliced([value.name for value in values]).items():
        if not torch.equal(wanted, context.cut.weights[name]):
            raise UserError(
                f"least squares aims at the original's outputs, but {name} has changed since the "
                "cut: repair by lstsq "
                "before recalibrate, finetune and repair{method=bn}"
            )


def _layers(context: RepairContext, fit: Fit) -> dict[Site, _Layer]:
    """Return the layers to fit, by each of their calls; the others are noted with the reason."""
    changed = _changed(context)
    by_weight: dict[Value, list[Site]] = {}
    for site in context.sites:
        by_weight.setdefault(site.weight, []).append(site)
    layers: dict[Site, _Layer] = {}
    for sites in by_weight.values():
        if not any(_is_due(context, fit, changed, site) for site in sites):
            continue
        forms = [form_of(site) for site in sites]
        why = _obstacle(context, fit, sites, forms)
        if why is not None:
            context.leave(sites[0].name, why)
            continue
        form = forms[0]
        assert isinstance(form, Form)
        targets = {site: _bias_target(context, site) for site in sites}
        layers.update(dict.fromkeys(sites, _Layer(sites, form, targets)))
    return layers


def _is_due(context: RepairContext, fit: Fit, changed: set[Value], site: Site) -> bool:
    x = site.old.value(site.x)
    return bool(context.removed(x)) if fit.cut_only else x in changed or bool(context.removed(x))


def _changed(context: RepairContext) -> set[Value]:
    """Return the values of the original that the cut network computes differently where kept."""
    boxed = {note.op for note in context.coupling.notes}
    changed: set[Value] = set()
    for op in context.original.ops:
        contracts = (
            op in boxed or has_trait(op, Trait.CONTRACTS_OPERANDS) or bool(layer_weights(op))
        )
        lost = contracts and any(
            context.removed(value) for value in op.inputs if not value.is_weight
        )
        if lost or any(value in changed for value in op.inputs):
            changed.update(op.results)
    return changed


def _bias_target(context: RepairContext, site: Site) -> BiasTarget | None:
    target = context.bias_target_of(site)
    return None if isinstance(target, str) else target


def _obstacle(
    context: RepairContext, fit: Fit, sites: list[Site], forms: list[Form | str]
) -> str | None:
    """Return why a layer cannot be fitted; None if it can."""
    weight, form = sites[0].weight, forms[0]
    if isinstance(form, str):
        return form
    if weight.name in context.masked:
        return "its weight is sparse, and fitting would fill it"
    if any(user not in [site.op for site in sites] for user in weight.users):
        return "its weight is also read by ops that are no such layer"
    same = [(type(item), item.groups, item.features) for item in forms if isinstance(item, Form)]
    if len(set(same)) > 1 or len(same) < len(sites):
        return "its weight is shared by layers of different kinds"
    if not all(_has_plain_bias(site) for site in sites):
        return "its bias is computed, or more than one number for each output channel"
    if any(context.along_batch(site.old.result) for site in sites):
        return "its channels lie along the batch axis"
    size = 8 * form.groups * form.features**2
    if size > fit.memory / 4:
        return (
            f"its normal matrix takes {size / 1e9:.2g} GB, more than a quarter of "
            f"memory={fit.memory / 1e9:g}"
        )
    return None


def _has_plain_bias(site: Site) -> bool:
    """Return whether the bias is none, or a weight with one number for each output channel."""
    bias = None if site.bias is None else site.op.operands[site.bias]
    return bias is None or (
        isinstance(bias, Value) and bias.is_weight and bias.type.shape() == (site.outputs,)
    )


# One layer


def _accumulate(
    context: RepairContext, fit: Fit, lock: LockStep, layer: _Layer, site: Site, number: int
) -> None:
    """Add the rows of one call to the sums."""
    form, target = layer.form, layer.targets[site]
    mine = form_of(site)
    assert isinstance(mine, Form)
    weight = form.matrix(context.cut.weights[site.weight.name].double())
    bias = _constant(context, site, target).reshape(form.groups, form.outputs)
    if target not in layer.sums:
        layer.sums[target] = Normal(
            form.groups, form.features, form.outputs, free=target is not None, device=weight.device
        )
    generator = torch.Generator().manual_seed((context.seed << 20) + number)
    for images, x, full in lock.at(site):
        y = context.keep(site.old.result, full)
        picks = _picks(mine.positions(y), fit.positions * images, generator).to(x.device)
        layer.sums[target].add(mine.rows(x, picks), mine.targets(y, picks), weight, bias)


def _picks(total: int, limit: int, generator: torch.Generator) -> Tensor:
    """Return at most ``limit`` of so many positions, at random, in order."""
    if total <= limit:
        return torch.arange(total)
    return torch.randperm(total, generator=generator)[:limit].sort().values


def _constant(context: RepairContext, site: Site, target: BiasTarget | None) -> Tensor:
    """Return what the cut network adds to the layer's product, against what the original adds
    behind its result [outputs]."""
    weights = context.cut.weights
    total = torch.zeros(site.outputs, dtype=torch.float64, device=weights[site.weight.name].device)
    own = None if site.bias is None else site.op.value(site.bias)
    if own is not None:
        total = total + weights[own.name].double().reshape(-1)
    if target is None or target.value is own:
        return total
    moved = weights[target.value.name].double().reshape(-1)
    for original in context.sliced([target.value.name]).values():
        moved = moved - original.double().reshape(-1)
    return total - moved if target.kind == "running mean" else total + moved


def _update(context: RepairContext, fit: Fit, layer: _Layer) -> LayerFit:
    """Solve, and write weight and biases back if the error on the same rows falls."""
    form, site, parts = layer.form, layer.sites[0], layer.sums
    weights, name = context.cut.weights, layer.sites[0].weight.name
    energy = math.fsum(part.energy for part in parts.values())
    before = math.fsum(part.error() for part in parts.values())
    if before <= ROUNDING**2 * energy or not math.isfinite(before):
        if not math.isfinite(before):
            context.leave(site.name, "its inputs or outputs are not finite")
        return LayerFit(site.name, _relative(before, energy), _relative(before, energy))
    old = {item: weights[item] for item in _names(layer)}
    now = form.matrix(weights[name].double())
    change = solve(*pooled(list(parts.values())), fit.ridge)
    weights[name] = form.weight(now + change).to(weights[name].dtype).contiguous()
    change = form.matrix(weights[name].double()) - now  # as it was rounded
    after = 0.0
    for target, part in parts.items():
        shift = part.shift(change)
        if target is not None:
            shift = add_constant(context.cut, target, shift.reshape(-1)).reshape(shift.shape)
        after += part.error(change, shift)
    if not after < before:
        weights.update(old)
        after = before
    return LayerFit(site.name, _relative(before, energy), _relative(after, energy))


def _names(layer: _Layer) -> Sequence[str]:
    return [
        layer.sites[0].weight.name,
        *(target.value.name for target in layer.sums if target is not None),
    ]


def _relative(squares: float, energy: float) -> float:
    return math.sqrt(squares / energy) if energy else 0.0
