"""Time: steps, schedules, tasks.  ``Trainer`` is the one public name."""

from mindblip2.trainer.trainer import Trainer

__all__ = ["Trainer"]
