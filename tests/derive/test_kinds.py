"""What counts as communication, and which durations cannot be."""

from __future__ import annotations

import pytest
from derive.build import SIDE, base, event, ids, launched, notes

from tracetool.derive import derive
from tracetool.errors import UsageError
from tracetool.settings import Settings
from tracetool.tables import frame

MS = 1_000_000

COMMUNICATION = [
    "ncclKernel_AllReduce_RING_LL_Sum_float(ncclWorkElem)",
    "ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
    "ncclSymkDevKernel_AllGather_LL",
    "ncclDevKernel_Generic(ncclDevKernelArgsStorage<4096ul>)",
    "void deep_ep::internode::dispatch<false, 8>(int4*)",
    "void dpsk::ep::internode::combine<8>(int4*)",
    "nvshmemi_transfer_rma",
    "mscclKernel_Sum_half_Simple",
    "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 8>(vllm::RankData*)",
    "_ZN5aiter26cross_device_reduce_2stageIDF16_Li8EEvPNS_8RankDataE",
    "void quickreduce::allreduce_prototype_twoshot<x>(half const*)",
    "void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<x>",
    "multimem_one_shot_all_reduce_kernel",
    "two_shot_all_reduce_kernel<c10::BFloat16>",
    "hcclAllReduce",
]
COMPUTE = [
    "sm90_xmma_gemm_bf16bf16_bf16f32",
    "void at::native::vectorized_elementwise_kernel<4>",
    "__amd_rocclr_copyBuffer",
    "hipLibrary_hcclLookalike",
    "reduce_kernel",
    "flash_fwd_kernel",
]


def test_every_communication_family_and_nothing_else() -> None:
    rows = [event("kernel", name, i * 10, i * 10 + 5) for i, name in enumerate([*COMMUNICATION, *COMPUTE])]
    gpu = derive(base(rows), Settings())["gpu"]
    kinds = dict(zip(gpu["name"].cast(str), gpu["kind"].cast(str), strict=True))
    assert [name for name, kind in kinds.items() if kind == "comm"] == COMMUNICATION
    assert {kinds[name] for name in COMPUTE} == {"compute"}


def test_only_kernels_are_classified_by_name() -> None:
    rows = [
        event("gpu_annotation", "nccl:all_reduce", 0, 5),
        event("annotation", "nccl:all_reduce", 0, 5),
        event("runtime", "ncclLaunch", 1, 2),
        event("memcpy", "Memcpy PtoP (nccl)", 6, 7),
        event("memset", "Memset", 8, 9),
        event("graph", "graph replay", 10, 11),
        event("sync", "Stream Sync", 12, 13),
    ]
    made = base(rows)
    links = derive(made, Settings())["links"]
    found = {name: links["kind"][row] for name, row in ids(made).items() if links["kind"][row] is not None}
    assert found == {"Memcpy PtoP (nccl)": "memcpy", "Memset": "memset", "graph replay": "compute"}


def test_recorded_arguments_make_a_kernel_communication() -> None:
    rows = [event("kernel", "Generic_4", 0, 5, op="allreduce"), event("kernel", "mine", 6, 7, dtype="Float")]
    assert derive(base(rows), Settings())["gpu"]["kind"].to_list() == ["comm", "compute"]


def test_the_users_pattern_adds_names() -> None:
    rows = [event("kernel", "my_ring_kernel", 0, 5), event("kernel", "gemm", 6, 7), event("memcpy", "ring copy", 8, 9)]
    kinds = derive(base(rows), Settings(comm_pattern=r"(?<!no)_ring_"))["gpu"]["kind"]
    assert kinds.to_list() == ["comm", "compute", "memcpy"]
    with pytest.raises(UsageError, match="--comm-pattern"):
        derive(base(rows), Settings(comm_pattern="["))


def test_an_impossible_overlap_is_cut_at_the_next_start() -> None:
    rows = [
        event("kernel", "runaway", 0, 1_600 * MS),
        event("kernel", "next", 3 * MS, 4 * MS),
        event("kernel", "other stream", 1 * MS, 9 * MS, track=SIDE),
    ]
    made = derive(base(rows), Settings())
    assert made["gpu"].select("start_ns", "dur_ns").rows() == [(0, 3 * MS), (1 * MS, 8 * MS), (3 * MS, MS)]
    assert notes(made)["clipped"] == (1, 1_597 * MS)


@pytest.mark.parametrize(
    ("dur", "following"),
    [
        pytest.param(2 * MS, 1 * MS, id="exactly half and 1 ms"),
        pytest.param(1_900_000, 950_000, id="under 1 ms"),
        pytest.param(10 * MS, 6 * MS, id="under half of the event"),
        pytest.param(1_000, 10, id="a dependent launch that starts early"),
    ],
)
def test_shorter_overlaps_are_real(dur: int, following: int) -> None:
    rows = [event("kernel", "a", 0, dur), event("kernel", "b", following, dur + 5)]
    made = derive(base(rows), Settings())
    assert made["gpu"]["dur_ns"].to_list() == [dur, dur + 5 - following]
    assert "clipped" not in notes(made)


def test_what_cannot_be_cut_is_dropped() -> None:
    rows = [event("kernel", "twin", 0, 9 * MS), event("kernel", "gemm", 0, 2 * MS)]
    made = derive(base(rows), Settings())
    assert made["gpu"]["name"].to_list() == ["gemm"]
    assert made["links"]["kind"].to_list() == ["compute", "compute"]
    assert notes(made)["dropped"] == (1, 9 * MS)


def test_longer_than_the_recorded_window() -> None:
    rows = [event("kernel", "a", 5, 25), event("kernel", "b", 30, 300), event("kernel", "c", 6, 240, track=SIDE)]
    rows.append(event("kernel", "d", 20, 30, track=SIDE))
    window = frame("ranks", {"rank": [0], "format": ["x"], "trace_start_ns": [0], "trace_end_ns": [100]})
    made = derive(base(rows, ranks=window), Settings())
    assert made["gpu"].select("name", "dur_ns").rows() == [("a", 20), ("c", 14), ("d", 10)]
    assert notes(made) == {"orphans": (3, 44), "clipped": (1, 220), "dropped": (1, 270)}


def test_longer_than_all_else_where_no_window_was_recorded() -> None:
    rows = [*launched(1, 0, 5, 900), *launched(2, 10, 1_000, 5_000 * MS)]
    made = derive(base(rows), Settings())
    assert made["gpu"]["start_ns"].to_list() == [5]
    assert notes(made) == {"dropped": (1, 5_000 * MS - 1_000)}
    # a short program that launches one long kernel
    assert derive(base(launched(1, 0, 5, 900 * MS)), Settings())["gpu"].height == 1
