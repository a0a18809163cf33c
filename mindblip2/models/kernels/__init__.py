"""Operators that one kind of device computes in its own way."""
