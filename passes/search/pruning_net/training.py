"""Training PruningNet: another random width vector at every iteration (MetaPruning, arXiv
1903.10258, section 3.1).

The memory that this takes is said, and checked, before anything is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pruneopt.errors import UserError
from pruneopt.passes.analysis.cost.budget import format_value
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.pruning_net.hypernet import Sizes
from pruneopt.passes.search.pruning_net.memory import Footprint, available_memory
from pruneopt.passes.search.pruning_net.pruning_network import Norms, PruningNet, parameter_count
from pruneopt.passes.search.searchers.space import Space
from pruneopt.passes.training.checkpoint import SUFFIX, Checkpoint
from pruneopt.passes.training.hooks import Hook, TrainingRun
from pruneopt.passes.training.log import TrainingLog
from pruneopt.passes.training.recipe import Recipe
from pruneopt.passes.training.trainer import train

__all__ = [
    "NAME",
    "DrawWidths",
    "PruningNetReport",
    "Settings",
    "checked_footprint",
    "train_pruning_net",
]

NAME = "pruning-net"


@dataclass(frozen=True, slots=True)
class Settings:
    """The form of a PruningNet, and how it is trained."""

    sizes: Sizes
    norms: Norms
    affine: bool
    recipe: Recipe


@dataclass
class PruningNetReport:
    """The time and result of training a PruningNet.

    Attributes:
        parameters: of PruningNet.
        bytes: of its parameters, gradients and the optimiser's state.
        training: epoch by epoch; every iteration had other widths.
        full_width: the score on the sub-validation images at full width, with recomputed
            statistics.
        original: that of the given network.
        notes: what the user should know.
    """

    parameters: int
    bytes: int
    training: TrainingLog
    full_width: float = float("nan")
    original: float = float("nan")
    notes: list[str] = field(default_factory=list)


class DrawWidths(Hook):
    """Before every iteration a fresh width vector: every gene uniform on the grid, the same in
    every process.

    It depends on the seed and the iteration alone, so that an interrupted run draws on as if it had
    not been.
    """

    def __init__(self, net: PruningNet, space: Space) -> None:
        self.net, self.space = net, space

    def before_forward(self, run: TrainingRun) -> None:
        proposal = self.space.proposal(
            self.space.uniform(np.random.default_rng([run.seed, run.iteration]))
        )
        self.net.choose(proposal.widths, proposal.scales)


def searched_groups(space: Space) -> list[str]:
    """Return the groups whose width a space varies."""
    return [name for gene in space.genes for name in gene.groups]


def checked_footprint(space: Space, settings: Settings, device: str) -> Footprint:
    """Return the memory that training takes.

    Raises:
        UserError: more than there is; the message names what the smaller forms take.
    """
    needed = _footprint(space, settings, settings.sizes)
    free = available_memory(device)
    if free is not None and needed.bytes > free:
        forms = [
            Sizes(
                form="low-rank",
                hidden=settings.sizes.hidden,
                inverted=settings.sizes.inverted,
                rank=8,
            )
        ]
        forms.append(Sizes(form="chunked"))
        smaller = [(sizes.form, _footprint(space, settings, sizes).bytes) for sizes in forms]
        offers = [
            f"layer={form} ({_amount(size)})" for form, size in smaller if size < needed.bytes
        ]
        raise UserError(
            f"PruningNet of {space.cost.graph.name} needs {_amount(needed.bytes)} for its "
            f"{_count(needed)} parameters, "
            f"their gradients and the optimiser's state, and {_amount(free)} are free on {device}: "
            "use "
            f"{' or '.join(offers) or 'a smaller hidden size'}"
        )
    return needed


def _footprint(space: Space, settings: Settings, sizes: Sizes) -> Footprint:
    count = parameter_count(
        space.coupling,
        searched_groups(space),
        len(space.grid),
        sizes,
        settings.norms,
        settings.affine,
    )
    return Footprint.of(count, settings.recipe)


def train_pruning_net(
    state: State, space: Space, settings: Settings, seed: int
) -> tuple[PruningNet, PruningNetReport]:
    """Return a PruningNet for the genes of a space, trained on the state's workload, on the state's
    device.

    With a run folder the state of the training is kept there; a later call goes on from it, or
    takes over the result.

    Raises:
        UserError: not enough memory, nothing to search, or as
            `pruneopt.passes.training.trainer.train`.
    """
    footprint = checked_footprint(space, settings, state.device)
    words = (
        f"{_count(footprint)} parameters, {_amount(footprint.bytes)} with gradients and the "
        "optimiser's state"
    )
    state.progress(f"PruningNet: {words}, and activations on top")
    net = PruningNet(
        space.coupling,
        space.cost.groups,
        searched_groups(space),
        (space.grid / 100).tolist(),
        sizes=settings.sizes,
        norms=settings.norms,
        affine=settings.affine,
        seed=seed,
    )
    decayed = net.decayed()
    place = None if state.run_dir is None else state.run_dir / f"{NAME}{SUFFIX}"
    log = train(
        net,
        state.need_workload(NAME),
        settings.recipe,
        hooks=[DrawWidths(net, space)],
        decays=lambda name, _: name in decayed,
        seed=seed,
        device=state.device,
        checkpoint=None if place is None else Checkpoint(place, _identity(space, settings)),
        progress=state.progress,
        name="PruningNet",
    )
    notes = [f"PruningNet: {words}"]
    if net.inherited:
        notes.append(
            f"no layer initialises {', '.join(net.inherited)}: PruningNet started from their given "
            "values"
        )
    net.to(state.device)
    return net, PruningNetReport(footprint.parameters, footprint.bytes, log, notes=notes)


def _identity(space: Space, settings: Settings) -> str:
    """Return what training depends on beside the recipe, the initial weights and the data."""
    genes = [(gene.groups, gene.width) for gene in space.genes]
    return (
        f"{genes} {space.grid.tolist()} {space.round_to} {space.minimum} {settings.sizes} "
        f"{settings.norms}"
    )


def _amount(size: int) -> str:
    return format_value("bytes", size)


def _count(footprint: Footprint) -> str:
    return f"{footprint.parameters / 1e6:.4g} M"
