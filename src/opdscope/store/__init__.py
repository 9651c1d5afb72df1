"""What is kept on disk: run directories, and records of training runs."""

from opdscope.store.run import Run, is_run, open_run, remove_run, start_run
from opdscope.store.training_log import TrainingLog, is_watched, open_training_log

__all__ = ["Run", "TrainingLog", "is_run", "is_watched", "open_run", "open_training_log", "remove_run", "start_run"]
