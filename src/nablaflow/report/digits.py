"""How many digits of a figure its error leaves; without the libraries that draw."""

from __future__ import annotations

import math
import sys

EXPONENT = 1e-4
"""Numbers below it have one, as those of ``%g``: their zeros would take a table's whole width."""


def is_told(error: float | None, value: float) -> bool:
    """Whether an error is one, and more than the rounding of the figure itself."""
    if error is None or not math.isfinite(error):
        return False
    return error > sys.float_info.epsilon * abs(value)


def to_the_error(error: float, *values: float) -> list[str]:
    """Numbers to the second significant digit of their error, which is above 0.

    >>> to_the_error(0.00417, 0.81234, 0.00417)
    ['0.8123', '0.0042']
    >>> to_the_error(2.1e-14, -7.53e-14, 2.1e-14)
    ['-7.5e-14', '2.1e-14']
    """
    place = math.floor(math.log10(error))
    if max(map(abs, values)) >= EXPONENT:
        decimals = max(0, 1 - place)
        return [f"{value:.{decimals}f}" for value in values]
    return [f"{value:.{max(0, 1 + _place(value, place) - place)}e}" for value in values]


def _place(value: float, least: int) -> int:
    """Of the first digit, no lower than the error's own."""
    return max(least, math.floor(math.log10(abs(value)))) if value else least
