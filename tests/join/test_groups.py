"""Groups: identity by name and ranks, roles by description or by use, and `other` where in doubt."""

from __future__ import annotations

import polars as pl
import pytest

from tracetool.join.groups import SEEN_SCHEMA, Adopted, adopt, grid, role_by_name, role_by_use, unify
from tracetool.tables import empty, frame

Seen = tuple[int, str, str | None, list[int] | None, int | None, str, str, int]


def _unify(*seen: Seen, listed: pl.DataFrame | None = None) -> pl.DataFrame:
    table = pl.DataFrame(list(seen), schema=SEEN_SCHEMA, orient="row")
    return unify(table, empty("process_groups") if listed is None else listed)


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("DATA_PARALLEL_GROUP_WITH_CP", "dp"),
        ("TENSOR_MODEL_PARALLEL_GROUP", "tp"),
        ("PIPELINE_MODEL_PARALLEL_GROUP", "pp"),
        ("EXPERT_MODEL_PARALLEL_GROUP", "ep"),
        ("EXPERT_DATA_PARALLEL_GROUP", "dp"),
        ("EXPERT_TENSOR_PARALLEL_GROUP", "tp"),
        ("CONTEXT_PARALLEL_GROUP", "cp"),
        ("MODEL_PARALLEL_GROUP", "other"),
        ("EMBEDDING_GROUP", "other"),
        ("TENSOR_AND_DATA_PARALLEL_GROUP_WITH_CP", "other"),
        ("mesh_tp", "tp"),
        ("mesh_dp_replicate", "dp"),
        ("mesh_dp_shard", "fsdp"),
        ("mesh_dp_shard_cp", "fsdp"),
        ("mesh_dp_cp", "other"),
        ("mesh_pp_tp", "other"),
        ("mesh_pp", "pp"),
        ("mesh_ep", "ep"),
        ("mesh_sp", "sp"),
        ("data_parallel", "dp"),
        ("EXPERT_TENSOR_AND_MODEL_PARALLEL_GROUP", "other"),
        ("EXPERT_TENSOR_MODEL_PIPELINE_PARALLEL_GROUP", "other"),
        ("INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP", "dp"),
        ("mesh_dp_replicate_dp_shard", "other"),
        ("mesh_dp_replicate_dp_shard_cp", "other"),
        ("mesh_dp_shard_mod_ep", "fsdp"),
        ("mesh_efsdp", "fsdp"),
        ("mesh_etp", "tp"),
        ("sequence_data_parallel_group", "dp"),
        ("sequence_parallel_group", "sp"),
        ("pipe_parallel_group", "pp"),
        ("expert_data_parallel_group", "dp"),
        ("default_pg", None),
        ("undefined", None),
        ("17", None),
        (None, None),
        ("my_group", None),
    ],
)
def test_role_by_name(text: str | None, role: str | None) -> None:
    assert role_by_name(text) == role


@pytest.mark.parametrize(
    ("counts", "role"),
    [
        ({("send", "forward"): 4, ("recv", "other"): 4}, "pp"),
        ({("send_recv", "forward"): 4, ("send_recv", "backward"): 4}, "other"),
        ({("all_gather", "forward"): 2, ("all_gather", "backward"): 2, ("reduce_scatter", "backward"): 2}, "fsdp"),
        ({("all_gather", "forward"): 2, ("reduce_scatter", "forward"): 2, ("reduce_scatter", "backward"): 1}, "other"),
        ({("all_reduce", "forward"): 2, ("all_reduce", "backward"): 2}, "tp"),
        ({("all_reduce", "backward"): 2, ("broadcast", "forward"): 1}, "dp"),
        ({("all_reduce", "optimizer"): 1}, "other"),
        ({("all_to_all", "forward"): 2}, "other"),
        # keys and values of context parallelism: gathered in forward, their gradients scattered in backward
        ({("all_gather", "forward"): 2, ("reduce_scatter", "backward"): 2}, "other"),
        ({("all_gather", "forward"): 2, ("all_gather", "recompute"): 2, ("reduce_scatter", "backward"): 2}, "other"),
        ({("reduce_scatter", "backward"): 2, ("all_gather", "optimizer"): 2}, "dp"),
    ],
)
def test_role_by_use(counts: dict[tuple[str, str], int], role: str) -> None:
    assert role_by_use(counts) == role


