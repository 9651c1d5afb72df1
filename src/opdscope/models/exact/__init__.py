"""Worlds in which every success, gain and occupancy is known, behind the same protocols as real engines."""

from opdscope.models.exact.model import ExactModel, load_exact
from opdscope.models.exact.reasoning import ReasoningWorld
from opdscope.models.exact.tree import TreeWorld
from opdscope.models.exact.world import TEACHERS, World

__all__ = ["TEACHERS", "ExactModel", "ReasoningWorld", "TreeWorld", "World", "load_exact"]
