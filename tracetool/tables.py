"""The data model: every table's columns as documented data.

Rules that hold for all of them:

* Times are int64 nanoseconds in the rank's own clock, as the file counts them: absolute Unix time is
  `start_ns + ranks.base_unix_ns`. Never a float64 of epoch microseconds: its spacing there is 250 ns.
* Intervals are half-open, [start, start + dur).
* `null` means that the tracer did not say. It is never replaced by 0.
* Rows of one rank are sorted by `start_ns`, longer first at equal starts, else in file order; `event` is the
  row number in that order, so a column of event ids can be used to gather rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.errors import TracetoolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

Tables = dict[str, pl.DataFrame]
"""Named tables that belong together, as a parser or an analysis returns them."""

CATEGORIES: Final = (
    "kernel",
    "memcpy",
    "memset",
    "graph",
    "gpu_annotation",
    "cpu_op",
    "annotation",
    "runtime",
    "sync",
    "instant",
    "overhead",
    "other",
)
"""What an event is, in words no format owns.

kernel, memcpy, memset: GPU activity; graph: one replay of a CUDA graph whose kernels were not recorded, GPU
activity too; gpu_annotation: a CPU range copied onto a GPU track, not activity; cpu_op: an operator;
annotation: a user's or framework's range on a CPU thread; runtime: a call of the CUDA, HIP or MTIA API;
sync: a synchronisation as the GPU saw it; instant: a point in time; overhead: the profiler's own work;
other: a category the parser does not know, kept and named in `sources`; or the ranges of a library, such as NCCL's.
"""
GPU_ACTIVITY: Final = ("kernel", "memcpy", "memset", "graph")
KINDS: Final = ("compute", "comm", "memcpy", "memset")
PHASES: Final = ("forward", "backward", "recompute", "optimizer", "dataloader", "checkpoint", "other")
TRACK_KINDS: Final = ("gpu", "cpu", "other")

Category: Final = pl.Enum(CATEGORIES)
Kind: Final = pl.Enum(KINDS)
Phase: Final = pl.Enum(PHASES)
TrackKind: Final = pl.Enum(TRACK_KINDS)
Text: Final = pl.Categorical


@dataclass(frozen=True)
class Column:
    """One column: its polars type, one sentence of documentation with the unit, and whether null may occur."""

    dtype: pl.DataType | type[pl.DataType]
    doc: str
    nullable: bool = False


@dataclass(frozen=True)
class Schema:
    """One table: what a row is, and its columns in order."""

    doc: str
    columns: Mapping[str, Column]

    def empty(self) -> pl.DataFrame:
        """Return the table with no row and every column typed."""
        return pl.DataFrame(schema={name: column.dtype for name, column in self.columns.items()})


_RANK: Final = Column(pl.Int32, "Rank of the process in the whole job; -1 while it is not known yet.")
_EVENT: Final = Column(pl.Int64, "Row number of the event in `events` of this rank.")

SCHEMAS: Final[Mapping[str, Schema]] = {
    # ---- base tables, filled by parsers ----
    "events": Schema(
        "One row an event of the trace, python frames left out.",
        {
            "event": Column(pl.Int64, "Row number within the rank, in the order of the table."),
            "rank": _RANK,
            "track": Column(pl.Int32, "Key into `tracks` of this rank."),
            "start_ns": Column(pl.Int64, "Start in the rank's own clock, ns."),
            "dur_ns": Column(pl.Int64, "Duration as recorded, ns; 0 for instants."),
            "category": Column(Category, "What the event is; the vocabulary is tables.CATEGORIES."),
            "name": Column(Text, "Name as the tracer wrote it."),
            "correlation": Column(
                pl.Int64, "Number shared by a launch call and the GPU activity it launched.", nullable=True
            ),
            "external_id": Column(
                pl.Int64, "Number shared by a CPU operator and what it launched, where it is valid.", nullable=True
            ),
        },
    ),
    "tracks": Schema(
        "One row a thread or GPU stream.",
        {
            "rank": _RANK,
            "track": Column(pl.Int32, "Number of the track within the rank."),
            "kind": Column(TrackKind, "gpu: a stream; cpu: a thread; other: neither (the profiler's own rows)."),
            "process": Column(pl.String, "Process or device id as the tracer wrote it.", nullable=True),
            "thread": Column(pl.String, "Thread or stream id as the tracer wrote it.", nullable=True),
            "device": Column(pl.Int32, "Device number for GPU tracks, as the tracer counts them.", nullable=True),
            "stream": Column(pl.Int64, "Stream number for GPU tracks.", nullable=True),
            "name": Column(pl.String, "Label of the track, where the tracer gives one.", nullable=True),
        },
    ),
    "op_shapes": Schema(
        "Arguments of CPU operators; one row an event that has any of them.",
        {
            "rank": _RANK,
            "event": _EVENT,
            "input_dims": Column(Text, "JSON text of the arguments' sizes, [] for a scalar.", nullable=True),
            "input_types": Column(Text, "JSON text of the arguments' types.", nullable=True),
            "input_strides": Column(Text, "JSON text of the arguments' strides.", nullable=True),
            "concrete_inputs": Column(
                Text, "JSON text of the scalar arguments' values; to be parsed, never evaluated.", nullable=True
            ),
            "sequence": Column(
                pl.Int64, "Autograd sequence number that a forward and its backward share.", nullable=True
            ),
            "fwd_thread": Column(
                pl.Int64, "Thread of the forward operator; 0 on operators of the forward itself.", nullable=True
            ),
        },
    ),
    "comm_args": Schema(
        "What the tracer recorded about a communication; one row an event (kernel or CPU range) that has any.",
        {
            "rank": _RANK,
            "event": _EVENT,
            "op": Column(Text, "Operation as the tracer spelled it.", nullable=True),
            "group": Column(Text, "Process group name or communicator id.", nullable=True),
            "group_desc": Column(Text, "Process group description.", nullable=True),
            "group_ranks": Column(Text, "Text of the group's global ranks, possibly cut by the tracer.", nullable=True),
            "group_size": Column(pl.Int32, "Number of ranks in the group.", nullable=True),
            "in_elems": Column(pl.Int64, "Elements this rank puts in.", nullable=True),
            "out_elems": Column(pl.Int64, "Elements this rank gets out.", nullable=True),
            "in_bytes": Column(pl.Int64, "Bytes this rank puts in (elements × size of dtype).", nullable=True),
            "out_bytes": Column(pl.Int64, "Bytes this rank gets out (elements × size of dtype).", nullable=True),
            "dtype": Column(Text, "Element type as the tracer spelled it.", nullable=True),
            "seq": Column(pl.Int64, "Sequence number of the operation within its group.", nullable=True),
            "peer": Column(pl.Int32, "Global rank of the other side of a send or receive.", nullable=True),
            "in_split": Column(Text, "Text of the input split sizes of an uneven all-to-all.", nullable=True),
            "out_split": Column(Text, "Text of the output split sizes of an uneven all-to-all.", nullable=True),
        },
    ),
    "copies": Schema(
        "Sizes of copies and memsets.",
        {
            "rank": _RANK,
            "event": _EVENT,
            "bytes": Column(pl.Int64, "Bytes moved or set.", nullable=True),
            "direction": Column(Text, "HtoD, DtoH, DtoD, PtoP or as the tracer spelled it.", nullable=True),
        },
    ),
    "syncs": Schema(
        "Synchronisations as the GPU saw them (category sync).",
        {
            "rank": _RANK,
            "event": _EVENT,
            "sync_kind": Column(Text, "Stream Sync, Event Sync, Context Sync or Stream Wait Event.", nullable=True),
            "stream": Column(pl.Int64, "Stream that waits; null when the whole context does.", nullable=True),
            "wait_on_stream": Column(pl.Int64, "Stream that is waited for.", nullable=True),
            "wait_on_correlation": Column(
                pl.Int64, "Correlation of the call that recorded the awaited event.", nullable=True
            ),
        },
    ),
    "counters": Schema(
        "Values over time, one row a value.",
        {
            "rank": _RANK,
            "at_ns": Column(pl.Int64, "Time of the value in the rank's own clock, ns."),
            "track": Column(pl.Int32, "Track whose thread changed the value.", nullable=True),
            "name": Column(
                Text,
                "What is counted, unit in the name: memory_delta_bytes, memory_allocated_bytes, memory_reserved_bytes.",
            ),
            "device": Column(pl.Int32, "Device number; null or -1 for the host.", nullable=True),
            "value": Column(pl.Int64, "The value, in the unit that the name ends with.", nullable=True),
        },
    ),
    "process_groups": Schema(
        "Process groups as this rank's trace lists them.",
        {
            "rank": _RANK,
            "group": Column(pl.String, "Process group name."),
            "desc": Column(pl.String, "Process group description.", nullable=True),
            "ranks": Column(pl.List(pl.Int32), "Global ranks of the group, in its order.", nullable=True),
            "size": Column(pl.Int32, "Number of ranks in the group.", nullable=True),
            "source": Column(
                pl.String, "Dump that lists it, as named in `sources`: a rank may have left several.", nullable=True
            ),
        },
    ),
    "ranks": Schema(
        "One row a rank: who recorded the trace, on what, with which options.",
        {
            "rank": _RANK,
            "rank_source": Column(
                pl.String, "Where the rank was found: metadata, file name, option or assumed.", nullable=True
            ),
            "world_size": Column(pl.Int32, "Ranks of the job, as the trace says.", nullable=True),
            "host": Column(pl.String, "Host name.", nullable=True),
            "host_source": Column(pl.String, "Where the host was found.", nullable=True),
            "pid": Column(pl.Int64, "Process id.", nullable=True),
            "device": Column(pl.Int32, "Device number of the GPU activity.", nullable=True),
            "device_name": Column(pl.String, "Device name as the driver gives it.", nullable=True),
            "device_memory_bytes": Column(pl.Int64, "Memory of the device, bytes.", nullable=True),
            "base_unix_ns": Column(
                pl.Int64, "Unix time of clock value 0, ns: absolute time = start_ns + base_unix_ns.", nullable=True
            ),
            "versions": Column(pl.String, "Versions of driver, runtime, NCCL, as `name version, …`.", nullable=True),
            "backend": Column(pl.String, "Communication backend: nccl, gloo, ….", nullable=True),
            "format": Column(pl.String, "Format of the source."),
            "record_shapes": Column(pl.Boolean, "Operator shapes were recorded.", nullable=True),
            "with_stack": Column(pl.Boolean, "Python stacks were recorded (inflates host time).", nullable=True),
            "profile_memory": Column(pl.Boolean, "Memory was recorded.", nullable=True),
            "trace_start_ns": Column(
                pl.Int64, "Start of the recorded window, ns, where the trace says.", nullable=True
            ),
            "trace_end_ns": Column(pl.Int64, "End of the recorded window, ns, where the trace says.", nullable=True),
        },
    ),
    "sources": Schema(
        "One row a file or directory that was read.",
        {
            "path": Column(pl.String, "Path as found below the path the user typed."),
            "format": Column(pl.String, "Format that recognised it."),
            "bytes": Column(pl.Int64, "Size on disk, bytes."),
            "events": Column(pl.Int64, "Events kept."),
            "dropped": Column(pl.Int64, "Events that could not be kept."),
            "repaired": Column(pl.Int64, "Events or values that were mended."),
            "complete": Column(pl.Boolean, "The file was read to its proper end."),
            "notes": Column(pl.List(pl.String), "What was dropped, repaired, skipped or assumed, a sentence each."),
        },
    ),
    # ---- base tables of sources that tell of communication without events: recorders, logs, counters ----
    "collectives": Schema(
        "One row a communication as a flight recorder, log or inspector tells it; not an event: most have no duration.",
        {
            "rank": _RANK,
            "source": Column(Text, "Source that tells it, as named in `sources`."),
            "record": Column(pl.Int64, "Order in which the rank launched it: record id, op count or line number."),
            "group": Column(Text, "Process group name or communicator id; key into `process_groups`.", nullable=True),
            "seq": Column(pl.Int64, "Sequence number among the group's collectives.", nullable=True),
            "p2p_seq": Column(pl.Int64, "Sequence number among the group's sends and receives.", nullable=True),
            "is_p2p": Column(pl.Boolean, "A send or receive."),
            "op": Column(
                Text, "all_reduce, all_gather, …, send, recv, coalesced, or the tracer's own word for other operations."
            ),
            "name": Column(Text, "Operation as the tracer spelled it."),
            "backend": Column(Text, "nccl, gloo, … where the tracer says.", nullable=True),
            "peer": Column(
                pl.Int32,
                "Other side of a send or receive as a position in the group, not a global rank.",
                nullable=True,
            ),
            "in_sizes": Column(Text, "JSON text of the input tensors' sizes, possibly cut.", nullable=True),
            "out_sizes": Column(Text, "JSON text of the output tensors' sizes, possibly cut.", nullable=True),
            "in_elems": Column(pl.Int64, "Elements of all input tensors.", nullable=True),
            "out_elems": Column(pl.Int64, "Elements of all output tensors.", nullable=True),
            "bytes": Column(
                pl.Int64, "Total bytes S of the bandwidth formulas: the larger of the bytes in and out.", nullable=True
            ),
            "dtype": Column(
                Text, "Element type as the tracer spelled it, of the inputs where both differ.", nullable=True
            ),
            "state": Column(Text, "scheduled, started or completed, as the tracer wrote it.", nullable=True),
            "retired": Column(pl.Boolean, "The recorder no longer watches it.", nullable=True),
            "in_flight": Column(
                pl.Boolean, "Launched and not known to be complete, by the rules of its backend.", nullable=True
            ),
            "created_unix_ns": Column(pl.Int64, "Unix time of its launch on the CPU, ns.", nullable=True),
            "started_unix_ns": Column(pl.Int64, "Unix time when a watchdog saw it started, ns.", nullable=True),
            "completed_unix_ns": Column(pl.Int64, "Unix time when a watchdog saw it complete, ns.", nullable=True),
            "duration_ns": Column(pl.Int64, "Duration on the GPU, ns, where it was measured.", nullable=True),
            "timeout_ns": Column(pl.Int64, "Time after which it counts as hung, ns.", nullable=True),
            "stack": Column(Text, "Python frames, innermost first, as lines `function file:line`.", nullable=True),
            "thread": Column(Text, "Thread that launched it.", nullable=True),
        },
    ),
    "group_status": Schema(
        "One row a process group of a rank: how far the rank says it has come in it.",
        {
            "rank": _RANK,
            "source": Column(Text, "Source that tells it, as named in `sources`."),
            "local_id": Column(pl.String, "The rank's own number of the group; differs between ranks.", nullable=True),
            "group": Column(pl.String, "Process group name, where the same source tells which it is.", nullable=True),
            "last_enqueued": Column(pl.Int64, "Sequence number of the last operation launched; -1: none."),
            "last_started": Column(
                pl.Int64, "Sequence number of the last operation started; -1: none or not known.", nullable=True
            ),
            "last_completed": Column(pl.Int64, "Sequence number of the last operation completed; -1: none."),
            "status": Column(
                pl.String,
                "What a log or service says of the rank: timeout, signalled, unresponsive, dead.",
                nullable=True,
            ),
        },
    ),
    "dumps": Schema(
        "One row a source of `collectives` and rank: what the source covers.",
        {
            "rank": _RANK,
            "source": Column(Text, "Source, as named in `sources`."),
            "kind": Column(pl.String, "recorder: a flight recorder; log: lines of a log; service: asked from outside."),
            "version": Column(pl.String, "Version of the format.", nullable=True),
            "library": Column(pl.String, "Version of the communication library.", nullable=True),
            "entries": Column(pl.Int64, "Records in it."),
            "first_record": Column(
                pl.Int64, "Smallest record id; above 0: older ones were overwritten.", nullable=True
            ),
            "last_record": Column(pl.Int64, "Largest record id.", nullable=True),
            "finished": Column(pl.Int64, "Records of completed operations; 0 where only active ones were dumped."),
            "has_stacks": Column(pl.Boolean, "Python stacks are in it."),
            "file_unix_ns": Column(pl.Int64, "Modification time of the file, Unix ns.", nullable=True),
            "newest_unix_ns": Column(pl.Int64, "Latest launch in it, Unix ns.", nullable=True),
        },
    ),
    "log_facts": Schema(
        "One row a fact that a log states about a rank, its host or one of its communicators.",
        {
            "rank": _RANK,
            "source": Column(Text, "Source that tells it, as named in `sources`."),
            "line": Column(pl.Int64, "Line number in the source, from 1."),
            "host": Column(Text, "Host name.", nullable=True),
            "pid": Column(pl.Int64, "Process id.", nullable=True),
            "device": Column(pl.Int32, "Device number in the process' own count.", nullable=True),
            "topic": Column(
                Text, "version, nic, transport, channels, init, init_phase, net, algorithm, warning, ring or link."
            ),
            "group": Column(Text, "Communicator the fact is about.", nullable=True),
            "name": Column(Text, "What is stated."),
            "value": Column(Text, "The statement as text.", nullable=True),
            "number": Column(pl.Int64, "The statement as a number, unit in the name.", nullable=True),
            "peer": Column(pl.Int32, "Other side of a connection, as a position in the communicator.", nullable=True),
        },
    ),
    "bandwidth_curve": Schema(
        "One row a size that a benchmark measured: the cluster's own ceiling.",
        {
            "source": Column(Text, "Source that tells it, as named in `sources`."),
            "op": Column(
                pl.String, "Operation, as in `collectives`; null where the output does not say.", nullable=True
            ),
            "ranks": Column(pl.Int32, "Ranks that took part.", nullable=True),
            "hosts": Column(pl.Int32, "Hosts that took part.", nullable=True),
            "bytes": Column(pl.Int64, "Total bytes S of the bandwidth formulas."),
            "elems": Column(pl.Int64, "Elements, as the benchmark counts them.", nullable=True),
            "dtype": Column(pl.String, "Element type.", nullable=True),
            "redop": Column(pl.String, "Reduction.", nullable=True),
            "in_place": Column(pl.Boolean, "Measured in place."),
            "time_ns": Column(pl.Int64, "Time of one operation, ns."),
            "algbw_gbs": Column(pl.Float64, "Bytes by time, GB/s (1e9)."),
            "busbw_gbs": Column(pl.Float64, "Bus bandwidth, GB/s (1e9)."),
            "wrong": Column(pl.Int64, "Wrong elements; null where results were not checked.", nullable=True),
        },
    ),
    # ---- derived per rank, by tracetool.derive ----
    "links": Schema(
        "One row an event, in the order of `events`: how events belong together.",
        {
            "rank": _RANK,
            "event": _EVENT,
            "kind": Column(Kind, "Kind of GPU activity; null for everything else.", nullable=True),
            "launch": Column(pl.Int64, "Event id of the API call that launched this GPU activity.", nullable=True),
            "op": Column(
                pl.Int64,
                "Event id of the innermost CPU operator that launched this GPU activity or encloses this API call.",
                nullable=True,
            ),
            "parent": Column(pl.Int64, "Event id of the enclosing event on the same CPU thread.", nullable=True),
            "depth": Column(pl.Int32, "Number of enclosing events on the same CPU thread.", nullable=True),
            "step": Column(
                pl.Int32,
                "Step that launched this GPU activity, or in whose range this CPU event starts.",
                nullable=True,
            ),
            "phase": Column(Phase, "Part of training this CPU event or GPU activity belongs to.", nullable=True),
        },
    ),
    "gpu": Schema(
        "One row a GPU activity after repair of impossible durations; the table most questions read.",
        {
            "rank": _RANK,
            "event": _EVENT,
            "track": Column(pl.Int32, "Key into `tracks` of this rank."),
            "start_ns": Column(pl.Int64, "Start, ns."),
            "dur_ns": Column(pl.Int64, "Duration after repair, ns."),
            "kind": Column(Kind, "compute, comm, memcpy or memset."),
            "name": Column(Text, "Name as the tracer wrote it."),
            "launch": Column(pl.Int64, "Event id of the API call that launched it; null for an orphan.", nullable=True),
            "launch_start_ns": Column(pl.Int64, "Start of that call, ns.", nullable=True),
            "launch_end_ns": Column(pl.Int64, "End of that call, ns.", nullable=True),
            "op": Column(pl.Int64, "Event id of the innermost CPU operator that launched it.", nullable=True),
            "step": Column(pl.Int32, "Step that launched it; null for orphans and outside steps.", nullable=True),
            "phase": Column(Phase, "Part of training it belongs to; null for orphans.", nullable=True),
        },
    ),
    "steps": Schema(
        "One row a step of a rank; one row with a null step when the trace has no step ranges.",
        {
            "rank": _RANK,
            "step": Column(
                pl.Int32, "Number of the step; null for the one window of a trace without steps.", nullable=True
            ),
            "start_ns": Column(pl.Int64, "Start of the step's window, ns."),
            "end_ns": Column(pl.Int64, "End of the step's window, ns."),
            "open_end": Column(pl.Boolean, "The last step: it ends with the last activity it launched."),
            "basis": Column(pl.String, "gpu: GPU time; cpu: no GPU activity, the CPU range; window: no step ranges."),
            "range_start_ns": Column(pl.Int64, "Start of the CPU range that defines the step, ns.", nullable=True),
            "range_end_ns": Column(pl.Int64, "End of that CPU range, ns.", nullable=True),
        },
    ),
    "comms": Schema(
        "One row a communication kernel of a rank.",
        {
            "rank": _RANK,
            "event": _EVENT,
            "op": Column(
                Text,
                "all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, reduce, gather, scatter, send, recv, "
                "send_recv, barrier or unknown.",
            ),
            "group": Column(Text, "Process group name.", nullable=True),
            "group_desc": Column(Text, "Process group description.", nullable=True),
            "group_ranks": Column(pl.List(pl.Int32), "Global ranks of the group, where complete.", nullable=True),
            "group_size": Column(pl.Int32, "Number of ranks in the group.", nullable=True),
            "seq": Column(pl.Int64, "Recorded sequence number within the group.", nullable=True),
            "start_ns": Column(pl.Int64, "Start of the kernel (arrival), ns."),
            "dur_ns": Column(pl.Int64, "Duration of the kernel, ns."),
            "track": Column(pl.Int32, "Key into `tracks` of this rank."),
            "bytes": Column(
                pl.Int64, "Total bytes S of the bandwidth formulas: the larger of the bytes in and out.", nullable=True
            ),
            "dtype": Column(Text, "Element type.", nullable=True),
            "peer": Column(pl.Int32, "Global rank of the other side of a send or receive.", nullable=True),
            "step": Column(pl.Int32, "Step that launched it.", nullable=True),
            "name": Column(Text, "Kernel name."),
        },
    ),
    "slots": Schema(
        "One row a slot of a pipeline's schedule: the GPU work of a forward or backward of one micro-batch.",
        {
            "rank": _RANK,
            "step": Column(pl.Int32, "Step that launched it; null in a trace without steps.", nullable=True),
            "iteration": Column(pl.Int32, "The step, else the ordinal of the training step within the trace."),
            "piece": Column(pl.Int32, "Slots with the same number were launched together, in one range."),
            "kind": Column(pl.String, "F forward, B backward or its input gradient alone, W weight gradient."),
            "microbatch": Column(pl.Int32, "Number of the micro-batch; with source launch the ordinal of its kind."),
            "stage": Column(pl.Int32, "Virtual stage, where the range names it.", nullable=True),
            "start_ns": Column(pl.Int64, "Start of its first compute kernel, ns."),
            "end_ns": Column(pl.Int64, "End of its last compute kernel, ns."),
            "launch_start_ns": Column(pl.Int64, "Start of the launch call of the first of them, ns."),
            "launch_end_ns": Column(pl.Int64, "Start of the launch call of the last of them, ns."),
            "kernels": Column(pl.Int32, "Number of its compute kernels."),
            "source": Column(
                pl.String, "pp or gpipe: ranges of torch.distributed.pipelining; launch: the order of launches."
            ),
            "schedule_hint": Column(pl.String, "Schedule that other ranges of the trace name.", nullable=True),
        },
    ),
    "quality": Schema(
        "What had to be repaired, left out or assumed while deriving a rank's tables.",
        {
            "rank": _RANK,
            "topic": Column(
                pl.String, "Short key: orphans, clipped, negative_latency, empty_ranges, outside_steps, …."
            ),
            "count": Column(pl.Int64, "How many events or ranges it concerns."),
            "ns": Column(pl.Int64, "How much time it concerns, ns.", nullable=True),
            "note": Column(pl.String, "The sentence for the reader."),
        },
    ),
    # ---- facts from the join, in the rank's own clock ----
    "waits": Schema(
        "One row a communication of this rank that the join knows something about.",
        {
            "rank": _RANK,
            "event": _EVENT,
            "wait_end_ns": Column(
                pl.Int64, "w of the definition: waiting is [start, w), moving is [w, end).", nullable=True
            ),
            "role": Column(pl.String, "Role of its group: dp, fsdp, tp, sp, pp, ep, cp or other."),
            "basis": Column(
                pl.String, "How w was found: symmetric, arrival, slots, partial (a lower bound), unmatched or unknown."
            ),
        },
    ),
    "clock": Schema(
        "One row: the clock of this rank. Aligned time = t + base_unix_ns + offset_ns + "
        "round(drift_ppm * 1e-6 * (t - t0_ns)).",
        {
            "rank": _RANK,
            "host": Column(pl.String, "Host whose clock it is."),
            "offset_ns": Column(pl.Int64, "What has to be added to its clock, ns."),
            "drift_ppm": Column(pl.Float64, "What has to be added per time since t0_ns, parts per million."),
            "t0_ns": Column(pl.Int64, "Origin of the drift in the rank's own clock, ns."),
            "base_unix_ns": Column(pl.Int64, "Unix time of clock value 0, ns; 0 where the trace does not say."),
            "component": Column(pl.Int32, "Ranks of one component can be compared in time, others cannot."),
            "residual_p95_ns": Column(
                pl.Int64, "How well its ends of collectives agree with the others', 95th percentile, ns.", nullable=True
            ),
        },
    ),
    "windows": Schema(
        "W of the pipeline for each step of this rank: first forward start to last backward end over the stages.",
        {
            "rank": _RANK,
            "replica": Column(pl.Int32, "Number of the pipeline it belongs to."),
            "stage": Column(pl.Int32, "Stage of the rank, from 0."),
            "step": Column(pl.Int32, "Step; null in a trace without steps.", nullable=True),
            "iteration": Column(pl.Int32, "The step, else the ordinal of the training step within the trace."),
            "start_ns": Column(pl.Int64, "Start, ns."),
            "end_ns": Column(pl.Int64, "End, ns."),
            "first_backward_ns": Column(pl.Int64, "Start of this rank's first backward, ns."),
            "last_forward_ns": Column(pl.Int64, "End of this rank's last forward, ns."),
        },
    ),
    "bubbles": Schema(
        "Stretches between two pipeline slots in which the next slot's input had not been sent.",
        {
            "rank": _RANK,
            "start_ns": Column(pl.Int64, "Start, ns."),
            "end_ns": Column(pl.Int64, "End, ns."),
        },
    ),
}
"""Every table by name. A parser fills any of the base tables; the rest are made by the core."""

BASE_TABLES: Final = (
    "events", "tracks", "op_shapes", "comm_args", "copies", "syncs", "counters", "process_groups", "ranks", "sources",
    "collectives", "group_status", "dumps", "log_facts", "bandwidth_curve",
)  # fmt: skip
DERIVED_TABLES: Final = ("links", "gpu", "steps", "comms", "slots", "quality")


def empty(table: str) -> pl.DataFrame:
    """Return the named table of the data model with no row."""
    return SCHEMAS[table].empty()


def frame(table: str, rows: Mapping[str, object]) -> pl.DataFrame:
    """Build a table of the data model from columns; columns left out become null, order follows the schema.

    Raises TracetoolError when a column does not belong to the table.
    """
    schema = SCHEMAS[table]
    unknown = sorted(set(rows) - set(schema.columns))
    if unknown:
        raise TracetoolError(f"{table}: no column {', '.join(unknown)} in the data model")
    given = pl.DataFrame(
        dict(rows),
        schema_overrides={name: schema.columns[name].dtype for name in rows},
        strict=False,
    )
    return conform(table, given)


def conform(table: str, given: pl.DataFrame) -> pl.DataFrame:
    """Return `given` with exactly the table's columns, in order and typed; missing ones are null."""
    schema = SCHEMAS[table]
    return given.select(
        (pl.col(name).cast(column.dtype) if name in given.columns else pl.lit(None, dtype=column.dtype).alias(name))
        for name, column in schema.columns.items()
    )


def check(table: str, given: pl.DataFrame) -> None:
    """Raise TracetoolError when `given` does not have the table's columns, types, or a value where one must be.

    The message names the table, the columns that are missing, and those that are there.
    """
    schema = SCHEMAS[table]
    missing = [name for name in schema.columns if name not in given.columns]
    if missing:
        raise TracetoolError(f"{table}: no column {', '.join(missing)}; has {', '.join(given.columns)}")
    for name, column in schema.columns.items():
        if given.schema[name] != column.dtype:
            raise TracetoolError(f"{table}.{name}: is {given.schema[name]}, must be {column.dtype}")
        if not column.nullable and given[name].null_count():
            raise TracetoolError(f"{table}.{name}: {given[name].null_count()} of {given.height} values are null")


def arrow_schema(table: str) -> pa.Schema:
    """Return the table's Arrow schema; each field carries its documentation as metadata `doc`."""
    schema = SCHEMAS[table]
    import pyarrow as pa  # noqa: PLC0415 - only exports need it

    fields = [
        field.with_metadata({"doc": schema.columns[field.name].doc}).with_nullable(schema.columns[field.name].nullable)
        for field in schema.empty().to_arrow().schema
    ]
    return pa.schema(fields, metadata={"doc": schema.doc})
