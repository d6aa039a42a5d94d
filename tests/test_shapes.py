"""Arrays of other shapes or types than a function takes are refused where they come in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasi_jax import kernels, search
from nasi_jax.cells import parse_genotype
from nasi_jax.kernels.trace import mean_loss
from nasi_jax.training import trainer
from nasi_jax.training.recipes import TrainConfig
from nasi_jax.types import Batch

KEY = jax.random.key(0)
INPUTS, LABELS = jnp.ones((4, 3)), np.arange(4) % 2
PARAMS = jnp.ones((3, 2))


def linear(params, inputs):
    return jnp.dot(inputs, params)


def summed(params, inputs):
    """Outputs `[B]`, where `[B, K]` are expected."""
    return linear(params, inputs)[:, 0]


WRONG_LABELS = {
    "a column": LABELS[:, None],
    "one short": LABELS[:3],
    "numbers": LABELS.astype(np.float32),
    "one-hot": np.eye(2, dtype=int)[LABELS],
}


@pytest.mark.parametrize("labels", WRONG_LABELS.values(), ids=WRONG_LABELS)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_labels_of_a_loss(labels, loss):
    with pytest.raises(AssertionError, match="Chex"):
        mean_loss(linear(PARAMS, INPUTS), labels, loss)
    with pytest.raises(AssertionError, match="Chex"):
        kernels.per_example_gradient(KEY, linear, PARAMS, Batch(INPUTS, labels), loss=loss)


@pytest.mark.parametrize("labels", WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_labels_of_a_kernel(labels):
    options = {"contraction": "label", "coupled": False}
    with pytest.raises(AssertionError, match="Chex"):
        kernels.ntk(linear, PARAMS, INPUTS, labels=labels, **options)
    with pytest.raises(AssertionError, match="Chex"):
        kernels.ntk(linear, PARAMS, INPUTS, INPUTS, labels=LABELS, other_labels=labels, **options)


def test_a_second_set_of_inputs_is_like_the_first():
    assert kernels.ntk(linear, PARAMS, INPUTS, INPUTS[:1]).shape == (4, 2, 1, 2)
    for other in (INPUTS[:, :2], INPUTS[0], INPUTS[:, None]):
        with pytest.raises(AssertionError, match="Chex"):
            kernels.ntk(linear, PARAMS, INPUTS, other, coupled=False)


def test_outputs_have_two_axes():
    batch = Batch(INPUTS, LABELS)
    for compute in (
        lambda: kernels.ntk(summed, PARAMS, INPUTS, coupled=False),
        lambda: kernels.ntk_trace(KEY, summed, PARAMS, batch, coupled=False),
        lambda: kernels.batch_gradient(KEY, summed, PARAMS, batch),
        lambda: kernels.random_cotangent_estimate(KEY, summed, PARAMS, batch, over="batch"),
        lambda: kernels.lanczos_spectrum(KEY, summed, PARAMS, INPUTS, num_steps=1),
    ):
        with pytest.raises(AssertionError, match="Chex"):
            compute()


def test_alpha_has_rows():
    with pytest.raises(AssertionError, match="Chex"):
        search.gumbel_softmax(KEY, {"ops": jnp.zeros(3)})


IMAGES = trainer.Images(2, 8, 255.0, np.zeros(3, np.float32), np.ones(3, np.float32))
RAW = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("raw", "labels"),
    [(RAW[..., 0], LABELS), (RAW[:3], LABELS), *((RAW, each) for each in WRONG_LABELS.values())],
)
def test_batches_of_a_training(raw, labels):
    genotype = parse_genotype("|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|")
    config = TrainConfig(batch_size=4, init_channels=2, image_size=8, crop="none")
    algorithm = trainer.trainer(genotype, config, IMAGES)
    state = jax.eval_shape(algorithm.init, KEY)
    with pytest.raises(AssertionError, match="Chex"):
        jax.eval_shape(algorithm.step, KEY, state, raw, labels)
    with pytest.raises(AssertionError, match="Chex"):
        jax.eval_shape(algorithm.evaluate, state, raw, labels, np.ones(4, np.float32))
