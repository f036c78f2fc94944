"""Names in a folder of judged images: which files are images, its tables and their columns."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

RATINGS, PAIRS = "ratings.csv", "pairs.csv"
COLUMNS = {RATINGS: ("image", "score"), PAIRS: ("preferred", "rejected")}
PROMPT, RATER, PICK = "prompt", "rater", "pick"
"""Columns besides; `nablaflow studio` writes who judged, and why this was asked about."""

RANDOM = "random"
"""The pick of what was drawn at random."""
