import colorsys
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nasi_jax.training import augment

AUGMENTATIONS = {
    "pad_crop": lambda key, images: augment.pad_crop(key, images, 3),
    "flip": augment.flip,
    "cutout": lambda key, images: augment.cutout(key, images, 6, np.array([0.1, 0.2, 0.3])),
    "random_resized_crop": lambda key, images: augment.random_resized_crop(key, images, 8),
    "color_jitter": lambda key, images: augment.color_jitter(key, images, 0.4, 0.4, 0.4, 0.2),
}
every = pytest.mark.parametrize("function", AUGMENTATIONS.values(), ids=list(AUGMENTATIONS))


def random_images(*shape, low=0.0, high=1.0, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(dtype)


def assert_uniform(values, num_values):
    """`values` are uniform over the integers below `num_values`."""
    assert stats.chisquare(np.bincount(values, minlength=num_values)).pvalue > 1e-3


def assert_uniform_between(values, low, high):
    assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-3


def the_only(matches):
    """For each row of booleans `[B, positions]`, the position of the only true one."""
    np.testing.assert_array_equal(matches.sum(axis=1), np.ones(len(matches)))
    return matches.argmax(axis=1)


# Contracts


@every
def test_eager_equals_jit_and_one_trace(function):
    jitted = jax.jit(chex.assert_max_traces(function, n=1))
    for seed in range(3):
        images = random_images(16, 12, 12, 3, seed=seed)
        eager = function(jax.random.key(seed), images)
        np.testing.assert_allclose(jitted(jax.random.key(seed), images), eager, atol=1e-5)


@every
def test_a_function_of_the_key(function):
    images = random_images(16, 12, 12, 3)
    one, again, other = (function(jax.random.key(seed), images) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (np.asarray(one) != np.asarray(other)).any()


@every
def test_examples_do_not_know_of_each_other(function):
    images, others = (random_images(16, 12, 12, 3, seed=seed) for seed in range(2))
    expected = function(jax.random.key(0), images)
    for i in (0, 7, 15):
        others[i] = images[i]
    results = function(jax.random.key(0), others)
    for i in (0, 7, 15):
        np.testing.assert_allclose(results[i], expected[i], atol=1e-6)
    assert (np.asarray(results[1]) != np.asarray(expected[1])).any()


@every
def test_every_example_has_its_own_draw(function):
    images = np.repeat(random_images(1, 12, 12, 3), 16, axis=0)
    results = np.asarray(function(jax.random.key(0), images))
    assert (results != results[:1]).any()


@every
def test_values_stay_on_the_unit_interval(function):
    images = np.rint(random_images(64, 12, 12, 3))  # black and white, in each channel
    results = np.asarray(function(jax.random.key(0), images))
    assert results.min() >= 0 and results.max() <= 1 + 1e-6


@every
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(function, dtype, x64):
    images = random_images(4, 12, 12, 3, dtype=dtype)
    assert function(jax.random.key(0), images).dtype == dtype


@pytest.mark.parametrize("name", ["pad_crop", "flip"])
def test_raw_images_stay_raw(name):
    images = (255 * random_images(4, 12, 12, 3)).astype(np.uint8)
    results = AUGMENTATIONS[name](jax.random.key(0), images)
    assert results.dtype == np.uint8
    expected = AUGMENTATIONS[name](jax.random.key(0), images.astype(np.float32))
    np.testing.assert_array_equal(results, expected)


# Crops, mirrors and squares


@pytest.mark.parametrize("margin", [0, 2, 7])
def test_pad_crop_is_a_window_of_the_padded_image(margin):
    images = random_images(1500, 6, 5, 2, low=1, high=2)
    results = np.asarray(augment.pad_crop(jax.random.key(0), images, margin))
    padded = np.zeros((1500, 6 + 2 * margin, 5 + 2 * margin, 2), np.float32)
    padded[:, margin : margin + 6, margin : margin + 5] = images
    positions = 2 * margin + 1
    windows = [padded[:, y : y + 6, x : x + 5] for y in range(positions) for x in range(positions)]
    matches = np.stack([(results == window).all(axis=(1, 2, 3)) for window in windows], axis=1)
    if margin == 7:  # windows beside the image are black, wherever they are
        black = matches.sum(axis=1) > 1
        assert not results[black].any()
        # Rows are beside it at 4 of 15 offsets, columns at 6.
        share = 1 - (11 * 9) / 15**2
        assert abs(black.mean() - share) < 4 * math.sqrt(share * (1 - share) / 1500)
        matches = matches[~black]
    positions_found = the_only(matches)
    if margin == 2:
        assert_uniform(positions_found, 25)


def test_flip_mirrors_half_of_the_images():
    images = random_images(1000, 4, 5, 3, low=-3, high=3)
    results = augment.flip(jax.random.key(0), images)
    candidates = [images, images[:, :, ::-1]]
    matches = np.stack([(results == image).all(axis=(1, 2, 3)) for image in candidates], axis=1)
    flipped = the_only(matches)
    assert abs(flipped.sum() - 500) < 4 * math.sqrt(1000 / 4)


def squares(height, width, size):
    """Where the square around each pixel is, as in DARTS' code."""
    for y in range(height):
        for x in range(width):
            mask = np.zeros((height, width), bool)
            top, bottom = max(y - size // 2, 0), min(y + size // 2, height)
            left, right = max(x - size // 2, 0), min(x + size // 2, width)
            mask[top:bottom, left:right] = True
            yield mask


def test_cutout_fills_a_square_around_a_uniform_pixel():
    images = random_images(1500, 6, 5, 3)
    fill = np.array([2.0, 3.0, 4.0])
    results = np.asarray(augment.cutout(jax.random.key(0), images, 4, fill))
    cut = (results == fill.astype(np.float32)).all(axis=3)
    np.testing.assert_array_equal(results[~cut], images[~cut])
    masks = np.stack(list(squares(6, 5, 4)))
    assert_uniform(the_only((cut[:, None] == masks).all(axis=(2, 3))), 30)


@pytest.mark.parametrize("fill", [0.5, np.array([0.5]), jnp.array([0.5, 0.5, 0.5])])
def test_cutout_takes_any_fill(fill):
    images = random_images(8, 6, 6, 3)
    key = jax.random.key(0)
    results = augment.cutout(key, images, 4, fill)
    expected = augment.cutout(jax.random.key(0), images, 4, np.full(3, 0.5))
    np.testing.assert_array_equal(results, expected)


@pytest.mark.parametrize(("size", "share"), [(0, 0), (12, 1)])
def test_cutout_of_nothing_and_of_everything(size, share):
    images = random_images(8, 6, 6, 3)
    results = augment.cutout(jax.random.key(0), images, size, 2.0)
    assert (np.asarray(results) == 2).mean() == share


# Resized crops


def crop_windows(key, batch_size, height, width, **ranges):
    """Starts and lengths `[B, 2]`, read off images whose values are their coordinates."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32) + 0.5
    image = np.stack([rows, columns], axis=-1)
    images = np.broadcast_to(image, (batch_size, height, width, 2))
    # Enlarged to 64, because ramps are kept exactly by a linear interpolation, but not by the
    # filter against aliasing. Pixel i is (i + 1/2) / 64 of the window from its start.
    results = np.asarray(augment.random_resized_crop(key, images, 64, **ranges), np.float64)
    first = np.stack([results[:, 16, 0, 0], results[:, 0, 16, 1]], axis=1)
    last = np.stack([results[:, 48, 0, 0], results[:, 0, 48, 1]], axis=1)
    length = (last - first) * 64 / 32
    start = first - length * 16.5 / 64
    np.testing.assert_allclose(start, np.rint(start), atol=1e-3)
    np.testing.assert_allclose(length, np.rint(length), atol=1e-3)
    return np.rint(start).astype(int), np.rint(length).astype(int)


def interpolation(start, length, old, new):
    """Weights `[new, old]` of a bilinear, antialiased resize, pixel by pixel."""
    weights = np.zeros((new, old))
    for i in range(new):
        center = start + (i + 0.5) * length / new
        for j in range(old):
            weights[i, j] = max(0.0, 1 - abs(j + 0.5 - center) / max(length / new, 1))
    return weights / weights.sum(axis=1, keepdims=True)


def test_resized_crop_is_the_resized_window():
    images = random_images(40, 13, 17, 3, low=-1, high=2)
    results = augment.random_resized_crop(jax.random.key(0), images, 8)
    # The windows know nothing of the images.
    starts, lengths = crop_windows(jax.random.key(0), 40, 13, 17)
    for image, result, start, length in zip(images, results, starts, lengths, strict=True):
        rows, columns = (interpolation(start[i], length[i], (13, 17)[i], 8) for i in range(2))
        expected = np.einsum("yh,xw,hwc->yxc", rows, columns, image)
        np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("size", [8, 12, 31])
def test_resized_crop_of_the_whole_image_is_a_resize(size):
    images = random_images(5, 12, 12, 3)
    results = augment.random_resized_crop(
        jax.random.key(0), images, size, scale=(1, 1), ratio=(1, 1)
    )
    expected = jax.image.resize(images, (5, size, size, 3), "bilinear")
    np.testing.assert_allclose(results, expected, atol=1e-5)


def test_sides_of_windows_are_rounded():
    """Squares of 0.6 of 10 x 10 pixels have sides of 7.75, of half of them 7.07."""
    for area, side in ((0.6, 8), (0.5, 7)):
        _, length = crop_windows(jax.random.key(0), 9, 10, 10, scale=(area, area), ratio=(1, 1))
        np.testing.assert_array_equal(length, np.full((9, 2), side))


def test_windows_are_uniform_in_area_ratio_and_place():
    # Sides from 64 sqrt(0.1 / 1.6) = 16 to 64 sqrt(0.5 1.6) = 57: the first draw always fits, and
    # rounding to pixels is finer than what 1,000 windows resolve.
    ranges = {"scale": (0.1, 0.5), "ratio": (0.8, 1.6)}
    start, length = crop_windows(jax.random.key(0), 1000, 64, 64, **ranges)
    height, width = length.T
    assert_uniform_between(height * width / 64**2, 0.1, 0.5)
    assert_uniform_between(np.log(width / height), math.log(0.8), math.log(1.6))
    for axis in range(2):
        # A uniform integer, spread over the interval up to the next one, is uniform.
        spread = np.random.default_rng(axis).uniform(size=1000)
        place = (start[:, axis] + spread) / (64 - length[:, axis] + 1)
        assert_uniform_between(place, 0, 1)


def torchvision_window(generator, height, width, scale, ratio):
    """Start and length, in the words of torchvision's `RandomResizedCrop.get_params`."""
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(*map(math.log, ratio)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return generator.integers(height - h + 1), generator.integers(width - w + 1), h, w
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("shape", [(20, 64), (41, 30)])
def test_windows_are_distributed_as_those_of_torchvision(shape):
    ranges = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
    generator = np.random.default_rng(0)
    expected = np.array([torchvision_window(generator, *shape, **ranges) for _ in range(3000)])
    start, length = crop_windows(jax.random.key(0), 3000, *shape)
    found = np.concatenate([start, length], axis=1)
    assert (start >= 0).all() and (start + length <= shape).all()
    for i in range(4):
        assert stats.ks_2samp(found[:, i], expected[:, i]).pvalue > 1e-3
    if shape == (20, 64):  # the fallback is often needed, and it is the only one with its place
        middle = (expected == (0, 18, 20, 27)).all(axis=1)
        share = middle.mean()
        assert share > 0.001
        difference = (found == (0, 18, 20, 27)).all(axis=1).mean() - share
        assert abs(difference) < 4 * math.sqrt(2 * share * (1 - share) / 3000)


@pytest.mark.parametrize(
    ("shape", "ratio", "window"),
    [
        ((20, 64), (3 / 4, 4 / 3), (0, 18, 20, 27)),
        ((64, 20), (3 / 4, 4 / 3), (18, 0, 27, 20)),
        ((32, 32), (1 / 2, 2), (0, 0, 32, 32)),
    ],
)
def test_windows_that_never_fit_are_in_the_middle(shape, ratio, window):
    expected = torchvision_window(np.random.default_rng(0), *shape, (1, 1), ratio)
    assert expected == window
    start, length = crop_windows(jax.random.key(0), 50, *shape, scale=(1, 1), ratio=ratio)
    found = np.concatenate([start, length], axis=1)
    np.testing.assert_array_equal(found, np.broadcast_to(window, (50, 4)))


# Colors


def gray(image):
    return image @ np.array([0.299, 0.587, 0.114])


def turn_hue(image, turn):
    pixels = []
    for pixel in image.reshape(-1, 3).tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        pixels.append(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
    return np.array(pixels).reshape(image.shape)


CHANGES = {
    "brightness": lambda image, factor: factor * image,
    "contrast": lambda image, factor: factor * image + (1 - factor) * gray(image).mean(),
    "saturation": lambda image, factor: factor * image + (1 - factor) * gray(image)[..., None],
    "hue": turn_hue,
}


def factor_of(name, image, result):
    """The factor by which `result` came from `image`, where nothing was clipped."""
    if name == "hue":
        y, x = np.unravel_index(np.ptp(image, axis=2).argmax(), image.shape[:2])
        turn = colorsys.rgb_to_hsv(*result[y, x])[0] - colorsys.rgb_to_hsv(*image[y, x])[0]
        return (turn + 0.5) % 1 - 0.5
    origin = CHANGES[name](image, 0.0) * np.ones_like(image)
    place = np.unravel_index(np.abs(image - origin).argmax(), image.shape)
    return (result[place] - origin[place]) / (image[place] - origin[place])


@pytest.mark.parametrize(
    ("name", "strength", "low", "high"),
    [
        ("brightness", 0.4, 0.6, 1.4),
        ("contrast", 0.4, 0.6, 1.4),
        ("saturation", 0.4, 0.6, 1.4),
        ("brightness", 1.5, 0.0, 2.5),
        ("hue", 0.2, -0.2, 0.2),
        ("hue", 0.5, -0.5, 0.5),
    ],
)
def test_each_change_of_color(name, strength, low, high):
    images = random_images(300, 4, 5, 3, low=0.25, high=0.4).astype(np.float64)
    results = augment.color_jitter(jax.random.key(0), images.astype(np.float32), **{name: strength})
    results = np.asarray(results, np.float64)
    factors = []
    for image, result in zip(images, results, strict=True):
        factor = factor_of(name, image, result)
        np.testing.assert_allclose(result, CHANGES[name](image, factor), atol=1e-5)
        factors.append(factor)
    assert_uniform_between(factors, low, high)


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_clipped(name):
    images = random_images(100, 5, 5, 3, seed=1)
    results = np.asarray(augment.color_jitter(jax.random.key(0), images, **{name: 0.5}))
    clipped = 0
    for image, result in zip(images.astype(np.float64), results, strict=True):
        factors = np.linspace(-0.5, 0.5, 201) if name == "hue" else np.linspace(0.5, 1.5, 401)
        expected = [np.clip(CHANGES[name](image, factor), 0, 1) for factor in factors]
        errors = [np.abs(result - candidate).max() for candidate in expected]
        assert min(errors) < (0.02 if name == "hue" else 0.003)
        clipped += ((result == 0) | (result == 1)).sum()
    assert (clipped > 0) == (name != "hue")


def test_hue_of_the_corners_of_the_color_cube():
    corners = np.array([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)], np.float32)
    images = np.broadcast_to(corners.reshape(1, 2, 4, 3), (20, 2, 4, 3))
    results = np.asarray(augment.color_jitter(jax.random.key(0), images, hue=0.5))
    np.testing.assert_array_equal(results[:, 0, 0], np.zeros((20, 3)))  # black
    np.testing.assert_array_equal(results[:, 1, 3], np.ones((20, 3)))  # white
    for image, result in zip(images, results, strict=True):
        turn = colorsys.rgb_to_hsv(*result[1, 0].tolist())[0]  # red was at 0
        np.testing.assert_allclose(result, turn_hue(image, turn), atol=1e-5)


def test_changes_come_in_every_order_with_their_own_factors(monkeypatch):
    def fake(place):
        def change(image, factor):
            # Pixel [0, place] keeps the factor, row 1 the order as digits of base 5.
            image = image.at[0, place].set((factor + 1) / 4)
            return image.at[1].set((image[1] + place) / 5)

        return change

    monkeypatch.setattr(augment, "_CHANGES", tuple(fake(place) for place in range(4)))
    results = np.asarray(
        augment.color_jitter(
            jax.random.key(0), np.zeros((2000, 2, 4, 3), np.float32), 0.1, 0.2, 2.0, 0.3
        )
    )
    factors = results[:, 0, :, 0] * 4 - 1
    for i, (low, high) in enumerate([(0.9, 1.1), (0.8, 1.2), (0, 3), (-0.3, 0.3)]):
        assert_uniform_between(factors[:, i], low, high)
    correlations = np.corrcoef(factors.T)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 4 / math.sqrt(2000)
    codes = np.rint(results[:, 1, 0, 0] * 5**4).astype(int)
    orders, counts = np.unique(codes, return_counts=True)
    for order in orders:
        assert sorted(order // 5**i % 5 for i in range(4)) == [0, 1, 2, 3]
    assert len(orders) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_changes_without_strength_are_not_computed(monkeypatch):
    images = random_images(8, 4, 4, 3)
    np.testing.assert_array_equal(augment.color_jitter(jax.random.key(0), images), images)
    monkeypatch.setattr(augment, "_CHANGES", (*augment._CHANGES[:3], None))
    augment.color_jitter(jax.random.key(0), images, 0.4, 0.4, 0.4)


# Bad arguments


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (augment.pad_crop, {"margin": -1}, "margin must be at least 0, got -1"),
        (augment.cutout, {"size": -2}, "size must be even and at least 0, got -2"),
        (augment.cutout, {"size": 3}, "size must be even .* got 3"),
        (augment.random_resized_crop, {"size": 0}, "size must be at least 1, got 0"),
        (augment.random_resized_crop, {"size": 8, "scale": (0, 1)}, r"scale .* got \(0, 1\)"),
        (augment.random_resized_crop, {"size": 8, "scale": (0.5, 2)}, r"scale .* got \(0.5, 2\)"),
        (augment.random_resized_crop, {"size": 8, "scale": (1, 0.5)}, r"scale must be increasing"),
        (augment.random_resized_crop, {"size": 8, "ratio": (0, 1)}, r"ratio .* got \(0, 1\)"),
        (augment.random_resized_crop, {"size": 8, "ratio": (2, 1)}, "ratio must be increasing"),
        (augment.color_jitter, {"contrast": -0.1}, "contrast must be at least 0, got -0.1"),
        (augment.color_jitter, {"hue": 0.6}, "hue must be from 0 to 0.5, got 0.6"),
        (augment.color_jitter, {"hue": -0.1}, "hue must be from 0 to 0.5, got -0.1"),
    ],
)
def test_bad_arguments(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(jax.random.key(0), random_images(2, 8, 8, 3), **arguments)


@every
def test_images_without_a_batch_axis(function):
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, C\], got \[8, 8, 3\]"):
        function(jax.random.key(0), random_images(8, 8, 3))


def test_colors_of_gray_images():
    with pytest.raises(ValueError, match=r"3 channels, got \[2, 8, 8, 1\]"):
        augment.color_jitter(jax.random.key(0), random_images(2, 8, 8, 1), 0.4)
