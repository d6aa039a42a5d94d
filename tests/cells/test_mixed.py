import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasi_jax.cells import search_space
from nasi_jax.cells.darts import DARTS_OPS
from nasi_jax.cells.darts import EDGES as DARTS_EDGES
from nasi_jax.cells.layers.mixed import add_mixed_edges, schedule
from nasi_jax.cells.layers.ops import LayerSpec, darts_op, darts_ops_together
from nasi_jax.cells.nasbench201 import EDGES as NASBENCH201_EDGES
from nasi_jax.search.nasi import nasi, one_step_ascent
from nasi_jax.types import Batch, NetworkSpec

HALVING_EDGES = [(source, node) for node in range(2, 6) for source in range(2)]
CHAIN = [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(
    ("edges", "number", "width"),
    [(DARTS_EDGES, 4, 4), (NASBENCH201_EDGES, 3, 2), (CHAIN, 3, 1)],
    ids=["darts", "nasbench201", "chain"],
)
def test_steps_are_few_and_narrow_and_read_what_is_complete(edges, number, width):
    steps = schedule(edges, reads_nodes=True)
    assert sorted(row for step in steps for row in step) == [*range(len(edges))]
    assert (len(steps), max(map(len, steps))) == (number, width)
    for position, step in enumerate(steps):
        later = {edges[row][1] for other in steps[position:] for row in other}
        assert not later & {edges[row][0] for row in step}


def test_edges_that_read_no_node_are_one_step():
    assert schedule(CHAIN, reads_nodes=False) == [[0, 1, 2]]


class DartsCell(nn.Module):
    """The edges of stride 2 of a reduction cell, then those of a normal one, all of them DARTS'."""

    spec: LayerSpec

    @nn.compact
    def __call__(self, inputs, weights):
        def apply_ops(stride, ops, inputs):
            return (
                darts_op(op, inputs, stride=stride, spec=self.spec, pool_norm=True) for op in ops
            )

        together = functools.partial(darts_ops_together, spec=self.spec)
        states = jnp.zeros((6, *inputs.shape[1:2], 2, 2, inputs.shape[-1]), inputs.dtype)
        for stride, name, edges, read in (
            (2, "halving", HALVING_EDGES, inputs),
            (1, "edges", DARTS_EDGES, None),
        ):
            states = add_mixed_edges(
                states,
                edges,
                weights[name],
                ops=DARTS_OPS,
                apply_ops=functools.partial(apply_ops, stride),
                name=name,
                inputs=read,
                remat=stride == 1,
                together=functools.partial(together, stride=stride) if self.spec.together else None,
            )
        return states


@pytest.mark.parametrize("norm", ["batch", "frozen", "none"])
@pytest.mark.usefixtures("unoptimized")
def test_operations_and_edges_together_are_what_they_are_alone(norm):
    """In values and in derivatives in parameters, inputs and weights."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        inputs = jnp.asarray(rng.normal(size=(2, 4, 4, 4, 3)))
        weights = {
            name: jnp.asarray(rng.uniform(size=(len(edges), len(DARTS_OPS))))
            for name, edges in (("halving", HALVING_EDGES), ("edges", DARTS_EDGES))
        }
        spec = LayerSpec(norm=norm, param_dtype=jnp.float64)
        alone = DartsCell(spec)
        together = DartsCell(dataclasses.replace(spec, together=True))
        variables = jax.jit(alone.init)(jax.random.key(0), inputs, weights)
        chex.assert_trees_all_equal(
            variables, jax.jit(together.init)(jax.random.key(0), inputs, weights)
        )
        statistics = {name: tree for name, tree in variables.items() if name != "params"}

        def value_and_gradient(cell):
            def total(params, inputs, weights):
                states = cell.apply({"params": params, **statistics}, inputs, weights)
                return jnp.sum(jnp.sin(states))

            arguments = (variables["params"], inputs, weights)
            return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*arguments)

        chex.assert_trees_all_close(
            value_and_gradient(together), value_and_gradient(alone), rtol=1e-9, atol=1e-9
        )


@pytest.mark.usefixtures("unoptimized")
def test_a_search_of_edges_together_is_the_search():
    """Two samples at a time of a whole supernet, as on a GPU."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 2, 8, 8, 3)), jnp.float32)
    batches = Batch(images, jnp.arange(4).reshape(2, 2))
    space = search_space("nasbench201", init_channels=2, num_cells=1)

    def infos(together):
        spec = NetworkSpec(norm="none", together=together)
        search = nasi(space, num_classes=4, optimizer=one_step_ascent(2), spec=spec)
        state = search.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], batches))
        keys = jax.random.split(jax.random.key(1), 2)
        return jax.jit(search.steps)(keys, state, batches, 2)[1]

    chex.assert_trees_all_close(infos(True), infos(False), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("unoptimized")
def test_one_hot_weights_compute_only_what_is_chosen():
    """Under vmap every branch would be computed, so edges stay apart."""
    space = search_space("nasbench201", init_channels=2, num_cells=1)
    inputs = jnp.zeros((2, 8, 8, 3))
    weights = space.one_hot(space.sample(jax.random.key(0)))
    supernet = space.supernet(2, NetworkSpec(norm="none", together=True), one_hot=True)
    variables = jax.eval_shape(supernet.init, jax.random.key(0), inputs, weights)
    program = jax.make_jaxpr(supernet.apply)(variables, inputs, weights)
    assert "cond[" in str(program)


def test_one_hot_weights_keep_only_what_an_edge_reads(monkeypatch):
    """For the derivatives: without `nn.remat` the program takes twice the memory."""
    space = search_space(
        "nasbench201", ops=("skip_connect", "nor_conv_1x1"), init_channels=8, num_cells=1
    )
    supernet = space.supernet(4, NetworkSpec(), one_hot=True)
    inputs, alpha = jnp.zeros((8, 16, 16, 3)), space.init_alpha()
    params = jax.eval_shape(supernet.init, jax.random.key(0), inputs, alpha)["params"]

    def temporaries():
        def total(params, alpha):
            return jnp.sum(supernet.apply({"params": params}, inputs, alpha))

        program = jax.jit(jax.grad(total)).lower(params, alpha).compile()
        return program.memory_analysis().temp_size_in_bytes

    kept = temporaries()
    monkeypatch.setattr(nn, "remat", lambda function, **_: function)
    assert 1.5 * kept < temporaries()