def test_one_communicator_seen_from_all_its_ranks_is_one_group() -> None:
    groups = _unify(
        (0, "1", "mesh_tp", [0, 1], 2, "all_reduce", "forward", 3),
        (1, "1", "mesh_tp", [0, 1], 2, "all_reduce", "forward", 3),
    )
    assert groups.rows() == [(0, "1", "mesh_tp", [0, 1], 2, [0, 1], "tp", "description", 6)]


def test_one_name_with_other_ranks_is_another_group() -> None:
    groups = _unify(
        (0, "1", None, [0, 1], 2, "all_reduce", "backward", 1),
        (1, "1", None, [0, 1], 2, "all_reduce", "backward", 1),
        (2, "1", None, [2, 3], 2, "all_reduce", "backward", 1),
    )
    assert groups.select("group_id", "ranks", "members").rows() == [(0, [0, 1], [0, 1]), (1, [2, 3], [2])]


def test_members_come_from_the_listed_process_groups_where_the_kernels_do_not_tell() -> None:
    listed = frame("process_groups", {"rank": [0], "group": ["g"], "desc": ["dp"], "ranks": [[0, 4]], "size": [2]})
    groups = _unify((0, "g", None, None, None, "all_reduce", "backward", 1), listed=listed)
    assert groups.select("ranks", "size", "role").rows() == [([0, 4], 2, "dp")]


def test_unknown_members_are_joined_only_when_the_size_fits() -> None:
    fits = _unify(*((rank, "g", None, None, 2, "all_reduce", "backward", 1) for rank in (0, 1)))
    assert fits["members"].to_list() == [[0, 1]]
    apart = _unify(*((rank, "g", None, None, 2, "all_reduce", "backward", 1) for rank in (0, 1, 2)))
    assert apart["members"].to_list() == [[0], [1], [2]]
    assert apart["ranks"].to_list() == [[], [], []]


def test_the_grid_is_the_commonest_size_of_each_role() -> None:
    groups = _unify(
        *((rank, "t", "mesh_tp", [0, 1], 2, "all_reduce", "forward", 1) for rank in (0, 1)),
        (0, "d", "mesh_dp", [0, 2, 4, 6], 4, "all_reduce", "backward", 1),
        (0, "x", None, [0], 1, "barrier", "other", 1),
    )
    assert grid(groups) == {"dp": 4, "tp": 2}


def test_nothing_seen_is_no_group() -> None:
    assert _unify().height == 0
    assert grid(_unify()) == {}


def _adopt(descs: dict[str, str], *uses: tuple[int, str | None, str]) -> Adopted:
    """Adopt uses (rank, group, op); every rank lists the groups of `descs` with two ranks each."""
    seen = [(rank, group, None, None, None, op, "forward", 3) for rank, group, op in uses]
    ranks = sorted({use[0] for use in uses})
    listed = frame(
        "process_groups",
        {
            "rank": [rank for rank in ranks for _ in descs],
            "group": list(descs) * len(ranks),
            "desc": list(descs.values()) * len(ranks),
            "ranks": [[0, 1]] * len(descs) * len(ranks),
            "size": [2] * len(descs) * len(ranks),
        },
    )
    return adopt(pl.DataFrame(seen, schema=SEEN_SCHEMA, orient="row"), listed)


def test_kernels_without_arguments_go_to_the_one_group_of_the_usual_role() -> None:
    found = _adopt({"1": "mesh_tp", "2": "mesh_dp", "3": "mesh_pp"}, (0, None, "all_reduce"), (1, None, "send_recv"))
    assert found.seen["group"].to_list() == ["1", "3"]
    assert found.given == {"1": {0: ("all_reduce",)}, "3": {1: ("send_recv",)}}
    assert "6 communications carry no arguments (all_reduce, send_recv)" in found.notes[0]


def test_without_names_only_the_one_group_that_nothing_else_uses_can_be_meant() -> None:
    listed = {"0": "default_pg", "1": "undefined", "2": "undefined"}
    assert _adopt(listed, (0, "2", "all_gather"), (0, None, "all_reduce")).seen["group"].to_list() == ["2", "1"]
    both = _adopt(listed, (0, None, "all_reduce"))
    assert both.seen["group"].to_list() == [None]
    assert "could not be given one" in both.notes[0]


Use = tuple[int, str, int | None]


def _world(world: int | None, *uses: Use, listed: pl.DataFrame | None = None) -> Adopted:
    """Adopt uses (rank, op, recorded size) of a run in which no trace names a group."""
    seen = [(rank, None, None, None, size, op, "backward", 3) for rank, op, size in uses]
    table = pl.DataFrame(seen, schema=SEEN_SCHEMA, orient="row")
    return adopt(table, empty("process_groups") if listed is None else listed, world)


