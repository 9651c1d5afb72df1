"""A summary for people: text for the terminal."""

from opdscope.report.text import render_plan, render_summary

__all__ = ["render_plan", "render_summary"]
