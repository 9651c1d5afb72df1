"""A token world in which every success, gain and occupancy is known, behind the same protocols as real engines."""

from opdscope.models.exact.model import ExactModel, load_exact
from opdscope.models.exact.world import TEACHERS, ReasoningWorld

__all__ = ["TEACHERS", "ExactModel", "ReasoningWorld", "load_exact"]
