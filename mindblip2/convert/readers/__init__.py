"""Readers of weight files as lazy state dicts."""
