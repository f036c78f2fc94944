"""How far long work has come: one object for every command, shown as bars or told in lines."""

from nablaflow.progress.show import show
from nablaflow.progress.work import Done, Progress, StartProgress, Work, unseen

__all__ = ["Done", "Progress", "StartProgress", "Work", "show", "unseen"]
