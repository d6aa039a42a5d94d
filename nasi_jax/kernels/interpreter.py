"""A function with some of its operations replaced: the one reader of JAX's programs (jaxprs).

What has no other way stands on this: layers, ReLUs and parameters of any function, whatever
framework it is written in. How JAX writes a program down is its own affair and changes with its
releases and flags (`jax_scan3` and the like), so everything that depends on it is in this file, and
nothing is guessed: `UnreadableProgram` is raised where JAX does not write what is expected here.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun


class UnreadableProgram(ValueError):
    """JAX writes a program in a form that is not known here."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"jax {jax.__version__} writes {what}, which nasi-jax cannot read: turn off the flags "
            "jax_scan3, jax_remat3, jax_custom_jvp3 and jax_custom_vjp3 where they are on, or "
            "install a version of JAX that nasi-jax is tested with (docs/checks.md names them)"
        )


class Operation(NamedTuple):
    """One operation of a function, at the point where it is computed.

    Attributes:
      name: the name of its primitive, such as `dot_general`.
      params: the primitive's static parameters; see `read`.
      inputs: its operands.
      labels: for each operand the label that it carries, or None.
      site: tells operations apart that are the same code called from several places.
      repeats: how many times the scans that it stands in run it.
      apply: computes the outputs from the operands.
    """

    name: str
    params: Mapping[str, Any]
    inputs: list[Any]
    labels: list[Any]
    site: tuple[int, ...]
    repeats: int
    apply: Callable[..., list[Any]]

    def read(self, *names: str) -> list[Any]:
        """Static parameters by name."""
        missing = [name for name in names if name not in self.params]
        if missing:
            raise UnreadableProgram(f"the operation {self.name} without {missing[0]!r}")
        return [self.params[name] for name in names]


Rule = Callable[[Operation], tuple[Sequence[Any], Any] | None]
"""Maps an operation to its outputs and their label; None leaves it as it is, without a label."""

_JIT = ("jit", "pjit")
_CHECKPOINT = ("checkpoint", "remat2")  # its name depends on the version of JAX
ENTERED = (*_JIT, *_CHECKPOINT, "scan", "cond")
"""The operations that are functions, whose own operations a rule sees as well."""

_SINGLE = (
    *("while", "custom_jvp_call", "custom_vjp_call", "custom_linear_solve", "pallas_call"),
    *("reduce", "reduce_window", "select_and_scatter", "sort"),
    *("scatter", "scatter-add", "scatter_add", "scatter_mul", "scatter_min", "scatter_max"),
    *("scatter-sub", "scatter_sub", "scatter_apply"),
)
"""The other operations that have functions in them, which are taken as they are."""


def intercept(
    fn: Callable[..., Any],
    rule: Rule,
    *args: Any,
    labels: Any = None,
    in_loop: Callable[[Any], Any] = lambda label: label,
    on_loss: Callable[[Any], None] | None = None,
) -> Any:
    """Computes `fn(*args)` with the operations that `rule` replaces.

    Functions under `jit` and `checkpoint`, the bodies of scans and branches are entered. Functions
    with a derivative rule of their own, while loops and kernels in Pallas are single operations.

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

    Raises:
      UnreadableProgram: where an operation that has functions in it is not known here, or known
        ones have other parameters.
    """
    check()
    leaves = jax.tree.leaves(args)
    given = [None] * len(leaves) if labels is None else labels
    return _intercepted(fn, rule, args, given, in_loop, on_loss or _drop)


def _intercepted(
    fn: Callable[..., Any],
    rule: Rule,
    args: tuple[Any, ...],
    labels: Sequence[Any],
    in_loop: Callable[[Any], Any],
    on_loss: Callable[[Any], None],
) -> Any:
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    leaves = jax.tree.leaves(args)
    interpreter = _Interpreter(rule, in_loop, on_loss)
    outputs = interpreter.unlabelled(closed.jaxpr, closed.consts, leaves, labels, ())
    return jax.tree.unflatten(jax.tree.structure(shape), outputs)


