"""The operations of the three search spaces, NHWC, padded as in PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from nasi_jax.cells.layers.conv import conv, depthwise_conv, max_pool, widened
from nasi_jax.cells.layers.mixed import stacked
from nasi_jax.cells.layers.norm import Norm
from nasi_jax.types import FEATURES, Initializer, NetworkSpec


@dataclass(frozen=True)
class LayerSpec(NetworkSpec):
    """`NetworkSpec`, and what follows from the form of the network.

    Attributes:
      affine: whether normalization has scale and shift.
    """

    affine: bool = False

    @classmethod
    def of(cls, spec: NetworkSpec, *, affine: bool) -> LayerSpec:
        """The layers' part of a network's specification."""
        return cls(**vars(spec), affine=affine)

    def normalize(self, name: str = "norm") -> Norm:
        """A normalization layer."""
        return Norm(self.norm, self.affine, self.param_dtype, self.norm_group, name=name)

    def of_cell(self, cell: Any) -> Any:
        """The class of a cell, whose inside is computed anew for the derivatives under `remat`."""
        return nn.remat(cell) if self.remat else cell

    def cast(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        """Arrays in the dtype of the activations."""
        return arrays if self.dtype is None else tuple(each.astype(self.dtype) for each in arrays)


def kernel_init(name: Initializer) -> Callable[..., jax.Array]:
    """The initializer of that name, with fan-in counted per output channel.

    `he_normal`: variance 2 / fan_in (He et al., 2015), not truncated. `he_uniform`: the same
    variance, uniform. `xavier_normal`: variance 2 / (fan_in + fan_out). `lecun_normal`: variance
    1 / fan_in. `pytorch`: uniform on +-1/sqrt(fan_in), PyTorch's default for convolutions.
    """
    return _INITIALIZERS[name]


def _compiled(*scaling: Any) -> Callable[..., jax.Array]:
    # One program for each shape, also where nothing around it is compiled; see
    # `nasi_jax.training.trainer`.
    return jax.jit(nn.initializers.variance_scaling(*scaling), static_argnums=(1, 2))


_INITIALIZERS = {
    "he_normal": _compiled(2.0, "fan_in", "normal"),
    "he_uniform": _compiled(2.0, "fan_in", "uniform"),
    "xavier_normal": _compiled(1.0, "fan_avg", "normal"),
    "lecun_normal": _compiled(1.0, "fan_in", "normal"),
    "pytorch": _compiled(1 / 3, "fan_in", "uniform"),
}


def halving_max_pool(inputs: jax.Array) -> jax.Array:
    """Maximum over 2x2 windows of stride 2; of equal values the first has the gradient."""
    best, *others = [inputs[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    for other in others:
        best = jnp.where(lax.stop_gradient(other > best), other, best)
    return best


def halving_avg_pool(inputs: jax.Array) -> jax.Array:
    """Mean over 2x2 windows of stride 2."""
    batch, height, width, channels = inputs.shape
    windows = inputs.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return jnp.mean(windows, axis=(2, 4))


def avg_pool(inputs: jax.Array, *, stride: int = 1) -> jax.Array:
    """Mean over 3x3 windows, padding not counted."""
    kernel = jnp.ones((3, 3, 1, inputs.shape[-1]), inputs.dtype)
    padded = np.pad(np.ones(inputs.shape[1:3]), 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))[::stride, ::stride]
    count = np.sum(windows, axis=(2, 3))
    mean = jnp.asarray(1 / count, inputs.dtype).reshape(1, *count.shape, 1)
    return depthwise_conv(inputs, kernel, stride=stride) * mean


class Conv(nn.Module):
    """Convolution without bias, padded so that stride 1 keeps the size.

    Attributes:
      features: output channels.
      size: kernel height and width, odd.
      stride: step of the window.
      spec: initializer and dtype.
    """

    features: int
    size: int
    spec: LayerSpec
    stride: int = 1

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, features]`."""
        shape = (self.size, self.size, inputs.shape[-1], self.features)
        kernel = self.param("kernel", kernel_init(self.spec.init), shape, self.spec.param_dtype)
        return conv(*self.spec.cast(inputs, kernel), stride=self.stride)


