"""Launches counted in the text of compiled programs."""

import textwrap

import pytest

from nasi_jax.devices.launches import count, sources

PROGRAM = """\
HloModule jit_f, is_scheduled=true

%fused_add (param_0: f32[4], param_1: f32[4]) -> f32[4] {
  %param_0 = f32[4]{0} parameter(0)
  %param_1 = f32[4]{0} parameter(1)
  ROOT %add.1 = f32[4]{0} add(%param_0, %param_1)
}

%inner (arg.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %arg.1 = (s32[], f32[4]{0}) parameter(0)
  %get-tuple-element.1 = f32[4]{0} get-tuple-element(%arg.1), index=1
  %fusion.1 = f32[4]{0} fusion(%get-tuple-element.1), kind=kLoop, calls=%fused_add
  %custom-call.1 = (f32[4]{0}, s8[64]{0}) custom-call(%fusion.1), custom_call_target="__cublas$gemm"
  ROOT %tuple.1 = (s32[], f32[4]{0}) tuple(%fusion.1)
}

%condition (arg.2: (s32[], f32[4])) -> pred[] {
  %arg.2 = (s32[], f32[4]{0}) parameter(0)
  ROOT %fusion.2 = pred[] fusion(%arg.2), kind=kLoop, calls=%fused_add
}

%outer (arg.3: ((s32[], f32[4]), f32[4])) -> ((s32[], f32[4]), f32[4]) {
  %arg.3 = ((s32[], f32[4]{0}), f32[4]{0}) parameter(0)
  %get-tuple-element.3 = (s32[], f32[4]{0}) get-tuple-element(%arg.3), index=0
  %while.1 = (s32[], f32[4]{0}) while(%get-tuple-element.3), condition=%condition, body=%inner, \
metadata={op_name="jit(f)/outer/inner"}, backend_config={"known_trip_count":{"n":"5"}}
  %copy.1 = f32[4]{0} copy(%while.1)
  ROOT %tuple.2 = ((s32[], f32[4]{0}), f32[4]{0}) tuple(%while.1, %copy.1)
}

ENTRY %main.1 (x.1: f32[4]) -> f32[4] {
  %x.1 = f32[4]{0} parameter(0), sharding={replicated}
  %constant.1 = s32[] constant(0)
  %bitcast.1 = f32[2,2]{1,0:S(1)} bitcast(%x.1)
  %while.2 = ((s32[], f32[4]{0}), f32[4]{0}) while(%x.1), condition=%condition, body=%outer, \
metadata={op_name="jit(f)/outer"}, backend_config={OUTER}
  ROOT %fusion.3 = f32[4]{0} fusion(%while.2), kind=kLoop, calls=%fused_add
}
"""


def entry_of(*instructions):
    """A program whose entry has these instructions, with computations of one and two fusions."""
    one, two = (f"  %f.{i} = f32[4]{{0}} fusion(%p), calls=%fused\n" for i in "12")
    single = f"%single (p: f32[4]) -> f32[4] {{\n{one}}}\n"
    double = f"%double (p: f32[4]) -> f32[4] {{\n{one}{two}}}\n"
    body = textwrap.indent("\n".join(instructions), "  ")
    return f"{single}\n{double}\nENTRY %main (p: f32[4]) -> f32[4] {{\n{body}\n}}\n"


def test_loops_in_loops():
    launches = count(PROGRAM.replace("OUTER", '"known_trip_count":{"n":"3"}'))
    assert launches.total == 3 * (5 * 2 + 1) + 1
    assert launches.kinds == {"fusion": 16, "__cublas$gemm": 15, "copy": 3}
    assert launches.unknown_loops == 0
    outer, inner = launches.loops
    assert (outer.entered, outer.trips, outer.launches, outer.total) == (1, 3, 11, 33)
    assert (inner.entered, inner.trips, inner.launches, inner.total) == (3, 5, 2, 30)
    assert (outer.name, outer.source) == ("outer", "jit(f)/outer")


def test_a_loop_of_unknown_length_counts_once_and_is_marked():
    launches = count(PROGRAM.replace("OUTER", '"known_init_step":{"init":"0"}'))
    assert launches.total == 5 * 2 + 1 + 1
    assert launches.unknown_loops == 1
    assert [loop.known for loop in launches.loops] == [False, True]


def test_a_loop_that_launches_nothing_is_none():
    nothing = "%empty (p: f32[4]) -> f32[4] {\n  %p = f32[4]{0} parameter(0)\n}\n"
    entry = entry_of("%w = f32[4]{0} while(%p), condition=%single, body=%empty")
    launches = count(nothing + entry)
    assert (launches.total, launches.unknown_loops, launches.loops) == (0, 0, ())


@pytest.mark.parametrize(
    "attributes",
    [
        "branch_computations={%single, %double}",
        "branch_computations={%double, %single}",
        "true_computation=%double, false_computation=%single",
    ],
)
def test_of_a_conditional_the_larger_branch_counts(attributes):
    assert count(entry_of(f"%c = f32[4]{{0}} conditional(%p, %p), {attributes}")).total == 2


def test_loops_of_a_branch_that_does_not_count_are_left_out():
    loops = (
        f"%{name}_loop (p: f32[4]) -> f32[4] {{\n"
        f"  %w = f32[4]{{0}} while(%p), condition=%single, body=%{name}\n}}\n"
        for name in ("single", "double")
    )
    branches = "branch_computations={%single_loop, %double_loop}"
    launches = count("".join(loops) + entry_of(f"%c = f32[4]{{0}} conditional(%p), {branches}"))
    assert [loop.name for loop in launches.loops] == ["double"]


def test_calls_and_what_goes_on_beside():
    launches = count(
        entry_of(
            "%call.1 = f32[4]{0} call(%p), to_apply=%double",
            "%async-start = ((f32[4]{0}), f32[4]{0}) async-start(%p), calls=%single",
            "%async-done = f32[4]{0} async-done(%async-start)",
            "%fusion-start = ((f32[4]{0}), f32[4]{0}) fusion-start(%p), calls=%double",
            "%fusion-done = f32[4]{0} fusion-done(%fusion-start)",
            "%copy-start = (f32[4]{0:S(5)}, f32[4]{0}, u32[]) copy-start(%p)",
            "%copy-done = f32[4]{0} copy-done(%copy-start)",
        )
    )
    assert launches.kinds == {"fusion": 3, "fusion-start": 1, "copy-start": 1}


@pytest.mark.parametrize("text", ["", "module @jit_f {\n}\n"])
def test_what_is_no_compiled_program(text):
    with pytest.raises(ValueError, match="no compiled program in the text"):
        count(text)


def test_instructions_have_the_name_that_they_had_in_jax():
    """Those of which XLA tells."""
    assert sources(PROGRAM) == {"while.1": "jit(f)/outer/inner", "while.2": "jit(f)/outer"}
