"""One run: its settings, its loop, what is measured at its end, and what is kept of it."""
