"""Files spoilt in every way, as strategies of hypothesis, and how many inputs a test has had."""

import json
import pickle
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

WHOLE_NUMBERS = (0, 1, -1, 2, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 10**5, 10**12, 2**60)
NUMBERS_AS_TEXT = (
    *map(str, WHOLE_NUMBERS),
    *("1e999", "-1e999", "nan", "inf", "1" * 5000, "0.5", "-0", "", "1_0", "٣", "0x10", "1e400000"),
)
"""What takes the place of a number in a text."""
TEXTS = (*b'"', *b"\n\r\0,|~[]{}()", 0xFF, 0xFE)


@st.composite
def spoilt(draw, contents: Sequence[bytes]) -> bytes:
    """One of the contents with up to four edits: flipped, cut, repeated, spliced, renumbered."""
    content = draw(st.sampled_from(contents))
    for _ in range(draw(st.integers(1, 4))):
        edit = draw(st.sampled_from(EDITS))
        content = edit(draw, content, contents)
    return content


def _place(draw, content):
    return draw(st.integers(0, len(content)))


def _span(draw, content):
    start = _place(draw, content)
    return start, min(len(content), start + draw(st.integers(1, 64)))


def _flipped(draw, content, _):
    start = _place(draw, content)
    return content[:start] + bytes([draw(st.integers(0, 255))]) + content[start + 1 :]


def _cut(draw, content, _):
    return content[: _place(draw, content)]


def _dropped(draw, content, _):
    start, end = _span(draw, content)
    return content[:start] + content[end:]


def _repeated(draw, content, _):
    start, end = _span(draw, content)
    return content[:start] + content[start:end] * draw(st.integers(2, 50)) + content[end:]


def _spliced(draw, content, contents):
    other = draw(st.sampled_from(contents))
    return content[: _place(draw, content)] + other[_place(draw, other) :]


def _inserted(draw, content, _):
    start = _place(draw, content)
    return content[:start] + bytes([draw(st.sampled_from(TEXTS))]) + content[start:]


def _renumbered(draw, content, _):
    """With the bytes of another number, of either order, in place of as many."""
    start, size = _place(draw, content), draw(st.sampled_from((1, 2, 4, 8)))
    number = draw(st.sampled_from(WHOLE_NUMBERS)) % 256**size
    order = draw(st.sampled_from(("little", "big")))
    return content[:start] + number.to_bytes(size, order) + content[start + size :]


def _retold(draw, content, _):
    """With another number in place of one in digits."""
    found = [match.span() for match in re.finditer(rb"-?\d[\d.]*", content[:10_000])]
    if not found:
        return content
    start, end = draw(st.sampled_from(found))
    return content[:start] + draw(st.sampled_from(NUMBERS_AS_TEXT)).encode() + content[end:]


EDITS = (_flipped, _cut, _dropped, _repeated, _spliced, _inserted, _renumbered, _retold)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from(WHOLE_NUMBERS)
    | st.floats()
    | st.sampled_from(("", "a\nb", "digits", "darts", "1" * 5000, "\ud800", "\0")),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=4), children, max_size=4)
    ),
    max_leaves=8,
)
"""Values of every kind that JSON has, and NaN."""


@st.composite
def changed(draw, valid: Any) -> Any:
    """A JSON value with one of its parts, at any depth, replaced by another value or left out."""
    value = json.loads(json.dumps(valid))
    part = value
    while True:
        if not isinstance(part, dict | list) or not part:
            return draw(JSON)
        keys = sorted(part) if isinstance(part, dict) else range(len(part))
        key = draw(st.sampled_from(keys))
        if isinstance(part[key], dict | list) and part[key] and draw(st.booleans()):
            part = part[key]
        elif draw(st.integers(0, 4)):
            part[key] = draw(JSON)
            return value
        else:
            del part[key]
            return value


NAMES = (
    *("os system", "posix system", "builtins eval", "builtins exec", "builtins getattr"),
    *("subprocess Popen", "shutil rmtree", "numpy ndarray", "numpy dtype", "_codecs encode"),
    *("numpy.core.multiarray _reconstruct", "numpy._core.multiarray scalar"),
    *("collections OrderedDict", "builtins set", "torch._utils _rebuild_tensor_v2"),
    *("torch FloatStorage", "nasi_jax.storage.pickles Array", "numpy.load", "builtins __import__"),
)
_ARGUMENTS = (
    b"",
    pickle.MARK,
    *(pickle.dumps(each, 2)[2:-1] for each in (b"x", "f8", 0, 1, -1, 2**40, 2**70, 1.5, None)),
    *(pickle.dumps(each, 2)[2:-1] for each in ((), {}, [], ((1,), "f8"), (1, (2,), "u1", 0, b"a"))),
    *(pickle.dumps(each, 2)[2:-1] for each in ("touch marker", "arch2infos", b"labels", b"data")),
)
_OPCODES = (
    *(b"R", b"b", b"o", b"\x92", b"t", b"\x85", b"\x86", b"\x87", b"s", b"u", b"a", b"e"),
    *(
        b"\x81",
        b"0",
        b"1",
        b"2",
        b"d",
        b"l",
        b"\x8f",
        b"\x90",
        b"\x91",
        b"\x94",
        b"q\x00",
        b"h\x00",
    ),
    *(
        b"Q",
        b"Pid\n",
        b"\x82\x01",
        b"\x84\xff\xff\xff\x7f",
        b"\x98",
        b"\x97",
        b"\x95" + b"\xff" * 8,
    ),
    *(
        b"\x8e" + struct.pack("<Q", 2**60),
        b"B" + struct.pack("<I", 2**31 - 1),
        b"I1_0\n",
        b"F1e9\n",
    ),
)


@st.composite
def pickles(draw) -> bytes:
    """Operations of pickle in any order, that ask for harmless and harmful names."""
    parts = [b"\x80\x04"]
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(("name", "argument", "operation")))
        if kind == "argument":
            parts.append(draw(st.sampled_from(_ARGUMENTS)))
        elif kind == "operation":
            parts.append(draw(st.sampled_from(_OPCODES)))
        else:
            module, _, name = draw(st.sampled_from(NAMES)).partition(" ")
            parts.append(f"c{module}\n{name}\n".encode())
    return b"".join([*parts, b"."])


def inputs(
    strategy: st.SearchStrategy[Any],
    check: Callable[[Any], None],
    number: int,
    *,
    found: Sequence[Any] = (),
    random: bool = False,
) -> int:
    """Has a check look at so many inputs; returns how many it has looked at.

    Args:
      strategy: what makes the inputs.
      check: raises where it finds a fault.
      number: how many.
      found: inputs that were faults once, which come first.
      random: whether to look at other ones every time.
    """
    count = 0

    @settings(
        max_examples=number,
        deadline=None,
        derandomize=not random,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(value):
        nonlocal count
        count += 1
        check(value)

    for value in found:
        run = example(value)(run)
    run()
    return count
