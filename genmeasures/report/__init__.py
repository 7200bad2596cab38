"""Reports on results: tables, failures and figures."""

from genmeasures.report.console import Column, make_console, print_json, print_line, print_table
from genmeasures.report.figures import plot_measures
from genmeasures.report.runs import JudgedRun, by_run, render_by_run, render_index
from genmeasures.report.table import markdown_table, render_table, write_table, write_text
from genmeasures.results.summary import failures, model_notes, mostly_failed, skipped

__all__ = [
    "Column",
    "JudgedRun",
    "by_run",
    "failures",
    "make_console",
    "markdown_table",
    "model_notes",
    "mostly_failed",
    "plot_measures",
    "print_json",
    "print_line",
    "print_table",
    "render_by_run",
    "render_index",
    "render_table",
    "skipped",
    "write_table",
    "write_text",
]
