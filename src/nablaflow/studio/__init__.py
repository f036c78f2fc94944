"""A local page: look at runs, rate images, fit a reward to the ratings, align with it."""
