"""MetaPruning's evolution, written out naively: plain Python with a random generator of its own."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

__all__ = ["GENES", "Fitness", "Key", "Naive", "peaks", "slow_macs"]

Key = tuple[int, ...]
Fitness = Callable[[Key], float]
GENES = 20


class Naive:
    """MetaPruning's search: candidates judged per generation, and where each of them came from."""

    def __init__(self, fits: Callable[[Key], bool], fitness: Fitness, rng: random.Random) -> None:
        self.fits, self.fitness, self.rng = fits, fitness, rng
        self.judged: dict[Key, float] = {}
        self.made: list[dict[str, list[Key]]] = []
        self.parents: list[list[Key]] = []

    def run(self, iterations: int = 20, population: int = 50) -> None:
        archive: list[Key] = []
        candidates = {"mutation": [], "crossover": [], "random": self.random(population, set())}
        for _ in range(iterations):
            self.made.append(candidates)
            new = [item for kind in candidates.values() for item in kind]
            for item in new:
                self.judged[item] = self.fitness(item)
            archive = sorted([*archive, *new], key=lambda item: -self.judged[item])[:50]
            parents = archive[:10]
            self.parents.append(parents)
            taken: set[Key] = set()
            mutated = self.mutation(parents, 25, taken)
            crossed = self.crossover(parents, 25, taken)
            filled = self.random(population - len(mutated) - len(crossed), taken)
            candidates = {"mutation": mutated, "crossover": crossed, "random": filled}

    def accept(self, item: Key, taken: set[Key]) -> bool:
        if item in self.judged or item in taken or not self.fits(item):
            return False
        taken.add(item)
        return True

    def mutation(self, parents: list[Key], wanted: int, taken: set[Key]) -> list[Key]:
        found: list[Key] = []
        for _ in range(10):
            for _ in range(25):
                child = list(self.rng.choice(parents))
                for gene in range(len(child)):
                    if self.rng.random() < 0.1:
                        child[gene] = (child[gene] + self.rng.randint(1, 30)) % 31
                if len(found) < wanted and self.accept(tuple(child), taken):
                    found.append(tuple(child))
        return found

    def crossover(self, parents: list[Key], wanted: int, taken: set[Key]) -> list[Key]:
        found: list[Key] = []
        for _ in range(250):
            one, two = self.rng.sample(parents, 2)
            child = tuple(self.rng.choice(pair) for pair in zip(one, two, strict=True))
            if len(found) < wanted and self.accept(child, taken):
                found.append(child)
        return found

    def random(self, wanted: int, taken: set[Key]) -> list[Key]:
        found: list[Key] = []
        while len(found) < wanted:
            item = tuple(self.rng.randint(0, 30) for _ in range(GENES))
            if self.accept(item, taken):
                found.append(item)
        return found


def slow_macs(genes: Key) -> int:
    """The multiply-accumulates of the network of `space`, from its genes."""
    widths = [int(40 * (10 + 3 * gene) / 100) for gene in genes]
    return sum(a * b for a, b in itertools.pairwise([3, *widths, 5]))


def peaks(genes: Key) -> float:
    """A fitness of a smooth part and one that couples neighbours; larger is better."""
    pull = sum(-abs(gene - 7 * place % 31) for place, gene in enumerate(genes))
    return pull + sum(-abs(a - b) for a, b in itertools.pairwise(genes)) / 2
