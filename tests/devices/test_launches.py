"""Launches counted in the text of compiled programs."""

import textwrap

import pytest
from helpers import on_devices

from nasi_jax.devices.launches import Work, count, sources, traffic, work

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


PRODUCTS = """\
%reduction (param_0: f32[8,6]) -> f32[8] {
  %param_0 = f32[8,6]{1,0} parameter(0)
  %zero = f32[] constant(0)
  %negate.1 = f32[8,6]{1,0} negate(%param_0)
  ROOT %reduce.1 = f32[8]{0} reduce(%negate.1, %zero), dimensions={1}, to_apply=%sum
}

%update (param_0.1: f32[9,2], param_1: f32[1,2], param_2: s32[]) -> f32[9,2] {
  %param_0.1 = f32[9,2]{1,0} parameter(0)
  %param_1 = f32[1,2]{1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  ROOT %dynamic-update-slice.1 = f32[9,2]{1,0} dynamic-update-slice(%param_0.1, %param_1, %param_2)
}

%body (arg: f32[8,4]) -> f32[8,4] {
  %arg = f32[8,4]{1,0} parameter(0)
  %right = f32[4,6]{1,0} constant({...})
  %dot.1 = f32[8,6]{1,0} dot(%arg, /*index=1*/%right), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}
  ROOT %fusion.1 = f32[8]{0} fusion(%dot.1), kind=kLoop, calls=%reduction
}

ENTRY %main (x: f32[2,5,5,6], k: f32[3,3,2,7]) -> f32[2,5,5,7] {
  %x = f32[2,5,5,6]{3,2,1,0} parameter(0)
  %k = f32[3,3,2,7]{3,2,1,0} parameter(1)
  %while.1 = f32[8,4]{1,0} while(%x), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %fusion.2 = f32[9,2]{1,0} fusion(%x, %k, %x), kind=kLoop, calls=%update
  ROOT %convolution.1 = f32[2,5,5,7]{3,2,1,0} convolution(%x, %k), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, feature_group_count=3
}
"""


def test_the_work_of_products_loops_and_fusions():
    """Multiply-adds by hand; of a fusion its largest array, of an update what is written."""
    convolved, multiplied = 2 * 5 * 5 * 7, 8 * 6
    assert work(PRODUCTS) == Work(
        launches=3 * 2 + 1 + 1,
        multiply_adds=3 * multiplied * 4 + convolved * 3 * 3 * 2,
        numbers=3 * (multiplied + multiplied) + 1 * 2 + convolved,
        instructions=4 + 4 + 4 + 5,
    )


def test_of_the_work_of_a_conditional_the_mean_of_its_branches_counts():
    small, large = (
        f"%{name} (p: f32[4]) -> f32[{size}] {{\n  %{name}.1 = f32[{size}]{{0}} negate(%p)\n}}\n"
        for name, size in (("small", 4), ("large", 64))
    )
    branches = "branch_computations={%small, %small, %large}"
    text = small + large + entry_of(f"%c = f32[4]{{0}} conditional(%p), {branches}")
    assert (work(text).launches, work(text).numbers) == (1, (4 + 4 + 64) / 3)


def test_work_needs_a_program():
    with pytest.raises(ValueError, match="there is no compiled program in the text"):
        work("HloModule nothing")


COLLECTIVES = entry_of(
    "%p = f32[4]{0} parameter(0)",
    "%all-reduce.1 = f32[4]{0} all-reduce(%p), to_apply=%sum",
    "%all-gather-start.1 = (f32[4]{0}, bf16[8,4]{1,0}) all-gather-start(%p), dimensions={0}",
    "%all-gather-done.1 = bf16[8,4]{1,0} all-gather-done(%all-gather-start.1)",
    "%fusion.3 = (f32[4]{0}, pred[2]{0}) fusion(%p, %all-gather-done.1), kind=kLoop, calls=%single",
)


def test_bytes_of_memory_and_of_what_others_send():
    found = traffic(COLLECTIVES)
    assert found.collectives == {"all-reduce": 16, "all-gather": 64}
    assert found.memory == 16 + 2 + 16 + 64


def test_bytes_in_a_loop_count_as_often_as_it_runs():
    body = "%body (p: f32[4]) -> f32[4] {\n  %p = f32[4]{0} parameter(0)\n"
    body += "  ROOT %all-reduce.1 = f32[4]{0} all-reduce(%p), to_apply=%sum\n}\n"
    loop = '%w = f32[4]{0} while(%p), condition=%single, body=%body, backend_config={"known_trip_'
    assert traffic(body + entry_of(loop + 'count":{"n":"7"}}')).collectives == {"all-reduce": 112}


def test_bytes_of_a_sum_over_devices(tmp_path):
    """As XLA compiles it for four devices: each gets the sum of 6 x 5 numbers."""
    script = """
        import jax, jax.numpy as jnp
        from jax.sharding import PartitionSpec as P
        from nasi_jax import device_mesh
        from nasi_jax.devices.launches import traffic

        mesh = device_mesh(data=4)
        total = jax.shard_map(
            lambda rows: jax.lax.psum(rows, "data"), mesh=mesh, in_specs=P("data"), out_specs=P()
        )
        print(traffic(jax.jit(total).lower(jnp.ones((24, 5))).compile().as_text()).collectives)
    """
    process = on_devices(4, script)
    assert process.stdout.strip() == "{'all-reduce': 120}", process.stderr
