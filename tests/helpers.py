"""What several tests use: a search space that compiles in a moment, a trace written out, a lock."""

import contextlib
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.cells.layers.norm import Norm
from nasi_jax.types import Batch, NetworkSpec

DATA_DIR = Path(os.environ.get("NASI_DATA", Path(__file__).parents[2] / "shared" / "data"))
"""The folder of the real data: `NASI_DATA`, or `shared/data` beside the checkout."""

HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held(lock):
    """While another process has the lock of a run."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        yield


def on_devices(number, script, *arguments, folders=()):
    """Runs a script where the CPU is so many devices; it may import what tests can, and of folders.

    Its processes and ours have the programs of one cache where `quick_compilation` is asked for.
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": python_path(*folders), "XLA_FLAGS": flags_of(number)},
    )


def python_path(*folders):
    """PYTHONPATH of a process that imports from these folders first, then as this one does."""
    return os.pathsep.join([*map(str, folders), *filter(None, sys.path)])


def flags_of(number):
    """XLA_FLAGS of a process where the CPU is so many devices."""
    return (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={number} "
        # Else devices come to sums that do not depend on each other in other orders, and wait for
        # one another until XLA aborts.
        "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    )


@dataclass(frozen=True)
class Toy:
    """Two mixed edges and a choice of two states out of three; smooth in everything."""

    name: str = "toy"
    ops: tuple[str, ...] = ("tanh", "identity", "square")

    def init_alpha(self):
        return {"ops": jnp.zeros((2, 3)), "inputs": jnp.zeros((1, 3))}

    def num_selected(self):
        return {"ops": 1, "inputs": 2}

    def supernet(
        self,
        num_classes,
        spec=NetworkSpec(),
        *,
        one_hot=False,
    ) -> nn.Module:
        return ToyNetwork(num_classes, spec.norm, spec.param_dtype)


class ToyNetwork(nn.Module):
    num_classes: int
    norm: str
    param_dtype: Any

    @nn.compact
    def __call__(self, inputs, weights):
        states = [self._layer("stem", inputs)]
        for row in range(2):
            hidden = self._layer(f"layer_{row}", states[-1])
            outputs = jnp.stack([jnp.tanh(hidden), hidden, jnp.square(hidden)])
            states.append(jnp.tensordot(weights["ops"][row], outputs, axes=1))
        joined = jnp.tensordot(weights["inputs"][0], jnp.stack(states), axes=1)
        return jnp.mean(joined, axis=(1, 2)) @ self._kernel("head", 4, self.num_classes)

    def _layer(self, name, inputs):
        outputs = inputs @ self._kernel(name, inputs.shape[-1], 4)
        return Norm(self.norm, False, self.param_dtype, name=f"{name}_norm")(outputs)

    def _kernel(self, name, features_in, features_out):
        initializer = nn.initializers.lecun_normal()
        return self.param(name, initializer, (features_in, features_out), self.param_dtype)


def random_batch(seed, size=4, num_classes=4, image_size=8):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(size, image_size, image_size, 3))
    labels = rng.integers(num_classes, size=size)
    return Batch(jnp.asarray(inputs, jnp.float32), jnp.asarray(labels, jnp.int32))


def random_like(seed, tree):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), tree)


def loss_gradient(supernet, params, weights, batch, *, norm="batch", reference=None):
    """The gradient of the mean cross-entropy in the parameters."""
    statistics = {}
    if norm == "frozen":
        variables = {"params": params}
        _, statistics = supernet.apply(variables, reference, weights, mutable=["batch_stats"])
        statistics = jax.lax.stop_gradient(statistics)

    def loss(params):
        logits = supernet.apply({"params": params, **statistics}, batch.inputs, weights)
        probabilities = jax.nn.softmax(logits)
        chosen = probabilities[jnp.arange(len(batch.labels)), batch.labels]
        return -jnp.mean(jnp.log(chosen))

    return jax.grad(loss)(params)


def squared_gradient_norm(*args, **kwargs):
    """x, to be differentiated in reverse mode as it stands."""
    return squared_norm(loss_gradient(*args, **kwargs))


def squared_norm(tree):
    return sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)), start=0.0)


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(tree)])


def relative_error(actual, desired):
    """Norm of the difference over norm, of all leaves together."""
    return np.linalg.norm(flat(actual) - flat(desired)) / np.linalg.norm(flat(desired))


def assert_same(actual, desired):
    """Every leaf is bit for bit the same."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    jax.tree.map(np.testing.assert_array_equal, actual, desired)


def small_images(*shape, seed=0):
    """Random images in uint8."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def assert_one_line(error, *parts):
    """What was caught says all of the parts, in one line."""
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def snapshot(root):
    """The bytes and the times of all files in a folder, but for locks, which are empty."""
    return {
        path.relative_to(root): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".lock" and path.name != ".lock"
    }


def report_memory(monkeypatch, stats):
    """From now on the device in use reports these statistics of its memory, or None as a CPU."""
    devices, device = jax.local_devices, SimpleNamespace(memory_stats=lambda: stats)
    monkeypatch.setattr(
        jax, "local_devices", lambda backend=None: devices(backend=backend) if backend else [device]
    )
