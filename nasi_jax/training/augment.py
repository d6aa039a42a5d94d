"""Random augmentation of training images, on the device and with static shapes.

Every function consumes its key, draws for each example of `[B, H, W, C]` on its own, and can be
jitted with all but the key and the images (and `fill`) static.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

_WINDOWS_TRIED = 10
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def pad_crop(key: jax.Array, images: jax.Array, margin: int = 4) -> jax.Array:
    """Pads by zeros on all sides and crops a random window of the original size.

    Either offset of the window is uniform over the `2 margin + 1` positions. Zeros are black in
    raw images, as in the usual recipe for CIFAR, which pads before it normalizes.

    Args:
      key: random key, consumed.
      images: `[B, H, W, C]` of any type.
      margin: width of the padding in pixels, at least 0.

    Returns:
      `[B, H, W, C]`, of the type of `images`.

    Raises:
      ValueError: if `margin` is below 0, or `images` not `[B, H, W, C]`.
    """
    _check(images)
    if margin < 0:
        raise ValueError(f"margin must be at least 0, got {margin}")
    padded = jnp.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * margin + 1)

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, offsets)


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2.

    Args:
      key: random key, consumed.
      images: `[B, H, W, C]` of any type.

    Returns:
      `[B, H, W, C]`, of the type of `images`.

    Raises:
      ValueError: if `images` is not `[B, H, W, C]`.
    """
    _check(images)
    flipped = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def cutout(
    key: jax.Array, images: jax.Array, size: int = 16, fill: jax.typing.ArrayLike = 0.0
) -> jax.Array:
    """Sets a random square of each image to a constant (DeVries and Taylor, arXiv:1708.04552).

    The square goes from `c - size / 2` up to but without `c + size / 2` in either direction,
    around a pixel c that is uniform over the image; what lies outside of the image is cut off.

    Args:
      key: random key, consumed.
      images: `[B, H, W, C]` of any type.
      size: side of the square in pixels, even and at least 0.
      fill: the constant, a scalar, `[1]` or `[C]`: the mean of the data set in units of `images`
        where it is to be 0 after they are normalized, as in the paper.

    Returns:
      `[B, H, W, C]`, of the type of `images`.

    Raises:
      ValueError: if `size` is odd or below 0, or `images` not `[B, H, W, C]`.
    """
    _check(images)
    if size < 0 or size % 2:
        raise ValueError(f"size must be even and at least 0, got {size}")

    def inside(key: jax.Array, length: int) -> jax.Array:
        center = jax.random.randint(key, (len(images), 1), 0, length)
        offset = jnp.arange(length)[None] - center
        return (-size // 2 <= offset) & (offset < size // 2)

    row_key, column_key = jax.random.split(key)
    rows = inside(row_key, images.shape[1])[:, :, None, None]
    columns = inside(column_key, images.shape[2])[:, None, :, None]
    constant = jnp.broadcast_to(jnp.asarray(fill, images.dtype), images.shape)
    return jnp.where(rows & columns, constant, images)


def random_resized_crop(
    key: jax.Array,
    images: jax.Array,
    size: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> jax.Array:
    """Resizes a random window of each image to a square (Szegedy et al., arXiv:1409.4842).

    The window's share of the area is uniform in `scale`, its width divided by its height
    log-uniform in `ratio`, its sides are rounded to pixels, and its place is uniform. As in
    torchvision's `RandomResizedCrop`, the first of ten draws that fits into the image is taken;
    if none fits, it is the largest window in the middle whose ratio is in range. Unlike there,
    the interpolation at the window's border goes on to the pixels outside of it.

    Args:
      key: random key, consumed.
      images: floating `[B, H, W, C]`.
      size: height and width of the result, at least 1.
      scale: least and largest share of the area, above 0 and up to 1.
      ratio: least and largest ratio of width to height, above 0.

    Returns:
      `[B, size, size, C]`, of the type of `images`: interpolated bilinearly, and antialiased
      where the window shrinks.

    Raises:
      ValueError: if `size`, `scale` or `ratio` is out of range, or `images` not `[B, H, W, C]`.
    """
    _check(images)
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale must be increasing, above 0 and up to 1, got {scale}")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio must be increasing and above 0, got {ratio}")

    start, length = _windows(key, images.shape, scale, ratio)
    zoom = size / length.astype(jnp.float32)

    def resize(image: jax.Array, zoom: jax.Array, start: jax.Array) -> jax.Array:
        shape = (size, size, images.shape[3])
        shift = -start.astype(zoom.dtype) * zoom
        return jax.image.scale_and_translate(image, shape, (0, 1), zoom, shift, "bilinear")

    return jax.vmap(resize)(images, zoom, start)


def _windows(
    key: jax.Array,
    shape: tuple[int, ...],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[jax.Array, jax.Array]:
    """First pixels and lengths, each `[B, 2]` in rows and columns, of the windows of a crop."""
    batch_size, height, width, _ = shape
    area_key, ratio_key, place_key = jax.random.split(key, 3)

    # All draws at once: how many a loop would need differs between examples.
    drawn = (batch_size, _WINDOWS_TRIED)
    area = height * width * jax.random.uniform(area_key, drawn, jnp.float32, *scale)
    log_ratio = jax.random.uniform(ratio_key, drawn, jnp.float32, *map(math.log, ratio))
    # Height and width are sqrt(area / ratio) and sqrt(area ratio).
    signs = jnp.array([-0.5, 0.5], jnp.float32)[None, None]
    lengths = jnp.sqrt(area)[..., None] * jnp.exp(signs * log_ratio[..., None])
    lengths = jnp.round(lengths).astype(jnp.int32)
    image = jnp.array([height, width], jnp.int32)
    fits = ((lengths > 0) & (lengths <= image[None, None])).all(axis=2)

    largest = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    fallback = jnp.array([max(side, 1) for side in largest], jnp.int32)
    any_fits = fits.any(axis=1)[:, None]
    first = jnp.take_along_axis(lengths, fits.argmax(axis=1)[:, None, None], axis=1)[:, 0]
    length = jnp.where(any_fits, first, fallback[None])

    room = image[None] - length
    place = jax.random.randint(place_key, room.shape, 0, room + 1, jnp.int32)
    return jnp.where(any_fits, place, room // 2), length


def color_jitter(
    key: jax.Array,
    images: jax.Array,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> jax.Array:
    """Changes the colors of each image at random, as torchvision's `ColorJitter`.

    With a factor f that is uniform from `max(0, 1 - strength)` to `1 + strength`, an image x
    becomes `f x` (brightness), `f x + (1 - f) m` with the mean m of its gray image (contrast),
    or `f x + (1 - f) g` with the gray image g itself (saturation). Its hues are turned by a part
    of the circle that is uniform from `-hue` to `hue`. Each image has its own factors, and its
    own order of the changes; each change ends by clipping to [0, 1].

    Args:
      key: random key, consumed.
      images: floating `[B, H, W, 3]` on [0, 1], in RGB.
      brightness: strength, at least 0, where 0 leaves the brightness as it is.
      contrast: strength, like `brightness`.
      saturation: strength, like `brightness`.
      hue: largest part of the circle of hues, from 0 to 0.5.

    Returns:
      `[B, H, W, 3]` on [0, 1], of the type of `images`.

    Raises:
      ValueError: if a strength is out of range, or `images` not `[B, H, W, 3]`.
    """
    _check(images)
    if images.shape[3] != 3:
        raise ValueError(f"images must have 3 channels, got {list(images.shape)}")
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, strength in strengths.items():
        if strength < 0:
            raise ValueError(f"{name} must be at least 0, got {strength}")
    if not 0 <= hue <= 0.5:
        raise ValueError(f"hue must be from 0 to 0.5, got {hue}")
    limits = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths.values()]
    limits.append((-hue, hue))
    # A change of strength 0 is none, wherever it stands in the order: it is not even compiled.
    used = [i for i, (low, high) in enumerate(limits) if low < high]
    if not used:
        return images
    changes = [_CHANGES[i] for i in used]

    order_key, factor_key = jax.random.split(key)
    order = jnp.tile(jnp.arange(len(used))[None], (len(images), 1))
    order = jax.random.permutation(order_key, order, axis=1, independent=True)
    low, high = jnp.array([limits[i] for i in used], images.dtype).T[:, None]
    factors = jax.random.uniform(factor_key, order.shape, images.dtype, low, high)

    def jitter(image: jax.Array, order: jax.Array, factors: jax.Array) -> jax.Array:
        for i in range(len(changes)):
            image = jax.lax.switch(order[i], changes, image, factors[order[i]])
            image = jnp.clip(image, 0, 1)
        return image

    return jax.vmap(jitter)(images, order, factors)


def _brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    return factor * image


def _contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    return factor * image + (1 - factor) * _gray(image).mean()


def _saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    return factor * image + (1 - factor) * _gray(image)


def _hue(image: jax.Array, turn: jax.Array) -> jax.Array:
    """Turns hues `h` to `h + turn`, where value and chroma (value times saturation) stay."""
    red, green, blue = (image[..., channel] for channel in range(3))
    value = image.max(axis=-1)
    chroma = value - image.min(axis=-1)
    divisor = jnp.where(chroma > 0, chroma, 1)  # gray has no hue: any will do
    # Not by `value == red`: a compiler may compute the two apart, and round them differently.
    sextant = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / divisor,
        jnp.where(green >= blue, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sextant = sextant + 6 * turn

    def channel(offset: int) -> jax.Array:
        distance = (sextant + offset) % 6
        return value - chroma * jnp.clip(jnp.minimum(distance, 4 - distance), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def _gray(image: jax.Array) -> jax.Array:
    """`[H, W, 1]`; no matrix product, which has fewer digits on an accelerator."""
    return (image * jnp.array(_GREY, image.dtype)[None, None]).sum(axis=-1, keepdims=True)


_CHANGES = (_brightness, _contrast, _saturation, _hue)


def _check(images: jax.Array) -> None:
    if images.ndim != 4:
        raise ValueError(f"images must be [B, H, W, C], got {list(images.shape)}")
