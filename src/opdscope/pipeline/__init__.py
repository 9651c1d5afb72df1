"""The stages in order, each one resumable: rollouts → contexts → screening → nodes → continuations."""

from opdscope.pipeline.checks import CheckReport, check
from opdscope.pipeline.diagnosis import diagnose, roll_out, screen
from opdscope.pipeline.gradients import carry_gradients
from opdscope.pipeline.plan import Plan, make_plan
from opdscope.pipeline.watching import Silent, Watcher

__all__ = ["CheckReport", "Plan", "Silent", "Watcher", "carry_gradients", "check", "diagnose", "make_plan", "roll_out", "screen"]
