"""Arrays that a program names, and what is given in their place, against loops in Python."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from nasi_jax.kernels.interpreter import named

pytestmark = pytest.mark.usefixtures("x64")

LENGTH = 3


class Compiled:
    """What a program is written with: operations of JAX, and names."""

    jit, checkpoint = staticmethod(jax.jit), staticmethod(jax.checkpoint)
    scan = staticmethod(lax.scan)
    name = staticmethod(functools.partial(checkpoint_name, name="it"))
    other = staticmethod(functools.partial(checkpoint_name, name="other"))


class Plain:
    """The same in Python, with a list of what has the name."""

    def __init__(self, given=None):
        self.given, self.kept = given, []

    def name(self, array):
        self.kept.append(array)
        if self.given is None:
            return array
        return self.given[len(self.kept) - 1]

    def other(self, array):
        return array

    def jit(self, fn):
        return fn

    checkpoint = jit

    def scan(self, body, carry, slices, reverse=False):
        outputs = [None] * len(slices)
        for index in sorted(range(len(slices)), reverse=reverse):
            carry, outputs[index] = body(carry, slices[index])
        return carry, jnp.stack(outputs)


def through_jit(use, x, w):
    def inner(x):
        return use.name(jnp.sin(x * w[0, 0]))

    x = use.jit(lambda x: use.jit(inner)(x) * use.jit(inner)(2 * x))(x)
    return use.name(jnp.cos(x))


def through_checkpoint(use, x, w):
    def inner(x):
        y = use.name(x * w[0, 0])
        return use.name(jnp.sin(y) + x)

    first = use.name(3 * use.checkpoint(inner)(x))
    return use.checkpoint(lambda x: inner(use.jit(inner)(x)))(first)


def body_of(use):
    def body(carry, w):
        y = use.name(jnp.sin(carry * w[0]))
        carry = use.other(y * carry) + w[1]
        return use.name(jnp.cos(carry)) + y, carry * w[2]

    return body


def through_scan(use, x, w, reverse=False):
    before = use.name(2 * x)
    x, stacked = use.scan(body_of(use), before, w, reverse=reverse)
    return use.name(x + stacked[0] * stacked[1])


def through_two_scans(use, x, w):
    """Of one body, and one of them without a name."""
    body = body_of(use)
    x, _ = use.scan(body, x, w)
    x, _ = use.scan(lambda carry, w: (jnp.sin(carry * w[0]), carry), x, w)
    x, stacked = use.scan(body, x, w[::-1], reverse=True)
    return x + stacked[0]


def through_nested_scans(use, x, w, reverse=(False, False)):
    def outer(carry, row):
        carry = use.name(carry * row[0])
        carry, stacked = use.scan(body_of(use), carry, row[1] * w, reverse=reverse[1])
        return use.checkpoint(lambda carry: use.name(jnp.sin(carry)))(carry), stacked[1]

    x, stacked = use.scan(outer, x, w, reverse=reverse[0])
    return use.name(x + stacked[0])


PROGRAMS = {
    "jit": through_jit,
    "checkpoint": through_checkpoint,
    "scan": through_scan,
    "reverse": functools.partial(through_scan, reverse=True),
    "two scans": through_two_scans,
    "nested": through_nested_scans,
    "nested, outer reverse": functools.partial(through_nested_scans, reverse=(True, False)),
    "nested, inner reverse": functools.partial(through_nested_scans, reverse=(False, True)),
}


@pytest.fixture(params=PROGRAMS)
def program(request):
    return PROGRAMS[request.param]


def numbers(seed, *shape):
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape)


X, W = numbers(0, 2), numbers(1, LENGTH, 3)


def plain(program, x, w, given=None):
    use = Plain(given)
    program(use, x, w)
    return use.kept


def test_named_arrays_come_in_the_order_of_a_loop(program):
    expected = plain(program, X, W)
    found = jax.jit(lambda x, w: named(functools.partial(program, Compiled), "it", x, w))(X, W)
    assert len(found) == len(expected) > 2
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert len(np.unique(np.round(expected, 9), axis=0)) == len(expected)


def test_what_is_given_is_differentiated_up_to_the_next(program):
    given = list(numbers(2, len(plain(program, X, W)), *X.shape))

    def with_names(given, x):
        return jnp.stack(named(functools.partial(program, Compiled), "it", x, W, given=given))

    def with_loops(given, x):
        return jnp.stack(plain(program, x, W, given=given))

    outputs = [jax.jit(fn)(given, X) for fn in (with_names, with_loops)]
    np.testing.assert_allclose(*outputs, rtol=1e-12)
    found, expected = (
        jax.jit(jax.jacrev(fn, argnums=(0, 1)))(given, X) for fn in (with_names, with_loops)
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_nothing_is_left_of_what_lies_before_an_earlier_one():
    def chain(x, w):
        for number in range(3):
            x = checkpoint_name(jnp.sin(x * w[number, 0]), "it")
        return x

    def last(given):
        return jnp.sum(named(chain, "it", X, W, given=given)[-1])

    first, second, third = jax.grad(last)(named(chain, "it", X, W))
    before = jnp.sin(jnp.sin(X * W[0, 0]) * W[1, 0])
    np.testing.assert_allclose(second, W[2, 0] * jnp.cos(before * W[2, 0]), rtol=1e-12)
    assert not np.any(first) and not np.any(third)


def test_other_names_are_not_collected():
    def program(x):
        return checkpoint_name(jnp.sin(checkpoint_name(x + 1, "it")), "other")

    np.testing.assert_array_equal(named(program, "it", X), [X + 1])
    np.testing.assert_array_equal(named(program, "other", X), [jnp.sin(X + 1)])
    assert named(program, "nothing", X) == []


def branches(name, x):
    return lax.cond(x[0] > 0, lambda x: checkpoint_name(jnp.sin(x), name), jnp.cos, x)


def test_what_is_named_in_a_branch_is_refused():
    def program(name, x):
        return checkpoint_name(branches(name, x), "it")

    with pytest.raises(ValueError, match="must name no array that is asked for in a branch"):
        named(functools.partial(program, "it"), "it", X)
    found = named(functools.partial(program, "other"), "it", X)
    np.testing.assert_allclose(found, [jnp.sin(X)], rtol=1e-12)
