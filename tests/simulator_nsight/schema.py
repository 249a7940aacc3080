"""Columns of the tables in three generations: `!` after a name is NOT NULL; `:T`, `:R` are text and real, else integer.

V21: nsys 2021 (no version table), V37: 2023.4 (schema 3.7.2), V325: 2026.2 (schema 3.25.0).
"""

from __future__ import annotations

from typing import Final

GENERATIONS: Final = ("V21", "V37", "V325")

_KERNEL_START = "start! end! deviceId! contextId!"
_KERNEL_BLOCK = (
    "launchType cacheConfig registersPerThread! gridX! gridY! gridZ! blockX! blockY! blockZ! staticSharedMemory! "
    "dynamicSharedMemory! localMemoryPerThread! localMemoryTotal! gridId! sharedMemoryExecuted graphNodeId"
)
_KERNEL_IDS = "streamId! correlationId globalPid demangledName! shortName!"
_KERNEL_37 = f"{_KERNEL_START} greenContextId {_KERNEL_IDS} mangledName {_KERNEL_BLOCK} sharedMemoryLimitConfig"
_KERNEL_324 = (
    "qmdBulkReleaseDone qmdPreexitDone qmdLastCtaDone graphId clusterX clusterY clusterZ clusterSchedulingPolicy "
    "maxPotentialClusterSize maxActiveClusters sharedMemoryRequestedPercentage"
)
_MEMCPY_END = "copyKind! deprecatedSrcId srcKind dstKind srcDeviceId srcContextId dstDeviceId dstContextId"
_MEMCPY_37 = (
    f"start! end! deviceId! contextId! greenContextId streamId! correlationId globalPid bytes! {_MEMCPY_END} "
    "migrationCause graphNodeId virtualAddress"
)
_SYNC = "start! end! deviceId! contextId!"
_RUNTIME = "start! end! eventClass! globalTid correlationId nameId! returnValue! callchainId"
_NVTX = (
    "start! end eventType! rangeId category color text:T globalTid endGlobalTid textId domainId uint64Value int64Value "
    "doubleValue:R uint32Value int32Value floatValue:R jsonTextId jsonText:T"
)
_GPU = (
    "vmId! id! name:T busLocation:T isDiscrete l2CacheSize totalMemory memoryBandwidth clockRate smCount pwGpuId "
    "uuid:T luid chipName:T cuDevice"
)
_GRAPH_TRACE = "start end deviceId contextId greenContextId streamId correlationId globalPid graphId graphExecId"
_SHARED = {
    "StringIds": "id! value!:T",
    "ThreadNames": "nameId! priority globalTid",
    "ProcessStreams": "globalPid! filenameId! contentId!",
}
_LATER = {
    "PROCESSES": "globalPid pid name:T",
    "ANALYSIS_DETAILS": "globalVid! duration! startTime! stopTime!",
    "META_DATA_EXPORT": "name!:T value:T",
    "META_DATA_CAPTURE": "name!:T value:T",
    "TARGET_INFO_SYSTEM_ENV": "globalVid devStateName!:T name!:T nameEnum! value!:T",
}

