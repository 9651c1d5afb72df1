"""Watching and steering real training: a distillation trainer with weights and contexts, a live monitor, rules. Needs the extra `train`."""
