"""Architectures out of a supernet, with a fitness that is known."""

import jax
import numpy as np
import pytest

from nasi_jax.cells import search_space
from nasi_jax.search.pruning import mixed_weights, num_supernets, perturb, prune, text_of


def worths(space, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=alpha.shape) for name, alpha in space.init_alpha().items()}


def additive(worth, calls):
    """The fitness of a supernet: what its options are worth together."""

    def fitness(candidates):
        calls.append(len(candidates))
        return np.array(
            [
                sum(np.sum(worth[name] * each) for name, each in masks.items())
                for masks in candidates
            ]
        )

    return fitness


METHODS = {
    "prune": prune,
    "perturb": lambda space, fitness: perturb(jax.random.key(0), space, fitness),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["nasbench201", "nasbench1shot1-2", "transnas101"])
def test_what_is_worth_most_is_chosen(method, name):
    space, calls = search_space(name), []
    worth = worths(space)
    genotype = METHODS[method](space, additive(worth, calls))
    assert genotype == space.discretize(worth)
    assert sum(calls) == num_supernets(space, method, walks=1)
    if name == "nasbench201":
        assert calls == ([30, 24, 18, 12] if method == "prune" else [5] * 6)


def test_the_rows_before_have_their_choice():
    """An option that is worth something beside another alone is not seen to be, before that is."""
    space = search_space("nasbench201")
    seen = []

    def fitness(candidates):
        seen.append({name: each.sum(axis=1).tolist() for name, each in candidates[0].items()})
        return np.arange(len(candidates), dtype=float)

    perturb(jax.random.key(1), space, fitness)
    counts = [sorted(each["cell"]) for each in seen]
    # In turn one row after the other has one option; of the row in question one is left out.
    assert counts == [sorted([1] * done + [4] + [5] * (5 - done)) for done in range(6)]


def test_weights_are_equal_and_add_up_to_what_is_selected():
    space = search_space("nasbench1shot1-2")
    masks = {name: np.ones(alpha.shape, bool) for name, alpha in space.init_alpha().items()}
    masks["ops"][0] = [True, False, True]
    weights = mixed_weights(space, masks)
    np.testing.assert_allclose(weights["ops"][0], [0.5, 0, 0.5])
    for name, count in space.num_selected().items():
        np.testing.assert_allclose(np.sum(weights[name], axis=1), count, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_choices_that_are_no_rows_are_refused(method):
    with pytest.raises(ValueError, match="those of darts are not"):
        METHODS[method](search_space("darts"), additive({}, []))


def test_the_text_of_a_supernet_tells_its_options():
    space = search_space("nasbench201", ops=("none", "skip_connect"))
    masks = {"cell": np.array([[True, True], *[[True, False]] * 5])}
    assert text_of(space, masks).startswith("cell 0->1: none+skip_connect; cell 0->2: none; ")


def test_other_methods_score_no_supernets():
    assert num_supernets(search_space("darts"), "random", walks=10) == 0
