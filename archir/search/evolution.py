"""NSGA-II by pymoo, asked for candidates and told what became of them.

Deb, Pratap, Agarwal, Meyarivan 2002, "A fast and elitist multiobjective genetic algorithm:
NSGA-II". Importing this module needs pymoo.

All randomness is one generator's: pymoo 0.6 hands ``algorithm.random_state`` to each operator, and
what it is seeded with may be a generator, which is then used as it is. NumPy's global state is
neither read nor changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.config import Config
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.evaluator import Evaluator
from pymoo.core.mating import Mating
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.indicators.hv import HV
from pymoo.operators.crossover.pntx import TwoPointCrossover
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.problems.static import StaticProblem

Config.warnings["not_compiled"] = False  # it would be printed on stdout


@dataclass(frozen=True)
class Candidate:
    """An individual that is to be evaluated."""

    value: Any
    """A genome as a tuple of integers, or an object."""
    parents: tuple[int, ...]
    """The numbers of the individuals that it was made of; none in the first generation."""


@dataclass(frozen=True)
class Found:
    """What became of a candidate."""

    number: int
    """By which it is known as a parent."""
    objectives: tuple[float, float] | None
    """Both are minimised; None where it could not be scored: it loses against all that were."""
    excess: float = 1.0
    """Of those that could not be scored the smaller wins."""


@dataclass
class Evolution:
    """A population that is asked for the next candidates and told about them."""

    algorithm: Any
    problem: Any
    genomes: bool
    """Whether individuals are tuples of integers."""
    _asked: Any = field(default=None, repr=False)

    def ask(self) -> list[Candidate]:
        """The next generation; empty where nothing new can be made."""
        self._asked = self.algorithm.ask()
        if self._asked is None:
            return []
        return [
            Candidate(
                tuple(int(gene) for gene in one.X) if self.genomes else one.X[0],
                tuple(dict.fromkeys(one.get("parents") or ())),
            )
            for one in self._asked
        ]

    def tell(self, found: Sequence[Found]) -> None:
        """Take up what became of the candidates, in their order."""
        scored = [one.objectives for one in found]
        values = np.array([pair or (np.inf, np.inf) for pair in scored])
        excess = np.array([[0.0 if one.objectives else one.excess] for one in found])
        Evaluator().eval(StaticProblem(self.problem, F=values, G=excess), self._asked)
        for individual, one in zip(self._asked, found, strict=True):
            individual.set("number", one.number)
        self.algorithm.tell(infills=self._asked)


def genetic(
    lowest: Sequence[int],
    highest: Sequence[int],
    key: Callable[[Sequence[int]], Hashable],
    generator: np.random.Generator,
    *,
    population: int,
    offspring: int,
    crossover: float,
    mutation: float,
    per_gene: float,
    eta: float,
) -> Evolution:
    """Evolution of integers: two-point crossover, polynomial mutation that is rounded.

    Args:
        lowest: Of each integer, inclusive.
        highest: The same.
        key: Equal for individuals that are taken to be the same: there is one of them at most.
        generator: All randomness comes from it.
        population: How many survive a generation.
        offspring: How many are made in each.
        crossover: The share of matings that cross; others copy both parents.
        mutation: The share of offspring that mutate.
        per_gene: The chance of each integer of these; 0: one in their number.
        eta: Of the polynomial: the larger, the nearer to what it was.
    """
    low, high = np.asarray(lowest), np.asarray(highest)
    # half a step beyond the bounds, as NSGA-Net's pymoo did: rounding would rarely reach the ends,
    # and 0 would hardly ever become 1
    reach = 0.5 - 1e-9
    problem = Problem(n_var=len(low), n_obj=2, n_ieq_constr=1, xl=low - reach, xu=high + reach)
    return _evolution(
        problem,
        generator,
        population,
        offspring,
        sampling=generator.integers(low, high + 1, (population, len(low))),
        crossover=TwoPointCrossover(prob=crossover),
        mutation=PM(
            prob=mutation,
            prob_var=per_gene or None,
            eta=eta,
            vtype=float,
            repair=RoundingRepair(),
        ),
        same=_Same(lambda individual: key(tuple(individual.X))),
    )


def mutating(
    first: Sequence[Any],
    change: Callable[[Any, np.random.Generator], Any],
    key: Callable[[Any], Hashable],
    generator: np.random.Generator,
    *,
    population: int,
    offspring: int,
) -> Evolution:
    """Evolution of objects, which only mutate.

    Args:
        first: The first generation.
        change: Makes a new one of a parent, which stays as it is.
        key: Equal for individuals that are taken to be the same: there is one of them at most.
        generator: All randomness comes from it.
        population: How many survive a generation.
        offspring: How many are made in each.
    """
    sampling = np.empty((len(first), 1), dtype=object)
    sampling[:, 0] = first
    return _evolution(
        Problem(n_var=1, n_obj=2, n_ieq_constr=1),
        generator,
        population,
        offspring,
        sampling=sampling,
        crossover=Crossover(1, 1, prob=0.0),  # pymoo's NoCrossover hands out the parents themselves
        mutation=_Change(change),
        same=_Same(lambda individual: key(individual.X[0])),
    )


def hypervolume(objectives: Sequence[tuple[float, float]], reference: Sequence[float]) -> float:
    """The area that some individuals dominate, up to a reference point."""
    found: float = HV(ref_point=np.asarray(reference, float))(np.asarray(objectives, float))
    return float(found)


def _evolution(
    problem: Any,
    generator: np.random.Generator,
    population: int,
    offspring: int,
    *,
    sampling: Any,
    crossover: Any,
    mutation: Any,
    same: Any,
) -> Evolution:
    """NSGA-II: binary tournament by domination, then crowding; survival by rank and crowding."""
    algorithm = NSGA2(pop_size=population, n_offsprings=offspring, sampling=sampling,
        eliminate_duplicates=same)  # fmt: skip
    algorithm.mating = _Recorded(
        algorithm.mating.selection, crossover, mutation, eliminate_duplicates=same
    )
    algorithm.setup(problem, termination=NoTermination(), seed=generator)
    return Evolution(algorithm, problem, genomes=problem.n_var > 1)


class _Recorded(Mating):  # type: ignore[misc]
    """Mating that notes the parents of each child."""

    def _do(self, problem: Any, pop: Any, n_offsprings: int, parents: Any = None,
        random_state: Any = None, **kwargs: Any) -> Any:  # fmt: skip
        matings = ceil(n_offsprings / self.crossover.n_offsprings)
        parents = self.selection(
            problem, pop, matings, self.crossover.n_parents, random_state=random_state, **kwargs
        )
        children = super()._do(
            problem, pop, n_offsprings, parents=parents, random_state=random_state, **kwargs
        )
        for place, child in enumerate(children):  # first the first child of each mating
            child.set("parents", tuple(one.get("number") for one in parents[place % matings]))
        return children


class _Change(Mutation):  # type: ignore[misc]
    """Mutation by a function of an object."""

    def __init__(self, change: Callable[[Any, np.random.Generator], Any]) -> None:
        super().__init__(prob=1.0)
        self.change = change

    def _do(self, problem: Any, X: NDArray[Any], *args: Any, random_state: Any = None,  # noqa: N803
        **kwargs: Any) -> NDArray[Any]:  # fmt: skip
        made = np.empty_like(X)
        for row in range(len(X)):
            made[row, 0] = self.change(X[row, 0], random_state)
        return made


class _Same(DuplicateElimination):  # type: ignore[misc]
    """Individuals of one key count once; the first stays."""

    def _do(self, pop: Any, other: Any, is_duplicate: NDArray[np.bool_]) -> NDArray[np.bool_]:
        seen = {self.func(one) for one in other} if other is not None else set()
        for place, one in enumerate(pop):
            found = self.func(one)
            is_duplicate[place] = found in seen
            seen.add(found)
        return is_duplicate
