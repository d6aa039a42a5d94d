"""The loop: what it returns, what it compiles, how it goes on and how it stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Toy, assert_same, flat, random_batch, report_memory

from nasi_jax.search import adaptive, nasi, one_step_ascent, quantile, run
from nasi_jax.types import NORM_MODES, NetworkSpec

NUM_STEPS = 3


def algorithm(**settings):
    settings = {"penalty": 1.0, "constraint": adaptive(10.0), **settings}
    return nasi(Toy(), num_classes=4, optimizer=one_step_ascent(NUM_STEPS), **settings)


def search(algorithm, batches=random_batch, num_steps=NUM_STEPS, **kwargs):
    return run(jax.random.key(0), algorithm, batches, num_steps, **kwargs)


def copied(result):
    """A run that outlives the steps after it."""
    return result._replace(state=jax.tree.map(jnp.copy, result.state))


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def finished():
    return search(algorithm())


def test_shapes_and_seconds(finished):
    rows = {name: (NUM_STEPS, *values.shape) for name, values in Toy().init_alpha().items()}
    assert {name: update.shape for name, update in finished.info.update.items()} == rows
    for values in (*finished.info[:4], finished.step_seconds):
        assert isinstance(values, np.ndarray) and values.shape == (NUM_STEPS,)
    assert np.all(finished.step_seconds > 0) and finished.compile_seconds > 0


def test_alpha_is_the_sum_of_the_updates(finished):
    sums = {name: np.sum(update, axis=0) for name, update in finished.info.update.items()}
    np.testing.assert_allclose(flat(finished.state.alpha), flat(sums), rtol=1e-5, atol=1e-7)


def test_enough_ends_the_run(finished):
    """With the state and the history of the steps that were taken; what is enough stays it."""
    asked = []

    def enough(done):
        asked.append(len(done.step_seconds))
        return len(done.step_seconds) == 2

    stopped = copied(search(algorithm(), enough=enough))
    assert asked == [1, 2]
    two = jax.tree.map(lambda leaf: leaf[:2], finished.info)
    assert_same(stopped.info, two)
    again = search(algorithm(), enough=enough, start=stopped, on_stage=asked.append)
    assert again is stopped and asked == [1, 2, 2]
    whole = search(algorithm(), start=stopped)
    assert_same(whole.info, finished.info)


def test_a_key_decides_the_run(finished):
    assert_same(search(algorithm()).info, finished.info)
    other = run(jax.random.key(1), algorithm(), random_batch, NUM_STEPS)
    assert np.all(other.info.trace != finished.info.trace)


def test_every_step_has_a_sample_and_a_batch_of_its_own(finished):
    assert len(set(finished.info.trace.tolist())) == NUM_STEPS
    same_batch = search(algorithm(), lambda step: random_batch(0))
    assert same_batch.info.trace[0] == finished.info.trace[0]
    assert len(set(same_batch.info.trace.tolist())) == NUM_STEPS
    assert np.all(same_batch.info.trace[1:] != finished.info.trace[1:])


def test_a_scan_of_ones_own_is_the_run(finished):
    key, each = jax.random.key(0), algorithm()
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(random_batch, range(NUM_STEPS)))

    @jax.jit
    def scanned(key, batches):
        def one_step(state, xs):
            step, batch = xs
            return each.step(jax.random.fold_in(key, step + 1), state, batch)

        first = jax.tree.map(lambda leaf: leaf[0], batches)
        state = each.init(jax.random.fold_in(key, 0), first)
        return jax.lax.scan(one_step, state, (jnp.arange(NUM_STEPS), batches))

    state, info = scanned(key, batches)
    for actual, desired in ((state, finished.state), (info, finished.info)):
        np.testing.assert_allclose(flat(actual), flat(desired), rtol=1e-4, atol=1e-6)


def test_on_step_sees_the_run_so_far(finished):
    seen = []
    search(algorithm(), on_step=lambda run: seen.append(copied(run)))
    assert len(seen) == NUM_STEPS
    for done, so_far in enumerate(seen, start=1):
        assert so_far.step_seconds.shape == (done,)
        assert_same(so_far.info, jax.tree.map(lambda leaf, n=done: leaf[:n], finished.info))
    assert_same(seen[-1].state, finished.state)


@pytest.mark.parametrize("norm", NORM_MODES)
def test_goes_on_as_if_unbroken(norm):
    each, kept = algorithm(spec=NetworkSpec(norm=norm), constraint=quantile(0.5, num_samples=3)), []
    whole = search(each, on_step=lambda run: kept.append(copied(run)))
    for start in kept[:-1]:
        done, seconds = len(start.step_seconds), start.step_seconds
        calls = []
        resumed = search(each, start=start, on_step=calls.append)
        assert len(calls) == NUM_STEPS - done
        assert_same(resumed.state, whole.state)
        assert_same(resumed.info, whole.info)
        np.testing.assert_array_equal(resumed.step_seconds[:done], seconds)
        assert resumed.step_seconds.shape == (NUM_STEPS,)


def test_a_complete_run_is_returned_as_it_is(finished):
    def never(*args):
        raise AssertionError("nothing is left to do")

    each = algorithm()._replace(init=never, step=never)
    assert search(each, never, start=finished, on_stage=never, on_step=never) is finished
    assert search(each, never, 1, start=finished) is finished


def test_step_and_init_are_traced_once():
    each, traced = algorithm(), []

    def init(key, batch):
        traced.append("init")
        return each.init(key, batch)

    def step(key, state, batch):
        traced.append("step")
        return each.step(key, state, batch)

    search(each._replace(init=init, step=step), on_stage=traced.append)
    assert traced == ["compiling", "init", "step", "compiled"]


def test_batches_may_be_the_same_arrays():
    """The state's memory is taken over, the batch's is not: the reference is a copy of it."""
    batch = random_batch(0)
    result = search(algorithm(spec=NetworkSpec(norm="frozen")), lambda step: batch)
    assert not batch.inputs.is_deleted()
    assert_same(result.state.reference, batch.inputs)


@pytest.mark.parametrize("step", range(NUM_STEPS))
def test_what_is_not_finite_names_its_step(step):
    def batches(index):
        batch = random_batch(index)
        return batch._replace(inputs=batch.inputs * jnp.nan) if index == step else batch

    called = []
    with pytest.raises(FloatingPointError, match=f"at step {step + 1} the trace is nan and"):
        search(algorithm(), batches, on_step=called.append)
    assert len(called) == step


def test_a_gradient_that_is_not_finite_names_its_step():
    """The trace is, its gradient is not."""

    def proxy(key, apply_fn, params, batch):
        return jnp.sqrt(0 * jnp.mean(jnp.square(apply_fn(params, batch.inputs))))

    with pytest.raises(FloatingPointError, match=r"at step 1 the trace is 0.0 and .* nan"):
        search(algorithm(proxy=proxy))


@pytest.mark.parametrize("together", [2, 3, 50])
def test_several_samples_in_a_call(together):
    """Whatever their number, and from wherever the run goes on."""
    each, kept = algorithm(constraint=adaptive(1.0)), []
    whole = search(each, num_steps=5, on_step=lambda run: kept.append(copied(run)))
    calls = []
    found = search(each, num_steps=5, samples_per_step=together, on_step=calls.append)
    done = [len(run.step_seconds) for run in calls]
    assert done == [min(5, together * (call + 1)) for call in range(len(done))] and done[-1] == 5
    resumed = search(each, num_steps=5, samples_per_step=together, start=kept[1])
    for each in (found, resumed):
        assert each.step_seconds.shape == (5,) and np.all(each.step_seconds > 0)
        for actual, desired in ((each.state, whole.state), (each.info, whole.info)):
            np.testing.assert_allclose(flat(actual), flat(desired), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("memory", "expected"), [(None, 1), ({}, 1), (1, 1), (4.1, 3), (1e9, NUM_STEPS)]
)
def test_as_many_samples_as_fit_into_the_memory(monkeypatch, memory, expected):
    each, calls = algorithm(), []
    arguments = (jax.random.key(0), random_batch(0))
    shapes = (jax.random.key(0), jax.eval_shape(each.init, *arguments), random_batch(0))
    one = jax.jit(each.step, donate_argnums=1).lower(*shapes).compile()
    needed = one.memory_analysis().temp_size_in_bytes

    if isinstance(memory, (int, float)):
        memory = {"bytes_limit": 100 + int(memory * needed), "bytes_in_use": 100}
    report_memory(monkeypatch, memory)
    search(each, samples_per_step=0, on_step=calls.append)
    assert len(calls[0].step_seconds) == expected


def test_what_is_not_finite_among_several_names_its_step():
    def batches(index):
        batch = random_batch(index)
        return batch._replace(inputs=batch.inputs * jnp.nan) if index == 1 else batch

    with pytest.raises(FloatingPointError, match="at step 2 the trace is nan and"):
        search(algorithm(), batches, samples_per_step=3)
