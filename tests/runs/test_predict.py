import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from nasi_jax import data
from nasi_jax.cells import parse_genotype
from nasi_jax.runs.predict import predict
from nasi_jax.runs.train import Trained, stored_size
from nasi_jax.training.recipes import TrainConfig
from nasi_jax.training.trainer import Images, trainer

GENOTYPE = parse_genotype("|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|skip_connect~0|none~1|none~2|")
CONFIG = TrainConfig(batch_size=128, init_channels=2, num_cells=1, image_size=8)
TEST = np.arange(70)


pytestmark = pytest.mark.usefixtures("quick_compilation")


def network(config, images, num_classes):
    """As it is read from the directory of a training, but before it is trained."""
    described = Images(num_classes, len(images), float(images.max()), *moments(images))
    algorithm = trainer(GENOTYPE, config, described)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    names = tuple("abcdefghij"[:num_classes])
    return Trained(GENOTYPE, config, described, names, algorithm.network, variables)


def moments(images):
    pixels = images.reshape(-1, images.shape[-1])
    return pixels.mean(axis=0, dtype=np.float32), pixels.std(axis=0, dtype=np.float32)


@pytest.fixture(scope="module")
def trained():
    images, _ = data.load("digits", split="train", image_size=8).images(np.arange(1500))
    return network(CONFIG, images[..., :1], 10)


