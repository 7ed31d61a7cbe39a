"""The time of a region as a function of its lengths, learned from what was measured of regions with
the same key.

Two steps. A sum of physical terms (work, bytes, and both with lengths rounded up to the blocks of
vectors) with coefficients of at least 0 gives the large scale, also beyond what was measured. A
forest of randomised trees then learns the logarithm of what is left, from the lengths and from how
they divide by 2, 4, 8 and 16: kernels are chosen and tails are padded by these, so times are
staircases, and the trees keep them. The trees' disagreement is the uncertainty.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls
from sklearn.ensemble import ExtraTreesRegressor

from pruneopt.passes.latency.regions import Region

__all__ = ["RegionModel"]

TREES = 48
LEAF = 2
"""Measurements in a leaf: times are noisy."""
BLOCKS = (4, 8, 16)
SHORTEST = 1e-7
"""Seconds; what takes less is counted as this much where logarithms are taken."""


class RegionModel:
    """Times of regions of one key.

    Args:
        region: any of them.
        lengths: what was measured, `[N, V]`.
        seconds: and how long it took, `[N]`.
    """

    def __init__(
        self, region: Region, lengths: np.ndarray, seconds: np.ndarray, seed: int = 0
    ) -> None:
        self.region = region
        terms = self._terms(lengths)
        self._scale = np.maximum(np.abs(terms).max(axis=0), 1e-30)
        weight = 1 / np.maximum(seconds, SHORTEST)
        self._coefficients = nnls(
            terms / self._scale * weight[:, None], seconds * weight, maxiter=100 * terms.shape[1]
        )[0]
        forest = ExtraTreesRegressor(TREES, min_samples_leaf=LEAF, random_state=seed)
        rest = np.log(np.maximum(seconds, SHORTEST)) - np.log(self._physical(lengths))
        forest.fit(self._features(lengths), rest)
        # The forest's own call costs milliseconds in the handing out of work, and is made very
        # often.
        self._trees = [tree.tree_ for tree in forest.estimators_]

    def predict(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return seconds and their uncertainty (a standard deviation), `[P, V]` -> two of `[P]`."""
        features = self._features(lengths).astype(np.float32)
        rest = np.stack([tree.predict(features).reshape(-1) for tree in self._trees])
        seconds = self._physical(lengths) * np.exp(rest.mean(axis=0))
        return seconds, seconds * rest.std(axis=0)

    def _physical(self, lengths: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.maximum(
            self._terms(lengths) / self._scale @ self._coefficients, SHORTEST
        )
        return found

    def _terms(self, lengths: np.ndarray) -> np.ndarray:
        """Return the terms of the model, `[P, V]` -> `[P, T]`."""
        columns = [np.ones(len(lengths))]
        for block in (1, *BLOCKS):
            rounded = np.ceil(lengths / block) * block
            columns += [
                self.region.flops(rounded),
                self.region.moved(rounded),
                self.region.weights(rounded),
                *rounded.T,
            ]
        return np.stack(columns, axis=1)

    def _features(self, lengths: np.ndarray) -> np.ndarray:
        """Return the features of a region, `[P, V]` -> `[P, F]`."""
        columns = [
            self.region.flops(lengths),
            self.region.moved(lengths),
            self.region.weights(lengths),
        ]
        for length in lengths.T:
            columns += [length, length % 2, length % 4 == 0, length % 8, length % 16, -length % 16]
        return np.stack(columns, axis=1)
