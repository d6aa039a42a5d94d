import io
import os
import pickle
import socket
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import assert_one_line, small_images
from scipy import stats

from nasi_jax import data
from nasi_jax.data.dataset import STATISTICS, _permutation

DATA_DIR = Path(os.environ.get("NASI_DATA", Path(__file__).parents[3] / "shared" / "data"))
CIFAR10 = DATA_DIR / "cifar10_small.npz"

needs_cifar10 = pytest.mark.skipif(
    not CIFAR10.is_file(), reason=f"no {CIFAR10}; set NASI_DATA to the folder that holds it"
)


def fetch_all(dataset):
    return dataset.fetch(np.arange(dataset.num_examples))


def save(path, images, labels):
    np.savez(path, x_train=images, y_train=labels)
    return str(path)


# Normalization and images


def assert_normalized(inputs):
    inputs = np.asarray(inputs, np.float64)
    np.testing.assert_allclose(inputs.mean(axis=(0, 1, 2)), np.zeros(3), atol=1e-4)
    np.testing.assert_allclose(inputs.std(axis=(0, 1, 2)), np.ones(3), atol=1e-4)


def test_digits_are_normalized_gray_and_in_order():
    from sklearn.datasets import load_digits

    digits = load_digits()
    dataset = data.load("digits", image_size=8)
    inputs, labels = fetch_all(dataset)
    assert (dataset.num_classes, dataset.num_examples) == (10, 1797)
    assert dataset.image_shape == (8, 8, 3) == inputs.shape[1:]
    assert inputs.dtype == np.float32 and labels.dtype == np.int32
    assert_normalized(inputs)
    np.testing.assert_array_equal(labels, digits.target)
    expected = (digits.images - digits.images.mean()) / digits.images.std()
    for channel in range(3):
        np.testing.assert_allclose(inputs[..., channel], expected, atol=1e-5)


def test_digits_are_upsampled_to_32_by_default():
    dataset = data.load("digits")
    assert dataset.image_shape == (32, 32, 3)
    small = data.load("digits", image_size=8).fetch(np.arange(5)).inputs
    expected = jax.image.resize(small, (5, 32, 32, 3), "bilinear")
    np.testing.assert_allclose(dataset.fetch(np.arange(5)).inputs, expected, atol=1e-5)


@needs_cifar10
def test_cifar10_file():
    dataset = data.load(str(CIFAR10))
    inputs, labels = fetch_all(dataset)
    assert dataset.num_classes == 10
    assert inputs.shape == (5000, 32, 32, 3)
    assert_normalized(inputs)
    with np.load(CIFAR10) as archive:
        np.testing.assert_array_equal(labels, archive["y_train"])
        raw = archive["x_train"][17].astype(np.float64)
    np.testing.assert_allclose(np.asarray(inputs[17]) * dataset.std + dataset.mean, raw, atol=1e-3)


@needs_cifar10
def test_file_statistics_are_close_to_the_known_constants_of_cifar10():
    dataset = data.load(str(CIFAR10))
    mean, std = STATISTICS["cifar10"]
    np.testing.assert_allclose(dataset.mean / 255, mean, atol=0.01)
    np.testing.assert_allclose(dataset.std / 255, std, atol=0.01)


@pytest.mark.parametrize("old", [(8, 8), (9, 14), (40, 21), (32, 20)])
@pytest.mark.parametrize("new", [8, 12, 32])
def test_resize_is_that_of_jax(old, new):
    image = small_images(*old, 3).astype(np.float32)
    expected = jax.image.resize(image, (new, new, 3), "bilinear")
    np.testing.assert_allclose(data.resize(image, new), expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(60, 12, 12), (60, 12, 12, 1), (60, 12, 12, 3), (60, 10, 14)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float64])
