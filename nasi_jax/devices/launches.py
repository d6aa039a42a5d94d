"""What the text of a compiled program tells: launches of kernels, and what they were in JAX."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
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


class _Instruction(NamedTuple):
    opcode: str
    text: str


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
    computations, entry = _parsed(text)

    def of_computation(name: str, entered: int) -> _Found:
        total, loops = Counter[str](), list[Loop]()
        for opcode, line in computations[name]:
            if opcode in _FREE or opcode.endswith("-done"):  # or it has been launched already
                continue
            if opcode == "while":
                found = of_loop(line, entered)
            elif opcode == "conditional":
                branches = [of_computation(branch, entered) for branch in _branches(line)]
                found = max(branches, key=lambda branch: branch[0].total())
            elif opcode in ("call", "async-start", "call-start"):
                found = of_computation(_called(line, "to_apply", "calls"), entered)
            else:
                library_call = _LIBRARY_CALL.search(line)
                found = Counter([library_call[1] if library_call else opcode]), []
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

    total, loops = of_computation(entry, 1)
    loops.sort(key=lambda loop: loop.total, reverse=True)
    return Launches(dict(total.most_common()), tuple(loops))


def sources(text: str) -> dict[str, str]:
    """What each instruction was in JAX, such as `jit(step)/while`, by its name; where XLA tells.

    Args:
      text: the optimized program of any device, as `compiled.as_text()` gives it.
    """
    told = ((_INSTRUCTION.match(line), _SOURCE.search(line)) for line in text.splitlines())
    return {named[1]: source[1] for named, source in told if named and source}


def _parsed(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The instructions of each computation, and the name of the one that begins."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = head[2]
            computations[current] = []
            entry = current if head[1] else entry
        elif line.startswith("}"):
            current = ""
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current].append(_Instruction(_opcode(found[2]), line))
    if not entry:
        raise ValueError(f"there is no compiled program in the text, got {text[:60]!r}")
    return computations, entry


def _opcode(definition: str) -> str:
    """The opcode in `TYPE OPCODE(OPERANDS), ...`; the type may be a tuple of tuples."""
    depth = end = 0
    while depth or definition[end] != " ":
        depth += (definition[end] == "(") - (definition[end] == ")")
        end += 1
    found = _OPCODE.match(definition, end)
    if found is None:
        raise ValueError(f"there is no operation in the instruction {definition[:60]!r}")
    return found[1]


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
