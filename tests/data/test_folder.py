"""Folders of images by class."""

import sys

import jax
import numpy as np
import pytest
from helpers import assert_one_line, small_images
from PIL import Image

from nasi_jax import data
from nasi_jax.data import folder


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def pets(tmp_path):
    """Ten images of three classes, of any sizes, by their paths in the folder."""
    images = {}
    for index in range(10):
        name = ("dog", "Cat", "owl")[index % 3]
        shape = (8 + 3 * index, 30 - index, *([3] if index % 2 else []))
        path = f"{name}/{index}.{'PNG' if index % 2 else 'png'}"
        images[path] = small_images(*shape, seed=index)
        save(tmp_path / "pets" / path, images[path])
    return tmp_path / "pets", images


def refused(path, *parts, split="train"):
    with pytest.raises(ValueError) as error:
        data.load(str(path), split=split)
    assert_one_line(error, *parts)


def in_color(image):
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def test_images_of_any_size_in_gray_and_color(pets):
    root, images = pets
    dataset = data.load(str(root), image_size=12)
    assert dataset.class_names == ("Cat", "dog", "owl")
    assert (dataset.num_examples, dataset.scale) == (10, 255)
    raw, labels = dataset.images(np.arange(10))
    assert raw.shape == (10, 12, 12, 3)
    for path, image, label in zip(sorted(images), raw, labels, strict=True):
        assert path.startswith(dataset.class_names[label])
        pixels = in_color(images[path]).astype(np.float32)
        expected = jax.image.resize(pixels, (12, 12, 3), "bilinear")
        np.testing.assert_allclose(image, expected, atol=1e-3)
    pixels = np.concatenate([in_color(image).reshape(-1, 3) for image in images.values()])
    np.testing.assert_allclose(dataset.mean, pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(dataset.std, pixels.std(0), rtol=1e-5)


def test_images_that_fit_stay_as_they_are(tmp_path):
    images = small_images(6, 8, 8, 3)
    for index, image in enumerate(images):
        save(tmp_path / f"{index % 2}" / f"{index}.bmp", image)
    raw, labels = data.load(str(tmp_path), image_size=8).images(np.arange(6))
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(raw, images[[0, 2, 4, 1, 3, 5]])
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("others", [["test", "val"], ["val"], ["validation"]])
def test_splits(tmp_path, others):
    train = small_images(8, 8, 8, 3)
    for index, image in enumerate(train):
        save(tmp_path / "train" / "abcd"[index % 4] / f"{index}.png", image)
    for seed, other in enumerate(others, start=1):
        for index, image in enumerate(small_images(3, 8, 8, 3, seed=seed) // 2):
            save(tmp_path / other / "bd"[index % 2] / f"{index}.png", image)
    every, first, test = (
        data.load(f"{tmp_path}/", split=split, image_size=8) for split in data.SPLITS
    )
    for dataset in (first, test):
        np.testing.assert_array_equal(dataset.mean, every.mean)
        assert dataset.class_names == ("a", "b", "c", "d")
    assert (every.num_examples, first.num_examples, test.num_examples) == (8, 8, 3)
    raw, labels = test.images(np.arange(3))
    expected = small_images(3, 8, 8, 3, seed=1) // 2  # of the first of them
    np.testing.assert_array_equal(raw, expected[[0, 2, 1]])
    np.testing.assert_array_equal(labels, [1, 1, 3])


def test_a_class_may_be_called_as_a_split_is(tmp_path):
    for name in ("train", "test", "bus"):
        save(tmp_path / name / "0.png", small_images(8, 8, 3))
    assert data.load(str(tmp_path)).class_names == ("bus", "test", "train")


def test_test_images_without_classes_are_passed_over(tmp_path):
    """As ImageNet's, whose labels are secret."""
    for name in ("train/a", "train/b", "val/a", "test"):
        save(tmp_path / name / "0.png", small_images(8, 8, 3))
    assert data.load(str(tmp_path), split="test").num_examples == 1


def test_images_are_read_as_they_are_asked_for(pets, monkeypatch):
    root, images = pets
    monkeypatch.setattr("nasi_jax.data.dataset._STATISTICS_EXAMPLES", 4)
    decoded = []
    decode = folder.decode
    monkeypatch.setattr(folder, "decode", lambda *a: decoded.append(a[0].name) or decode(*a))
    dataset = data.load(str(root))
    assert len(decoded) == 4
    dataset.images(np.array([3, 0]))
    names = [path.split("/")[1] for path in sorted(images)]
    assert decoded[4:] == [names[3], names[0]]


def test_folders_in_a_class_and_other_files(pets):
    root, _ = pets
    save(root / "owl" / "young" / "gray" / "x.jpg", small_images(9, 9, 3))
    for name in ("owl/notes.txt", "owl/.hidden.png", "loose.png", ".cache/x.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("none")
    dataset = data.load(str(root))
    assert (dataset.num_examples, dataset.num_classes) == (11, 3)
    assert dataset.images(np.arange(11))[0].shape == (11, 32, 32, 3)


def test_an_image_that_cannot_be_read_is_named(pets):
    root, images = pets
    dataset = data.load(str(root))
    broken = root / "owl" / "2.png"
    position = sorted(images).index("owl/2.png")
    whole = broken.read_bytes()
    for content in (b"", b"text", whole[:200]):
        broken.write_bytes(content)
        dataset.images(np.array([0]))
        with pytest.raises(ValueError) as error:
            dataset.images(np.array([position]))
        assert_one_line(error, f"cannot read {broken} as an image")
    refused(root, f"cannot read {broken} as an image")


def test_images_of_16_bits_are_refused(pets):
    root, _ = pets
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(root / "dog" / "deep.png")
    refused(root, "deep.png as an image: it has more than 8 bits a channel")


def test_folders_that_are_not_as_they_should_be(tmp_path):
    refused(tmp_path, f"{tmp_path} holds no folder of images", "DIR/CLASS/*.png", "DIR/train")
    save(tmp_path / "0.png", small_images(8, 8, 3))
    refused(tmp_path, f"{tmp_path} holds no folder of images")
    save(tmp_path / "cat" / "0.png", small_images(8, 8, 3))
    refused(tmp_path, "at least 2 classes, got only cat")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "notes.txt").write_text("none")
    refused(tmp_path, f"{tmp_path}/dog holds no image")
    save(tmp_path / "dog" / "0.png", small_images(8, 8, 3))
    refused(tmp_path, f"{tmp_path} has no test images", "DIR/test/CLASS", split="test")
    refused(tmp_path / "absent", f"there is no file or folder {tmp_path}/absent", "./NAME")


def test_splits_that_are_not_as_they_should_be(tmp_path):
    save(tmp_path / "val" / "cat" / "0.png", small_images(8, 8, 3))
    refused(tmp_path, "has val but no train that holds classes")
    save(tmp_path / "train" / "cat" / "0.png", small_images(8, 8, 3))
    refused(tmp_path, f"{tmp_path}/train must hold at least 2 classes, got only cat")
    save(tmp_path / "train" / "owl" / "0.png", small_images(8, 8, 3))
    (tmp_path / "val" / "cat" / "0.png").unlink()
    refused(tmp_path, f"{tmp_path}/val holds no image", split="test")
    save(tmp_path / "val" / "dog" / "0.png", small_images(8, 8, 3))
    refused(tmp_path, "val has the class dog, which", split="test")
    assert data.load(str(tmp_path)).num_examples == 2


def test_a_bare_name_is_no_path(tmp_path, monkeypatch):
    """`cifar10` is the same whatever folder the command is given in."""
    for name in ("a", "b"):
        save(tmp_path / "cifar10" / name / "0.png", small_images(8, 8, 3))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # makes the import fail
    refused("cifar10", "tensorflow-datasets", "a folder (with a slash: ./NAME)")
    for name in ("./cifar10", "cifar10/"):
        assert data.load(name).num_examples == 2