def test_npz_shapes_and_dtypes(tmp_path, shape, dtype):
    images = small_images(*shape)
    labels = np.arange(60) % 4
    path = save(tmp_path / "a.npz", images.astype(dtype), labels[:, None])
    dataset = data.load(path, image_size=12)
    inputs, fetched = fetch_all(dataset)
    assert (dataset.num_classes, inputs.shape) == (4, (60, 12, 12, 3))
    np.testing.assert_array_equal(fetched, labels)
    pixels = images.reshape(*shape[:3], -1).astype(np.float64)
    standard = (pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
    resized = jax.image.resize(standard, (60, 12, 12, standard.shape[3]), "bilinear")
    np.testing.assert_allclose(inputs, np.broadcast_to(resized, inputs.shape), atol=1e-3)


def test_npz_statistics_over_several_blocks(tmp_path):
    images = np.random.default_rng(0).normal(1e3, 0.1, (250, 8, 8, 3))
    dataset = data.load(save(tmp_path / "a.npz", images, np.arange(250) % 2), image_size=8)
    np.testing.assert_allclose(dataset.mean, images.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, images.std((0, 1, 2)), rtol=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_constant_channel_is_zero_and_finite(tmp_path, value):
    images = small_images(64, 8, 8, 3).astype(np.float32)
    images[..., 1] = value
    path = save(tmp_path / "a.npz", images, np.arange(64) % 2)
    inputs = np.asarray(fetch_all(data.load(path, image_size=8)).inputs)
    np.testing.assert_allclose(inputs[..., 1], 0.0, atol=1e-6)
    np.testing.assert_allclose(inputs[..., 0].std(), 1.0, atol=1e-4)


# Gaussian images, random labels


def test_gaussian_moments():
    dataset = data.load("gaussian", image_size=8)
    assert (dataset.num_classes, dataset.num_examples) == (10, 50_000)
    assert dataset.image_shape == (8, 8, 3)
    inputs = np.asarray(dataset.fetch(np.arange(1000)).inputs, np.float64).ravel()
    # Standard errors of the first four moments of a standard normal: 1, sqrt 2, sqrt 15, sqrt 96.
    for power, (moment, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        error = np.sqrt(variance / inputs.size)
        assert abs(np.mean(inputs**power) - moment) < 4 * error


def test_gaussian_is_a_function_of_seed_and_index():
    dataset = data.load("gaussian", image_size=8, seed=3)
    forward = dataset.fetch(np.array([0, 7, 49_999]))
    backward = data.load("gaussian", image_size=8, seed=3).fetch(np.array([49_999, 7, 0]))
    np.testing.assert_array_equal(forward.inputs, backward.inputs[::-1])
    np.testing.assert_array_equal(forward.labels, backward.labels[::-1])
    other = data.load("gaussian", image_size=8, seed=4).fetch(np.array([0, 7, 49_999]))
    images = np.concatenate([forward.inputs, other.inputs]).reshape(6, -1)
    off_diagonal = np.corrcoef(images)[~np.eye(6, dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(images.shape[1])


def assert_uniform(labels, num_classes):
    counts = np.bincount(labels, minlength=num_classes)
    assert len(counts) == num_classes
    assert stats.chisquare(counts).pvalue > 1e-3


def test_gaussian_labels_are_uniform():
    dataset = data.load("gaussian", image_size=8)
    assert_uniform(np.asarray(dataset.fetch(np.arange(5000)).labels), 10)


def test_random_labels_are_uniform_and_unrelated_to_the_true_ones():
    true = fetch_all(data.load("digits", image_size=8))
    random = fetch_all(data.load("digits", image_size=8, labels="random"))
    np.testing.assert_array_equal(random.inputs, true.inputs)
    assert random.labels.dtype == np.int32
    assert_uniform(np.asarray(random.labels), 10)
    table = np.zeros((10, 10))
    np.add.at(table, (np.asarray(true.labels), np.asarray(random.labels)), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_random_labels_are_a_function_of_seed_and_index(tmp_path):
    images = small_images(200, 8, 8)
    one = save(tmp_path / "one.npz", images, np.arange(200) % 7)
    two = save(tmp_path / "two.npz", images, np.arange(200)[::-1] % 7)

    def labels(path, seed, indices):
        dataset = data.load(path, labels="random", seed=seed, image_size=8)
        return np.asarray(dataset.fetch(indices).labels)

    indices = np.arange(200)
    np.testing.assert_array_equal(labels(one, 0, indices), labels(two, 0, indices))
    np.testing.assert_array_equal(labels(one, 0, indices)[50:60], labels(one, 0, indices[50:60]))
    # Two uniform draws of 7 classes agree on 200/7 = 29 indices, standard deviation 5.
    assert (labels(one, 0, indices) == labels(one, 1, indices)).sum() < 49


# Batches


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """50 images whose label is their index."""
    path = tmp_path_factory.mktemp("data") / "numbered.npz"
    return data.load(save(path, small_images(50, 8, 8), np.arange(50)), image_size=8)


def drawn(dataset, key, steps, batch_size):
    return np.array([dataset.batch(key, step, batch_size).labels for step in steps])


def test_no_example_twice_within_an_epoch(numbered):
    key = jax.random.key(0)
    epochs = drawn(numbered, key, range(21), 7).reshape(3, 49)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 49
    # Two random orders agree in one place on average, and in more than 8 almost never.
    assert (epochs[0] == epochs[1]).sum() <= 8
    assert (epochs[0] == np.arange(49)).sum() <= 8


def test_every_example_is_drawn_in_an_epoch_that_divides(numbered):
    labels = drawn(numbered, jax.random.key(0), range(5), 10)
    assert sorted(labels.ravel().tolist()) == list(range(50))


def test_batch_holds_the_examples_that_it_names(numbered):
    batch = numbered.batch(jax.random.key(1), 3, 7)
    expected = numbered.fetch(np.asarray(batch.labels))
    np.testing.assert_array_equal(batch.inputs, expected.inputs)


def test_resumed_batches_equal_unbroken_ones(numbered):
    key = jax.random.key(5)
    unbroken = drawn(numbered, key, range(20), 7)
    _permutation.cache_clear()  # a resumed run starts with nothing
    resumed = drawn(numbered, key, range(9, 20), 7)
    np.testing.assert_array_equal(resumed, unbroken[9:])
    backward = drawn(numbered, key, range(19, -1, -1), 7)
    np.testing.assert_array_equal(backward[::-1], unbroken)


def test_another_key_gives_another_order(numbered):
    one, two = (drawn(numbered, jax.random.key(seed), range(7), 7) for seed in (0, 1))
    assert (one == two).sum() <= 8


def test_order_is_computed_once_an_epoch(numbered):
    _permutation.cache_clear()
    drawn(numbered, jax.random.key(0), range(14), 7)
    assert _permutation.cache_info().misses == 2


@pytest.mark.parametrize("batch_size", [-1, 0, 51])
def test_bad_batch_size(numbered, batch_size):
    with pytest.raises(ValueError, match=rf"batch_size .* 1 to 50.*got {batch_size}$"):
        numbered.batch(jax.random.key(0), 0, batch_size)


def test_negative_step(numbered):
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        numbered.batch(jax.random.key(0), -1, 7)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.array([0, 50]), "from 0 to 49, got 0 to 50"),
        (np.array([-1]), "from 0 to 49, got -1 to -1"),
        (np.array([0.5]), r"got float64 \[1\]"),
        (np.array([True]), r"got bool \[1\]"),
        (np.zeros((2, 2), int), r"got int64 \[2, 2\]"),
        (np.zeros(0, int), r"non-empty .* got int64 \[0\]"),
    ],
)
def test_bad_indices(numbered, indices, message):
    with pytest.raises(ValueError, match=message):
        numbered.fetch(indices)


# Raw images and indices


def test_fetch_normalizes_the_raw_images(tmp_path):
    images = small_images(20, 8, 8, 3)
    dataset = data.load(save(tmp_path / "a.npz", images, np.arange(20) % 4), image_size=8)
    indices = np.array([3, 19, 3])
    raw, labels = dataset.images(indices)
    assert raw.dtype == np.uint8 and labels.dtype == np.int32
    np.testing.assert_array_equal(raw, images[indices])
    np.testing.assert_array_equal(labels, indices % 4)
    inputs, fetched = dataset.fetch(indices)
    np.testing.assert_array_equal(inputs, (raw - dataset.mean) / dataset.std)
    np.testing.assert_array_equal(fetched, labels)


@pytest.mark.parametrize("image_size", [8, 12])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_raw_images_are_resized_and_of_3_channels(tmp_path, image_size, dtype):
    images = small_images(20, 8, 8).astype(dtype)
    path = save(tmp_path / "a.npz", images, np.arange(20) % 4)
    raw, _ = data.load(path, image_size=image_size).images(np.arange(20))
    assert raw.dtype == (np.uint8 if (image_size, dtype) == (8, np.uint8) else np.float32)
    shape = (20, image_size, image_size, 1)
    expected = jax.image.resize(images[..., None].astype(np.float32), shape, "bilinear")
    np.testing.assert_allclose(raw, np.repeat(expected, 3, axis=3), atol=1e-3)


def test_scale_is_what_white_is(tmp_path):
    images, labels = small_images(20, 8, 8, 3) // 2, np.arange(20) % 2
    paths = {
        "uint8": save(tmp_path / "a.npz", images, labels),
        "floating": save(tmp_path / "b.npz", images / 127, labels),
        "below_0": save(tmp_path / "c.npz", -1.0 - images, labels),
    }
    scales = {name: data.load(path).scale for name, path in paths.items()}
    assert scales == {"uint8": 255, "floating": images.max() / 127, "below_0": 1}
    assert data.load("digits").scale == 16
    assert data.load("gaussian").scale == 1


def test_indices_name_the_examples_of_a_batch(numbered):
    indices = numbered.indices(jax.random.key(1), 3, 7)
    assert indices.shape == (7,)
    # The label of an example is its index.
    np.testing.assert_array_equal(numbered.batch(jax.random.key(1), 3, 7).labels, indices)
    expected = indices.copy()
    indices[:] = 0  # whoever changes theirs doesn't change those of the next
    np.testing.assert_array_equal(numbered.indices(jax.random.key(1), 3, 7), expected)


# Splits


def save_splits(path, train, test, train_labels, test_labels):
    np.savez(path, x_train=train, y_train=train_labels, x_test=test, y_test=test_labels)
    return str(path)


def assert_same_statistics(one, other):
    assert (one.num_classes, one.scale) == (other.num_classes, other.scale)
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(one.std, other.std)


def test_digits_are_parted_in_1500_and_297():
    every, train, test = (data.load("digits", split=split, image_size=8) for split in data.SPLITS)
    assert (every.num_examples, train.num_examples, test.num_examples) == (1797, 1500, 297)
    images, labels = every.images(np.arange(1797))
    for part, start, stop in [(train, 0, 1500), (test, 1500, 1797)]:
        part_images, part_labels = part.images(np.arange(part.num_examples))
        np.testing.assert_array_equal(part_images, images[start:stop])
        np.testing.assert_array_equal(part_labels, labels[start:stop])
    assert_same_statistics(test, train)
    assert_normalized(fetch_all(train).inputs)
    assert (every.mean != train.mean).all()


def test_all_is_the_default():
    assert data.load("digits").num_examples == 1797


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_npz_splits(tmp_path, dtype):
    train = small_images(40, 8, 8, 3).astype(dtype)
    test = small_images(15, 10, 9, 3, seed=1).astype(dtype) // 2  # of another size
    labels = np.arange(40) % 5
    path = save_splits(tmp_path / "a.npz", train, test, labels, labels[:15, None] % 3)
    every, first, second = (data.load(path, split=split, image_size=8) for split in data.SPLITS)
    assert_same_statistics(first, every)
    assert_same_statistics(second, every)
    assert second.num_classes == 5
    for dataset in (every, first):
        images, fetched = dataset.images(np.arange(40))
        np.testing.assert_array_equal(images, train)
        np.testing.assert_array_equal(fetched, labels)
    assert second.num_examples == 15
    images, fetched = second.images(np.arange(15))
    expected = jax.image.resize(test.astype(np.float32), (15, 8, 8, 3), "bilinear")
    np.testing.assert_allclose(images, expected, atol=1e-3)
    np.testing.assert_array_equal(fetched, labels[:15] % 3)


def test_gaussian_test_images_are_further_ones():
    every, train, test = (data.load("gaussian", split=split, image_size=8) for split in data.SPLITS)
    assert (every.num_examples, train.num_examples, test.num_examples) == (50_000, 50_000, 10_000)
    indices = np.arange(1000)
    same, one, other = (dataset.fetch(indices) for dataset in (every, train, test))
    np.testing.assert_array_equal(one.inputs, same.inputs)
    np.testing.assert_array_equal(one.labels, same.labels)
    inputs, further = (np.asarray(batch.inputs, np.float64).ravel() for batch in (one, other))
    assert stats.kstest(further, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(inputs, further)[0, 1]) < 4 / np.sqrt(inputs.size)
    assert_uniform(np.asarray(test.fetch(np.arange(5000)).labels), 10)
    # Two uniform draws of 10 classes agree on 100 of 1,000, standard deviation 9.5.
    assert abs((np.asarray(one.labels) == np.asarray(other.labels)).sum() - 100) < 4 * 9.5


def test_gaussian_images_are_those_of_every_version():
    # As numpy draws them from [seed, 2, index], and labels from [seed, 1].
    inputs, labels = data.load("gaussian", image_size=8, seed=5).fetch(np.array([0, 123]))
    expected = np.random.default_rng([5, 2, 123]).standard_normal((8, 8, 3), np.float32)
    np.testing.assert_array_equal(inputs[1], expected)
    expected = np.random.default_rng([5, 1]).integers(10, size=50_000)[[0, 123]]
    np.testing.assert_array_equal(labels, expected)


def test_random_labels_of_test_images_have_their_own_stream(tmp_path):
    images, labels = small_images(300, 8, 8), np.arange(300) % 10
    path = save_splits(tmp_path / "a.npz", images, images, labels, labels)
    indices = np.arange(300)
    every, train, test = (
        data.load(path, split=split, labels="random", image_size=8).images(indices)[1]
        for split in data.SPLITS
    )
    np.testing.assert_array_equal(every, train)
    assert_uniform(test, 10)
    # Two uniform draws of 10 classes agree on 30 of 300, standard deviation 5.2.
    assert (train == test).sum() < 30 + 4 * 5.2


# Bad arguments and files


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"split": "valid"}, ["split", "all, train, test", "'valid'"]),
        ({"labels": "shuffled"}, ["labels", "true", "random", "'shuffled'"]),
        ({"image_size": 4}, ["image_size", "at least 8", "multiple of 4", "got 4"]),
        ({"image_size": 0}, ["image_size", "got 0"]),
        ({"image_size": 30}, ["image_size", "multiple of 4", "got 30"]),
        ({"seed": -1}, ["seed", "at least 0", "got -1"]),
    ],
)
def test_bad_arguments(arguments, parts):
    with pytest.raises(ValueError) as error:
        data.load("digits", **arguments)
    assert_one_line(error, *parts)


