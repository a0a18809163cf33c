"""Deliberate defects, and which case catches which."""
