"""For tests of flows and modules: run one module alone, rehearse a flow, move the clock, and claim conservation.

`flow.test(...)` rehearses a flow. `furcula.testing.plugin` has fixtures for pytest, and `furcula.testing.transports`
the suite that every transport passes; only those two import pytest.
"""

from furcula.engine.moving import MovingLoop, run_moving
from furcula.engine.rehearsal import EPOCH, Rehearsal
from furcula.testing.clock import moving_clock
from furcula.testing.module import ModuleResult, run_module
from furcula.testing.settled import assert_settled

__all__ = [
    "EPOCH",
    "ModuleResult",
    "MovingLoop",
    "Rehearsal",
    "assert_settled",
    "moving_clock",
    "run_module",
    "run_moving",
]
