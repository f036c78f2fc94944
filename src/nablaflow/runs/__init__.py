"""Whole jobs: align, evaluate, sample. The command line and `nf.*` end here."""
