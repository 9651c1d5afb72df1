"""A run for people: text for the terminal, and one HTML file."""

from opdscope.report.chain_text import render_chain
from opdscope.report.check_text import check_data, render_check
from opdscope.report.compare_text import render_comparison
from opdscope.report.text import render_plan, render_summary
from opdscope.report.training_text import render_training
from opdscope.report.writing import read_chain, write_report, write_training_report

__all__ = [
    "check_data",
    "read_chain",
    "render_chain",
    "render_check",
    "render_comparison",
    "render_plan",
    "render_summary",
    "render_training",
    "write_report",
    "write_training_report",
]
