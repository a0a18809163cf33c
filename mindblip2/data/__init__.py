"""Bytes and text in, arrays out.  Nothing here knows a cell; nothing here imports MindSpore before it has
to."""