def named(
    fn: Callable[..., Any], name: str, *args: Any, given: Sequence[jax.Array] | None = None
) -> list[jax.Array]:
    """The arrays that `jax.ad_checkpoint.checkpoint_name` names so, in the order of computation.

    Functions are entered as in `intercept`; of a scan there is an array for each iteration.

    Args:
      fn: a function of arrays.
      name: the name.
      *args: its arguments.
      given: an array for each, of its shape, in whose place what follows reads it. So each is
        differentiated in what is given in place of the ones before it that it is computed from.

    Raises:
      ValueError: if one is named inside of a branch.
      UnreadableProgram: see `intercept`.
    """
    check()
    closed = jax.make_jaxpr(fn)(*args)
    counts: dict[tuple[int, ...], int] = {}

    def found(args: tuple[Any, ...], given: Sequence[jax.Array] | None) -> list[jax.Array]:
        def rule(operation: Operation) -> Any:
            if operation.name != "name" or operation.read("name") != [name]:
                return None
            (array,) = operation.inputs
            interpreter.kept.append(array)
            if given is None:
                return None
            return [interpreter.given.pop(0)], None

        interpreter = _Interpreter(rule, lambda label: label, _drop)
        interpreter.counts, interpreter.given = counts, list(given or ())
        leaves = jax.tree.leaves(args)
        interpreter.run(closed.jaxpr, closed.consts, leaves, [None] * len(leaves), ())
        return interpreter.kept

    if given is not None:  # which of them go into which scan is known after a run without
        jax.eval_shape(functools.partial(found, given=None), args)
    return found(args, given)


@functools.cache
def check() -> None:
    """Sees whether all that is looked for in programs is found in a small one, by tracing it.

    Raises:
      UnreadableProgram: if not.
    """
    found = {"relu": 0, "branch": 0, "multiply-accumulates": 0}

    def sample(kernel: jax.Array, stack: jax.Array, inputs: jax.Array) -> jax.Array:
        def layer(inputs: jax.Array) -> jax.Array:
            return jax.nn.relu(lax.conv(inputs, kernel, (1, 1), "SAME"))

        def dense(state: jax.Array, weights: jax.Array) -> tuple[jax.Array, None]:
            return state @ weights, None

        state, _ = lax.scan(jax.checkpoint(dense), jax.jit(layer)(inputs), stack)
        state = jnp.maximum(state, 0)
        return lax.cond(jnp.sum(state) > 1, jnp.sin, jnp.cos, state)

    def rule(operation: Operation) -> None:
        found["relu"] += is_relu(operation)
        found["branch"] += operation.name in ("sin", "cos")
        if any(operation.labels) and operation.name not in ENTERED:
            count = multiply_accumulates(operation) or 0
            found["multiply-accumulates"] += count * operation.repeats

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 1, 3, 3), (5, 4, 4))]
    images = jax.ShapeDtypeStruct((2, 1, 4, 4), jnp.float32)

    def trace(*args: jax.Array) -> Any:
        return _intercepted(sample, rule, args, [True, True, None], lambda label: label, _drop)

    jax.eval_shape(trace, *shapes, images)
    positions = 2 * 4 * 4
    expected = {"relu": 2, "branch": 2, "multiply-accumulates": positions * 9 + positions * 4 * 5}
    for name, count in expected.items():
        if found[name] != count:
            raise UnreadableProgram(f"programs in which {found[name]} of {count} {name} are found")


def _drop(label: Any) -> None:
    """What is done about a lost label that nobody asked for."""


def closed_over(
    fn: Callable[..., Any], *args: Any
) -> tuple[Callable[..., list[jax.Array]], list[Any]]:
    """A function as one of the arrays that it closes over too: `(arrays, *leaves)`, and these.

    Unlike `jax.closure_convert` of all that it closes over, integers and random keys too.

    Args:
      fn: a function of arrays.
      *args: its arguments, or their shapes.
    """
    closed = jax.make_jaxpr(fn)(*args)

    def of_arrays(arrays: Sequence[Any], *leaves: Any) -> list[jax.Array]:
        return jaxpr_as_fun(closed.replace(consts=arrays))(*leaves)

    return of_arrays, closed.consts


