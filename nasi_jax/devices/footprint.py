"""What a compiled program takes: memory by its own analysis, work by its text; sizes in words."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax

from nasi_jax.devices.launches import Work, work

_UNITS = {unit: 1000**power for power, unit in enumerate(("B", "kB", "MB", "GB", "TB"))} | {
    f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?i?b)", re.IGNORECASE)


def bytes_of(size: str) -> int:
    """Reads a size of memory.

    Args:
      size: a number and a unit in letters of either case: B; kB, MB, GB, TB, powers of 1000; or
        KiB, MiB, GiB, TiB, powers of 1024.

    Raises:
      ValueError: for anything else, and for nothing.
    """
    units = {unit.lower(): count for unit, count in _UNITS.items()}
    found = _SIZE.fullmatch(size.strip())
    unit = units.get(found[2].lower(), 0) if found else 0
    count = round(float(found[1]) * unit) if found else 0
    if count < 1:
        raise ValueError(
            f"a size of memory is a number and one of {', '.join(_UNITS)}, such as 80GB, "
            f"got {size!r}"
        )
    return count


def in_words(count: float) -> str:
    """Bytes with three digits, in B, kB, MB, GB or TB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


class Footprint(NamedTuple):
    """Bytes that a program takes of the device's memory, and the work of a call.

    Attributes:
      arguments: of what it is called with.
      outputs: of what it returns.
      aliased: of outputs that stand where arguments stood.
      temporaries: of all else that it computes.
      code: of the program, where the backend counts it.
      flops: by XLA's analysis of costs, which counts the body of a loop once; None on a GPU.
      bytes_accessed: likewise.
      work: by the program's text, loops included.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    flops: float | None
    bytes_accessed: float | None
    work: Work

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {**self._asdict(), "total": self.total, "work": self.work._asdict()}


def footprint_of(compiled: jax.stages.Compiled) -> Footprint:
    """Reads the footprint of a compiled program.

    Raises:
      NotImplementedError: where the backend does not analyze programs.
    """
    memory: Any = compiled.memory_analysis()
    if memory is None:
        raise NotImplementedError(
            f"{jax.default_backend()} does not tell what memory a program takes"
        )
    costs = compiled.cost_analysis() or {}
    return Footprint(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=costs.get("flops"),
        bytes_accessed=costs.get("bytes accessed"),
        work=work(compiled.as_text() or ""),
    )
