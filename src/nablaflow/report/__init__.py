"""Pictures, curves, tables and the HTML report of a run."""

from nablaflow.report.curves import loss_curves, png, reward_curve
from nablaflow.report.html import write_report
from nablaflow.report.loading import Saved
from nablaflow.report.meaning import About
from nablaflow.report.pictures import before_after, grid
from nablaflow.report.protocol import protocol_curves, protocol_table
from nablaflow.report.table import html_table, rich_table, rows

__all__ = [
    "About",
    "Saved",
    "before_after",
    "grid",
    "html_table",
    "loss_curves",
    "png",
    "protocol_curves",
    "protocol_table",
    "reward_curve",
    "rich_table",
    "rows",
    "write_report",
]
