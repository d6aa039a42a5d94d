"""The examples of a batch in parts: one for each device of a mesh, and each part in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"
"""The axis of a mesh whose devices share the examples."""

Carry = TypeVar("Carry")
Tree = TypeVar("Tree")


class Chunk(NamedTuple):
    """Consecutive examples.

    Attributes:
      start: the number of the first.
      fresh: `[size]`, which of them were in no chunk before: the last one reaches back where its
        size does not divide the number of examples, so that all have one size.
    """

    start: jax.Array
    fresh: jax.Array

    def of(self, array: jax.Array) -> jax.Array:
        """What belongs to the examples of the chunk in an array `[B, ...]` of all."""
        return lax.dynamic_slice_in_dim(array, self.start, self.fresh.shape[0])


def fold(
    step: Callable[[Carry, Chunk], Carry], carry: Carry, count: int, chunk_size: int | None
) -> Carry:
    """Takes a step for each chunk of `count` examples; for all at once if `chunk_size` is None."""
    if chunk_size is None or chunk_size >= count:
        return step(carry, Chunk(jnp.int32(0), jnp.ones(count, bool)))
    size = checked(chunk_size)

    def body(index: jax.Array, carry: Carry) -> Carry:
        start = jnp.minimum(index * size, count - size)
        fresh = start + jnp.arange(size, dtype=jnp.int32) >= index * size
        return step(carry, Chunk(start, fresh))

    return lax.fori_loop(jnp.int32(0), jnp.int32(-(-count // size)), body, carry)


def checked(chunk_size: int) -> int:
    """The size itself.

    Raises:
      ValueError: if it is below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    return chunk_size


def num_shards(mesh: Mesh | None) -> int:
    """How many devices share the examples: 1 without a mesh.

    Raises:
      ValueError: if the mesh has no axis `data`.
    """
    if mesh is None:
        return 1
    if AXIS not in mesh.axis_names:
        raise ValueError(f"mesh must have the axis {AXIS!r}, got {mesh.axis_names}")
    return mesh.shape[AXIS]


def over_devices(
    function: Callable[..., Any], mesh: Mesh | None, *, summed: bool
) -> Callable[..., Any]:
    """`function(shared, *examples)`, called by every device of a mesh with its own examples.

    Args:
      function: its first argument is the same on all devices, all others are arrays `[B, ...]` of
        which each device has an equal part, by examples.
      mesh: shares the examples along its axis `data`; without one, `function` itself is returned.
      summed: whether the result is the same on all devices, by `total`. If not, its arrays have
        the examples as their first axis too, and stay split.

    Raises:
      ValueError: if the mesh has no such axis, and from what is returned if its devices do not
        divide the examples.
    """
    devices = num_shards(mesh)
    if mesh is None:
        return function
    mesh, on_all, split = _untyped(mesh), PartitionSpec(), PartitionSpec(AXIS)

    @jax.jit
    def on_mesh(shared: Any, *examples: Any) -> Any:
        for array in jax.tree.leaves(examples):
            if array.shape[0] % devices:
                raise ValueError(
                    f"the {devices} devices of mesh must divide the number of examples, "
                    f"got {array.shape[0]}"
                )
        specs = (on_all, *[split] * len(examples))
        # With check_vma, gradients in parameters that all devices have are summed over them,
        # silently; and with parameters cast to varying it refuses scans that begin with zeros and
        # derivatives of one's own, which any apply_fn may have.
        shard = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=specs,
            out_specs=on_all if summed else split,
            check_vma=False,
        )
        placements = tuple(NamedSharding(mesh, spec) for spec in specs)
        return shard(*jax.device_put((shared, *examples), placements))

    return on_mesh


def copied(tree: Tree, mesh: Mesh | None) -> Tree:
    """The arrays, on every device of a mesh."""
    if mesh is None:
        return tree
    copies: Tree = jax.device_put(tree, NamedSharding(_untyped(mesh), PartitionSpec()))
    return copies


def total(tree: Tree, mesh: Mesh | None) -> Tree:
    """The sum over the devices, inside `over_devices`."""
    return tree if mesh is None else lax.psum(tree, AXIS)


def passed_around(tree: Tree, mesh: Mesh | None) -> Iterator[tuple[jax.Array, Tree]]:
    """Every device's number and tree, one after another, the own first, inside `over_devices`."""
    yield jnp.int32(0) if mesh is None else lax.axis_index(AXIS), tree
    devices = num_shards(mesh)
    for hop in range(1, devices):
        tree = lax.ppermute(tree, AXIS, [(each, (each - 1) % devices) for each in range(devices)])
        yield (lax.axis_index(AXIS) + hop) % devices, tree


def wide() -> Any:
    """The dtype of sums: float64 where JAX's x64 mode is on, else float32."""
    return jax.dtypes.canonicalize_dtype(jnp.float64)


def _untyped(mesh: Mesh) -> Mesh:
    """The mesh for arrays whose types say nothing of it, which `jax.make_mesh` does not make."""
    return Mesh(mesh.devices, mesh.axis_names)
