"""What random search and evolution propose, of fitness that no network has."""

import jax
import numpy as np
import pytest

from nasi_jax.cells import search_space
from nasi_jax.cells.nasbench101 import Nasbench101Genotype
from nasi_jax.cells.nasbench201 import NASBENCH201_OPS, Nasbench201Genotype
from nasi_jax.search.evolution import mutated, random_search, regularized_evolution

SPACES = ("darts", "nasbench201", "nasbench1shot1-1", "transnas101")
SPACE = search_space("nasbench201")
CELLS = [Nasbench201Genotype((op,) * 6) for op in NASBENCH201_OPS]
"""Cells that have no operation in common: whose child one is can be seen."""


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def chosen(genotype):
    """What is chosen, each with where it is."""
    if isinstance(genotype, Nasbench201Genotype):
        return set(enumerate(genotype.ops))
    if isinstance(genotype, Nasbench101Genotype):
        vertices = range(1, len(genotype.ops))
        return {(vertex, genotype.ops[vertex]) for vertex in vertices} | {
            (vertex, genotype.parents(vertex)) for vertex in vertices
        }
    cells = {"normal": genotype.normal, "reduce": genotype.reduce}
    return {(cell, n // 2, edge) for cell, edges in cells.items() for n, edge in enumerate(edges)}


@pytest.mark.parametrize("name", SPACES)
def test_a_mutation_changes_one_choice(name):
    """To a cell of the space: vertices read as many others as before."""
    space = search_space(name)
    parent = space.sample(jax.random.key(1))
    children = [mutated(key, space, parent) for key in keys(15)]
    for child in children:
        assert space.discretize(space.one_hot(child)) == child
        assert len(chosen(child)) == len(chosen(parent))
        assert len(chosen(child) - chosen(parent)) == len(chosen(parent) - chosen(child)) == 1
    assert len(set(children)) > 5


def test_mutations_reach_every_operation_on_every_edge():
    parent = Nasbench201Genotype(NASBENCH201_OPS + NASBENCH201_OPS[:1])
    reached = {next(iter(chosen(mutated(k, SPACE, parent)) - chosen(parent))) for k in keys(200)}
    assert reached == {(e, op) for e in range(6) for op in NASBENCH201_OPS} - chosen(parent)


def test_mutations_replace_either_input_of_a_node_of_darts():
    """By any of the others, with any operation; and operations on the inputs that stay."""
    space = search_space("darts", ops=("max_pool_3x3", "skip_connect", "sep_conv_3x3"))
    parent = space.sample(jax.random.key(0))
    dropped, places, kept = set(), set(), 0
    for key in keys(60):
        child = mutated(key, space, parent)
        ((cell, node, gone),) = chosen(parent) - chosen(child)
        ((*_, new),) = chosen(child) - chosen(parent)
        if gone.node == new.node:
            kept += 1
        else:
            pair = [e.node for e in getattr(parent, cell)[2 * node : 2 * node + 2]]
            dropped.add(pair.index(gone.node))
            places.add((cell, node))
    assert dropped == {0, 1}
    assert len(places) > 3 and kept > 10


def test_what_has_no_other_architecture_is_not_mutated():
    space = search_space("nasbench201", ops=("skip_connect",))
    with pytest.raises(ValueError, match="there is no other architecture in nasbench201"):
        mutated(jax.random.key(0), space, space.sample(jax.random.key(1)))


def parents(propose, fitness, count=40):
    """Whose children are proposed, of `CELLS` with this fitness."""
    found = set()
    for key in keys(count):
        shared = [
            len(chosen(propose(key, CELLS, np.array(fitness))) & chosen(cell)) for cell in CELLS
        ]
        assert max(shared) == 5
        found.add(int(np.argmax(shared)))
    return found


def test_evolution_is_random_until_there_is_a_population():
    propose = regularized_evolution(SPACE, population=6, tournament=6)
    for key in keys(5):
        for count in range(6):
            genotypes = CELLS[:count]
            assert propose(key, genotypes, np.arange(float(count))) == SPACE.sample(key)
    sixth = propose(keys(1)[0], [*CELLS, CELLS[0]], np.arange(6.0))
    assert len(chosen(sixth) & chosen(CELLS[0])) == 5


@pytest.mark.parametrize("fittest", [2, 3, 4])
def test_the_parent_is_the_fittest_of_the_population(fittest):
    """However fit those before it were."""
    fitness = [9.0, 8.0, 1.0, 2.0, 3.0]
    fitness[fittest] = 5.0
    propose = regularized_evolution(SPACE, population=3, tournament=3)
    assert parents(propose, fitness, count=10) == {fittest}


def test_the_parent_wins_a_tournament():
    fitness = [9.0, 3.0, 1.0, 2.0, 4.0]
    assert parents(regularized_evolution(SPACE, population=4, tournament=1), fitness) == {
        *(1, 2, 3, 4)
    }
    # The last in fitness is never the fitter of two.
    two = regularized_evolution(SPACE, population=4, tournament=2)
    assert parents(two, fitness) == {1, 3, 4}


def best_of(propose, seed, budget=100):
    """The most convolutions in a cell that was looked at."""
    genotypes, fitness = [], np.zeros(0)
    for key in keys(budget, seed):
        genotypes.append(propose(key, genotypes, fitness))
        fitness = np.append(fitness, genotypes[-1].ops.count("nor_conv_3x3"))
    return fitness.max()


def test_evolution_finds_what_random_search_does_not():
    evolution = regularized_evolution(SPACE, population=8, tournament=4)
    evolved, drawn = (
        np.mean([best_of(propose, seed) for seed in range(3)])
        for propose in (evolution, random_search(SPACE))
    )
    assert evolved > drawn + 1


def test_random_search_draws_whatever_there_was():
    propose = random_search(SPACE)
    for key in keys(5):
        assert propose(key, CELLS, np.arange(5.0)) == SPACE.sample(key)
        assert propose(key, [], np.zeros(0)) == SPACE.sample(key)
