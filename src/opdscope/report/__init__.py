"""A run for people: text for the terminal, and one HTML file."""

from opdscope.report.chain_text import render_chain
from opdscope.report.text import render_plan, render_summary
from opdscope.report.training_text import render_training
from opdscope.report.writing import read_chain, write_report

__all__ = ["read_chain", "render_chain", "render_plan", "render_summary", "render_training", "write_report"]
