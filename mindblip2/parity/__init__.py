"""Equality with PyTorch as an artefact that a user can run: the torch twin, the comparison, the report.

``mindblip2`` never imports this package; it needs torch, which an NPU host can do without.
"""
