"""One YAML file describes one diagnosis."""

from opdscope.config.differences import differences
from opdscope.config.loading import load_config
from opdscope.config.paper import PaperConfig
from opdscope.config.sections import (
    RANDOM_LOGITS,
    Config,
    EmbeddedTaskConfig,
    ExactTaskConfig,
    JsonlTaskConfig,
    ModelConfig,
    ReasoningGymTaskConfig,
    TargetedConfig,
    TaskConfig,
    same_entropy_name,
)
from opdscope.config.target import TargetConfig
from opdscope.config.teachers import CONTEXTS, DEMONSTRATED_CONTEXTS, NULL_CONTEXTS, ContextKind, PromptFormat, TeacherConfig

__all__ = [
    "CONTEXTS",
    "DEMONSTRATED_CONTEXTS",
    "NULL_CONTEXTS",
    "RANDOM_LOGITS",
    "Config",
    "ContextKind",
    "EmbeddedTaskConfig",
    "ExactTaskConfig",
    "JsonlTaskConfig",
    "ModelConfig",
    "PaperConfig",
    "PromptFormat",
    "ReasoningGymTaskConfig",
    "TargetConfig",
    "TargetedConfig",
    "TaskConfig",
    "TeacherConfig",
    "differences",
    "load_config",
    "same_entropy_name",
]
