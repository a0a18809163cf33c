"""``python -m parity`` in a checkout; the code is in mindblip2/parity."""
