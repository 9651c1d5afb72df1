"""Watching and steering real training: a distillation trainer with weights and contexts, a live monitor, rules. Needs the extra `train`."""

from opdscope.training.callback import WatchingCallback, watch
from opdscope.training.distillation import MonitoredDistillationTrainer, self_teacher
from opdscope.training.probe import ProbeSet
from opdscope.training.questions import TaskReward, training_rows
from opdscope.training.rules import RulesConfig, load_rules

__all__ = [
    "MonitoredDistillationTrainer",
    "ProbeSet",
    "RulesConfig",
    "TaskReward",
    "WatchingCallback",
    "load_rules",
    "self_teacher",
    "training_rows",
    "watch",
]
