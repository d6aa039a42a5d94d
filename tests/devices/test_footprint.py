"""What compiled programs take, and sizes of memory in words."""

import jax
import jax.numpy as jnp
import pytest

from nasi_jax.devices.footprint import bytes_of, footprint_of, in_words


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("80GB", 80_000_000_000),
        ("80 GiB", 80 * 2**30),
        ("512MB", 512_000_000),
        ("1.5kb", 1500),
        ("2tib", 2 * 2**40),
        (" 64 B ", 64),
    ],
)
def test_sizes_of_memory(size, expected):
    assert bytes_of(size) == expected


@pytest.mark.parametrize("size", ["80", "GB", "-1GB", "80GBs", "8e1GB", "0GB", "0.1B", "", "iB"])
def test_what_is_no_size_of_memory_is_refused(size):
    with pytest.raises(ValueError, match="such as 80GB, got") as caught:
        bytes_of(size)
    assert repr(size) in str(caught.value)


def test_sizes_in_words():
    assert [in_words(count) for count in (7, 999, 999.9, 1234, 5.6e7, 8e10, 2e15)] == [
        *("7 B", "999 B", "1 kB", "1.23 kB", "56 MB", "80 GB", "2e+03 TB")
    ]


def test_the_footprint_of_a_program():
    """Against what is donated and returned, counted by hand, and XLA's own analysis."""

    def function(state, inputs):
        def body(state, _):
            return jnp.sin(state @ inputs), None

        return jax.lax.scan(body, state, length=5)[0], jnp.sum(inputs)

    state, inputs = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((8, 16), (16, 16)))
    compiled = jax.jit(function, donate_argnums=0).lower(state, inputs).compile()
    found, memory = footprint_of(compiled), compiled.memory_analysis()
    assert found.arguments == 4 * (8 * 16 + 16 * 16)
    assert found.aliased == 4 * 8 * 16
    assert found.outputs >= 4 * (8 * 16 + 1)
    assert found.temporaries == memory.temp_size_in_bytes
    code = memory.generated_code_size_in_bytes
    assert found.total == 4 * 16 * 16 + found.outputs + found.temporaries + code
    assert found.work.multiply_adds == 5 * 8 * 16 * 16
    assert found.flops == compiled.cost_analysis()["flops"]
