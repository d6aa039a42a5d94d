"""What the text of a compiled program tells: launches, work, and what they were in JAX."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

_FREE = frozenset(
    {
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
        *("partition-id", "replica-id", "add-dependency", "opt-barrier", "domain", "async-update"),
    }
)
"""Instructions that launch nothing."""

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_TRIPS = re.compile(r'"?known_trip_count"?:\{"n":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_LIBRARY_CALL = re.compile(r'custom_call_target="([^"]+)"')
_ARRAY = re.compile(r"\w+\[([\d,]*)\]")
_TYPED_ARRAY = re.compile(r"[a-z]+(\d*)\w*\[([\d,]*)\]")
_OPERAND = re.compile(r"%?([\w.\-]+)[,)]")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_KERNEL_DIMENSIONS = re.compile(r"dim_labels=\w+_(\w+)->")


@dataclass(frozen=True)
class Loop:
    """A loop of a program.

    Attributes:
      name: of the computation that is its body.
      source: what it was in JAX, such as `jit(step)/while`.
      entered: how often it begins in a call of the program.
      trips: iterations each time; 1 where XLA does not know how many.
      launches: of kernels in an iteration, those of loops inside it included.
      known: whether XLA knows the number of iterations.
    """

    name: str
    source: str
    entered: int
    trips: int
    launches: int
    known: bool

    @property
    def total(self) -> int:
        """Launches of kernels by this loop in a call of the program."""
        return self.entered * self.trips * self.launches


@dataclass(frozen=True)
class Launches:
    """Kernel launches of one call of a program.

    Attributes:
      kinds: launches by opcode, of library calls by the function that is called.
      loops: the loops that launch anything, those with most launches first.
    """

    kinds: Mapping[str, int]
    loops: tuple[Loop, ...]

    @property
    def total(self) -> int:
        """How many launches there are."""
        return sum(self.kinds.values())

    @property
    def unknown_loops(self) -> int:
        """How many loops count as one iteration because XLA does not know how many they have."""
        return sum(not loop.known for loop in self.loops)


class Work(NamedTuple):
    """What one call of a program does, the bodies of loops as often as XLA says that they run.

    Of a conditional the mean of the branches counts, one of which computes what is chosen.

    Attributes:
      launches: what `count` counts; on a CPU each is a call of a compiled function.
      multiply_adds: of matrix products and convolutions, but for those that a library computes.
      numbers: the entries of the largest array that each launch computes, added up.
      instructions: of the program as it stands, each once, which its compilation grows with.
    """

    launches: int
    multiply_adds: int
    numbers: int
    instructions: int


class _Instruction(NamedTuple):
    kind: str
    opcode: str
    text: str

    @property
    def shape(self) -> list[int]:
        """Of the first array of its outputs."""
        found = _ARRAY.search(self.kind)
        return [int(size) for size in found[1].split(",") if size] if found else []

    @property
    def operands(self) -> list[str]:
        """Their names."""
        _, _, rest = self.text.partition(f" {self.opcode}(")
        return _OPERAND.findall(re.sub(r"/\*.*?\*/", "", rest.partition(")")[0] + ")"))


class Traffic(NamedTuple):
    """Bytes that a call of a program moves, bodies of loops as often as XLA says that they run.

    Attributes:
      memory: what each launch reads and writes, added up; an upper bound, since some of it stays in
        what a chip has besides its memory.
      collectives: what a device gets from others, by opcode such as `all-reduce`: the bytes of its
        outputs.
    """

    memory: int
    collectives: Mapping[str, int]


_COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast", "ragged-all-to-all"),
)

_Computation = dict[str, _Instruction]
"""Instructions by name, in order."""


_Found = tuple[Counter[str], list[Loop]]
"""Launches by kind, and the loops that they are in."""


def count(text: str) -> Launches:
    """Counts launches in the text of a program that XLA has compiled for a GPU.

    A fusion, a library call, a copy, a reduction and so on are one launch each. Tuples, bitcasts,
    parameters and constants are none. The body of a loop counts as often as XLA says that it runs.
    Of a conditional the branch that launches most counts. Conditions of loops are left out.

    Args:
      text: the optimized program, as `compiled.as_text()` gives it.

    Raises:
      ValueError: if there is no program in the text.
    """

    def kind_of(instruction: _Instruction, around: _Computation) -> Counter[str]:
        library_call = _LIBRARY_CALL.search(instruction.text)
        return Counter([library_call[1] if library_call else instruction.opcode])

    total, loops = _executed(*_parsed(text), kind_of)
    loops.sort(key=lambda loop: loop.total, reverse=True)
    return Launches(dict(total.most_common()), tuple(loops))


def work(text: str) -> Work:
    """Counts what a call of a compiled program does.

    Args:
      text: the optimized program of any device, as `compiled.as_text()` gives it.

    Raises:
      ValueError: if there is no program in the text.
    """
    computations, entry = _parsed(text)

    def of_launch(instruction: _Instruction, around: _Computation) -> Counter[str]:
        found = [(instruction, around)]
        if instruction.opcode == "fusion":
            inside = computations[_called(instruction.text, "calls")]
            found = [(each, inside) for each in inside.values() if each.opcode not in _FREE]
        products = sum(_multiply_adds(*each) for each in found)
        numbers = max((_numbers(*each) for each in found), default=0)
        return Counter(launches=1, multiply_adds=products, numbers=numbers)

    total, _ = _executed(computations, entry, of_launch, _mean)
    # A sum of counters has no entry for what there is nothing of.
    counted = {name: total[name] for name in ("launches", "multiply_adds", "numbers")}
    return Work(**counted, instructions=sum(map(len, computations.values())))


def traffic(text: str) -> Traffic:
    """Counts the bytes that a call of a compiled program moves.

    Args:
      text: the optimized program of any device, as `compiled.as_text()` gives it.

    Raises:
      ValueError: if there is no program in the text.
    """
    computations, entry = _parsed(text)

    def of_launch(instruction: _Instruction, around: _Computation) -> Counter[str]:
        outputs = _bytes(instruction.kind)
        operands = sum(_bytes(around[name].kind) for name in instruction.operands)
        opcode = instruction.opcode.removesuffix("-start")
        if opcode in _COLLECTIVES:
            # What begins one has its operands among its outputs.
            begun = opcode != instruction.opcode and instruction.kind.startswith("(")
            return Counter({opcode: max(outputs - operands, 0) if begun else outputs})
        return Counter(memory=outputs + operands)

    total, _ = _executed(computations, entry, of_launch)
    memory = total.pop("memory", 0)
    return Traffic(memory, dict(total))


def _bytes(kind: str) -> int:
    """Of all arrays of a type; numbers of less than a byte take one."""
    return sum(
        math.prod(int(size) for size in sizes.split(",") if size) * max(int(bits or 8) // 8, 1)
        for bits, sizes in _TYPED_ARRAY.findall(kind)
    )


def _multiply_adds(instruction: _Instruction, around: _Computation) -> int:
    """Of a product or a convolution, which are those with padding too; 0 of all else."""
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    left, right = (_operand(instruction, index, around).shape for index in range(2))
    if instruction.opcode == "dot":
        contracted = _CONTRACTED.search(instruction.text)
        axes = contracted[1].split(",") if contracted else []
        each = math.prod(left[int(axis)] for axis in axes if axis)
    else:
        labels = _KERNEL_DIMENSIONS.search(instruction.text)
        axis = labels[1].index("o") if labels else -1
        each = math.prod(right) // right[axis]
    return math.prod(instruction.shape) * each


def _numbers(instruction: _Instruction, around: _Computation) -> int:
    """The entries of what is computed: of a reduction those that it reads, of an update its own."""
    place = {"reduce": 0, "reduce-window": 0, "dynamic-update-slice": 1}.get(instruction.opcode)
    source = instruction if place is None else _operand(instruction, place, around)
    return math.prod(source.shape)


def _operand(instruction: _Instruction, index: int, around: _Computation) -> _Instruction:
    return around[instruction.operands[index]]


def _largest(branches: list[_Found]) -> _Found:
    return max(branches, key=lambda branch: branch[0].total())


def _mean(branches: list[_Found]) -> _Found:
    total = sum((counted for counted, _ in branches), Counter[str]())
    each = Counter({kind: round(number / len(branches)) for kind, number in total.items()})
    return each, [loop for _, loops in branches for loop in loops]


def _executed(
    computations: Mapping[str, _Computation],
    entry: str,
    of_launch: Callable[[_Instruction, _Computation], Counter[str]],
    of_branches: Callable[[list[_Found]], _Found] = _largest,
) -> _Found:
    """Adds up what `of_launch` counts of each instruction that is launched, loops included.

    Of a conditional what `of_branches` makes of all its branches counts.
    """

    def of_computation(name: str, entered: int) -> _Found:
        total, loops = Counter[str](), list[Loop]()
        for instruction in computations[name].values():
            opcode, line = instruction.opcode, instruction.text
            if opcode in _FREE or opcode.endswith("-done"):  # or it has been launched already
                continue
            if opcode == "while":
                found = of_loop(line, entered)
            elif opcode == "conditional":
                found = of_branches([of_computation(name, entered) for name in _branches(line)])
            elif opcode in ("call", "async-start", "call-start"):
                found = of_computation(_called(line, "to_apply", "calls"), entered)
            else:
                found = of_launch(instruction, computations[name]), []
            total += found[0]
            loops += found[1]
        return total, loops

    def of_loop(line: str, entered: int) -> _Found:
        name, trips, source = _called(line, "body"), _TRIPS.search(line), _SOURCE.search(line)
        times = int(trips[1]) if trips else 1
        total, loops = of_computation(name, entered * times)
        loop = Loop(
            name, source[1] if source else "", entered, times, total.total(), known=bool(trips)
        )
        every = Counter({kind: times * number for kind, number in total.items()})
        return every, [loop, *loops] if total else []

    return of_computation(entry, 1)


def sources(text: str) -> dict[str, str]:
    """What each instruction was in JAX, such as `jit(step)/while`, by its name; where XLA tells.

    Args:
      text: the optimized program of any device, as `compiled.as_text()` gives it.
    """
    told = ((_INSTRUCTION.match(line), _SOURCE.search(line)) for line in text.splitlines())
    return {named[1]: source[1] for named, source in told if named and source}


def _parsed(text: str) -> tuple[dict[str, _Computation], str]:
    """The instructions of each computation, and the name of the one that begins."""
    computations: dict[str, _Computation] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = head[2]
            computations[current] = {}
            entry = current if head[1] else entry
        elif line.startswith("}"):
            current = ""
        elif current and (found := _INSTRUCTION.match(line)):
            kind, opcode = _kind_and_opcode(found[2])
            computations[current][found[1]] = _Instruction(kind, opcode, line)
    if not entry:
        raise ValueError(f"there is no compiled program in the text, got {text[:60]!r}")
    return computations, entry


def _kind_and_opcode(definition: str) -> tuple[str, str]:
    """Both of `TYPE OPCODE(OPERANDS), ...`; the type may be a tuple of tuples."""
    depth = end = 0
    while depth or definition[end] != " ":
        depth += (definition[end] == "(") - (definition[end] == ")")
        end += 1
    found = _OPCODE.match(definition, end)
    if found is None:
        raise ValueError(f"there is no operation in the instruction {definition[:60]!r}")
    return definition[:end], found[1]


def _called(line: str, *attributes: str) -> str:
    """The computation that an instruction names by one of the attributes."""
    found = re.search(rf"\b(?:{'|'.join(attributes)})=%?([\w.\-]+)", line)
    if found is None:
        raise ValueError(f"there is no {' or '.join(attributes)} in the instruction {line[:60]!r}")
    return found[1]


def _branches(line: str) -> list[str]:
    """The computations that a conditional chooses from."""
    if several := re.search(r"branch_computations=\{([^}]*)\}", line):
        return [name.strip().removeprefix("%") for name in several[1].split(",")]
    return [_called(line, "true_computation"), _called(line, "false_computation")]