def test_communications_of_as_many_ranks_as_the_job_has_are_those_of_all_ranks() -> None:
    found = _world(4, *((rank, "all_reduce", 4) for rank in (0, 1, 3)))
    assert found.given == {"world": dict.fromkeys((0, 1, 3), ("all_reduce",))}
    groups = unify(found.seen, empty("process_groups"))
    assert groups.select("group", "ranks", "size", "members", "role", "role_source").rows() == [
        ("world", [0, 1, 2, 3], 4, [0, 1, 3], "dp", "operations")
    ]
    assert "9 communications can only be those of all 4 ranks" in found.notes[0]


def test_between_two_ranks_no_size_is_needed() -> None:
    found = _world(2, (0, "all_reduce", None), (1, "all_reduce", None))
    assert found.seen["group"].to_list() == ["world", "world"]


def test_sends_of_two_ranks_keep_their_own_role() -> None:
    uses = [(rank, op, "forward") for rank in (0, 1) for op in ("send", "recv")]
    uses += [(rank, "all_reduce", "optimizer") for rank in (0, 1)]
    seen = [(rank, None, None, None, None, op, phase, 3) for rank, op, phase in uses]
    found = adopt(pl.DataFrame(seen, schema=SEEN_SCHEMA, orient="row"), empty("process_groups"), 2)
    groups = unify(found.seen, empty("process_groups"))
    assert groups.select("group", "role").rows() == [("world", "other"), ("world p2p", "pp")]


@pytest.mark.parametrize(
    ("world", "uses"),
    [
        pytest.param(4, [(0, "all_reduce", None), (1, "all_reduce", None)], id="no size, more than two ranks"),
        pytest.param(4, [(0, "all_reduce", 2), (1, "all_reduce", 2)], id="smaller groups"),
        pytest.param(4, [(0, "all_reduce", 4), (0, "all_reduce", 2)], id="both sizes of one operation"),
        pytest.param(4, [(0, "all_reduce", 4), (0, "all_reduce", None)], id="some sizes not recorded"),
        pytest.param(None, [(0, "all_reduce", 2), (1, "all_reduce", 2)], id="size of the job not known"),
        pytest.param(1, [(0, "all_reduce", 1)], id="one rank"),
        pytest.param(2, [(0, "unknown", 2), (1, "unknown", 2)], id="operation not known"),
        pytest.param(2, [(5, "all_reduce", 2), (6, "all_reduce", 2)], id="no rank of that job"),
    ],
)
def test_where_smaller_groups_can_be_meant_nothing_is_adopted(world: int | None, uses: list[Use]) -> None:
    """That ranks send alike in the same order proves nothing: so they do in each of several smaller groups."""
    found = _world(world, *uses)
    assert found.seen["group"].null_count() == len(uses)
    assert found.given == {}
    assert "could not be given one: not matched" in found.notes[-1]


def test_a_run_that_lists_groups_has_no_need_of_the_group_of_all() -> None:
    listed = frame("process_groups", {"rank": [0], "group": ["1"], "desc": ["x"], "ranks": [[0, 1]], "size": [2]})
    assert _world(2, (0, "all_gather", 2), listed=listed).seen["group"].to_list() == [None]


def test_other_operations_and_groups_that_name_another_role_are_left_alone() -> None:
    assert _adopt({"1": "mesh_dp"}, (0, None, "all_reduce")).seen["group"].to_list() == [None]
    assert _adopt({"1": "mesh_tp"}, (0, None, "unknown")).seen["group"].to_list() == [None]
    assert _adopt({"1": "mesh_tp"}, (0, "1", "all_reduce")).notes == ()


def test_a_data_parallel_group_that_carries_sharded_parameters_is_fsdp() -> None:
    uses = (("all_gather", "forward"), ("all_gather", "backward"), ("reduce_scatter", "backward"))
    sharded = _unify(*((0, "d", "DATA_PARALLEL_GROUP_WITH_CP", [0, 1], 2, op, phase, 4) for op, phase in uses))
    assert sharded.select("role", "role_source").rows() == [("fsdp", "operations")]
    plain = _unify((0, "d", "DATA_PARALLEL_GROUP_WITH_CP", [0, 1], 2, "all_reduce", "backward", 4))
    assert plain.select("role", "role_source").rows() == [("dp", "description")]
