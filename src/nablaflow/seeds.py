"""Seeds of random streams."""

import random


def stream(*parts: int | str) -> int:
    """A seed for one purpose: nearby arguments give unrelated streams."""
    return random.Random("/".join(map(str, parts))).getrandbits(63)
