"""One update, and the loop around it."""
