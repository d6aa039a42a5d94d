"""What takes most of the time of a program, by events of a profile."""

from types import SimpleNamespace

import costliest_kernels
import pytest
from costliest_kernels import Kernel, Span, own_nanoseconds


def test_time_inside_of_a_kernel_is_not_its_own():
    spans = [
        Span("while", 0, 100),
        Span("fusion", 10, 30),
        Span("inner", 15, 5),
        Span("fusion", 40, 20),
        Span("copy", 100, 7),
        Span("while", 110, 50),
        Span("fusion", 110, 49),
    ]
    assert own_nanoseconds(reversed(spans)) == {
        "while": [50, 1],
        "fusion": [25, 20, 49],
        "inner": [5],
        "copy": [7],
    }


def event(name, start, duration, **stats):
    return SimpleNamespace(name=name, start_ns=start, duration_ns=duration, stats=stats.items())


def profile_of(**lines):
    named = [SimpleNamespace(name=name, events=events) for name, events in lines.items()]
    return [SimpleNamespace(name="/device:GPU:0", lines=named)]


def test_kernels_of_a_gpu_are_those_of_its_streams():
    """What XLA says of whole modules and operations beside them is not counted again."""
    streams = {
        "Stream #1(Compute)": [
            event("loop_add", 0, 3e6, hlo_op="fusion.1"),
            event("loop_add", 4e6, 1e6, hlo_op="fusion.1"),
            event("MemcpyD2D", 6e6, 2e6),
        ],
        "Stream #2": [event("gemm", 1e6, 6e6, hlo_op="dot.2")],
        "XLA Modules": [event("jit_f", 0, 9e6, hlo_op="jit_f")],
    }
    profile = SimpleNamespace(planes=profile_of(**streams))
    assert costliest_kernels.costliest(profile, {"dot.2": "f/dot"}, calls=2) == [
        Kernel("dot.2", 3.0, 0.5, "f/dot"),
        Kernel("fusion.1", 2.0, 1.0, ""),
        Kernel("MemcpyD2D", 1.0, 0.5, ""),
    ]


def test_kernels_of_a_cpu_are_what_has_an_instruction():
    lines = {
        "python": [event("$profiler.py", 0, 9e6)],
        "worker": [event("start", 0, 0), event("dot.1", 1e6, 4e6, hlo_op="dot.1")],
    }
    (plane,) = profile_of(**lines)
    profile = SimpleNamespace(planes=[SimpleNamespace(name="/host:CPU", lines=plane.lines)])
    assert costliest_kernels.costliest(profile, {}, calls=1) == [Kernel("dot.1", 4.0, 1.0, "")]


@pytest.mark.slow
def test_a_program_is_profiled(run, tmp_path):
    name = "score/nasbench201/synflow"
    printed = run("costliest_kernels", "--smoke", "--only", name, "--most", 3, "--out", tmp_path)
    assert printed.startswith(f"{name}: ") and printed.count("\n| ") == 2 + 3
    assert printed.count("jit(score_weights)") >= 1
