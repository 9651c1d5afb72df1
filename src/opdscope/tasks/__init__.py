"""Questions, and the verifiers that judge responses to them."""

from opdscope.config import EmbeddedTaskConfig, ExactTaskConfig, JsonlTaskConfig, ReasoningGymTaskConfig, TaskConfig
from opdscope.tasks.base import Task, VerifierSpec
from opdscope.tasks.embedded import load_embedded
from opdscope.tasks.exact import load_exact_task
from opdscope.tasks.jsonl import load_jsonl
from opdscope.tasks.reasoning_gym import load_reasoning_gym
from opdscope.tasks.verification import VerifierPool, VerifyItem

__all__ = ["Task", "VerifierPool", "VerifierSpec", "VerifyItem", "load_task"]


def load_task(config: TaskConfig) -> Task:
    """The questions, verifier and prompts of a task; the same for the same config on every machine.

    Raises:
        TaskError: If the questions are missing, too few, or have no answer that can be verified; the text says what to do.
    """
    match config:
        case EmbeddedTaskConfig():
            return load_embedded(config)
        case ExactTaskConfig():
            return load_exact_task(config)
        case ReasoningGymTaskConfig():
            return load_reasoning_gym(config)
        case JsonlTaskConfig():
            return load_jsonl(config)