@pytest.fixture(scope="module")
def colorful():
    """A network of images in color and in uint8, and such images."""
    images = np.random.default_rng(0).integers(0, 256, (16, 12, 12, 3)).astype(np.uint8)
    config = dataclasses.replace(CONFIG, batch_size=16, crop="resized")
    return network(config, images, 3), images


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Gray test images as files of their raw size, and what these hold, on [0, 1]."""
    folder = tmp_path_factory.mktemp("digits")
    raw, _ = data.load("digits", split="test", image_size=8).images(TEST)
    pixels = np.rint(raw[..., 0] * (255 / 16)).astype(np.uint8)
    paths = [folder / f"{index}.png" for index in TEST]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths, pixels / 255


def softmax(logits):
    logits = np.asarray(logits, np.float64)
    exponentials = np.exp(logits - logits.max(axis=1)[:, None])
    return exponentials / exponentials.sum(axis=1)[:, None]


def probabilities(trained, images):
    """Of images `[B, H, W, 3]` on [0, 1]: the network, its normalization, and softmax in numpy."""
    moments = (np.reshape(part, (1, 1, 1, -1)) for part in trained.images[-2:])
    mean, std = (part / trained.images.scale for part in moments)
    inputs = np.asarray((images - mean) / std, np.float32)
    return softmax(jax.jit(trained.network.apply)(trained.variables, inputs))


def assert_predicted(found, paths, names, expected, top):
    """The classes of highest probability, in their order; float32 against numpy."""
    for prediction, path, row in zip(found, paths, expected, strict=True):
        best = np.argsort(-row)[:top]
        assert prediction.path == str(path)
        assert prediction.class_names == tuple(names[index] for index in best)
        np.testing.assert_allclose(prediction.probabilities, row[best], rtol=1e-5)


def test_probabilities_are_those_of_the_network(trained, digits):
    """Of more images than go through at once."""
    paths, images = digits
    found = predict(trained, paths, top=10)
    assert len(found) == 70
    expected = probabilities(trained, np.repeat(images[..., None], 3, axis=3))
    assert_predicted(found, paths, "abcdefghij", expected, 10)
    assert sum(found[0].probabilities) == pytest.approx(1)
    assert len({prediction.class_names[0] for prediction in found}) > 1


@pytest.mark.parametrize(("number", "top"), [(1, 1), (3, 2), (64, 1), (65, 3)])
def test_any_number_of_files_and_classes(trained, digits, number, top):
    paths, _ = digits
    all_of_all = predict(trained, paths[:number], top=10)
    found = predict(trained, [str(path) for path in paths[:number]], top=top)
    for few, many in zip(found, all_of_all, strict=True):
        assert few.path == many.path
        assert few.class_names == many.class_names[:top]
        assert few.probabilities == many.probabilities[:top]


def test_one_class_unless_asked(trained, digits):
    (found,) = predict(trained, digits[0][:1])
    assert len(found.class_names) == len(found.probabilities) == 1


def test_the_middle_of_images_in_color(colorful, tmp_path):
    """Brought to 8 x 8 / 7 pixels, in multiples of 4, of which the network sees 8."""
    trained, images = colorful
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image).save(path)
    stored = stored_size(trained.config)
    assert stored == 8
    resized = jax.image.resize(images[:6].astype(np.float32), (6, stored, stored, 3), "bilinear")
    expected = probabilities(trained, np.asarray(resized) / 255)
    assert_predicted(predict(trained, paths, top=3), paths, "abc", expected, 3)


def test_larger_images_are_cut_to_their_middle(colorful, tmp_path):
    trained, images = colorful
    config = dataclasses.replace(trained.config, image_size=24)
    trained = trained._replace(config=config)
    assert stored_size(config) == 28
    image = np.kron(images[0], np.ones((4, 4, 1), np.uint8))
    Image.fromarray(image).save(tmp_path / "image.png")
    resized = jax.image.resize(image.astype(np.float32), (28, 28, 3), "bilinear")
    expected = probabilities(trained, np.asarray(resized)[None, 2:26, 2:26] / 255)
    found = predict(trained, [tmp_path / "image.png"], top=3)
    assert_predicted(found, [tmp_path / "image.png"], "abc", expected, 3)


def test_images_of_any_size_and_mode(trained, tmp_path):
    """As the same image in RGB, resized by JAX."""
    rng = np.random.default_rng(0)
    paths, images = [], []
    for shape in ((8, 8), (16, 16), (8, 20), (100, 3), (1, 1)):
        for mode in ("L", "RGB", "1", "P", "RGBA", "CMYK", "LA"):
            pixels = rng.integers(0, 255, (*shape, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).convert("L").convert(mode)
            paths.append(tmp_path / f"{len(paths)}.{'tiff' if mode == 'CMYK' else 'png'}")
            image.save(paths[-1])
            rgb = np.asarray(image.convert("RGB"), np.float32)
            images.append(np.asarray(jax.image.resize(rgb, (8, 8, 3), "bilinear")) / 255)
    expected = probabilities(trained, np.stack(images))
    assert_predicted(predict(trained, paths), paths, "abcdefghij", expected, 1)


def test_a_file_may_be_named_twice(trained, digits):
    first, second = predict(trained, [digits[0][3]] * 2)
    assert first == second


@pytest.mark.parametrize("top", [0, -1, 11])
def test_top_out_of_range(trained, digits, top):
    with pytest.raises(ValueError, match=f"top must be from 1 to 10, the classes, got {top}"):
        predict(trained, digits[0][:1], top=top)


def test_no_files(trained):
    with pytest.raises(ValueError, match="name at least one image file"):
        predict(trained, [])


def test_what_is_no_image(trained, digits, tmp_path):
    (tmp_path / "text").write_text("mine")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "half.png").write_bytes(digits[0][0].read_bytes()[:60])
    for name in ("missing", "text", "empty", "half.png", "."):
        path = tmp_path / name
        with pytest.raises(ValueError) as caught:
            predict(trained, [digits[0][0], path])
        assert str(caught.value).startswith(f"cannot read {path} as an image: ")


@pytest.mark.parametrize("form", ["png", "gif", "bmp", "tiff", "jpeg", "webp", "ppm"])
def test_damaged_images_are_read_or_refused(tmp_path, form):
    """Whatever Pillow makes of them: a byte in 20 is another."""
    path = tmp_path / f"image.{form}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    paths = [tmp_path / f"{index}.{form}" for index in range(60)]
    for each in paths:
        changed = rng.random(len(content)) < 0.05
        noise = rng.integers(0, 255, len(content), dtype=np.uint8)
        each.write_bytes(np.where(changed, noise, content).tobytes())
    refused = 0
    for each in paths:
        try:
            data.decode(each, each)
        except ValueError as error:
            assert str(error).startswith(f"cannot read {each} as an image: ")
            refused += 1
    assert refused > 0
