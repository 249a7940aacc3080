"""Kineto traces: every variant, every known figure, and every kind of damage."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tracetool import registry, tables
from tracetool.errors import UnreadableTrace
from tracetool.raw import jsonstream
from tracetool.registry import HEAD_BYTES, ParseOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tracetool.tables import Tables


def the_parser() -> ModuleType:
    found = [parser for parser in registry.parsers() if parser.FORMAT == "kineto"]
    return found[0]  # type: ignore[return-value]  # a module, typed as the contract it keeps


KINETO = the_parser()


def parse(path: Path) -> Tables:
    """Parse and check every table against the data model."""
    found: Tables = KINETO.parse(path, ParseOptions(display_path=path.name))
    for name, table in found.items():
        tables.check(name, table)
        assert name in tables.BASE_TABLES
    assert {"events", "tracks", "ranks", "sources"} <= set(found)
    return found


@pytest.fixture
def read(tmp_path: Path) -> Callable[[object], Tables]:
    """Return a function that writes a document (text, bytes or an object) and parses it."""

    def written(content: object) -> Tables:
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content)
        path = tmp_path / "unknown"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return parse(path)

    return written


def x(name: str = "op", ts: object = 10, dur: object = 5, cat: str = "cpu_op", **more: object) -> dict[str, Any]:
    """Return one complete event."""
    return {"ph": "X", "cat": cat, "name": name, "pid": 100, "tid": 100, "ts": ts, "dur": dur, **more}


def kernel(correlation: object, ts: object = 20, dur: object = 7, name: str = "gemm", **more: object) -> dict[str, Any]:
    """Return one kernel on device 0, stream 7; `more` goes into its arguments."""
    args = {"device": 0, "stream": 7, "correlation": correlation, **more}
    return {**x(name, ts, dur, "kernel"), "pid": 0, "tid": 7, "args": args}


def doc(*events: object, **top: object) -> dict[str, object]:
    return {"schemaVersion": 1, "traceEvents": list(events), **top}


def notes(found: Tables) -> str:
    return " | ".join(found["sources"]["notes"][0].to_list())


def source(found: Tables) -> dict[str, Any]:
    return found["sources"].row(0, named=True)


# ---- real files ----

HTA = "kineto/hta/"
TL = "kineto/tracelens/"
REAL: dict[str, tuple[dict[str, int], tuple[int, int] | None]] = {
    # file: events by category of the data model; first start and last end of GPU activity
    HTA + "nccl_data.json.gz": (
        {"cpu_op": 14346, "runtime": 8740, "memcpy": 960, "memset": 114, "gpu_annotation": 30, "kernel": 2700,
         "annotation": 42},
        (4458676422880181, 4458677083431186),
    ),
    HTA + "df_index_resolver.json.gz": (
        {"cpu_op": 56680, "runtime": 42373, "memcpy": 2040, "memset": 880, "kernel": 19370, "annotation": 2035},
        (1669783687389324000, 1669783689122289000),
    ),
    HTA + "trace_filter/sampled_rank-0.json.gz": (
        {"cpu_op": 2329, "runtime": 1204, "memcpy": 40, "memset": 10, "kernel": 1154, "annotation": 73},
        (1682725898082228000, 1682725899305075000),
    ),
    HTA + "trace_filter/sampled_rank-1.json.gz": (
        {"cpu_op": 2302, "runtime": 1154, "memcpy": 40, "memset": 10, "kernel": 1104, "annotation": 65},
        (1682725898082381000, 1682725899313567000),
    ),
    HTA + "cpu_only/rank-34.Jul_15_10_52_41.1074.pt.trace.json.gz": ({"cpu_op": 4, "annotation": 11}, None),
    HTA + "mi250_minitoy_train_ROCm6_2_kineto.json.gz": (
        {"cpu_op": 70, "runtime": 21, "memcpy": 2, "gpu_annotation": 2, "kernel": 14, "annotation": 3},
        (4203669603454206, 4203669612366093),
    ),
    HTA + "backward_thread.json": (
        {"cpu_op": 3, "runtime": 1, "kernel": 1, "annotation": 2},
        (1666149715428509000, 1666149715428554000),
    ),
    HTA + "event_sync_trace.json.gz": (
        {"cpu_op": 10, "runtime": 12, "sync": 4, "memcpy": 1, "kernel": 4, "annotation": 1},
        (1707417525512145000, 1707417525512408000),
    ),
    HTA + "mtia_rank_0.json.gz": (
        {"cpu_op": 108889, "kernel": 3453, "memcpy": 22361, "runtime": 3453, "annotation": 214},
        (3605054881202837, 3605068217039277),
    ),
    TL + "mi300/resnet_act_checkpoint.json.gz": (
        {"cpu_op": 8004, "runtime": 3100, "memcpy": 550, "memset": 108, "gpu_annotation": 21, "kernel": 2995,
         "annotation": 24},
        (3743411222894405, 3743411309462113),
    ),
    TL + "h100/Qwen_Qwen1.5-0.5B-Chat__1016005.json.gz": (
        {"cpu_op": 4186, "runtime": 1922, "memcpy": 1, "memset": 241, "gpu_annotation": 1, "kernel": 1465,
         "annotation": 1},
        (1428625731622250, 1428625781275082),
    ),
    TL + "mi300/Qwen_Qwen1.5-0.5B-Chat__1016005.json.gz": (
        {"cpu_op": 4619, "runtime": 1707, "memcpy": 1, "gpu_annotation": 1, "kernel": 1516, "annotation": 1},
        (2241346127176383, 2241346174262183),
    ),
    TL + "inference/sglang_Qwen3-8B_prefilldecode.json.gz": (
        {"cpu_op": 3786, "runtime": 1069, "memcpy": 7, "kernel": 527, "annotation": 2},
        (4909913692278281, 4909914679567168),
    ),
}  # fmt: skip
NO_LAUNCH = {
    TL + "mi300/resnet_act_checkpoint.json.gz": 968,
    TL + "h100/Qwen_Qwen1.5-0.5B-Chat__1016005.json.gz": 509,
    TL + "mi300/Qwen_Qwen1.5-0.5B-Chat__1016005.json.gz": 463,
    HTA + "mtia_rank_0.json.gz": 22361,
}


@pytest.mark.parametrize("name", list(REAL))
def test_counts_and_window_of_a_real_trace(shared: Path, name: str) -> None:
    counts, window = REAL[name]
    found = parse(shared / name)
    events = found["events"]
    by_category = dict(events["category"].cast(pl.String).value_counts().iter_rows())
    by_category.pop("instant", None)
    assert by_category == counts
    gpu = events.filter(pl.col("category").is_in(tables.GPU_ACTIVITY))
    ends = gpu["start_ns"] + gpu["dur_ns"]
    assert ((gpu["start_ns"].min(), ends.max()) if gpu.height else None) == window
    launches = events.filter(pl.col("category") == "runtime")["correlation"]
    orphans = gpu.filter(~pl.col("correlation").is_in(launches.implode()).fill_null(value=False))
    assert orphans.height == NO_LAUNCH.get(name, 0)
    assert source(found)["dropped"] == source(found)["repaired"] == 0
    assert source(found)["complete"]
    assert source(found)["events"] == events.height
    assert events["start_ns"].is_sorted()
    assert events["event"].to_list() == list(range(events.height))


@pytest.mark.parametrize(
    "name",
    [HTA + "trace_filter/sampled_rank-0.json.gz", HTA + "mi250_minitoy_train_ROCm6_2_kineto.json.gz",
     TL + "h100/Qwen_Qwen1.5-0.5B-Chat__1016005.json.gz"],
)  # fmt: skip
def test_the_same_tables_however_the_text_is_laid_out(shared: Path, tmp_path: Path, name: str) -> None:
    reference = parse(shared / name)
    content = json.loads(gzip.decompress((shared / name).read_bytes()))
    # keys after the events move before them and the other way round
    turned = {key: content[key] for key in reversed(list(content))}
    layouts = {
        "pretty": json.dumps(content, indent=2),
        "compact": json.dumps(content, separators=(",", ":")),
        "turned": json.dumps(turned, indent=1),
    }
    for label, text in layouts.items():
        plain = tmp_path / label
        plain.write_text(text)
        packed = tmp_path / f"{label}.json"  # a suffix that does not say gzip
        half = len(text) // 2
        packed.write_bytes(gzip.compress(text[:half].encode(), 1) + gzip.compress(text[half:].encode(), 1))
        for path in (plain, packed):
            found = parse(path)
            assert set(found) == set(reference)
            for table in set(found) - {"sources"}:
                assert_frame_equal(found[table], reference[table])
            assert notes(found) == notes(reference)


def test_memory_counters_of_a_real_trace(shared: Path) -> None:
    found = parse(shared / HTA / "df_index_resolver.json.gz")["counters"]
    assert found.height == 3 * 28010
    on_gpu = found.filter(pl.col("device") == 1)
    allocated = on_gpu.filter(pl.col("name") == "memory_allocated_bytes")["value"]
    delta = on_gpu.filter(pl.col("name") == "memory_delta_bytes")["value"]
    changed = (allocated.diff()[1:] == delta[1:]).mean()
    # the running total changes by what was allocated; two threads share it, so not always in this order
    assert isinstance(changed, float)
    assert changed > 0.9


def test_communication_arguments_of_a_real_trace(shared: Path) -> None:
    found = parse(shared / HTA / "nccl_data.json.gz")
    args = found["comm_args"].join(found["events"].select("event", "category", "name"), on="event")
    kernels = args.filter(pl.col("category") == "kernel")
    assert dict(kernels["op"].cast(pl.String).value_counts().iter_rows()) == {"allreduce": 15, "broadcast": 6}
    width = {"Float": 4, "Long": 8, "Int": 4, "Byte": 1, "Bool": 1, "Half": 2}
    told = kernels.select(pl.col("dtype").cast(pl.String), "in_elems", "in_bytes", "out_elems", "out_bytes").rows()
    assert all((into, out) == (n * width[dtype], m * width[dtype]) for dtype, n, into, m, out in told)
    assert set(kernels["group_ranks"].cast(pl.String)) == {"[0, 1]"}
    ops = args.filter(pl.col("category") == "cpu_op")
    assert set(ops["name"].cast(pl.String)) == {"record_param_comms"}
    groups = found["process_groups"]
    assert groups.row(0, named=True) == {
        "rank": 0, "group": "0", "desc": "default_pg", "ranks": [0, 1], "size": 2, "source": None,
    }  # fmt: skip


def test_synchronisations_of_a_real_trace(shared: Path) -> None:
    found = parse(shared / HTA / "event_sync_trace.json.gz")
    assert found["syncs"].select("sync_kind", "stream", "wait_on_stream", "wait_on_correlation").rows() == [
        ("Stream Sync", 7, None, None),
        ("Event Sync", None, 7, 1533),
        ("Event Sync", None, 7, 1533),
        ("Context Sync", None, None, None),
    ]


# ---- time ----


@pytest.mark.parametrize(
    ("ts", "start_ns"),
    [
        ("1669783687464181", 1669783687464181000),
        ("4458676416431.397", 4458676416431397),
        ("8796093022207.999", 8796093022207999),
        ("8796093022208.001", 8796093022208001),
        ("1712345678901234.125", 1712345678901234125),
        ("1712345678901234.1", 1712345678901234100),
        ("1712345678901234.001", 1712345678901234001),
        ("1712345678901234.0", 1712345678901234000),
        ("1712345678901234.9996", 1712345678901235000),
        ("4.458676416431397e12", 4458676416431397),
        ("1.712345678901234125E+15", 1712345678901234125),
        ("0", 0),
        ("-3.5", -3500),
    ],
)
def test_start_is_exact(read: Callable[[object], Tables], ts: str, start_ns: int) -> None:
    text = json.dumps(doc(x(ts="TS", dur="30669.0"))).replace('"TS"', ts).replace('"30669.0"', "30669.0")
    row = read(text)["events"].row(0, named=True)
    assert (row["start_ns"], row["dur_ns"]) == (start_ns, 30669000)


@given(st.lists(st.integers(0, 2 * 10**18), min_size=1, max_size=20), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_nanosecond_survives(tmp_path: Path, starts: list[int], mixed: bool) -> None:  # noqa: FBT001 - drawn
    text = [f"{ns // 1000}.{ns % 1000:03d}" if ns % 1000 or not mixed else str(ns // 1000) for ns in starts]
    rows = [f'{{"ph":"X","name":"{i}","cat":"cpu_op","ts":{t},"dur":1}}' for i, t in enumerate(text)]
    path = tmp_path / "drawn"
    path.write_text('{"traceEvents":[' + ",".join(rows) + "]}")
    assert parse(path)["events"]["start_ns"].to_list() == sorted(starts)


@pytest.mark.parametrize(
    ("ts", "top", "base"),
    [
        (1669783687464181, {}, 0),
        (4458676416431.397, {"baseTimeNanoseconds": 1711964646000000000}, 1711964646000000000),
        (4458676416431.397, {}, None),
        (1669783687464181, {"baseTimeNanoseconds": 1711964646000000000}, 0),
        (4458676416431.397, {"baseTimeNanoseconds": "yesterday"}, None),
    ],
)
def test_base_time(read: Callable[[object], Tables], ts: float, top: dict[str, object], base: int | None) -> None:
    assert read(doc(x(ts=ts), **top))["ranks"]["base_unix_ns"][0] == base


def test_rows_are_ordered_by_start_then_longer_first_then_file(read: Callable[[object], Tables]) -> None:
    found = read(doc(x("late", 30, 1), x("b", 10, 2), x("a", 10, 5), x("c", 10, 2), x("early", 1, 1)))
    assert found["events"]["name"].cast(pl.String).to_list() == ["early", "a", "b", "c", "late"]


# ---- variants ----


def test_every_category_finds_its_word(read: Callable[[object], Tables]) -> None:
    words = {
        "kernel": "kernel", "Kernel": "kernel", "gpu_memcpy": "memcpy", "Memcpy": "memcpy", "gpu_memset": "memset",
        "Memset": "memset", "mtia_ccp_events": "kernel", "gpu_user_annotation": "gpu_annotation", "cpu_op": "cpu_op",
        "Operator": "cpu_op", "user_annotation": "annotation", "cuda_runtime": "runtime", "cuda_driver": "runtime",
        "Runtime": "runtime", "xpu_runtime": "runtime", "xpu_driver": "runtime", "mtia_runtime": "runtime",
        "cuda_sync": "sync", "overhead": "overhead", "new_thing": "other",
    }  # fmt: skip
    found = read(doc(*(x(cat, i, 1, cat) for i, cat in enumerate(words))))
    rows = found["events"].select(pl.col("name").cast(pl.String), pl.col("category").cast(pl.String)).rows()
    assert dict(rows) == words
    assert 'other: 1 of "new_thing"' in notes(found)


def test_a_trace_of_2021(read: Callable[[object], Tables]) -> None:
    launch = {**x("cudaLaunchKernel", 1, 2, "Runtime"), "tid": "5555", "args": {"external id": 3, "correlation": 9}}
    run = {**kernel(9), "cat": "Kernel", "tid": "stream 7"}
    run["args"]["external id"] = 3
    product = {**x("aten::mm", 0, 4, "Operator"), "tid": "5555"}
    product["args"] = {"external id": 3, "Input dims": [[2, 3], [3, 4]], "Input type": ["float", "float"]}
    found = read(doc(product, launch, run))
    assert found["events"].select("correlation", "external_id").rows() == [(None, 3), (9, 3), (9, 3)]
    assert found["op_shapes"].select("event", "input_dims", "input_types").rows() == [
        (0, "[[2,3],[3,4]]", '["float","float"]')
    ]
    gpu, cpu = found["tracks"].rows(named=True)
    assert (gpu["kind"], gpu["device"], gpu["stream"], gpu["process"], gpu["thread"]) == ("gpu", 0, 7, "0", "stream 7")
    assert (cpu["kind"], cpu["device"], cpu["stream"], cpu["thread"]) == ("cpu", None, None, "5555")


def test_mtia_requests_are_copies(read: Callable[[object], Tables]) -> None:
    request = {**kernel(0, name="dma_request"), "cat": "mtia_ccp_events", "tid": 801}
    request["args"] = {"direction": "DEVICE_TO_HOST", "size": 16}
    work = {**kernel(4, 50), "cat": "mtia_ccp_events", "args": {"correlation": 4}}
    found = read(doc(request, work))
    assert found["events"]["category"].cast(pl.String).to_list() == ["memcpy", "kernel"]
    assert found["events"]["correlation"].to_list() == [None, 4]
    assert found["copies"].select("event", "bytes", "direction").rows() == [(0, 16, "DtoH")]


def test_copies(read: Callable[[object], Tables]) -> None:
    def copy(name: str, at: int, **args: object) -> dict[str, Any]:
        event = kernel(at, at, 1, name, **args)
        return {**event, "cat": "gpu_memset" if "Memset" in name else "gpu_memcpy"}

    found = read(
        doc(
            copy("Memcpy HtoD (Pageable -> Device)", 1, bytes=10),
            copy("Memset (Device)", 2, bytes=8),
            copy("CopyDeviceToDevice", 3, kind="DtoD"),
            copy("Memcpy PtoP (Device -> Device)", 4, bytes=2.0, kind="x"),
        )
    )
    assert found["copies"].select("bytes", "direction").rows() == [
        (10, "HtoD"), (8, None), (None, "DtoD"), (2, "PtoP"),
    ]  # fmt: skip


def test_shapes_keep_their_text_in_compact_form(read: Callable[[object], Tables]) -> None:
    args = {
        "External id": 5, "Sequence number": 7, "Fwd thread id": 0, "Input Dims": [[2, 3], [], [[1], [2]]],
        "Input type": ["float", "Scalar", "TensorList"], "Input Strides": [[3, 1], [], []],
        "Concrete Inputs": ["", "a, b", "1e-05"],
    }  # fmt: skip
    for text in (json.dumps(doc(x(args=args)), indent=4), json.dumps(doc(x(args=args)))):
        row = read(text)["op_shapes"].row(0, named=True)
        assert row == {
            "rank": -1, "event": 0, "input_dims": "[[2,3],[],[[1],[2]]]",
            "input_types": '["float","Scalar","TensorList"]', "input_strides": "[[3,1],[],[]]",
            "concrete_inputs": '["","a, b","1e-05"]', "sequence": 7, "fwd_thread": 0,
        }  # fmt: skip


def test_communication_arguments(read: Callable[[object], Tables]) -> None:
    args = {
        "Collective name": "send", "Process Group Name": "3", "Process Group Description": "pp",
        "Process Group Ranks": "[0, 4]", "Group size": 2, "In msg nelems": 8, "Out msg nelems": 16, "dtype": "BFloat16",
        "Seq": 11, "Dst Rank": 4, "In split size": "[]", "Comms Id": 16_000_000_000_000_000_000,
    }  # fmt: skip
    plain = kernel(2, 40)
    odd = kernel(3, 60)
    odd["args"] |= {"Collective name": "recv", "dtype": "Odd", "In msg nelems": 8, "Src Rank": 1}
    first = kernel(1)
    first["args"] |= args
    row, second = read(doc(first, plain, odd))["comm_args"].rows(named=True)
    assert row == {
        "rank": -1, "event": 0, "op": "send", "group": "3", "group_desc": "pp", "group_ranks": "[0, 4]",
        "group_size": 2, "in_elems": 8, "out_elems": 16, "in_bytes": 16, "out_bytes": 32, "dtype": "BFloat16",
        "seq": 11, "peer": 4, "in_split": "[]", "out_split": None,
    }  # fmt: skip
    assert (second["event"], second["op"], second["peer"], second["in_bytes"]) == (2, "recv", 1, None)


def test_instants_counters_names_and_what_is_left_out(read: Callable[[object], Tables]) -> None:
    memory = {"ph": "i", "cat": "cpu_instant_event", "s": "t", "name": "[memory]", "pid": 100, "tid": 100, "ts": 12}
    found = read(
        doc(
            x(),
            {**memory, "args": {"Device Type": 1, "Device Id": 2, "Bytes": -5, "Total Allocated": 7}},
            {**memory, "ts": 11, "args": {"Device Type": 0, "Device Id": -1, "Bytes": 4}},
            {"ph": "C", "name": "power", "pid": 0, "tid": 0, "ts": 13.5, "args": {"watt": 300.4, "unit": "W"}},
            {"ph": "s", "id": 1, "cat": "ac2g", "name": "ac2g", "pid": 100, "tid": 100, "ts": 11},
            {"ph": "f", "id": 1, "cat": "ac2g", "name": "ac2g", "pid": 0, "tid": 7, "ts": 11, "bp": "e"},
            {"ph": "B", "name": "begin", "pid": 1, "tid": 1, "ts": 3},
            x("file.py(1): f", cat="python_function"),
            {"name": "thread_name", "ph": "M", "ts": 0.0, "pid": 100, "tid": 100, "args": {"name": "first"}},
            {"name": "thread_name", "ph": "M", "ts": 0.0, "pid": 100, "tid": 100, "args": {"name": " main "}},
            {"ph": "i", "s": "g", "name": "Record Window End", "pid": "", "tid": "", "ts": 90},
            {"ph": "X", "cat": "Trace", "name": "PyTorch Profiler (0)", "pid": "Spans", "tid": "T", "ts": 1, "dur": 80},
        )
    )
    assert found["counters"].select("at_ns", "name", "device", "value").rows() == [
        (11000, "memory_delta_bytes", -1, 4),
        (12000, "memory_delta_bytes", 2, -5),
        (12000, "memory_allocated_bytes", 2, 7),
        (13500, "power watt", None, 300),
    ]
    assert found["counters"]["track"].to_list() == [0, 0, 0, None]
    assert found["events"]["name"].cast(pl.String).to_list() == ["op", "Record Window End"]
    assert found["tracks"]["name"].to_list() == ["main", None]
    assert found["ranks"].select("trace_start_ns", "trace_end_ns", "with_stack").rows() == [(1000, 81000, True)]
    assert source(found)["dropped"] == 0
    assert "1 python frames left out" in notes(found)
    assert 'phase "B"' in notes(found)


def test_what_the_header_tells_and_nothing_else(read: Callable[[object], Tables]) -> None:
    top = {
        "deviceProperties": [{"id": 0, "name": "NVIDIA H100", "totalGlobalMem": 80}, {"id": 1, "name": "other"}],
        "distributedInfo": {
            "backend": "nccl", "rank": 3, "world_size": 8, "nccl_version": "2.21.5",
            "pg_config": [{"pg_name": "0", "pg_desc": "default_pg", "pg_size": 2, "ranks": [3, 4]}, {"pg_name": 1}, 7],
        },
        "cuda_driver_version": 12090, "host_name": "node7", "record_shapes": 1, "with_stack": 0,
        "username": "secret-user", "metadata": {"env": {"TOKEN": "secret"}},
    }  # fmt: skip
    found = read(doc(x(), kernel(1), **top))
    row = found["ranks"].row(0, named=True)
    assert {key: row[key] for key in ("rank", "rank_source", "world_size", "host", "host_source", "pid", "device")} == {
        "rank": 3, "rank_source": "metadata", "world_size": 8, "host": "node7", "host_source": "metadata", "pid": 100,
        "device": 0,
    }  # fmt: skip
    assert (row["device_name"], row["device_memory_bytes"], row["backend"]) == ("NVIDIA H100", 80, "nccl")
    assert row["versions"] == "cuda_driver 12090, nccl 2.21.5"
    assert (row["record_shapes"], row["with_stack"], row["profile_memory"]) == (True, False, None)
    assert found["process_groups"].select("group", "ranks", "size").rows() == [("0", [3, 4], 2), ("1", None, None)]
    assert "secret" not in str([table.rows() for table in found.values()])
    assert all((table["rank"] == 3).all() for table in found.values() if "rank" in table.columns)


def test_a_bare_array_is_a_trace_and_has_no_rank(read: Callable[[object], Tables]) -> None:
    found = read([x(), x("b", 20)])
    assert found["events"].height == 2
    assert source(found)["complete"]
    assert found["ranks"].select("rank", "rank_source").rows() == [(-1, None)]


def test_no_events_is_no_error(read: Callable[[object], Tables]) -> None:
    found = read(doc())
    assert found["events"].height == 0
    assert source(found)["complete"]
    assert "the list of events is empty" in notes(found)


# ---- merged ranks ----


def test_merged_ranks_are_refused(read: Callable[[object], Tables]) -> None:
    def rank(pid: int, device: int) -> list[dict[str, Any]]:
        return [
            event
            for i in range(4)
            for event in (
                {**x("cudaLaunchKernel", i, 1, "cuda_runtime"), "pid": pid, "args": {"correlation": i}},
                {**kernel(i, i + 10), "pid": device},
            )
        ]

    with pytest.raises(UnreadableTrace, match=r"merged traces of 2 processes \(pid 100, 200\)"):
        read(doc(*rank(100, 0), *rank(200, 1)))
    several_devices = rank(100, 0) + [{**event, "pid": 1} for event in rank(100, 0) if event["cat"] == "kernel"]
    assert read(doc(*several_devices))["events"].height == 12
    with pytest.raises(UnreadableTrace, match="merged"):  # no GPU work: the operators tell
        read(doc(*(x(pid=i % 2) for i in range(40))))


# ---- damage ----

GOOD = [x(f"op{i}", 10 * i, 5) for i in range(20)]


@pytest.mark.parametrize(
    ("broken", "kept"),
    [
        ('{"ph":"X","name":"a"b","ts":1,"dur":1}', 20),
        ('{"ph":"X","name":"C:\\dir\\u","ts":1,"dur":1}', 20),
        ('{"ph":"X","name":"C:\\","ts":1,"dur":1}', 20),
        ('{"ph":"X","name":"a\nb","ts":1,"dur":1}', 20),
        ('{"ph":"X","name":"a\x00b","ts":1,"dur":1}', 20),
        ('{"ph":"X","name":"a","ts":1,"dur":1,"args":{"x":[1,2}}', 20),
        ('{"ph":"X","name":"a","ts":01,"dur":1}', 20),
        ('{"ph":"X","name":"\\ud800","ts":1,"dur":1}', 20),
        ('{"ph":"X","name":"a","ts":1,"dur":1,"args":' + "[" * 3000 + "]" * 3000 + "}", 20),
        ('{"ph":"X","name":"a","ts":1e999,"dur":1}', 20),
        ("{}", 20),
        ("null", 20),
        ("17", 20),
        ('{"ph":"X","name":"no time"}', 20),
        ('{"ph":"X","name":"no dur","ts":1}', 20),
        ('{"ph":"X","name":"a","ts":1,"dur":-1}', 20),
        ('{"ph":"X","name":"a","ts":NaN,"dur":1}', 20),
        ('{"ph":"X","name":"a","ts":1,"dur":Infinity}', 20),
        ('{"ph":"X","name":"a","ts":"soon","dur":1}', 20),
        ('{"ph":7,"name":"a","ts":1,"dur":1}', 20),
        ('{"name":"a","ts":1,"dur":1}', 20),
    ],
)
@pytest.mark.parametrize("place", [0, 7, 20])
def test_one_broken_event_is_left_out(read: Callable[[object], Tables], broken: str, kept: int, place: int) -> None:
    texts = [json.dumps(event) for event in GOOD]
    texts.insert(place, broken)
    found = read('{"traceEvents": [' + ",\n".join(texts) + '], "baseTimeNanoseconds": 7}')
    assert found["events"].height == kept
    assert source(found)["dropped"] == 1
    assert source(found)["complete"]
    assert found["ranks"]["base_unix_ns"].to_list() == [7]


@pytest.mark.parametrize("value", ["NaN", "-nan", "Infinity", "-Infinity", "inf", "nan(ind)", "-nan(snan)"])
def test_not_a_number_in_args_is_null(read: Callable[[object], Tables], value: str) -> None:
    event = json.dumps(kernel(4, occupancy="BAD", grid=[1, "BAD", 2], text='a: nan, \\": nan}', bytes="BAD"))
    found = read('{"traceEvents": [' + event.replace('"BAD"', value) + "," + json.dumps(x()) + "]}")
    assert found["events"]["correlation"].to_list() == [None, 4]
    assert (source(found)["dropped"], source(found)["repaired"]) == (0, 3)
    assert "NaN or Infinity" in notes(found)


def test_bad_utf8_is_replaced(read: Callable[[object], Tables]) -> None:
    text = json.dumps(doc(x("nameBAD"), x("b", 50, args={"Input type": ["BAD"], "Sequence number": 3}))).encode()
    found = read(text.replace(b"BAD", b"\xff\xfe"))
    assert found["events"]["name"].cast(pl.String).to_list() == ["name\ufffd\ufffd", "b"]
    assert found["op_shapes"]["input_types"].cast(pl.String).to_list() == ['["\ufffd\ufffd"]']
    assert source(found)["repaired"] > 0
    assert source(found)["dropped"] == 0


def test_odd_types_do_not_matter(read: Callable[[object], Tables]) -> None:
    found = read(
        doc(
            {**x("a", 1), "pid": "100", "tid": 100.0},
            {**x("b", 2), "pid": None, "tid": [1, {"a": 2}]},
            {**x("c", 3), "cat": None, "name": 12},
            {**x("d", "4", "5.5")},
            {**x("e", 5), "args": None},
            {**x("f", 6), "args": [1, 2]},
            {**x("g", 7), "args": {"External id": "12", "Sequence number": 18446744073709551615, "Input Dims": None}},
            {**kernel(2**70, 8), "tid": True},
            {**kernel(9.0, 9, name="k"), "args": {"correlation": 9.0, "External id": None}},
            {**x("h", 10), "name": {"a": 1}},
        )
    )
    assert found["events"].height == 10
    assert source(found)["dropped"] == 0
    assert "1 arguments that are no object were ignored" in notes(found)
    rows = found["events"].select(pl.col("name").cast(pl.String), "start_ns", "correlation", "external_id").rows()
    assert ("12", 3000, None, None) in rows
    assert ("d", 4000, None, None) in rows
    assert ("g", 7000, None, 12) in rows
    assert ("k", 9000, 9, None) in rows


def test_a_damaged_number_is_no_second_process_and_no_key(read: Callable[[object], Tables]) -> None:
    named = {"ph": "M", "name": "thread_name", "pid": 100, "tid": [1, 2], "args": {"name": "worker"}}
    found = read(doc(x(ts=1), x(ts=2), x(ts=3, pid=-1e300), x(ts=4, pid=-1e300), x(ts=5, pid="Spans"), named))
    assert found["events"].height == 5


def test_a_duration_of_centuries_is_a_damaged_number(read: Callable[[object], Tables]) -> None:
    found = read(doc(x(ts=1), x(ts=2, dur=4.5e15), x(ts=3, dur=10**12)))
    assert found["events"].height == 2
    assert "1 dropped with a duration of more than 11 days" in notes(found)


def test_a_base_time_beyond_all_calendars_is_not_used(read: Callable[[object], Tables]) -> None:
    found = read(doc(x(ts=1), x(ts=9e15), baseTimeNanoseconds=2**63 - 1))
    assert found["ranks"]["base_unix_ns"].item() is None
    assert found["events"].height == 1
    assert "baseTimeNanoseconds is no time" in notes(found)


def test_bad_utf8_where_nothing_is_read_is_told(read: Callable[[object], Tables]) -> None:
    text = json.dumps(doc(x(ts=1), x(ts=2), x(ts=3))).encode()
    found = read(text.replace(b'"pid"', b'"p\xe9d"', 1))
    assert found["events"].height == 3
    assert source(found)["repaired"] == 1
    assert "not UTF-8" in notes(found)


def test_a_damaged_header_value_keeps_what_stands_whole_in_it(read: Callable[[object], Tables]) -> None:
    info = {"backend": "nccl", "rank": 3, "world_size": 8, "pg_config": [{"pg_name": "0", "ranks": [0, 1, 2]}]}
    text = json.dumps(doc(x(), distributedInfo=info, deviceProperties=[{"id": 0, "name": "NVIDIA H100"}])).encode()
    found = read(text.replace(b"1, 2", b"1, \0 2"))
    assert found["ranks"].select("rank", "world_size", "backend").row(0) == (3, 8, "nccl")
    assert "process_groups" not in found  # half a list of ranks would be another group
    assert 'the value of "distributedInfo" is damaged' in notes(found)
    found = read(text.replace(b"NVIDIA", b"NVIDIA\xff"))
    assert found["ranks"]["device_name"].item() == "NVIDIA\ufffd H100"
    assert source(found)["repaired"]


def test_a_damaged_key_is_told(read: Callable[[object], Tables]) -> None:
    text = json.dumps(doc(x(), record_shapes=1)).encode()
    found = read(text.replace(b"record_shapes", b"re\0ord_shapes"))
    assert found["ranks"]["record_shapes"].item() is None
    assert "a top-level key is damaged" in notes(found)


def test_a_damaged_header_is_read_in_part(read: Callable[[object], Tables]) -> None:
    text = json.dumps({"distributedInfo": {"rank": 3}, "deviceProperties": [], "traceEvents": [x()]}).encode()
    found = read(text.replace(b'"deviceProperties": []', b'"devicePrope'))
    assert found["ranks"]["rank"].item() == 3
    assert source(found)["complete"] is False


def test_a_file_that_ends_behind_its_events_may_lack_its_rank(read: Callable[[object], Tables]) -> None:
    text = json.dumps(doc(x(), distributedInfo={"rank": 3}))
    found = read(text[: text.index("]") + 1])
    assert found["events"].height == 1
    assert source(found)["complete"] is False
    assert "ends behind its events" in notes(found)


def test_trailing_comma_duplicate_keys_and_text_behind(read: Callable[[object], Tables]) -> None:
    found = read('{"traceEvents": [' + json.dumps(x()) + ',\n], "host_name": "a", "host_name": "b"} \n')
    assert source(found)["complete"]
    assert (source(found)["dropped"], source(found)["repaired"]) == (0, 1)
    assert found["ranks"]["host"].to_list() == ["b"]
    again = read(json.dumps(doc(x())) + "garbage")
    assert again["events"].height == 1
    assert not source(again)["complete"]
    twice = read('{"traceEvents": [{"ph":"X","ph":"X","name":"a","name":"b","ts":1,"ts":2,"dur":3}]}')
    assert twice["events"].select(pl.col("name").cast(pl.String), "start_ns").rows() == [("b", 2000)]


def test_a_boundary_inside_a_string_or_a_list_is_no_boundary(
    read: Callable[[object], Tables], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonstream, "CHUNK_BYTES", 300)
    tricky = 'a}, {"ph":"X", "name": "b" }], "x": [{"ph": "X"'
    events = [
        x(tricky, 10 * i, 5, args={"list": [{"name": 1}, {"name": 2}, {"ph": "X"}], "text": tricky, "External id": i})
        for i in range(30)
    ]
    found = read(json.dumps(doc(*events, deviceProperties=[{"id": 0, "name": "d"}, {"id": 1, "name": "d"}])))
    assert found["events"]["external_id"].to_list() == list(range(30))
    assert source(found)["dropped"] == 0
    assert found["ranks"]["device_name"].to_list() == ["d"]
    # the same with one event broken in the middle
    text = json.dumps(doc(*events)).replace('"External id": 15', '"External id": 1 5')
    found = read(text)
    assert found["events"]["external_id"].to_list() == [i for i in range(30) if i != 15]


def test_damage_before_and_after_the_events(read: Callable[[object], Tables]) -> None:
    body = json.dumps([x(), x("b", 30)])
    before = read('{"host_name": "no"de", "traceEvents": ' + body + ', "baseTimeNanoseconds": 5}')
    assert before["events"].height == 2
    assert before["ranks"]["base_unix_ns"].to_list() == [5]
    assert "before the events is damaged" in notes(before)
    after = read('{"traceEvents": ' + body + ', "INFO": ["a"b"], "baseTimeNanoseconds": 5}')
    assert after["events"].height == 2
    assert after["ranks"]["base_unix_ns"].to_list() == [5]
    assert not source(after)["complete"]
    renamed = read('{"schemaVersion": 1, "traceEvemts": ' + body + "}")
    assert renamed["events"].height == 2
    assert "traceEvemts" in notes(renamed)


@pytest.mark.parametrize(
    "content",
    [b"", b"   ", b"\x1f\x8b", b"\x1f\x8b\x08\x00garbage", b"hello", b"{", b"[", b"{}", b'{"a": 1}',
     b'{"traceEvents": [', b'{"traceEvents": [{"ph": "X"', b'{"traceEvents": 7}', b"[1, 2, 3", b"\x00" * 5000],
)  # fmt: skip
def test_nothing_readable_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(content)
    with pytest.raises(UnreadableTrace, match=r"trace\.json"):
        parse(path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnreadableTrace, match="cannot be read"):
        parse(tmp_path / "nowhere")


def test_cut_gzip_keeps_what_was_unpacked(tmp_path: Path) -> None:
    text = json.dumps(doc(*GOOD * 300)).encode()
    packed = gzip.compress(text)
    path = tmp_path / "cut.json.gz"
    path.write_bytes(packed[: len(packed) * 2 // 3])
    found = parse(path)
    assert found["events"].height > 1000
    assert not source(found)["complete"]
    assert "gzip stream ends early" in notes(found)
    flipped = bytearray(packed)
    flipped[len(packed) * 2 // 3] ^= 0xFF
    path.write_bytes(flipped)
    assert parse(path)["events"].height > 1000


def test_an_endless_string_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonstream, "CHUNK_BYTES", 1 << 12)
    monkeypatch.setattr(jsonstream, "LONGEST_OBJECT_BYTES", 1 << 14)
    monkeypatch.setattr(jsonstream, "BARREN_BYTES", 1 << 18)
    monkeypatch.setattr(jsonstream, "_PEEK_BYTES", 1 << 9)
    first = json.dumps(doc(*GOOD))[:-2]
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress((first + ', {"ph": "X", "name": "' + "a" * (1 << 22)).encode()))
    found = parse(path)
    assert found["events"].height == 20
    assert not source(found)["complete"]
    path.write_text(first + ', {"ph": "X", "name": "' + "a" * 50_000 + '"}, ' + json.dumps(x("after", 900)) + "]}")
    assert parse(path)["events"].height == 21


# ---- any damage ----


def whole_events(text: bytes) -> int:
    """Count the complete events that stand whole at the beginning of a cut document, with json itself."""
    decoder = json.JSONDecoder()
    plain = text.decode("utf-8", "replace")
    at = plain.find('"traceEvents"')
    at = plain.find("[", at) + 1 if at >= 0 else 0
    count = 0
    while at:
        at += len(plain[at:]) - len(plain[at:].lstrip(" \n,"))
        try:
            event, at = decoder.raw_decode(plain, at)
        except json.JSONDecodeError:
            break
        count += event.get("ph") == "X" and event.get("cat") not in ("Trace", "python_function")
    return count


class Texts(list[bytes]):
    """Whole documents; hypothesis prints them by their number only."""

    def __repr__(self) -> str:
        return f"{len(self)} documents"


@pytest.fixture(scope="module")
def small_real() -> Texts:
    root = Path(__file__).resolve().parents[3] / "shared" / "traces" / "kineto" / "hta"
    names = ("event_sync_trace.json.gz", "mi250_minitoy_train_ROCm6_2_kineto.json.gz", "backward_thread.json")
    texts = {"made": json.dumps(doc(*GOOD, kernel(1), baseTimeNanoseconds=3), indent=1).encode()}
    for name in names if root.is_dir() else ():
        content = (root / name).read_bytes()
        texts[name] = gzip.decompress(content) if name.endswith("gz") else content
    return Texts(texts.values())


def events_or_nothing(path: Path) -> int:
    try:
        return parse(path)["events"].filter(pl.col("category") != "instant").height
    except UnreadableTrace:
        return 0


@given(which=st.integers(0, 10), where=st.floats(0, 1))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cut_keeps_every_whole_event(tmp_path: Path, small_real: Texts, which: int, where: float) -> None:
    text = small_real[which % len(small_real)]
    cut = text[: int(where * len(text))]
    path = tmp_path / "cut"
    path.write_bytes(cut)
    assert events_or_nothing(path) == whole_events(cut)


@given(which=st.integers(0, 10), where=st.floats(0, 1), value=st.integers(0, 255))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flip_keeps_what_stood_before(
    tmp_path: Path, small_real: Texts, which: int, where: float, value: int
) -> None:
    text = small_real[which % len(small_real)]
    at = int(where * (len(text) - 1))
    flipped = text[:at] + bytes([value]) + text[at + 1 :]
    path = tmp_path / "flipped"
    path.write_bytes(flipped)
    assert events_or_nothing(path) >= whole_events(text[:at])


@given(content=st.binary(max_size=300))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_never_crash(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bytes"
    for begin in (b"", b'{"traceEvents": [', b'{"traceEvents": [{"ph":"X","ts":1,"dur":1},'):
        path.write_bytes(begin + content)
        events_or_nothing(path)


# ---- sniffing ----


def head(path: Path) -> bytes:
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    return content[:HEAD_BYTES]


def test_every_real_trace_is_recognised(shared: Path) -> None:
    for name in REAL:
        assert KINETO.sniff(Path("unknown"), head(shared / name)), name


def test_foreign_files_are_not_recognised(shared: Path) -> None:
    others = [path for folder in ("nccl", "nsight", "stragglers") for path in (shared / folder).rglob("*")]
    files = [path for path in others if path.is_file()]
    assert files
    for path in files:
        assert not KINETO.sniff(path, head(path)), path


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (b'{"traceEvents": []}', True),
        (b'\xef\xbb\xbf {"a": {"b": 1}, "traceEvents" : [', True),
        (b'[{"ph": "X", "pid": 1, "ts": 2, "name": "a"}]', True),
        (b'{"schemaVersion": 1, "metadata": {"long": "' + b"a" * HEAD_BYTES, True),
        (b"", False),
        (b"[]", False),
        (b"[1, 2]", False),
        (b'[{"a": 1}]', False),
        (b'{"version": "2.4", "entries": [{"record_id": 0}]}', False),
        (b'{"header": {"id": "0x1", "rank": 0}, "coll_perf": {"coll": "AllReduce"}}', False),
        (b'{"nccl_version": "2.28", "timestamp": 1}', False),
    ],
)
def test_sniff(text: bytes, known: bool) -> None:  # noqa: FBT001 - an expected value
    assert KINETO.sniff(Path("x.json"), text[:HEAD_BYTES]) is known


def test_msgspec_still_says_what_the_stream_reads_from_its_errors() -> None:
    # the array's end and the place of damage are taken from these sentences
    for text, sentence in (
        (b'[{}] , "a"', r"trailing characters \(byte 6\)"),
        (b"[{},]", r"trailing comma in array \(byte 4\)"),
        (b"[{}", "^Input data was truncated$"),
        (b'["a"b]', r"\(byte 4\)"),
    ):
        with pytest.raises(msgspec.DecodeError, match=sentence):
            msgspec.json.decode(text)