class DepthwiseConv(nn.Module):
    """`depthwise_conv` with its kernel."""

    size: int
    spec: LayerSpec
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, C]`."""
        shape = (self.size, self.size, 1, inputs.shape[-1])
        kernel = self.param("kernel", kernel_init(self.spec.init), shape, self.spec.param_dtype)
        return depthwise_conv(
            *self.spec.cast(inputs, kernel),
            stride=self.stride,
            dilation=self.dilation,
            method=self.spec.depthwise,
        )


class ReluConvNorm(nn.Module):
    """ReLU, convolution, normalization: the block of DARTS and NAS-Bench-201."""

    features: int
    size: int
    spec: LayerSpec
    stride: int = 1

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, features]`."""
        conv = Conv(self.features, self.size, self.spec, self.stride, name="conv")
        return self.spec.normalize()(conv(nn.relu(inputs)))


class ConvNormRelu(nn.Module):
    """Convolution, normalization, ReLU: the block of NAS-Bench-101."""

    features: int
    size: int
    spec: LayerSpec

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H, W, features]`."""
        conv = Conv(self.features, self.size, self.spec, name="conv")
        return nn.relu(self.spec.normalize()(conv(inputs)))


class FactorizedReduce(nn.Module):
    """ReLU, two 1x1 convolutions of stride 2 on shifted inputs side by side, normalization."""

    features: int
    spec: LayerSpec

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]`, H and W even, to `[B, H / 2, W / 2, features]`."""
        active = nn.relu(inputs)
        half = self.features // 2
        even = Conv(half, 1, self.spec, stride=2, name="even")(active)
        odd = Conv(self.features - half, 1, self.spec, stride=2, name="odd")(active[:, 1:, 1:])
        return self.spec.normalize()(jnp.concatenate([even, odd], axis=-1))


class SeparableConv(nn.Module):
    """`repeats` times ReLU, depthwise convolution, 1x1 convolution, normalization.

    `sep_conv` of DARTS repeats twice, with the stride in the first; `dil_conv` does not repeat
    and dilates by 2.
    """

    size: int
    spec: LayerSpec
    stride: int
    dilation: int
    repeats: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, C]`."""
        outputs = inputs
        for index in range(self.repeats):
            pointwise = Conv(inputs.shape[-1], 1, self.spec, name=f"pointwise_{index}")
            depthwise = self.depthwise(index, name=f"depthwise_{index}")
            outputs = pointwise(depthwise(nn.relu(outputs)))
            outputs = self.spec.normalize(f"norm_{index}")(outputs)
        return outputs

    def depthwise(self, index: int, **named: Any) -> DepthwiseConv:
        """The depthwise convolution of a repetition."""
        stride = self.stride if index == 0 else 1
        return DepthwiseConv(self.size, self.spec, stride, self.dilation, **named)


def darts_op(
    name: str, inputs: jax.Array, *, stride: int, spec: LayerSpec, pool_norm: bool
) -> jax.Array:
    """Applies the DARTS operation of that name, inside a compact method of a module.

    Args:
      name: one of `DARTS_OPS` other than `none`.
      inputs: `[B, H, W, C]`.
      stride: 1 or 2.
      spec: how the layers are built.
      pool_norm: whether normalization without scale and shift follows a pool, as it does in the
        supernet of DARTS and not in its evaluation network.

    Returns:
      `[B, H / stride, W / stride, C]`.
    """
    if name.endswith("_pool_3x3"):
        pooled = _pool(name, inputs, stride)
        pool_spec = dataclasses.replace(spec, affine=False)
        return pool_spec.normalize(name)(pooled) if pool_norm else pooled
    if name == "skip_connect":
        return _skip_connect(inputs, stride, spec)
    return _separable_conv(name, stride, spec)(inputs)


def _pool(name: str, inputs: jax.Array, stride: int) -> jax.Array:
    return (max_pool if name.startswith("max") else avg_pool)(inputs, stride=stride)


def _skip_connect(inputs: jax.Array, stride: int, spec: LayerSpec) -> jax.Array:
    if stride == 1:
        return inputs
    return FactorizedReduce(inputs.shape[-1], spec, name="skip_connect")(inputs)


def _separable_conv(name: str, stride: int, spec: LayerSpec) -> SeparableConv:
    """The layers of `sep_conv_3x3`, `dil_conv_5x5` and the like."""
    size = int(name[-1])
    dilated = name.startswith("dil")
    return SeparableConv(
        size, spec, stride, dilation=2 if dilated else 1, repeats=1 if dilated else 2, name=name
    )


def darts_ops_together(
    names: Sequence[str], inputs: jax.Array, *, stride: int, spec: LayerSpec
) -> list[jax.Array]:
    """`darts_op` of several names in a supernet, their layers of one kind computed at once.

    That is what follows the pools and depthwise convolutions: the products of all pointwise
    convolutions are one, and so is the normalization.

    Args:
      names: of `DARTS_OPS` other than `none`.
      inputs: `[B, H, W, C]`.
      stride: 1 or 2.
      spec: how the layers are built; normalization has no scale and shift.

    Returns:
      `[B, H / stride, W / stride, C]` for each name.
    """
    pointwise = Conv(inputs.shape[-1], 1, spec, parent=None)
    norm = spec.normalize().clone(parent=None)
    convs = {name: _separable_conv(name, stride, spec) for name in names if "_conv_" in name}
    outputs = dict.fromkeys(convs, inputs)

    def part(name: str, layer: str) -> Any:
        variables = convs[name].variables
        return {kind: layers[layer] for kind, layers in variables.items() if layer in layers}

    for index in range(max((each.repeats for each in convs.values()), default=1)):
        repeated = [name for name, each in convs.items() if index < each.repeats]
        filtered = []
        for name in repeated:
            depthwise: Any = convs[name].depthwise(index, parent=None)
            kernel = part(name, f"depthwise_{index}")
            filtered.append(depthwise.apply(kernel, nn.relu(outputs[name])))
        kernels = [part(name, f"pointwise_{index}") for name in repeated]
        statistics = [part(name, f"norm_{index}") for name in repeated]
        products = _apply_each(pointwise, kernels, filtered)
        if index == 0:
            pools = [name for name in names if "_pool_" in name]
            repeated += pools
            statistics += [spec.normalize(name).variables for name in pools]
            products += [_pool(name, inputs, stride) for name in pools]
        outputs |= zip(repeated, _apply_each(norm, statistics, products), strict=True)
    if "skip_connect" in names:
        outputs["skip_connect"] = _skip_connect(inputs, stride, spec)
    return [outputs[name] for name in names]


def _apply_each(
    layer: nn.Module, variables: Sequence[Any], inputs: Sequence[jax.Array]
) -> list[jax.Array]:
    """The outputs of a layer for several variables and inputs, by one call under `vmap`."""
    if not inputs:
        return []
    return list(jax.vmap(layer.apply)(stacked(variables), jnp.stack(inputs)))


class Head(nn.Module):
    """Mean over the image, then a dense layer."""

    num_classes: int
    spec: LayerSpec

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to logits `[B, num_classes]`."""
        features = jnp.mean(checkpoint_name(widened(inputs), FEATURES), axis=(1, 2))
        shape = (features.shape[-1], self.num_classes)
        kernel = self.param("kernel", kernel_init(self.spec.init), shape, self.spec.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), self.spec.param_dtype)
        return features @ kernel + bias[None, :]
