"""Drawn pipeline runs held to the simulator's truth, as a table.

    python tests/bench/pipelines.py [runs] [first seed] [slots]

Draws schedules (GPipe, 1F1B, interleaved with 2 and 3 chunks, ZB1P, ZBV, DualPipeV), p = 2 to 16, m = 4 to 64, tp, dp
and cp beside, jitter, slow ranks, heavy stages, stalls, skewed clocks, every framework's annotations and none. A run is
wrong when its schedule gets another's name, slots stand in another order, the bubble share is off by more than 0.002
(0.01 without annotations), parts do not sum to the ns, or, where all it takes was recorded, the budget is not exact
(0.01 of the step over several clocks). 150 runs of at most 90 slots took 4 CPU minutes.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline_cases import NUMBERED, Judged, draw, judge


def main(runs: int, first: int, slots: int) -> None:
    """Draw, judge and print."""
    rows: dict[tuple[str, str], list[Judged]] = defaultdict(list)
    for seed in range(first, first + runs):
        case = draw(seed, slots)
        judged = judge(case)
        naming = "numbered" if case.config.pp_annotations in NUMBERED else "not numbered"
        rows[str(case.config.schedule), naming].append(judged)
        if judged.wrong:
            sys.stderr.write(f"seed {seed}: {case.words}: {'; '.join(sorted(set(judged.wrong)))}\n")
    sys.stdout.write("| schedule | ranges | runs | recognised | exact | unknown | share off | budget off | wrong |\n")
    sys.stdout.write("|---|---|--:|--:|--:|--:|--:|--:|--:|\n")
    for (schedule, naming), found in sorted(rows.items()):
        exact = sum(one.slots == "exact" for one in found)
        named = sum(one.schedule not in ("-", "unknown") for one in found)
        budgets = [one.budget for one in found if one.budget == one.budget]  # NaN is not itself
        budget = f"{max(budgets):.5f}" if budgets else "-"
        sys.stdout.write(
            f"| {schedule} | {naming} | {len(found)} | {named} | {exact} | {len(found) - exact} | "
            f"{max(one.error for one in found):.5f} | {budget} | {sum(bool(one.wrong) for one in found)} |\n"
        )


if __name__ == "__main__":
    asked = [int(word) for word in sys.argv[1:]] + [160, 0, 300][len(sys.argv) - 1 :]
    main(*asked)
