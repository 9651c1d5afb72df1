"""The only place where a headline number is made: pure functions of what is stored, no model and no torch needed."""

from opdscope.summary.chains import Bin, Chains, measure_chains
from opdscope.summary.headline import Summary, summarize
from opdscope.summary.nodes import node_scores

__all__ = ["Bin", "Chains", "Summary", "measure_chains", "node_scores", "summarize"]
