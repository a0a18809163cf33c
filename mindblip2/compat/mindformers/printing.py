"""What MindFormers prints, in its words."""

from collections.abc import Sequence


def print_support_list(class_name: str, names: Sequence[str]) -> Sequence[str]:
    """Print the three lines with which MindFormers lists what a class can load; returns ``names``."""
    print(f"support list of {class_name} is:\n{names}\n{'-' * 37}")
    return names
