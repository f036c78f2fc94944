"""Recipes: their settings and defaults, and what the command line lays over them."""
