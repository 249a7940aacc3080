"""A hang's verdict in sentences: who, why, in which operation, who waits, what is covered, what to do next.

Every sentence is whole and at most 160 characters: long lists are told by their number. Where they are shown decides
how they are broken into lines, and which are left out (tracetool/postmortem.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tracetool.join.hangstate import rank_text
from tracetool.units import short

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from tracetool.join.diagnose import Diagnosis
    from tracetool.join.dumpsets import Choice
    from tracetool.join.hangstate import State

LONGEST: Final = 160
_LONGEST_RANKS: Final = 40
_LONGEST_NAME: Final = 40
_HOSTS: Final = 2
_STACK_FRAMES: Final = 3
_SAYS: Final = {
    "never_launched": "never launched what the others wait for (CPU side)",
    "stuck_in_collective": "launched it and never finished (GPU side)",
    "mismatched_arguments": "called a collective with other arguments than its peers",
    "deadlock": "launched two groups' operations in opposite order",
    "no_dump": "is waited for and left no dump",
}
_PLURALS: Final = (
    (" its peers", " their peers"),
    ("is waited for and left", "are waited for and left"),
    ("does not answer", "do not answer"),
)
_IN: Final = {
    "never_launched": "Not launched",
    "stuck_in_collective": "Stuck in",
    "mismatched_arguments": "Called differently",
    "no_dump": "Waited for in",
    "all_inside": "All inside",
}
NEXT: Final = {
    "never_launched": "py-spy dump on {ranks}: data loader, GIL, checkpoint, exception?",
    "stuck_in_collective": "dmesg, nvidia-smi -q at {ranks}: Xid, ECC, a kernel without end.",
    "mismatched_arguments": "compare the code path of {ranks} with the peers'.",
    "deadlock": "launch the groups' operations in one order on {ranks}.",
    "no_dump": "log and exit code of {ranks}: out of memory, signal, lost node?",
    "all_inside": "check links and NICs: NCCL_DEBUG=INFO, ibstat, nvidia-smi nvlink -e.",
    "none": "if it did hang, dump while it hangs: TORCH_NCCL_DUMP_ON_TIMEOUT=1.",
    "unknown": "dumps of all ranks: TORCH_FR_BUFFER_SIZE, TORCH_NCCL_DUMP_ON_TIMEOUT=1.",
}
_SEVERAL_JOBS: Final = "tracetool postmortem on the files of each job alone."


@dataclass(frozen=True)
class Facts:
    """What the sentences speak of."""

    state: State
    verdict: Diagnosis
    operation: Mapping[str, object]
    """The verdict's operation: hangtables.call."""
    tables: Mapping[str, pl.DataFrame]
    hosts: Mapping[int, str]
    counted: bool
    """Nothing but RAS tells of the ranks."""
    choice: Choice
    """Which dumps count."""


def sentences(facts: Facts) -> list[tuple[str, str]]:
    """Return the verdict as (what a sentence tells, sentence), the culprits first and the next action last."""
    verdict = facts.verdict
    told = [
        ("who", who(facts)),
        ("cause", f"Cause: {verdict.cause}, confidence {verdict.confidence}."),
        ("why", f"Why: {verdict.why[0]}"),
    ]
    told += [("aside", sentence) for sentence in facts.choice.sentences()]
    told += [("doubt", sentence) for sentence in verdict.why[1:2] if sentence not in facts.choice.sentences()]
    if facts.operation:
        told.append(("operation", _operation(facts)))
    waiting = facts.tables["waiting"]
    told += [("waiting", _waits(row, facts)) for row in waiting.head(1).iter_rows(named=True)]
    own = facts.tables["culprits"].drop_nulls("stack")
    if own.height:
        row = own.row(0, named=True)
        told.append(("own stack", f"Last of rank {row['rank']}: {row['last_op']} in {_short_stack(row['stack'])}."))
    stacks = waiting.drop_nulls("stack")
    if stacks.height:
        told.append(("stack", f"Waiting in {_short_stack(stacks['stack'][0])}."))
    told += [("coverage", _covered(facts)), ("next", f"Next: {next_action(facts)}")]
    return [(part, short(sentence, LONGEST)) for part, sentence in told]


def who(facts: Facts) -> str:
    """Return the sentence that names the culprits, or says why none is named."""
    verdict = facts.verdict
    if facts.choice.jobs:
        return "The dumps are of several jobs: no verdict over a mixture."
    if verdict.cause == "none":
        return "No hang was found."
    if verdict.cause == "all_inside":
        return "No rank is to blame: every member is inside the same operation."
    if not verdict.culprits:
        return "It cannot be told which rank is to blame."
    places = sorted({facts.hosts[rank] for rank in verdict.culprits if rank in facts.hosts})
    where = f" on {', '.join(short(place, _LONGEST_NAME) for place in places[:_HOSTS])}" if places else ""
    where += f" and {len(places) - _HOSTS} more hosts" if len(places) > _HOSTS else ""
    says = _SAYS[verdict.cause]
    if facts.counted and verdict.cause == "no_dump":
        says = "does not answer RAS"
    if len(verdict.culprits) > 1:
        for one, several in _PLURALS:
            says = says.replace(one, several)
    sentence = f"{ranks_named(verdict.culprits)}{where} {says}."
    return sentence[0].upper() + sentence[1:]


