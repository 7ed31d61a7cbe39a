"""The one way to train: sparse training, growing penalties, hypernetworks and fine-tuning all go
through `train`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from pruneopt.errors import UserError
from pruneopt.models.workload import Workload, placed, seeded, set_mode
from pruneopt.passes.training.checkpoint import Checkpoint, Keeper
from pruneopt.passes.training.epoch_report import Reporter
from pruneopt.passes.training.feed import Feed
from pruneopt.passes.training.hooks import Hook, TrainingRun
from pruneopt.passes.training.identity import run_identity
from pruneopt.passes.training.log import TrainingLog
from pruneopt.passes.training.objective import objective
from pruneopt.passes.training.parallel import Processes, quiet
from pruneopt.passes.training.parameter_groups import Decays, decayed_parameters, parameter_groups
from pruneopt.passes.training.recipe import Recipe
from pruneopt.passes.training.training_loop import Loop
from pruneopt.progress import Progress, silent

__all__ = ["train"]


def train(
    module: nn.Module,
    workload: Workload,
    recipe: Recipe,
    *,
    hooks: Sequence[Hook] = (),
    teacher: nn.Module | None = None,
    decays: Decays | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
    name: str = "training",
) -> TrainingLog:
    """Train `module` in place on `workload.train`; the same call on the same machine gives the same
    weights.

    Under torchrun all processes must make the same call; each takes its share of every batch, and
    all end with the same weights, and with the buffers of process 0.

    Args:
        module: any network with parameters that require gradients; it comes back on its own device,
            and every submodule in the mode it was in.
        workload: gives the data and the loss.
        recipe: how to train; 0 epochs do nothing.
        hooks: see and change weights and gradients at every iteration.
        teacher: its logits are learnt where `recipe.distil` is above 0; it stays as it is.
        decays: which parameters, by name, the weight decay is for; None means all (but see
            `recipe.decay_norm`).
        seed: shuffling, augmentation and dropout.
        device: where to train; under torchrun ``cuda`` is the GPU of the process.
        checkpoint: where to keep the state of the run. If there is one, the run goes on from it,
            and on a CPU ends with the weights it would have had uninterrupted; a finished run is
            not trained again.
        progress: told loss, learning rate, throughput and the time left.
        name: for messages.

    Raises:
        UserError: nothing to train, data that does not fit, a loss that is not finite, or a
            checkpoint of another run.
    """
    processes = Processes.here()
    place = processes.device(device)
    decayed = decayed_parameters(module, recipe, decays)
    goal = objective(workload, recipe, teacher)
    if not recipe.epochs:
        return TrainingLog()
    feed = Feed(
        workload.train,
        recipe.batch_size,
        seed=seed,
        augment=recipe.augment,
        device=place,
        rank=processes.rank,
        world=processes.world,
    )
    _check_parts(feed.batch_size, recipe.accumulate, processes.world)
    processes.join()
    identity: dict[str, Any] = {}
    if checkpoint is not None or processes.world > 1:
        identity = run_identity(
            module,
            workload,
            recipe,
            hooks=hooks,
            teacher=goal.teacher,
            decayed=decayed,
            seed=seed,
            device=place,
            processes=processes,
        )
    keeper = Keeper(checkpoint, identity, processes)
    with ExitStack() as stack:
        stack.enter_context(quiet())
        stack.enter_context(placed(module, place))
        if goal.teacher is not None:
            stack.enter_context(placed(goal.teacher, place))
            set_mode(goal.teacher, training=False)
        stack.enter_context(seeded(seed + 32_452_843 * processes.rank, place))
        stack.enter_context(torch.enable_grad())
        reporter = stack.enter_context(Reporter(recipe, feed.steps, processes, progress, name))
        set_mode(module, training=True)
        run = TrainingRun(
            module,
            recipe.optimiser(parameter_groups(module, recipe, decayed)),
            place,
            seed,
            processes.rank,
            processes.world,
            recipe.epochs * feed.steps,
        )
        return Loop(
            run, workload, recipe, goal, feed, hooks, keeper, processes, reporter
        ).complete()


def _check_parts(batch: int, accumulate: int, world: int) -> None:
    if batch // world < accumulate:
        raise UserError(
            f"a batch of {batch} samples cannot be cut into accumulate={accumulate} parts for each "
            f"of {world} "
            "processes: use larger batches, fewer parts or fewer processes"
        )
