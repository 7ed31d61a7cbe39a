"""The loop of a training run: iterations, epochs, what is checked and kept between them.

Lightning Fabric does mixed precision and data parallelism; what hooks see and may change is decided
here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pruneopt.errors import UserError
from pruneopt.interrupts import postponed_interrupt
from pruneopt.models.workload import Workload
from pruneopt.passes.training.checkpoint import Keeper, write_tensors
from pruneopt.passes.training.epoch_report import Reporter, Sums
from pruneopt.passes.training.feed import Feed
from pruneopt.passes.training.hooks import Hook, TrainingRun
from pruneopt.passes.training.identity import tensors_of
from pruneopt.passes.training.log import EpochLog, TrainingLog
from pruneopt.passes.training.objective import Objective
from pruneopt.passes.training.parallel import Processes, make_fabric
from pruneopt.passes.training.recipe import Recipe

__all__ = ["Loop"]

# Reading the loss makes a GPU wait, so it is looked at once in so many steps.
CHECK_EVERY = 20


class Loop:
    """The moving parts of one run."""

    def __init__(
        self,
        run: TrainingRun,
        workload: Workload,
        recipe: Recipe,
        goal: Objective,
        feed: Feed,
        hooks: Sequence[Hook],
        keeper: Keeper,
        processes: Processes,
        reporter: Reporter,
    ) -> None:
        self.run, self.workload, self.recipe, self.goal, self.feed = (
            run,
            workload,
            recipe,
            goal,
            feed,
        )
        self.hooks, self.keeper, self.processes, self.reporter = (
            tuple(hooks),
            keeper,
            processes,
            reporter,
        )
        self.log = TrainingLog()
        self.sums = Sums.none(run.device)
        self.feed_state: Tensor | None = None
        self.finished = False
        self.pressed: Callable[[], bool] = lambda: False
        for hook in hooks:
            hook.start(run)
        self.average: AveragedModel | None = None
        if recipe.ema:
            averaging = get_ema_multi_avg_fn(recipe.ema)
            self.average = AveragedModel(run.module, multi_avg_fn=averaging, use_buffers=True)
        self.fabric = make_fabric(run.device, recipe.precision, processes)
        self.network, self.optimiser = self.fabric.setup(
            run.module, run.optimiser, move_to_device=False
        )
        self.precision = self.fabric.strategy.precision

    def complete(self) -> TrainingLog:
        """Train to the end, from the checkpoint if there is one."""
        self._restore()
        self.reporter.begin(self.run)
        # Where states are kept Ctrl-C waits for the end of the iteration. torchrun stops its
        # processes itself.
        with postponed_interrupt(
            self.keeper.active and not self.processes.launched
        ) as self.pressed:
            while not self.finished:
                self._epoch()
        return self.log

    def _epoch(self) -> None:
        """Train for the rest of an epoch."""
        run, feed = self.run, self.feed
        started = time.perf_counter() - self.sums.seconds
        done = run.iteration - (run.epoch - 1) * feed.steps
        stopped = False
        for inputs, targets in feed.epoch(run.epoch, done, self.feed_state):
            self.sums.add(*self._iteration(inputs, targets))
            self.sums.seconds = time.perf_counter() - started
            stopped = any(hook.finished() for hook in self.hooks)
            if stopped:
                break
            if run.iteration % feed.steps and (run.iteration % CHECK_EVERY == 0 or self.pressed()):
                self._look()
        self.log.epochs.append(self._epoch_log())
        self.log.steps = run.iteration
        self.reporter.epoch(self.log.epochs[-1], run)
        self.sums, self.feed_state = Sums.none(run.device), None
        if stopped or run.epoch == self.recipe.epochs:
            self._finish()
        else:
            run.epoch += 1
        self._save()
        if self.pressed():
            raise KeyboardInterrupt

    def _iteration(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        """Take one step; return the sums of loss and metric over this process's samples, `[2]`,
        unread, and their number."""
        run, count = self.run, len(inputs)
        for group in run.optimiser.param_groups:
            group["lr"] = self.recipe.rate(run.iteration, self.feed.steps)
        run.optimiser.zero_grad(set_to_none=True)
        for hook in self.hooks:
            hook.before_forward(run)
        sums = self._gradients(inputs, targets)
        self.precision.unscale_gradients(run.optimiser)
        for hook in self.hooks:
            hook.before_step(run)
        if self.recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(run.module.parameters(), self.recipe.clip_norm)
        self.optimiser.step()
        run.iteration += 1
        for hook in self.hooks:
            hook.after_step(run)
        if self.average is not None:
            self.average.update_parameters(run.module)
        return sums, count

    def _gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Run forward and backward, part by part; the gradients are those of the mean loss of the
        whole batch."""
        parts = self.recipe.accumulate
        # DDP takes the mean over processes, whose shares of the batch may differ by one sample.
        whole = self.feed.batch_size / self.processes.world
        sums = torch.zeros(2, device=inputs.device)
        pairs = zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)
        for index, (x, y) in enumerate(pairs):
            with self.fabric.no_backward_sync(self.network, enabled=index < parts - 1):
                outputs = self.workload.forward(self.network, x)
                loss = self.goal(outputs, x, y, self.fabric.autocast())
                if index == 0:
                    for hook in self.hooks:
                        hook.before_backward(self.run)
                weight = len(x) / whole
                self.fabric.backward(loss if weight == 1 else loss * weight)
            with torch.no_grad():
                metric = self.workload.metric(outputs, y)
                sums = sums + len(x) * torch.stack(
                    [loss.detach().float().reshape(()), metric.float().mean()]
                )
        return sums

    def _look(self) -> None:
        """Check that all is well inside an epoch, and save where it is time; all processes come to
        the same answers."""
        sums, due = self.sums.total(self.processes, flag=self.keeper.due or self.pressed())
        self._check_finite(sums)
        self.reporter.step(self.run, sums, self._rate())
        if due:
            self.feed_state = self.feed.state()
            self._save()
        if self.pressed():
            raise KeyboardInterrupt

    def _epoch_log(self) -> EpochLog:
        sums, _ = self.sums.total(self.processes)
        self._check_finite(sums)
        loss, metric = sums.means()
        return EpochLog(self.run.epoch, loss, metric, self._rate(), self.sums.seconds, sums.count)

    def _rate(self) -> float:
        """Return the learning rate of the last step."""
        return self.recipe.rate(self.run.iteration - 1, self.feed.steps)

    def _check_finite(self, sums: Sums) -> None:
        if not sums.finite():
            raise UserError(
                f"the training loss became infinite or NaN in epoch {self.run.epoch}, by step "
                f"{self.run.iteration}: "
                f"lower the learning rate (now {self._rate():.3g}) or check the loss function and "
                "the data"
            )

    def _finish(self) -> None:
        self.finished = True
        if self.average is not None:
            averaged = tensors_of(self.average.module)
            # A count of batches has no mean.
            mean = {name: value for name, value in averaged.items() if value.is_floating_point()}
            write_tensors(self.run.module, tensors_of(self.run.module) | mean)
        self.processes.spread(list(self.run.module.buffers()))
        self._check_weights()

    def _check_weights(self) -> None:
        """Refuse weights that are no numbers: those of the last step never met a loss."""
        for name, tensor in tensors_of(self.run.module).items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise UserError(
                    f"training ended with {name} infinite or NaN after {self.run.iteration} steps: "
                    "lower the learning "
                    f"rate (now {self._rate():.3g}) or check the loss function and the data"
                )

    # State

    def _save(self) -> None:
        if not self.keeper.active:
            return
        random = self.processes.gather(_random_state(self.run.device) | {"feed": self.feed_state})
        content: dict[str, Any] = {
            "iteration": self.run.iteration,
            "epoch": self.run.epoch,
            "finished": self.finished,
            "module": {
                name: tensor.detach() for name, tensor in tensors_of(self.run.module).items()
            },
            "hooks": [hook.state_dict() for hook in self.hooks],
            "log": self.log.state_dict(),
            "sums": self.processes.gather(self.sums.state_dict()),
        }
        if not self.finished:
            average = {} if self.average is None else tensors_of(self.average)
            content |= {
                "optimiser": self.run.optimiser.state_dict(),
                "precision": self.precision.state_dict(),
                "average": {name: tensor.detach() for name, tensor in average.items()},
                "random": random,
            }
        self.keeper.save(content)

    def _restore(self) -> None:
        found = self.keeper.load()
        if found is None:
            return
        self.run.iteration, self.run.epoch, self.finished = (
            found["iteration"],
            found["epoch"],
            found["finished"],
        )
        write_tensors(self.run.module, found["module"])
        for hook, state in zip(self.hooks, found["hooks"], strict=True):
            hook.load_state_dict(state)
        self.log.load_state_dict(found["log"])
        self.sums.load_state_dict(found["sums"][self.processes.rank])
        if self.finished:
            return
        self.run.optimiser.load_state_dict(found["optimiser"])
        self.precision.load_state_dict(found["precision"])
        if self.average is not None:
            write_tensors(self.average, found["average"])
        random = found["random"][self.processes.rank]
        self.feed_state = random["feed"]
        torch.set_rng_state(random["cpu"])
        if "device" in random:
            torch.cuda.set_rng_state(random["device"], self.run.device)


def _random_state(device: torch.device) -> dict[str, Any]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["device"] = torch.cuda.get_rng_state(device)
    return states