X = small_images(6, 8, 8, 3)
Y = np.arange(6) % 2


def with_value(value, dtype=np.float32):
    images = X.astype(dtype)
    images[2, 3, 4, 1] = value
    return images


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"x_train": X}, ["x_train and y_train", "['x_train']"]),
        ({"images": X, "labels": Y}, ["x_train and y_train", "['images', 'labels']"]),
        ({"x_train": X[0, 0], "y_train": Y}, ["[N, H, W, 3]", "[8, 3]"]),
        ({"x_train": X[..., :2], "y_train": Y}, ["[N, H, W, 1]", "[6, 8, 8, 2]"]),
        ({"x_train": X[None], "y_train": Y}, ["[N, H, W]", "[1, 6, 8, 8, 3]"]),
        ({"x_train": np.array("x"), "y_train": Y}, ["[N, H, W]", "got []"]),
        ({"x_train": X, "y_train": np.eye(6, dtype=int)}, ["[N] or [N, 1]", "[6, 6]"]),
        ({"x_train": X, "y_train": np.array(1)}, ["[N] or [N, 1]", "got []"]),
        ({"x_train": X, "y_train": Y[:4]}, ["6 images", "4 labels"]),
        ({"x_train": X[:0], "y_train": Y[:0]}, ["empty", "[0, 8, 8, 3]"]),
        ({"x_train": X[:, :0], "y_train": Y}, ["empty", "[6, 0, 8, 3]"]),
        ({"x_train": X.astype(np.int64), "y_train": Y}, ["uint8 or floating", "int64"]),
        ({"x_train": X.astype(bool), "y_train": Y}, ["uint8 or floating", "bool"]),
        ({"x_train": X.astype(complex), "y_train": Y}, ["uint8 or floating", "complex128"]),
        ({"x_train": X.astype(str), "y_train": Y}, ["uint8 or floating", "<U"]),
        ({"x_train": with_value(np.nan), "y_train": Y}, ["finite", "NaN"]),
        ({"x_train": with_value(-np.inf), "y_train": Y}, ["finite", "infinity"]),
        ({"x_train": with_value(1e300, np.float64), "y_train": Y}, ["finite in float32"]),
        ({"x_train": X, "y_train": Y.astype(np.float32)}, ["integers", "float32"]),
        ({"x_train": X, "y_train": Y.astype(str)}, ["integers", "<U"]),
        ({"x_train": X, "y_train": Y.astype(bool)}, ["integers", "bool"]),
        ({"x_train": X, "y_train": Y - 1}, ["integers from 0", "-1 to 0"]),
        ({"x_train": X, "y_train": Y + 2**40}, ["below 1,000,000", str(2**40)]),
        ({"x_train": X, "y_train": Y * 0 + 3}, ["at least 2 classes", "only 3"]),
    ],
)
def test_bad_npz_contents(tmp_path, arrays, parts):
    path = str(tmp_path / "bad.npz")
    np.savez(path, **arrays)
    with pytest.raises(ValueError) as error:
        data.load(path)
    assert_one_line(error, path, *parts)


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({}, ["x_test and y_test", "['x_train', 'y_train']"]),
        ({"x_test": X}, ["x_test and y_test", "['x_test', 'x_train', 'y_train']"]),
        ({"x_test": X, "y_test": Y[:4]}, ["x_test and y_test", "6 images", "4 labels"]),
        ({"x_test": X[0, 0], "y_test": Y}, ["x_test must be [N, H, W]", "[8, 3]"]),
        ({"x_test": X, "y_test": Y - 1}, ["y_test", "integers from 0", "-1 to 0"]),
        ({"x_test": X[..., 0], "y_test": Y}, ["x_test", "x_train", "3 channels", "1 channels"]),
        ({"x_test": X / 255, "y_test": Y}, ["x_test", "x_train", "uint8", "float32"]),
        ({"x_test": X, "y_test": Y * 2}, ["y_test", "0 to 1", "y_train", "got 2"]),
        ({"x_train": X[:4], "x_test": X, "y_test": Y}, ["x_train and y_train", "4 images"]),
    ],
)
def test_bad_test_images_of_an_npz(tmp_path, arrays, parts):
    path = str(tmp_path / "bad.npz")
    np.savez(path, **({"x_train": X, "y_train": Y} | arrays))
    with pytest.raises(ValueError) as error:
        data.load(path, split="test")
    assert_one_line(error, path, *parts)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(array):
    file = io.BytesIO()
    np.savez(file, x_train=array, y_train=Y)
    return file.getvalue()


