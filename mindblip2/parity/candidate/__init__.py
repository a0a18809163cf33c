"""The MindSpore side of every comparison."""
