"""MetaPruning (Liu et al., ICCV 2019, arXiv 1903.10258): search how many channels to keep, then
train from scratch.

A PruningNet generates weights for every structure; an evolution over the widths of stages and
blocks ranks structures by its accuracy; the winner is trained from scratch. Which channels the
winner keeps does not matter to the paper; the cut is made, and proved, on the given weights all the
same. See docs/metapruning.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from pruneopt.errors import UserError
from pruneopt.passes.analysis.residual.gene_order import metapruning_genes
from pruneopt.passes.options.configured import option
from pruneopt.passes.pipeline.base import Pass
from pruneopt.passes.pipeline.state import State
from pruneopt.passes.search.evaluators.evaluator import Evaluator
from pruneopt.passes.search.pruning_net.generated_weights import PruningNetWeights
from pruneopt.passes.search.search_loop import Searched
from pruneopt.passes.search.searchers.evolution import Evolution
from pruneopt.passes.search.searchers.searcher import Searcher
from pruneopt.passes.search.searchers.space import Space
from pruneopt.passes.selection.rounding import rounding
from pruneopt.passes.training.recipe import Recipe
from pruneopt.passes.transform.finetune import Finetune
from pruneopt.passes.transform.scratch import SCRATCH, Scratch

__all__ = ["MetaPruning"]

Switch = Literal["decay"]
INHERITED_EPOCHS = 10


@dataclass(frozen=True)
class MetaPruning(Searched):
    """Search over the widths of stages and blocks with generated weights; the winner is trained
    from scratch."""

    name: ClassVar[str] = "metapruning"
    summary: ClassVar[str] = (
        "evolution of widths judged by generated weights, the winner trained from scratch"
    )

    searcher: Searcher = option(Evolution(), "what proposes structures")
    evaluator: Evaluator = option(PruningNetWeights(), "what judges them")
    window: float | None = option(
        0.01, "candidates use at least 1 - window of the tightest budget; none: any share"
    )
    weights: Literal["scratch", "inherit"] = option(
        "scratch", "train the winner from new weights, or from the given"
    )
    recipe: Recipe = option(SCRATCH, "how the winner is trained from scratch")
    epochs: int | None = option(
        None, "of the winner's training (as the recipe says; inherit: 10); 0 leaves it out"
    )
    compat: tuple[Switch, ...] = option((), "as the published code does it: decay")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.epochs < 0:
            raise UserError(f"epochs={self.epochs} must not be negative")
        if self.weights == "inherit":
            if self.compat:
                raise UserError(
                    "compat=decay is about training from scratch: it needs weights=scratch"
                )
            if self.recipe != SCRATCH:
                raise UserError(
                    "recipe is for training from scratch: with weights=inherit give epochs"
                )

    def space(self, state: State, scores: dict[str, np.ndarray]) -> Space:
        coupling = state.need_coupling()
        genes = metapruning_genes(coupling)
        if all(gene.frozen is not None for gene in genes):
            raise UserError(
                f"every channel group of {coupling.graph.name} is read by its last layer, which "
                "MetaPruning leaves "
                "whole: there is no width to search; use a pass such as abn"
            )
        return Space(
            coupling,
            state.need_cost(),
            state.budgets,
            scores,
            genes=genes,
            window=self.window,
            round_to=rounding(state, self.round_to),
            minimum=self.minimum,
            bounds=state.limits.bounds,
            tied=state.limits.tied,
        )

    def finishing_passes(self) -> list[Pass]:
        """Return training from scratch; or fresh statistics and fine-tuning for inherited
        weights."""
        if self.weights == "scratch":
            recipe = (
                self.recipe if self.epochs is None else replace(self.recipe, epochs=self.epochs)
            )
            if not recipe.epochs:
                return []
            return [Scratch(recipe, "role" if "decay" in self.compat else "recipe")]
        epochs = INHERITED_EPOCHS if self.epochs is None else self.epochs
        fresh = self.evaluator.finishing_passes(self.seed)
        return [*fresh, Finetune(epochs=epochs)] if epochs else fresh

    def _identity(self, state: State, seed: int) -> dict[str, object]:
        """Return the identity without the training of the winner, which has no part in which one it
        is: a finished search serves another training."""
        plain = replace(self, weights="scratch", recipe=SCRATCH, epochs=None, compat=())
        return super(MetaPruning, plain)._identity(state, seed)
