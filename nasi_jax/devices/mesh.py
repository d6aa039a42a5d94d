"""The mesh of devices that a run is spread over: its axes, its text form, and what lies where."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nasi_jax.devices import hosts

SAMPLE = "sample"
"""The axis whose devices share what is independent: samples of a search, architectures to score."""

DATA = "data"
"""The axis whose devices share the examples of a batch, and see the statistics of all of it."""

_AXES = (SAMPLE, DATA)
_T = TypeVar("_T")


def device_mesh(*, data: int = 1, sample: int = 1) -> Mesh:
    """Makes a mesh of the first `data * sample` devices; of several processes, of all of theirs.

    Args:
      data: how many devices share the examples of a batch.
      sample: how many share samples or architectures.

    Returns:
      The mesh, with the axes `sample` and `data`.

    Raises:
      ValueError: if there are not so many, or not as many as several processes have.
    """
    devices = jax.devices()
    if hosts.are_several() and data * sample != len(devices):
        raise ValueError(
            f"the mesh of {jax.process_count()} processes must have all their {len(devices)} "
            f"devices, got data={data},sample={sample}"
        )
    if data < 1 or sample < 1 or data * sample > len(devices):
        listed = ", ".join(str(device.id) for device in devices)
        raise ValueError(
            f"a mesh must have axes of at least 1 whose product is at most {len(devices)}, the "
            f"devices ({devices[0].platform} {listed}), got data={data},sample={sample}"
        )
    return mesh_of(devices[: sample * data], data=data, sample=sample)


def mesh_of(devices: Sequence[jax.Device], *, data: int, sample: int) -> Mesh:
    """The mesh of these devices, `data * sample` of them, which need not be there."""
    return jax.make_mesh(
        (sample, data), _AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices
    )


def parse(text: str) -> Mesh:
    """Makes a mesh from its text, such as `data=4,sample=2`; an axis that is not named is 1.

    Raises:
      ValueError: for other texts, and as `device_mesh`.
    """
    found = re.fullmatch(r"(data|sample)=(\d{1,6})(?:,(?!\1)(data|sample)=(\d{1,6}))?", text)
    if found is None:
        raise ValueError(f"a mesh must be data=N, sample=N, or data=N,sample=N, got {text!r}")
    names, numbers = found.groups()[::2], found.groups()[1::2]
    return device_mesh(
        **{name: int(number) for name, number in zip(names, numbers, strict=True) if name}
    )


def along(axis: str, most: int) -> Mesh | None:
    """A mesh of up to `most` devices along one axis, of several processes of all of theirs.

    None for one device, the one in use.
    """
    number = jax.device_count() if hosts.are_several() else min(jax.device_count(), most)
    return None if number == 1 else device_mesh(**{axis: number})


def sizes(mesh: Mesh | None) -> dict[str, int]:
    """The number of devices along each axis; 1 without a mesh.

    Raises:
      ValueError: for a mesh that is not `device_mesh`'s.
    """
    if mesh is None:
        return {DATA: 1, SAMPLE: 1}
    if mesh.axis_names != _AXES or set(mesh.axis_types) != {AxisType.Auto}:
        raise ValueError(
            f"a mesh must have the axes {SAMPLE} and {DATA}, both Auto, as device_mesh makes it, "
            f"got {mesh}"
        )
    return {DATA: mesh.shape[DATA], SAMPLE: mesh.shape[SAMPLE]}


def several(mesh: Mesh | None) -> Mesh | None:
    """The mesh, or None if it is one device: then nothing is to be placed.

    Raises:
      ValueError: for a mesh that is not `device_mesh`'s.
    """
    return None if set(sizes(mesh).values()) == {1} else mesh


def require_only(axis: str, mesh: Mesh | None, what: str) -> None:
    """Checks that a mesh has devices along one axis alone.

    Args:
      axis: which.
      mesh: the mesh.
      what: what is spread over it, in words.

    Raises:
      ValueError: if it has devices along another.
    """
    for other, size in sizes(mesh).items():
        if other != axis and size > 1:
            raise ValueError(f"{what} over the axis {axis} of a mesh alone, got {other}={size}")


def require_divisor(batch_size: int, mesh: Mesh | None) -> None:
    """Checks that every device along `data` has as many examples of a batch.

    Raises:
      ValueError: if the batch does not part so.
    """
    if batch_size % sizes(mesh)[DATA]:
        raise ValueError(
            f"batch_size must be a multiple of the {sizes(mesh)[DATA]} devices along {DATA}, "
            f"got {batch_size}"
        )


def everywhere(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def placed(tree: _T, mesh: Mesh | None, *axes: str) -> _T:
    """Arrays on the devices of a mesh; without one as they are.

    Args:
      tree: the arrays, whole; in several processes the same, of which each hands its devices what
        they need.
      mesh: the mesh.
      *axes: what the first axes of each array are spread over. All else is replicated.
    """
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    if not hosts.are_several():
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _of_all(leaf, sharding), tree)


def _of_all(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = _of_all(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def rows_of(sharding: NamedSharding, size: int) -> np.ndarray:
    """Which of so many rows the devices of this process have, in order."""
    shares = sharding.addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[share] for share in shares]))


def over_samples(
    one: Callable[..., Any],
    several: Callable[..., Any],
    mesh: Mesh,
    in_axes: tuple[int | None, ...],
) -> Callable[..., Any]:
    """A function of K samples of which each of the S devices along `sample` computes K / S.

    Args:
      one: the function of one sample.
      several: the function of samples `[K / S, ...]`, and what it returns of each.
      mesh: the mesh. What lies along `data` is left to the partitioner.
      in_axes: for each operand 0, if it is of the samples `[K, ...]`, or else None: replicated.

    Returns:
      The function of samples `[K, ...]`, K a multiple of S.
    """

    def share(*operands: Any) -> Any:
        spread = [operand for operand, axis in zip(operands, in_axes, strict=True) if axis == 0]
        if len(jax.tree.leaves(spread)[0]) > 1:
            return several(*operands)
        first = (
            operand if axis is None else jax.tree.map(lambda leaf: leaf[0], operand)
            for operand, axis in zip(operands, in_axes, strict=True)
        )
        return jax.tree.map(lambda leaf: leaf[None], one(*first))

    in_specs = tuple(PartitionSpec() if axis is None else PartitionSpec(SAMPLE) for axis in in_axes)
    # A device's gradients are its own: nothing in a share is summed over devices. With the check
    # JAX would sum them, silently, wherever what they are taken in is replicated.
    return jax.shard_map(
        share,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=PartitionSpec(SAMPLE),
        axis_names={SAMPLE},
        check_vma=False,
    )