class _Interpreter:
    def __init__(
        self, rule: Rule, in_loop: Callable[[Any], Any], on_loss: Callable[[Any], None]
    ) -> None:
        self.rule, self.in_loop, self.on_loss = rule, in_loop, on_loss
        self.lengths: dict[tuple[int, ...], int] = {}
        # For `named`: the arrays found, those in their place, and how many stand in which function.
        self.kept: list[jax.Array] = []
        self.given: list[jax.Array] = []
        self.counts: dict[tuple[int, ...], int] = {}

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

    def _inside(self, given: Sequence[jax.Array], *args: Any) -> tuple[list[Any], list[jax.Array]]:
        """What `unlabelled` returns of the body of an operation, and the arrays kept in there."""
        around = self.kept, self.given
        self.kept, self.given = [], list(given)
        outputs = self.unlabelled(*args)
        kept, (self.kept, self.given) = self.kept, around
        return outputs, kept

    def _taken(self, count: int) -> list[jax.Array]:
        """The next arrays that are given."""
        taken, self.given = self.given[:count], self.given[count:]
        return taken

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
        operation = Operation(name, params, inputs, labels, site, repeats, apply)
        replaced = self.rule(operation)
        if replaced is not None:
            outputs, label = replaced
            return outputs, [label] * len(eqn.outvars)
        if name in _JIT:
            (closed,) = operation.read("jaxpr")
            return self.run(closed.jaxpr, closed.consts, inputs, labels, site)
        none = [None] * len(eqn.outvars)
        if name in _CHECKPOINT:
            jaxpr, prevent_cse, policy = operation.read("jaxpr", "prevent_cse", "policy")

            def body(given: list[Any], *operands: Any) -> tuple[list[Any], list[Any]]:
                return self._inside(given, jaxpr, (), operands, labels, site)

            given = self._taken(self.counts.get(site, 0))
            checkpoint = jax.checkpoint(body, prevent_cse=prevent_cse, policy=policy)
            outputs, kept = checkpoint(given, *inputs)
            self.counts[site] = len(kept)
            self.kept += kept
            return outputs, none
        if name == "scan":
            return self._scan(operation, eqn.invars, eqn.outvars), none
        if name == "cond":
            return self._branches(operation), none
        if name not in _SINGLE and _has_functions(operation):
            raise UnreadableProgram(f"the operation {name}")
        return apply(*inputs), none

    def _scan(
        self, operation: Operation, invars: Sequence[Any], outvars: Sequence[Any]
    ) -> list[Any]:
        closed, length, reverse, unroll = operation.read("jaxpr", "length", "reverse", "unroll")
        inputs, labels, site = operation.inputs, operation.labels, operation.site
        self.lengths[site] = length
        # What is read or written slice by slice has one axis less inside; how JAX says which those
        # are, as numbers or as a tree, depends on its version.
        num_slices = _count_with_one_axis_more(invars, closed.jaxpr.invars)
        num_carry = len(outvars) - _count_with_one_axis_more(outvars, closed.jaxpr.outvars)
        end = len(inputs) - num_slices
        start = end - num_carry
        consts, carry, slices = inputs[:start], inputs[start:end], inputs[end:]
        whole = [None if label is None else self.in_loop(label) for label in labels[:start]]
        self._lose(labels[start:end])
        inner = [*whole, *[None] * num_carry, *labels[end:]]

        def body(carry: list[Any], slices: Any) -> tuple[list[Any], Any]:
            own, given = slices
            args = [*consts, *carry, *own]
            outputs, kept = self._inside(given, closed.jaxpr, closed.consts, args, inner, site)
            return outputs[: len(carry)], (outputs[len(carry) :], kept)

        count, step = self.counts.get(site, 0), -1 if reverse else 1
        given = self._taken(count * length)
        of_body = [jnp.stack(given[number::count][::step]) for number in range(count)]
        final, (stacked, kept) = lax.scan(
            body, carry, (slices, of_body), length, reverse=reverse, unroll=unroll
        )
        self.counts[site] = len(kept)
        self.kept += [stack[index] for index in range(length)[::step] for stack in kept]
        return [*final, *stacked]

    def _branches(self, operation: Operation) -> list[Any]:
        (functions,) = operation.read("branches")
        index, *operands = operation.inputs
        self._lose(operation.labels[:1])

        def branch(number: int, closed: Any) -> Callable[..., list[Any]]:
            place = (*operation.site, number)

            def run(*args: Any) -> list[Any]:
                outputs, kept = self._inside(
                    (), closed.jaxpr, closed.consts, args, operation.labels[1:], place
                )
                if kept:
                    raise ValueError("apply_fn must name no array that is asked for in a branch")
                return outputs

            return run

        branches = [branch(number, closed) for number, closed in enumerate(functions)]
        outputs: list[Any] = lax.switch(index, branches, *operands)
        return outputs


