"""A gallery's files: a folder of images for each position, and a table of what they score."""

GALLERY = "gallery.json"
REFERENCE = "reference"
"""Name of the folder with the reference's images."""
