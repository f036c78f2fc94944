"""Methods side by side: the same time for each, one gauge for all, and the exact tilt beside."""

from nablaflow.comparison.asked import compare_asked
from nablaflow.comparison.entrants import BYSTANDERS, ENTRANTS
from nablaflow.comparison.finished import compare_runs
from nablaflow.comparison.gauge import Gauge
from nablaflow.comparison.outcome import Outcome
from nablaflow.comparison.race import race
from nablaflow.comparison.study import ComparisonCell, ComparisonStudy

__all__ = [
    "BYSTANDERS",
    "ENTRANTS",
    "ComparisonCell",
    "ComparisonStudy",
    "Gauge",
    "Outcome",
    "compare_asked",
    "compare_runs",
    "race",
]
