"""Measuring a policy: samples, the reference bank, the exact tilt, the guard and the protocol."""
