"""Training as a step of a pipeline: the network of a state, its weights, and a checkpoint in the
run's folder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pruneopt.ir.codegen.module import build_module
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.training.checkpoint import SUFFIX, Checkpoint
from pruneopt.passes.training.hooks import Hook
from pruneopt.passes.training.keep_masks import KeepMasks
from pruneopt.passes.training.log import TrainingLog
from pruneopt.passes.training.parameter_groups import Decays
from pruneopt.passes.training.recipe import Recipe
from pruneopt.passes.training.trainer import train

__all__ = ["train_state"]


def train_state(
    state: State,
    recipe: Recipe,
    *,
    name: str,
    hooks: Sequence[Hook] = (),
    teacher: nn.Module | None = None,
    decays: Decays | None = None,
    identity: str = "",
) -> TrainingLog:
    """Train the network of `state.graph` and write its weights back into the graph.

    Its parameters carry the names of the graph's weights. With a run folder the state of the
    training is kept there, as ``<name>.ckpt`` (``<name>.2.ckpt`` where an earlier pass of that name
    has run), and a later call in the same folder goes on from it, or takes over the result of a
    finished one. Masked weights stay at zero.

    Args:
        teacher: what to learn from where `recipe.distil` is above 0; None is the network that the
            run began with.
        identity: what tells this training from others beside the recipe, the weights and the data,
            such as the text of the hooks' options.

    Raises:
        UserError: as `train`; no data.
    """
    workload = state.need_workload(name)
    module = build_module(state.graph, state.graph.weights)
    if recipe.distil and teacher is None:
        teacher = build_module(state.original, state.original.weights)
    if state.masks:
        hooks = (*hooks, KeepMasks(state.masks))
    log = train(
        module,
        workload,
        recipe,
        hooks=hooks,
        teacher=teacher,
        decays=decays,
        seed=state.seed,
        device=state.device,
        checkpoint=_checkpoint(state, name, identity),
        progress=state.progress,
        name=name,
    )
    if log.steps:
        trained = module.state_dict()
        state.graph.weights = {
            key: trained.get(key, tensor) for key, tensor in state.graph.weights.items()
        }
        state.trained_after_slice |= state.uncut is not None
        state.unmasked = None
    return log


def _checkpoint(state: State, name: str, identity: str) -> Checkpoint | None:
    if state.run_dir is None:
        return None
    before = sum(done == name or done.startswith(f"{name}.") for done in state.timings)
    return Checkpoint(
        state.run_dir / f"{name}{f'.{before + 1}' if before else ''}{SUFFIX}", identity
    )