def next_action(facts: Facts) -> str:
    """Return what to do next."""
    if facts.choice.jobs:
        return _SEVERAL_JOBS
    return NEXT[facts.verdict.cause].format(ranks=ranks_named(facts.verdict.culprits))


def ranks_named(ranks: Sequence[int]) -> str:
    """Return `rank 3`, `ranks 0-2`, or `24 ranks` where the list is long."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {text}" if len(text := rank_text(ranks)) <= _LONGEST_RANKS else f"{len(ranks)} ranks"


def _listed(text: str, count: int) -> str:
    """Return ranks as written in a table, or their number where the list is long."""
    named = text if len(text) <= _LONGEST_RANKS else f"{count} ranks"
    return f"rank {named}" if count == 1 else f"ranks {named}" if named == text else named


def _group(row: Mapping[str, object]) -> str:
    desc = f" {short(str(row['group_desc']), _LONGEST_NAME)}" if row["group_desc"] else ""
    ranks = str(row["group_ranks"])
    members = f" ({f'ranks {ranks}' if len(ranks) <= _LONGEST_RANKS else 'many ranks'})"
    return f"group {short(str(row['group']), _LONGEST_NAME)}{desc}{members}"


def _operation(facts: Facts) -> str:
    row = facts.operation
    sizes = "".join(f" {short(str(row[key]), _LONGEST_NAME)}" for key in ("in_sizes", "dtype") if row[key])
    if sizes.startswith(" [[") and "], [" not in sizes:
        sizes = sizes.replace("[[", "[", 1).replace("]]", "]", 1)  # one tensor
    said = _IN.get(facts.verdict.cause, "Operation")
    return f"{said}: {row['op'] or 'an operation'} seq {row['seq']}{sizes}, {_group(row)}."


def _waits(row: Mapping[str, object], facts: Facts) -> str:
    """Return who waits for whom, and in which operation where that is another than the one told before."""
    known = facts.operation
    alike = all(row[key] == known.get(key) for key in ("group", "group_ranks", "op", "seq"))
    same_group = all(row[key] == known.get(key) for key in ("group", "group_ranks"))
    told = f"{row['op'] or 'an operation'} seq {row['seq']}"
    place = "it" if alike else f"the later {told}" if _later(row, known, same_group=same_group) else told
    if not (alike or same_group):
        place += f" of group {short(str(row['group_desc'] or row['group']), _LONGEST_NAME)}"
    count = row["count"]
    waiters = _listed(str(row["ranks"]), count if isinstance(count, int) else 0)
    verb = "waits" if count == 1 else "wait"
    awaited = str(row["waits_for"])
    awaited = awaited if len(awaited) <= _LONGEST_RANKS else "many ranks"
    return f"{waiters[0].upper()}{waiters[1:]} {verb} for {awaited} in {place}."


def _later(row: Mapping[str, object], known: Mapping[str, object], *, same_group: bool) -> bool:
    mine, other = row["seq"], known.get("seq")
    return same_group and isinstance(mine, int) and isinstance(other, int) and mine > other


def _short_stack(stack: str) -> str:
    """Return the innermost frames outside torch, as `function file:line < …`."""
    frames = [line.split(" ", 1) for line in stack.split("\n") if " " in line]
    own = [frame for frame in frames if "/torch/" not in frame[1]] or frames
    named = [f"{function} {place.rpartition('/')[2]}" for function, place in own[:_STACK_FRAMES]]
    return " < ".join(short(name, _LONGEST_NAME) for name in named)


def _covered(facts: Facts) -> str:
    """Return what the verdict rests on: how many dumps of how many ranks, and what they lack."""
    state, coverage = facts.state, facts.tables["coverage"]
    read = coverage.filter(state="read")
    text = f"Coverage: {len(state.known)} of {len(state.world)} ranks told"
    missing = rank_text(set(state.world) - state.known)
    text += f", none from {missing if len(missing) <= _LONGEST_RANKS else 'the rest'}" if missing else ""
    for word, column in (("format", "version"), ("library", "library")):
        found = sorted({value for value in read[column].to_list() if value})
        text += f", {word} {'/'.join(found[:3])}" if found else ""
    text += ", only active records" if bool(read["only_active"].fill_null(value=False).any()) else ""
    text += ", older records overwritten" if bool(read["overwritten"].fill_null(value=False).any()) else ""
    text += ", dumps read in part" if not bool(read["whole"].fill_null(value=True).all()) else ""
    return f"{text}."