def _count_with_one_axis_more(outer: Sequence[Any], inner: Sequence[Any]) -> int:
    pairs = zip(outer, inner, strict=True)
    return sum(len(one.aval.shape) > len(other.aval.shape) for one, other in pairs)


def _has_functions(operation: Operation) -> bool:
    # What JAX's new flags make of scan, checkpoint and derivative rules hides its function.
    if operation.name == "call_hi_primitive":
        return True
    values = jax.tree.leaves(list(operation.params.values()))
    return any(isinstance(value, Jaxpr | ClosedJaxpr) for value in values)


def is_relu(operation: Operation) -> bool:
    """Whether an operation is `jax.nn.relu`, or a maximum with the number 0."""
    if operation.name == "max":
        return any(map(_is_zero, operation.inputs))
    if operation.name != "custom_jvp_call":
        return False
    (closed,) = operation.read("call_jaxpr")
    return _is_maximum_with_zero(closed.jaxpr)


def _is_maximum_with_zero(jaxpr: Jaxpr) -> bool:
    if len(jaxpr.eqns) != 1:
        return False
    (eqn,) = jaxpr.eqns
    if eqn.primitive.name in _JIT:
        return _is_maximum_with_zero(eqn.params["jaxpr"].jaxpr)
    numbers = [atom.val for atom in eqn.invars if isinstance(atom, Literal)]
    return eqn.primitive.name == "max" and any(map(_is_zero, numbers))


def _is_zero(value: Any) -> bool:
    """Whether a value is the number 0 itself, as it stands in the program."""
    return not isinstance(value, jax.Array) and np.ndim(value) == 0 and bool(value == 0)


