"""A discrete-event simulator of distributed training runs that knows the truth about them.

    run = simulate(Config(dp=2, tp=2, pp=2, slow_ranks={3: 1.2}))
    paths = run.write_kineto(directory)
    run.truth().budget()                # without the join: matched communications count as moving
    run.truth(joined=True).budget()     # with waiting told apart
    run.truth(ranks=[0]).budget()       # someone who has rank 0 alone

    run.step_ns, run.elapsed_ns         # true times; whatif.* make the config of a change to simulate again
    run.write_kineto(directory, ranks=[0], repeat=500, names="rank{rank}.json")  # a large file for a benchmark

Every knob of a run is a documented field of Config, every variant of a file one of kineto.Options. A run has the same
events, to the ns, whenever it is simulated; so have its files. Noise is drawn per rank and per rendezvous: a run with
one knob changed keeps all other draws.

It imports nothing of tracetool, so that a test that compares the two compares two independent readings of the
definitions.
"""

from simulator.budget import BUCKETS
from simulator.config import Config, Slot, SlowLink, Stall
from simulator.run import Run, simulate
from simulator.truth import Truth

__all__ = ["BUCKETS", "Config", "Run", "Slot", "SlowLink", "Stall", "Truth", "simulate"]
