"""A search space and a proxy of someone else's: everything about them is in this file."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasi_jax.types import CellEdge, CellGraph, CellNode, Choice, NetworkSpec, Sizes

OPS = ("skip", "conv")


@dataclass(frozen=True)
class Chain:
    """Two operations, one after the other."""

    ops: tuple[str, ...]

    family: ClassVar = "chain"
    prefix: ClassVar = "chain:"
    text_form: ClassVar = "chain:op,op for the toy"
    sizes: ClassVar = Sizes(init_channels=4, num_cells=1)
    options: ClassVar = ()

    def __post_init__(self):
        if len(self.ops) != 2 or not set(self.ops) <= set(OPS):
            raise ValueError(f"a chain takes two of {', '.join(OPS)}, got {self.ops}")
        object.__setattr__(self, "ops", tuple(self.ops))

    def to_text(self):
        return f"chain:{','.join(self.ops)}"

    @classmethod
    def from_text(cls, text):
        return cls(tuple(text.removeprefix("chain:").split(",")))

    def evaluated(self):
        return self

    def canonical(self):
        return Chain(tuple(sorted(self.ops)))

    def isomorphism_key(self):
        return self.to_text()

    def record(self):
        return {}

    def graphs(self):
        nodes = (CellNode("0", "input"), CellNode("1"), CellNode("2", "output"))
        edges = (CellEdge(row, row + 1, op, f"op {row}") for row, op in enumerate(self.ops))
        return (CellGraph("", nodes, tuple(edges)),)

    def network(self, num_classes, spec=NetworkSpec(), *, init_channels, num_cells):
        return ChainNetwork(num_classes, init_channels, num_cells, spec.param_dtype, self.ops)


class ChainNetwork(nn.Module):
    num_classes: int
    channels: int
    num_cells: int
    param_dtype: object
    chosen: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, inputs, weights=None):
        dtypes = {"param_dtype": self.param_dtype}
        states = nn.Conv(self.channels, (3, 3), name="stem", **dtypes)(inputs)
        for cell, row in itertools.product(range(self.num_cells), range(2)):
            conv = nn.Conv(self.channels, (3, 3), name=f"conv_{cell}_{row}", **dtypes)
            if weights is not None:
                outputs = {"skip": states, "conv": nn.relu(conv(states))}
                shares = weights["chain"][row].astype(states.dtype)
                states = sum(
                    share * outputs[op] for share, op in zip(shares, self.offered, strict=True)
                )
            elif self.chosen[row] == "conv":
                states = nn.relu(conv(states))
        return nn.Dense(self.num_classes, name="head", **dtypes)(jnp.mean(states, axis=(1, 2)))


@dataclass(frozen=True)
class Chains:
    ops: tuple[str, ...] = OPS
    init_channels: int = 4
    num_cells: int = 1
    name: str = "chains"

    genotype: ClassVar = Chain
    settings: ClassVar = {"nasi-ada": {"steps": 2}, "nasi-fix": {"steps": 2}}

    def init_alpha(self):
        return {"chain": jnp.zeros((2, len(self.ops)))}

    def num_selected(self):
        return {"chain": 1}

    def labels(self):
        return {"chain": (("op 0", "op 1"), self.ops)}

    def choices(self, alpha):
        scores = jax.nn.log_softmax(alpha["chain"])
        return tuple(Choice(f"op {row}", self.ops, scores[row], 1) for row in range(2))

    def discretize(self, alpha):
        return Chain(tuple(self.ops[int(row.argmax())] for row in alpha["chain"]))

    def one_hot(self, genotype):
        columns = jnp.array([self.ops.index(op) for op in genotype.ops])
        return {"chain": jax.nn.one_hot(columns, len(self.ops))}

    def sample(self, key):
        return self.discretize({"chain": jax.random.normal(key, (2, len(self.ops)))})

    def supernet(self, num_classes, spec=NetworkSpec(), *, one_hot=False):
        return ChainNetwork(
            num_classes, self.init_channels, self.num_cells, spec.param_dtype, offered=self.ops
        )

    def network(self, genotype, num_classes, spec=NetworkSpec(), *, form="evaluation"):
        sizes = {"init_channels": self.init_channels, "num_cells": self.num_cells}
        return genotype.network(num_classes, spec, **sizes)

    def inherit(self, variables):
        return variables


def output_sum(key, apply_fn, params, batch):
    """A proxy: the sum of all outputs."""
    return jnp.sum(apply_fn(params, batch.inputs))
