"""MindFormers r1.0: its preset, task and weight names, and its configuration keys."""
