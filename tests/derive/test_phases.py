"""Phases by the launched-in rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from derive.build import AUTOGRAD, MAIN, SIDE, TRACKS, base, event, ids, launched

from tracetool.derive import derive
from tracetool.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENGINE = "autograd::engine::evaluate_function: MulBackward0"


def phases(rows: Sequence[Mapping[str, Any]], tracks: pl.DataFrame = TRACKS) -> dict[str, str | None]:
    """Return the phase of each event by name."""
    made = base(rows, tracks=tracks)
    found = derive(made, Settings())["links"]["phase"]
    return {name: found[row] for name, row in ids(made).items()}


def gpu_phases(rows: Sequence[Mapping[str, Any]], tracks: pl.DataFrame = TRACKS) -> dict[str, str | None]:
    gpu = derive(base(rows, tracks=tracks), Settings())["gpu"]
    return {str(name): phase for name, phase in gpu.select("name", "phase").rows()}


def test_phases_of_a_training_step() -> None:
    rows = [
        event("annotation", "ProfilerStep#1", 0, 100),
        event("annotation", "enumerate(DataLoader)#_MultiProcessingDataLoaderIter.__next__", 1, 9),
        event("cpu_op", "aten::stack", 2, 3),
        event("cpu_op", "aten::mm", 10, 20),
        *launched(1, 15, 200, 210, name="forward gemm"),
        event("cpu_op", ENGINE, 30, 50, track=AUTOGRAD),
        event("cpu_op", "MulBackward0", 31, 49, track=AUTOGRAD),
        *launched(2, 32, 210, 220, name="backward gemm", thread=AUTOGRAD),
        event("annotation", "Optimizer.step#AdamW.step", 60, 80),
        event("cpu_op", "aten::_foreach_add_", 61, 70),
        *launched(3, 65, 220, 230, name="foreach"),
        event("annotation", "Optimizer.zero_grad#AdamW.zero_grad", 81, 82),
        event("annotation", "save_checkpoint", 83, 90),
        *launched(4, 84, 230, 240, name="Memcpy DtoH", category="memcpy"),
        *launched(5, 95, 240, 250, name="triton, straight from Python"),
        event("kernel", "orphan", 1, 2, track=SIDE),
    ]
    # names of launch calls repeat: ask the kernels
    rows = [row for row in rows if row["category"] != "runtime"] + [row for row in rows if row["category"] == "runtime"]
    assert gpu_phases(rows) == {
        "orphan": None,
        "forward gemm": "forward",
        "backward gemm": "backward",
        "foreach": "optimizer",
        "Memcpy DtoH": "checkpoint",
        "triton, straight from Python": "forward",
    }
    cpu = phases([row for row in rows if row["category"] not in ("runtime", "kernel", "memcpy")])
    assert cpu == {
        "ProfilerStep#1": "other",
        "enumerate(DataLoader)#_MultiProcessingDataLoaderIter.__next__": "dataloader",
        "aten::stack": "dataloader",
        "aten::mm": "forward",
        ENGINE: "backward",
        "MulBackward0": "backward",
        "Optimizer.step#AdamW.step": "optimizer",
        "aten::_foreach_add_": "optimizer",
        "Optimizer.zero_grad#AdamW.zero_grad": "optimizer",
        "save_checkpoint": "checkpoint",
    }


def test_forward_operators_inside_backward_are_recomputed() -> None:
    rows = [
        event("cpu_op", "aten::linear", 0, 5, sequence=3, fwd_thread=0),
        event("cpu_op", ENGINE, 10, 90, track=AUTOGRAD, sequence=9, fwd_thread=1),
        event("cpu_op", "CheckpointFunctionBackward", 11, 89, track=AUTOGRAD, sequence=9, fwd_thread=1),
        event("cpu_op", "again", 20, 40, track=AUTOGRAD, sequence=4, fwd_thread=0),
        event("cpu_op", "aten::addmm", 21, 39, track=AUTOGRAD),
        event("cpu_op", "aten::mm", 41, 42, track=AUTOGRAD),
        event("cpu_op", ENGINE.replace("Mul", "Inner"), 50, 80, track=AUTOGRAD, sequence=4, fwd_thread=2),
        event("cpu_op", "aten::mul", 51, 52, track=AUTOGRAD),
    ]
    assert phases(rows) == {
        "aten::linear": "forward",
        ENGINE: "backward",
        "CheckpointFunctionBackward": "backward",
        "again": "recompute",
        "aten::addmm": "recompute",
        "aten::mm": "backward",
        ENGINE.replace("Mul", "Inner"): "backward",
        "aten::mul": "backward",
    }


def test_an_engine_range_inside_recomputed_work_is_backward_again() -> None:
    rows = [
        event("cpu_op", ENGINE, 10, 90, track=AUTOGRAD),
        event("cpu_op", "again", 20, 80, track=AUTOGRAD, sequence=4, fwd_thread=0),
        event("cpu_op", ENGINE + "2", 30, 40, track=AUTOGRAD),
        event("cpu_op", "aten::mul", 31, 32, track=AUTOGRAD),
        event("annotation", "Optimizer.step#SGD.step", 50, 60, track=AUTOGRAD),
        event("cpu_op", "aten::add_", 51, 52, track=AUTOGRAD),
    ]
    found = phases(rows)
    assert (found["again"], found["aten::mul"], found["aten::add_"]) == ("recompute", "backward", "optimizer")


def test_autograd_threads_by_name_and_by_what_runs_there() -> None:
    rows = [
        event("cpu_op", "aten::mm", 0, 5),
        event("cpu_op", ENGINE, 10, 20, track=AUTOGRAD),
        *launched(1, 30, 40, 50, name="from a hook", thread=AUTOGRAD),
        *launched(2, 6, 50, 60, name="from a thread that does nothing known"),
    ]
    expected = {"from a hook": "backward", "from a thread that does nothing known": "other"}
    assert gpu_phases(rows) == expected
    assert gpu_phases(rows, TRACKS.with_columns(name=pl.lit(None, pl.String))) == expected
    # the CPU engine runs on the main thread: a forward operator outside shows that it is none of autograd's
    main = [event("cpu_op", f"{ENGINE}{i}", 10 * i, 10 * i + 5) for i in range(30)]
    main += [event("cpu_op", "compiled forward", 400, 410, sequence=1, fwd_thread=0)]
    assert phases(main)["compiled forward"] == "forward"


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        ("forward", "forward"),
        ("## forward ##", "forward"),
        ("Forward 3", "forward"),
        ("forward_step", "forward"),
        ("PP:0F1", "forward"),
        ("DistributedDataParallel.forward", "forward"),
        ("execute_context_1(8)_generation_0(0)", "forward"),
        ("step[DECODE bs=1]", "forward"),
        ("backward", "backward"),
        ("## backward ##", "backward"),
        ("Backward 11", "backward"),
        ("PP:3B2", "backward"),
        ("PP:3W2", "backward"),
        ("FullyShardedDataParallel._pre_backward_hook", "backward"),
        ("## optimizer ##", "optimizer"),
        ("DeepSpeedEngine.step", "optimizer"),
        ("data_loading", "dataloader"),
        ("PP:(0F8;7B2)OVERLAP_F_B", "other"),
        ("forwarding table", "other"),
        ("my range", "other"),
    ],
)
def test_named_ranges_count_only_without_the_engine(name: str, phase: str) -> None:
    rows = [event("annotation", name, 0, 50), *launched(1, 5, 10, 20)]
    assert gpu_phases(rows) == {"gemm": phase}
    rows.append(event("cpu_op", ENGINE, 60, 70, track=AUTOGRAD))
    assert gpu_phases(rows) == {"gemm": "other"}


def test_launches_beside_a_backward_range() -> None:
    unnamed = TRACKS.with_columns(name=pl.lit(None, pl.String))
    rows = [
        event("annotation", "forward", 0, 40, track=MAIN),
        event("annotation", "backward", 50, 90, track=MAIN),
        *launched(1, 10, 100, 110, name="before", thread=AUTOGRAD),
        *launched(2, 60, 110, 120, name="during", thread=AUTOGRAD),
        *launched(3, 90, 120, 130, name="after", thread=AUTOGRAD),
    ]
    assert gpu_phases(rows, unnamed) == {"before": "other", "during": "backward", "after": "other"}


@pytest.mark.parametrize(
    ("name", "saves"),
    [
        ("save_checkpoint", True),
        ("Trainer._save_checkpoint", True),
        ("checkpoint.save", True),
        ("CheckpointManager: checkpoint saving", True),
        ("save_sharded_state_dict", True),
        ("torch.save", True),
        ("torch.distributed.checkpoint.state_dict_saver.async_save", True),
        ("dcp.async_save", True),
        ("## save checkpoint ##", True),
        ("CheckpointFunction", False),
        ("torch.utils.checkpoint", False),
        ("load_checkpoint", False),
        ("checkpoint_forward", False),
        ("save_for_backward", False),
    ],
)
def test_saving_a_checkpoint_by_name(name: str, *, saves: bool) -> None:
    assert (phases([event("annotation", name, 0, 9)])[name] == "checkpoint") is saves


def test_old_files_name_backward_operators_only() -> None:
    rows = [
        event("cpu_op", "AddmmBackward", 0, 9, track=AUTOGRAD),
        event("cpu_op", "aten::mm", 1, 5, track=AUTOGRAD),
        event("cpu_op", "torch::autograd::AccumulateGrad", 10, 12),
        event("cpu_op", "aten::addmm", 20, 22),
    ]
    assert phases(rows) == {
        "AddmmBackward": "backward",
        "aten::mm": "backward",
        "torch::autograd::AccumulateGrad": "backward",
        "aten::addmm": "forward",
    }
