"""Watching and steering real training: trainers with weights and contexts, a live monitor, rules. Needs the extra `train`."""

from opdscope.training.callback import WatchingCallback, watch
from opdscope.training.distillation import MonitoredDistillationTrainer, self_teacher
from opdscope.training.probe import ProbeSet
from opdscope.training.questions import TaskReward, training_rows
from opdscope.training.recipe import next_contexts, open_recipe, recipe_settings
from opdscope.training.reinforcement import MonitoredGRPOTrainer
from opdscope.training.rescoring import Rescored, monitor_dump
from opdscope.training.rules import RulesConfig, load_rules
from opdscope.training.self_distillation import expose_rollouts

__all__ = [
    "MonitoredDistillationTrainer",
    "MonitoredGRPOTrainer",
    "ProbeSet",
    "Rescored",
    "RulesConfig",
    "TaskReward",
    "WatchingCallback",
    "expose_rollouts",
    "load_rules",
    "monitor_dump",
    "next_contexts",
    "open_recipe",
    "recipe_settings",
    "self_teacher",
    "training_rows",
    "watch",
]
