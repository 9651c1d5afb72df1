"""Memory and time, from the plan of the diagnosis."""

from opdscope.models.memory import FreeMemory
from opdscope.pipeline.checks.lines import CheckLine, State
from opdscope.pipeline.plan import Plan

_NEARLY = 0.8
"""Share of the free memory above which other programs may get into the way."""

_LONG_SECONDS = 24 * 3600.0


def check_memory(plan: Plan, free: FreeMemory | None) -> CheckLine:
    """What a diagnosis needs against what was free before the models were loaded."""
    needed = f"about {plan.memory_bytes / 1e9:.1f} GB ({plan.memory_note})"
    if free is None:
        return CheckLine("memory", State.WARN, f"{needed}; how much is free cannot be told on this system", "see that this much is free")
    value = f"{needed}; {free.num_bytes / 1e9:.1f} GB of {free.where} free"
    remedy = "lower engine.max_rows or engine.chunk_rows, use dtype: bfloat16, or a larger machine"
    share = plan.memory_bytes / free.num_bytes if free.num_bytes > 0 else float("inf")
    if share > 1:
        return CheckLine("memory", State.FAIL, value, remedy)
    return CheckLine("memory", State.WARN, value, remedy) if share > _NEARLY else CheckLine("memory", State.PASS, value)


def check_time(plan: Plan) -> CheckLine:
    """How long a diagnosis would take on this machine, if responses are as long as expected."""
    assert plan.expected_seconds is not None
    hours, most = plan.expected_seconds / 3600, plan.most_tokens / max(plan.expected_tokens, 1)
    took = f"{plan.expected_seconds:.0f} s" if hours < 0.05 else f"{hours:.1f} h"
    value = f"about {took} for {plan.expected_tokens:,} tokens ({plan.length_source}); {most:.1f} times as much if every response is cut"
    if plan.expected_seconds > _LONG_SECONDS:
        return CheckLine(
            "time", State.WARN, value, "`opdscope plan CONFIG` shows where it goes; fewer rollouts or continuations, or a smaller probe set"
        )
    return CheckLine("time", State.PASS, value)