SCHEMAS: Final[dict[str, dict[str, str]]] = {
    "V21": {
        **_SHARED,
        "CUPTI_ACTIVITY_KIND_KERNEL": f"{_KERNEL_START} {_KERNEL_IDS} {_KERNEL_BLOCK}",
        "CUPTI_ACTIVITY_KIND_MEMCPY": (
            f"start! end! deviceId! contextId! streamId! correlationId globalPid bytes! {_MEMCPY_END} graphNodeId"
        ),
        "CUPTI_ACTIVITY_KIND_RUNTIME": "start! end! eventClass! globalTid correlationId nameId! returnValue!",
        "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION": f"{_SYNC} streamId! correlationId globalPid syncType! eventId!",
        "NVTX_EVENTS": _NVTX,
        "TARGET_INFO_CUDA_GPU": (
            "vmId! name!:T pciBusId:T globalMemoryBandwidth! globalMemorySize! coreClockRate! numMultiprocessors! "
            "deviceId! pid"
        ),
        "PROFILER_OVERHEAD": "start! end! globalTid correlationId nameId! returnValue!",
    },
    "V37": {
        **_SHARED,
        **_LATER,
        "CUPTI_ACTIVITY_KIND_KERNEL": _KERNEL_37,
        "CUPTI_ACTIVITY_KIND_MEMCPY": _MEMCPY_37,
        "CUPTI_ACTIVITY_KIND_MEMSET": (
            "start! end! deviceId! contextId! greenContextId streamId! correlationId globalPid value! bytes! "
            "graphNodeId memKind"
        ),
        "CUPTI_ACTIVITY_KIND_RUNTIME": _RUNTIME,
        "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION": (
            f"{_SYNC} greenContextId streamId! correlationId globalPid syncType! eventId!"
        ),
        "CUPTI_ACTIVITY_KIND_CUDA_EVENT": (
            "deviceId! contextId! greenContextId streamId! correlationId globalPid eventId!"
        ),
        "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": _GRAPH_TRACE,
        "NVTX_EVENTS": _NVTX,
        "TARGET_INFO_GPU": _GPU,
        "TARGET_INFO_SESSION_START_TIME": "utcEpochNs utcTime:T localTime:T",
        "PROFILER_OVERHEAD": "start! end! globalTid nameId! returnValue!",
    },
    "V325": {
        **_SHARED,
        **_LATER,
        "CUPTI_ACTIVITY_KIND_KERNEL": f"{_KERNEL_37} {_KERNEL_324} tensorSizeMinusOneElements!:T",
        "CUPTI_ACTIVITY_KIND_MEMCPY": f"{_MEMCPY_37} copyCount",
        "CUPTI_ACTIVITY_KIND_MEMSET": (
            "start! end! deviceId! contextId! greenContextId streamId! correlationId globalPid value! bytes! "
            "graphNodeId memKind"
        ),
        "CUPTI_ACTIVITY_KIND_RUNTIME": _RUNTIME,
        "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION": (
            f"{_SYNC} greenContextId streamId! correlationId globalPid deprecatedSyncType "
            "syncType! eventId! eventSyncId"
        ),
        "CUPTI_ACTIVITY_KIND_CUDA_EVENT": (
            "timestamp deviceId! contextId! greenContextId streamId! correlationId globalPid eventId! eventSyncId"
        ),
        "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": _GRAPH_TRACE,
        "CUPTI_ACTIVITY_KIND_OVERHEAD": "start! end! eventClass! globalTid correlationId nameId overheadType!",
        "NVTX_EVENTS": f"{_NVTX} binaryData:T",
        "NVTX_PAYLOAD_SCHEMAS": "domainId schemaId name:T type flags numEntries payloadSize alignTo",
        "NVTX_PAYLOAD_SCHEMA_ENTRIES": (
            "domainId! schemaId! idx! flags type name:T description:T arrayOrUnionDetail offset"
        ),
        "TARGET_INFO_GPU": _GPU,
        "TARGET_INFO_CUDA_DEVICE": "gpuId cudaId! pid! uuid:T numMultiprocessors",
        "TARGET_INFO_SESSION_START_TIME": "utcEpochNs utcTime:T localTime:T systemClockNs",
        "DIAGNOSTIC_EVENT": "timestamp! timestampType! source! severity! text!:T globalPid",
        "PROFILER_OVERHEAD": "start! end! globalTid nameId! overheadType!",
    },
}

PAYLOADS: Final[dict[str, list[tuple[str, int, int]]]] = {
    "init": [("NCCL communicator ID", 18, 0), ("No. of ranks", 5, 8), ("Rank", 5, 12), ("CUDA device", 5, 16)],
    "communicator": [("NCCL communicator ID", 18, 0)],
    "size": [("NCCL communicator ID", 18, 0), ("Message size [bytes]", 22, 8)],
    "reduction": [
        ("NCCL communicator ID", 18, 0),
        ("Message size [bytes]", 22, 8),
        ("Reduction operation", 16777232, 16),
    ],
    "rooted": [("NCCL communicator ID", 18, 0), ("Message size [bytes]", 22, 8), ("Root", 5, 16)],
    "peer": [("NCCL communicator ID", 18, 0), ("Message size [bytes]", 22, 8), ("Peer rank", 5, 16)],
}
"""Fields of NCCL's payloads: name, type code, offset in bytes."""
PAYLOAD_BYTES: Final = {"init": 24, "communicator": 8, "size": 16, "reduction": 24, "rooted": 24, "peer": 24}


def columns(generation: str, table: str) -> list[tuple[str, str, bool]]:
    """Return (name, SQL type, NOT NULL) of each column of a table, in order."""
    found = []
    for word in SCHEMAS[generation][table].split():
        name, _, kind = word.partition(":")
        required = name.endswith("!")
        found.append((name.removesuffix("!"), {"": "INTEGER", "T": "TEXT", "R": "REAL"}[kind], required))
    return found