def damaged(archive):
    """The same archive with some bytes of an image flipped, so that its checksum is wrong."""
    middle = len(archive) // 3
    return (
        archive[:middle]
        + bytes(255 - b for b in archive[middle : middle + 9])
        + archive[middle + 9 :]
    )


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "npz archive"),
        (b"no archive", "npz archive"),
        (pickle.dumps([1, 2]), "npz archive"),
        (npy(X), "npz archive"),
        (npz(X)[:-30], "npz archive"),
        (damaged(npz(X)), "plain arrays"),
    ],
    ids=["empty", "text", "pickle", "npy", "cut", "damaged"],
)
def test_file_that_is_no_npz(tmp_path, content, part):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        data.load(str(path))
    assert_one_line(error, str(path), part)


def test_missing_npz(tmp_path):
    for path in (tmp_path / "absent.npz", tmp_path):
        name = str(path) if path.suffix else f"{path}/.npz"
        with pytest.raises(ValueError) as error:
            data.load(name)
        assert_one_line(error, "no file", name, "digits", "gaussian")


class WritesAFile:
    """Executed by whoever unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "executed")


@pytest.mark.parametrize("key", ["x_train", "y_train"])
def test_pickled_npz_is_refused_and_never_executed(tmp_path, key):
    trap = tmp_path / "trap"
    array = np.array([WritesAFile(trap)] * 6, dtype=object)
    path = str(tmp_path / "pickled.npz")
    np.savez(path, **({"x_train": X, "y_train": Y} | {key: array}))
    with pytest.raises(ValueError) as error:
        data.load(path)
    assert_one_line(error, path, "pickle")
    assert not trap.exists()
    with np.load(path, allow_pickle=True) as archive:  # the trap does work
        archive[key]
    assert trap.read_text() == "executed"


def test_npz_member_that_is_no_array(tmp_path):
    path = tmp_path / "bad.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", b"some text")
        archive.writestr("y_train.npy", npy(Y))
    with pytest.raises(ValueError) as error:
        data.load(str(path))
    assert_one_line(error, str(path), "x_train")


# tensorflow-datasets


@pytest.mark.parametrize("name", ["cifar10", "imagenet2012", "nonsense", "", "digits.npy"])
def test_tensorflow_datasets_absent(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # makes the import fail
    with pytest.raises(ValueError) as error:
        data.load(name)
    assert_one_line(error, repr(name), "pip install 'nasi-jax[data]'", "digits", "gaussian", ".npz")


@pytest.fixture
def tfds(monkeypatch):
    """tensorflow-datasets, with a network that notes who asks for it."""
    module = pytest.importorskip("tensorflow_datasets", reason="no tensorflow-datasets")
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield module
    assert not asked


@pytest.fixture
def prepare(tfds, monkeypatch):
    """Writes examples as the files that tensorflow-datasets would write for a name."""
    from PIL import Image

    def write(name, data_dir, images, labels, split="train", **others):
        def examples(images, labels):
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                file = io.BytesIO()  # an encoded image: tensorflow-datasets encodes by TensorFlow
                Image.fromarray(image.squeeze()).save(file, "png")
                file.seek(0)
                example = {"image": file, "label": int(label)}
                extra = {"id": str(index), "file_name": str(index)}
                names = builder.info.features.keys()
                yield index, example | {key: extra[key] for key in extra.keys() & names}

        builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
        with monkeypatch.context() as patch:
            splits = {split: (images, labels)} | others
            generators = {split: examples(*arrays) for split, arrays in splits.items()}
            patch.setattr(type(builder), "_split_generators", lambda *_: generators)
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )

    return write


def test_prepared_cifar10(prepare, tmp_path):
    images, labels = small_images(30, 32, 32, 3), np.arange(30) % 10
    prepare("cifar10", tmp_path, images, labels)
    dataset = data.load("cifar10", data_dir=str(tmp_path))
    assert (dataset.num_classes, dataset.num_examples) == (10, 30)
    mean, std = STATISTICS["cifar10"]
    indices = np.array([4, 29, 0])
    inputs, fetched = dataset.fetch(indices)
    raw = np.asarray(inputs) * np.array(std, np.float32) + np.array(mean, np.float32)
    # Files are shuffled when they are written: an image is found by its pixels.
    for image, label in zip(np.rint(raw * 255), fetched.tolist(), strict=True):
        (found,) = np.flatnonzero((images == image).all(axis=(1, 2, 3)))
        assert labels[found] == label
    random = data.load("cifar10", data_dir=str(tmp_path), labels="random").fetch(indices)
    np.testing.assert_array_equal(random.inputs, inputs)


def test_prepared_grayscale_set_has_the_statistics_of_its_images(prepare, tmp_path):
    images = small_images(40, 28, 28, 1)
    prepare("fashion_mnist", tmp_path, images, np.arange(40) % 10)
    dataset = data.load("fashion_mnist", data_dir=str(tmp_path))
    np.testing.assert_allclose(dataset.mean, [images.mean()], rtol=1e-5)
    np.testing.assert_allclose(dataset.std, [images.std()], rtol=1e-5)
    inputs = fetch_all(dataset).inputs
    assert inputs.shape == (40, 32, 32, 3)
    np.testing.assert_array_equal(inputs[..., 0], inputs[..., 2])


def test_imagenet_images_of_any_size_are_read_one_by_one(prepare, tfds, tmp_path, monkeypatch):
    images = [small_images(20 + i, 50 - i, 3, seed=i) for i in range(20)]
    prepare("imagenet2012", tmp_path, images, np.arange(20) + 900)
    decoded = []
    decode = tfds.features.Image.decode_example_np
    monkeypatch.setattr(
        tfds.features.Image, "decode_example_np", lambda *a: decoded.append(0) or decode(*a)
    )
    dataset = data.load("imagenet2012", data_dir=str(tmp_path), image_size=16)
    assert dataset.num_classes == 1000 and not decoded
    inputs, labels = dataset.fetch(np.arange(3))
    assert inputs.shape == (3, 16, 16, 3) and len(decoded) == 3
    mean, std = (255 * np.array(values) for values in STATISTICS["imagenet2012"])
    image = images[int(labels[1]) - 900].astype(np.float32)
    expected = (np.asarray(jax.image.resize(image, (16, 16, 3), "bilinear")) - mean) / std
    np.testing.assert_allclose(inputs[1], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "others", "opened"),
    [
        ("fashion_mnist", ["test"], "test"),
        ("fashion_mnist", ["validation"], "validation"),
        ("fashion_mnist", ["validation", "test"], "test"),
        ("imagenet2012", ["validation", "test"], "validation"),
    ],
)
def test_prepared_test_images(prepare, tmp_path, name, others, opened):
    channels = 1 if name == "fashion_mnist" else 3
    train = small_images(20, 28, 28, channels) // 2
    splits = {
        split: (small_images(5 + i, 28, 28, channels, seed=i + 1), np.arange(5 + i))
        for i, split in enumerate(others)
    }
    prepare(name, tmp_path, train, np.arange(20) % 10, **splits)
    loaded = [
        data.load(name, split=split, data_dir=str(tmp_path), image_size=28) for split in data.SPLITS
    ]
    every, first, test = loaded
    assert_same_statistics(first, every)
    assert_same_statistics(test, every)
    assert (every.scale, every.num_examples, first.num_examples) == (255, 20, 20)
    expected, labels = splits[opened]
    assert test.num_examples == len(expected)
    images, fetched = test.images(np.arange(len(expected)))
    order = np.argsort(fetched)  # files are shuffled when they are written
    np.testing.assert_array_equal(fetched[order], labels)
    np.testing.assert_array_equal(images[order][..., :channels], expected)


@pytest.mark.parametrize(
    ("name", "parts"),
    [("cifar10", ["'test' or 'validation'"]), ("imagenet2012", ["a split 'validation'"])],
)
def test_set_without_test_images(prepare, tmp_path, name, parts):
    prepare(name, tmp_path, small_images(4, 32, 32, 3), range(4))
    with pytest.raises(ValueError) as error:
        data.load(name, split="test", data_dir=str(tmp_path))
    assert_one_line(error, name, *parts, "['train']")


@pytest.mark.parametrize("name", ["cifar10", "imagenet2012", "svhn_cropped", "cifar10:3.0.2"])
def test_unprepared_set(tfds, tmp_path, name):
    with pytest.raises(ValueError) as error:
        data.load(name, data_dir=str(tmp_path))
    assert_one_line(
        error, repr(name), "not prepared", str(tmp_path), "pip install tensorflow", "array_record"
    )
    assert_one_line(error, "download_and_prepare()", "digits", "gaussian", ".npz")


@pytest.mark.parametrize("name", ["nonsense", "cifar10/nonsense", "huggingface:x", "a/b/c", ""])
def test_name_unknown_to_tensorflow_datasets(tfds, tmp_path, name):
    with pytest.raises(ValueError) as error:
        data.load(name, data_dir=str(tmp_path))
    assert_one_line(error, repr(name), "tensorflow-datasets", "digits", "gaussian", ".npz")


def test_set_without_images(tfds, tmp_path):
    with pytest.raises(ValueError) as error:
        data.load("imdb_reviews", data_dir=str(tmp_path))
    assert_one_line(error, "imdb_reviews", "'image'", "'label'", "text")


def test_set_without_a_train_split(prepare, tmp_path):
    prepare("cifar10", tmp_path, small_images(4, 32, 32, 3), range(4), split="test")
    with pytest.raises(ValueError) as error:
        data.load("cifar10", data_dir=str(tmp_path))
    assert_one_line(error, "cifar10", "'train'", "['test']")


def test_set_whose_files_are_gone(prepare, tmp_path):
    prepare("cifar10", tmp_path, small_images(4, 32, 32, 3), range(4))
    (file,) = tmp_path.rglob("*array_record*")
    file.unlink()
    with pytest.raises(ValueError) as error:
        data.load("cifar10", data_dir=str(tmp_path))
    assert_one_line(error, "cifar10", "1 files", str(file), "download_and_prepare()")


def test_set_in_another_file_format(prepare, tmp_path):
    prepare("cifar10", tmp_path, small_images(4, 32, 32, 3), range(4))
    (info,) = tmp_path.rglob("dataset_info.json")  # only TensorFlow writes real tfrecord files
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError) as error:
        data.load("cifar10", data_dir=str(tmp_path))
    assert_one_line(error, "cifar10", str(tmp_path), "TFRECORD", "another data_dir")