def multiply_accumulates(operation: Operation) -> int | None:
    """Products that a layer adds up, or None if the operation is not a layer.

    A layer is a dense or convolutional operation one operand of which is a parameter. Products
    with padding, and with the zeros in between of a transposed convolution, are counted.
    """
    if len(operation.labels) != 2 or all(operation.labels):
        return None
    left, right = (operand.shape for operand in operation.inputs)
    if operation.name == "dot_general":
        (((contracted, _), (batched, _)),) = operation.read("dimension_numbers")
        right_free = np.prod(right) // np.prod([left[axis] for axis in (*contracted, *batched)])
        return int(np.prod(left) * right_free)
    if operation.name in ("dense_conv", "depthwise_conv"):
        features = right[-1]
    elif operation.name == "conv_general_dilated":
        (dimensions,) = operation.read("dimension_numbers")
        features = right[dimensions.rhs_spec[0]]
    else:
        return None
    (outputs,) = jax.eval_shape(operation.apply, *operation.inputs)
    return int(outputs.size * (np.prod(right) // features))


class Layer(NamedTuple):
    """A linear layer whose kernel's gradient is patches times cotangents.

    Attributes:
      kernel: which operand the kernel is.
      groups: number of blocks that the channels are in; each block has its own kernel.
      views: maps the other operand to what each tap of the window reads, `[S, C]` each.
      rows: maps a cotangent of the output to `[S, O]`.
    """

    kernel: int
    groups: int
    views: Callable[[jax.Array], list[jax.Array]]
    rows: Callable[[jax.Array], jax.Array]


_SAME_NORM = (
    "reshape",
    "squeeze",
    "transpose",
    "rev",
    "slice",
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
)
"""Operations that keep the entries of an array whose size they keep."""


def same_entries(operation: Operation) -> Any:
    """The replacement of an operation that only puts a parameter in another form."""
    if operation.name not in _SAME_NORM or operation.labels[0] is None:
        return None
    outputs = operation.apply(*operation.inputs)
    if outputs[0].size != operation.inputs[0].size:
        return None
    return outputs, operation.labels[0]


def layer_of(operation: Operation) -> Layer | None:
    """The layer that an operation is, if just one of its operands is a parameter, the kernel."""
    if operation.name == "dot_general":
        return _dense_layer(operation)
    if len(operation.labels) != 2 or operation.labels[0] is not None or operation.labels[1] is None:
        return None
    if operation.name in ("dense_conv", "depthwise_conv"):
        (window,) = operation.read("window")
        half = window.dilation * (window.size - 1) // 2
        channels = operation.inputs[0].shape[-1]
        dimensions = lax.conv_dimension_numbers(
            operation.inputs[0].shape, operation.inputs[1].shape, ("NHWC", "HWIO", "NHWC")
        )
        return _conv_layer(
            operation,
            dimensions,
            strides=(window.stride, window.stride),
            padding=((half, half), (half, half)),
            lhs_dilation=(1, 1),
            rhs_dilation=(window.dilation, window.dilation),
            groups=1 if operation.name == "dense_conv" else channels,
        )
    if operation.name != "conv_general_dilated" or operation.read("batch_group_count") != [1]:
        return None
    dimensions, strides, padding, lhs_dilation, rhs_dilation, groups = operation.read(
        "dimension_numbers",
        "window_strides",
        "padding",
        "lhs_dilation",
        "rhs_dilation",
        "feature_group_count",
    )
    return _conv_layer(
        operation,
        dimensions,
        strides=strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        groups=groups,
    )


def _dense_layer(operation: Operation) -> Layer | None:
    ((contracted, batched),) = operation.read("dimension_numbers")
    kernels = [operand for operand, label in enumerate(operation.labels) if label is not None]
    if len(kernels) != 1 or batched[0]:
        return None
    (kernel,) = kernels
    left_free = operation.inputs[0].ndim - len(contracted[0])
    read = tuple(contracted[1 - kernel])

    def views(activations: jax.Array) -> list[jax.Array]:
        last = jnp.moveaxis(activations, read, range(-len(read), 0))
        width = int(np.prod([activations.shape[axis] for axis in read]))
        return [last.reshape(-1, width)]

    def rows(cotangent: jax.Array) -> jax.Array:
        left = int(np.prod(cotangent.shape[:left_free]))
        flat = cotangent.reshape(left, -1)
        return flat if kernel == 1 else flat.T

    return Layer(kernel, 1, views, rows)


def _conv_layer(
    operation: Operation,
    dimensions: lax.ConvDimensionNumbers,
    *,
    strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    lhs_dilation: tuple[int, ...],
    rhs_dilation: tuple[int, ...],
    groups: int,
) -> Layer:
    sizes = [operation.inputs[1].shape[axis] for axis in dimensions.rhs_spec[2:]]

    def channels_last(array: jax.Array, spec: Sequence[int]) -> jax.Array:
        return jnp.transpose(array, (spec[0], *spec[2:], spec[1]))

    def views(activations: jax.Array) -> list[jax.Array]:
        array = channels_last(activations, dimensions.lhs_spec)
        margins = [
            (low, high, gap - 1) for (low, high), gap in zip(padding, lhs_dilation, strict=True)
        ]
        zero = jnp.zeros((), array.dtype)
        padded = lax.pad(array, zero, ((0, 0, 0), *margins, (0, 0, 0)))
        # Without the barrier XLA:CPU computes what leads here anew for every tap.
        padded = lax.optimization_barrier(padded)
        reach = [
            extent - dilation * (size - 1)
            for extent, dilation, size in zip(padded.shape[1:-1], rhs_dilation, sizes, strict=True)
        ]
        read = []
        for tap in itertools.product(*map(range, sizes)):
            start = [step * dilation for step, dilation in zip(tap, rhs_dilation, strict=True)]
            window = tuple(
                slice(first, first + length, stride)
                for first, length, stride in zip(start, reach, strides, strict=True)
            )
            read.append(padded[(slice(None), *window)].reshape(-1, padded.shape[-1]))
        return read

    def rows(cotangent: jax.Array) -> jax.Array:
        array = channels_last(cotangent, dimensions.out_spec)
        return array.reshape(-1, array.shape[-1])

    return Layer(1, groups, views, rows)
