"""The only place where a headline number is made: pure functions of what is stored, no model and no torch needed."""

from opdscope.summary.chains import Bin, Chains, measure_chains
from opdscope.summary.comparison import compare_runs
from opdscope.summary.headline import Summary, summarize
from opdscope.summary.measures import node_scores
from opdscope.summary.plain import as_json

__all__ = ["Bin", "Chains", "Summary", "as_json", "compare_runs", "measure_chains", "node_scores", "summarize"]
