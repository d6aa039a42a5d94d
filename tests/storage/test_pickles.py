"""Plain data is read as Python reads it, whatever the bytes around its operations are."""

import io
import pickle
import struct

import pytest

from nasi_jax.storage import pickles

CODES = (pickle.LONG_BINPUT, pickle.PUT, pickle.FRAME)
"""The operations that the unpickler looks at, each of which may also stand in the data."""

DATA = [
    [code[0] for code in CODES],
    [code.decode("latin1") for code in CODES],
    ["r" * 0x72, "p" * 0x70, "x" * 0x95, b"r" * 0x72, b"p" * 0x70, b"x" * 0x95],
    [struct.unpack(">d", 8 * code)[0] for code in CODES],
    [int.from_bytes(4 * code, "little") for code in CODES],
    [int.from_bytes(length * b"r", "little") for length in (0x70, 0x72, 0x95)],
    {f"r{index}": [index, str(index), (index, -index)] for index in range(70_000)},
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reads_plain_data(protocol):
    file = io.BytesIO(pickle.dumps(DATA, protocol) + b"rest")
    unpickler = type("Admitting", (pickles.Unpickler,), {"admitted": pickles.NUMBERS})
    expected = DATA
    if protocol < 3:  # where bytes are a text that has to be encoded
        expected = pickle.loads(pickle.dumps(DATA, protocol))
    assert unpickler(file).load() == expected
    assert file.read() == b"rest"


def placed(index):
    """A pickle of an empty list, which it keeps at that place in the memo within 8 bytes."""
    return io.BytesIO(b"\x80\x02]r" + struct.pack("<I", index) + b".")


def test_a_place_in_the_memo_may_be_within_what_was_read():
    assert pickles.Unpickler(placed(8)).load() == []


@pytest.mark.parametrize("index", [9, 2**31, 2**32 - 1])
def test_no_other_place_in_the_memo_is_admitted(index):
    message = f"the pickle names {index} as a place in its memo within 8 bytes"
    with pytest.raises(pickle.UnpicklingError, match=message):
        pickles.Unpickler(placed(index)).load()
