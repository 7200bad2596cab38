"""What a person reads of a result: tables, what failed, and figures."""

from genmeasures.report.figures import plot_measures
from genmeasures.report.scores import markdown_scores, render_scores
from genmeasures.report.table import failures, markdown_table, print_line, render_table

__all__ = [
    "failures",
    "markdown_scores",
    "markdown_table",
    "plot_measures",
    "print_line",
    "render_scores",
    "render_table",
]
