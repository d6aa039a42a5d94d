"""A function with some of its operations replaced, wherever they stand in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import Jaxpr, Literal


class Operation(NamedTuple):
    """One operation of a function, at the point where it is computed.

    Attributes:
      name: the name of its primitive, such as `dot_general`.
      params: the primitive's static parameters.
      inputs: its operands.
      labels: for each operand the label that it carries, or None.
      site: tells operations apart that are the same code called from several places.
      repeats: how many times the scans that it stands in run it.
      apply: computes the outputs from the operands.
    """

    name: str
    params: dict[str, Any]
    inputs: list[Any]
    labels: list[Any]
    site: tuple[int, ...]
    repeats: int
    apply: Callable[..., list[Any]]


Rule = Callable[[Operation], tuple[Sequence[Any], Any] | None]
"""Maps an operation to its outputs and their label; None leaves it as it is, without a label."""

_CHECKPOINT = ("checkpoint", "remat2")  # its name depends on the version of JAX
ENTERED = ("jit", "pjit", *_CHECKPOINT, "scan", "cond")
"""The operations that are functions, whose own operations a rule sees as well."""


def intercept(
    fn: Callable[..., Any],
    rule: Rule,
    *args: Any,
    labels: Any = None,
    in_loop: Callable[[Any], Any] = lambda label: label,
    on_loss: Callable[[Any], None] = lambda label: None,
) -> Any:
    """Computes `fn(*args)` with the operations that `rule` replaces.

    Functions under `jit` and `checkpoint`, the bodies of scans and branches are entered. Functions
    with a derivative rule of their own and while loops are single operations.

    Args:
      fn: a function of arrays.
      rule: see `Rule`.
      *args: its arguments.
      labels: labels of the arguments' leaves, as a flat list; none if not given.
      in_loop: what becomes of a label of an array that every iteration of a scan reads whole.
        An array that a scan reads slice by slice passes its label on to the slices.
      on_loss: called with every label that is lost other than in an operation that `rule` sees:
        on an output of `fn`, on the way into or out of a loop, and on the way out of a branch.

    Returns:
      What `fn` returns.
    """
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    leaves = jax.tree.leaves(args)
    given = [None] * len(leaves) if labels is None else labels
    interpreter = _Interpreter(rule, in_loop, on_loss)
    outputs = interpreter.unlabelled(closed.jaxpr, closed.consts, leaves, given, ())
    return jax.tree.unflatten(jax.tree.structure(shape), outputs)


class _Interpreter:
    def __init__(
        self, rule: Rule, in_loop: Callable[[Any], Any], on_loss: Callable[[Any], None]
    ) -> None:
        self.rule, self.in_loop, self.on_loss = rule, in_loop, on_loss
        self.lengths: dict[tuple[int, ...], int] = {}

    def run(
        self,
        jaxpr: Jaxpr,
        consts: Sequence[Any],
        args: Sequence[Any],
        labels: Sequence[Any],
        site: tuple[int, ...],
    ) -> tuple[list[Any], list[Any]]:
        """The outputs of a jaxpr and their labels."""
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))
        known = dict(zip(jaxpr.invars, labels, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        def label_of(atom: Any) -> Any:
            return None if isinstance(atom, Literal) else known.get(atom)

        for index, eqn in enumerate(jaxpr.eqns):
            inputs = [read(atom) for atom in eqn.invars]
            carried = [label_of(atom) for atom in eqn.invars]
            outputs, out_labels = self._evaluate(eqn, inputs, carried, (*site, index))
            values.update(zip(eqn.outvars, outputs, strict=True))
            known.update(zip(eqn.outvars, out_labels, strict=True))
        return [read(atom) for atom in jaxpr.outvars], [label_of(atom) for atom in jaxpr.outvars]

    def unlabelled(self, *args: Any) -> list[Any]:
        """What `run` returns, less the labels, which are lost."""
        outputs, labels = self.run(*args)
        self._lose(labels)
        return outputs

    def _lose(self, labels: Sequence[Any]) -> None:
        for label in labels:
            if label is not None:
                self.on_loss(label)

    def _evaluate(
        self, eqn: Any, inputs: list[Any], labels: list[Any], site: tuple[int, ...]
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        name, params = eqn.primitive.name, eqn.params

        def apply(*operands: Any) -> list[Any]:
            outputs = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(params))
            return list(outputs) if eqn.primitive.multiple_results else [outputs]

        around = [site[:depth] for depth in range(len(site))]
        repeats = math.prod(self.lengths.get(place, 1) for place in around)
        replaced = self.rule(Operation(name, params, inputs, labels, site, repeats, apply))
        if replaced is not None:
            outputs, label = replaced
            return outputs, [label] * len(eqn.outvars)
        if name in ("jit", "pjit"):
            closed = params["jaxpr"]
            return self.run(closed.jaxpr, closed.consts, inputs, labels, site)
        none = [None] * len(eqn.outvars)
        if name in _CHECKPOINT:

            def body(*operands: Any) -> list[Any]:
                return self.unlabelled(params["jaxpr"], (), operands, labels, site)

            settings = {key: params[key] for key in ("prevent_cse", "policy")}
            return jax.checkpoint(body, **settings)(*inputs), none
        if name == "scan":
            return self._scan(params, inputs, labels, site), none
        if name == "cond":
            return self._branches(params, inputs, labels, site), none
        return apply(*inputs), none

    def _scan(
        self, params: dict[str, Any], inputs: list[Any], labels: list[Any], site: tuple[int, ...]
    ) -> list[Any]:
        self.lengths[site] = params["length"]
        start, end = params["num_consts"], params["num_consts"] + params["num_carry"]
        consts, carry, slices = inputs[:start], inputs[start:end], inputs[end:]
        whole = [None if label is None else self.in_loop(label) for label in labels[:start]]
        self._lose(labels[start:end])
        inner = [*whole, *[None] * (end - start), *labels[end:]]
        closed = params["jaxpr"]

        def body(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
            args = [*consts, *carry, *slices]
            outputs = self.unlabelled(closed.jaxpr, closed.consts, args, inner, site)
            return outputs[: len(carry)], outputs[len(carry) :]

        settings = {key: params[key] for key in ("length", "reverse", "unroll")}
        final, stacked = lax.scan(body, carry, slices, **settings)
        return [*final, *stacked]

    def _branches(
        self, params: dict[str, Any], inputs: list[Any], labels: list[Any], site: tuple[int, ...]
    ) -> list[Any]:
        index, *operands = inputs
        self._lose(labels[:1])

        def branch(number: int, closed: Any) -> Callable[..., list[Any]]:
            place = (*site, number)
            return lambda *args: self.unlabelled(
                closed.jaxpr, closed.consts, args, labels[1:], place
            )

        branches = [branch(number, closed) for number, closed in enumerate(params["branches"])]
        outputs: list[Any] = lax.switch(index, branches, *operands)
        return outputs
