"""Launches, operators and nesting."""

from __future__ import annotations

import pytest
from derive.build import AUTOGRAD, SIDE, base, event, ids, launched, notes

from tracetool import tables
from tracetool.derive import derive
from tracetool.errors import TracetoolError
from tracetool.settings import Settings


def test_a_call_inside_nested_operators_belongs_to_the_innermost() -> None:
    rows = [
        event("annotation", "ProfilerStep#1", 0, 100),
        event("cpu_op", "aten::linear", 10, 50),
        event("cpu_op", "aten::addmm", 20, 40),
        event("runtime", "cudaLaunchKernel", 30, 35, corr=5),
        event("cpu_op", "aten::relu", 60, 70),
        event("cpu_op", "elsewhere", 25, 45, track=AUTOGRAD),
        event("kernel", "gemm", 80, 90, corr=5),
    ]
    made = base(rows)
    links = derive(made, Settings())["links"]
    tables.check("links", links)
    at = ids(made)
    parent = dict(zip(at, links["parent"], strict=True))
    assert parent == {
        "ProfilerStep#1": None,
        "aten::linear": at["ProfilerStep#1"],
        "aten::addmm": at["aten::linear"],
        "elsewhere": None,
        "cudaLaunchKernel": at["aten::addmm"],
        "aten::relu": at["ProfilerStep#1"],
        "gemm": None,
    }
    assert dict(zip(at, links["depth"], strict=True)) == {
        "ProfilerStep#1": 0, "aten::linear": 1, "aten::addmm": 2, "elsewhere": 0, "cudaLaunchKernel": 3,
        "aten::relu": 1, "gemm": None,
    }  # fmt: skip
    assert links["op"].drop_nulls().to_list() == [at["aten::addmm"]] * 2
    assert links["launch"].drop_nulls().to_list() == [at["cudaLaunchKernel"]]


def test_one_graph_launch_has_many_kernels() -> None:
    rows = [event("cpu_op", "replay", 0, 9), *launched(4, 1, 10, 20, name="a"), event("kernel", "b", 20, 30, corr=4)]
    made = base(rows)
    gpu = derive(made, Settings())["gpu"]
    assert gpu["launch"].to_list() == [ids(made)["cudaLaunchKernel"]] * 2
    assert gpu.select("launch_start_ns", "launch_end_ns").rows() == [(1, 2)] * 2
    assert gpu["op"].to_list() == [ids(made)["replay"]] * 2


def test_of_a_driver_call_inside_a_runtime_call_the_outer_one_launched() -> None:
    rows = [
        event("runtime", "urEnqueueKernelLaunch", 10, 20, corr=4),
        event("runtime", "zeCommandListAppend", 12, 18, corr=4),
        event("kernel", "gemm", 30, 40, corr=4),
    ]
    made = base(rows)
    assert derive(made, Settings())["gpu"]["launch"].to_list() == [ids(made)["urEnqueueKernelLaunch"]]


def test_external_id_names_the_operator_where_it_is_believable() -> None:
    rows = [
        event("cpu_op", "outer", 0, 50, ext=1),
        event("cpu_op", "inner", 10, 20, ext=2),
        event("cpu_op", "elsewhere", 60, 70, ext=3),
        event("cpu_op", "twin", 0, 60, track=AUTOGRAD, ext=4),
        event("cpu_op", "twin2", 0, 60, track=AUTOGRAD, ext=4),
        *launched(11, 15, 100, 110, name="named outer", ext=1),
        *launched(12, 16, 110, 120, name="named by chance", ext=3),
        *launched(13, 17, 120, 130, name="dangling", ext=99),
        *launched(14, 18, 130, 140, name="ambiguous", ext=4),
    ]
    made = base(rows)
    at = {event: name for name, event in ids(made).items()}
    gpu = derive(made, Settings())["gpu"]
    assert {str(name): at[op] for name, op in gpu.select("name", "op").rows()} == {
        "named outer": "outer",
        "named by chance": "inner",
        "dangling": "inner",
        "ambiguous": "inner",
    }


def test_orphans_get_nothing_and_are_told() -> None:
    rows = [
        event("annotation", "ProfilerStep#1", 0, 100),
        event("cpu_op", "aten::mm", 1, 9, ext=7),
        *launched(1, 2, 20, 50),
        event("kernel", "orphan", 60, 70, corr=99, ext=7),
        event("memcpy", "Memcpy", 70, 80),
    ]
    made = derive(base(rows), Settings())
    assert made["gpu"].select("launch", "op", "step", "phase").rows()[1:] == [(None, None, None, None)] * 2
    assert notes(made)["orphans"] == (2, 20)
    assert "2 of 3 GPU activities (66.7% and 40.0% of GPU time)" in made["quality"]["note"][0]


def test_a_kernel_before_its_launch_is_told() -> None:
    made = derive(base([*launched(1, 10, 7, 20), *launched(2, 30, 29, 31, track=SIDE)]), Settings())
    assert notes(made) == {"negative_latency": (2, 3)}
    assert made["gpu"]["launch"].null_count() == 0


def test_instants_and_overhead_do_not_nest() -> None:
    rows = [
        event("overhead", "Activity Buffer Request", 0, 90),
        event("cpu_op", "a", 5, 9),
        event("instant", "i", 6, 6),
    ]
    links = derive(base(rows), Settings())["links"]
    assert links["parent"].null_count() == 3
    assert links["depth"].to_list() == [None, 0, None]


def test_no_optional_table_and_no_event() -> None:
    rows = [*launched(1, 2, 20, 50)]
    made = derive({"events": base(rows)["events"]}, Settings())
    assert made["gpu"].height == 1
    empty = derive({}, Settings())
    assert {name: frame.height for name, frame in empty.items()} == dict.fromkeys(tables.DERIVED_TABLES, 0)
    for name, frame in {**made, **empty}.items():
        tables.check(name, frame)


def test_events_in_another_order_are_refused() -> None:
    events = base([event("cpu_op", "a", 0, 1), event("cpu_op", "b", 5, 6)])["events"]
    with pytest.raises(TracetoolError, match="order of start_ns"):
        derive({"events": events.reverse()}, Settings())
