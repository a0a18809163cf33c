"""Learning rate per step: a straight warm-up, then half a cosine (paper appendix; LAVIS warms up the same way)."""
import math


def learning_rate(config, step, total_steps):
    """Rate of ``step`` (0-based) out of ``total_steps`` for a ``ScheduleConfig``."""
    warmup = min(config.warmup_steps, total_steps)
    if step < warmup:
        return config.warmup_lr_init + (config.learning_rate - config.warmup_lr_init) * step / warmup
    progress = (step - warmup) / max(total_steps - warmup, 1)
    return config.lr_end + (config.learning_rate - config.lr_end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
