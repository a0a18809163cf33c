"""Learning rate per step: a straight warm-up, then half a cosine.

"cosine" falls step by step (the paper's appendix).  "cosine_epoch" is what LAVIS's LinearWarmupCosineLR
computes: within epoch 0 only the warm-up, then one rate per epoch.
"""

import math


def learning_rate(config, step, total_steps, epoch_steps=None):
    """Rate of ``step`` (0-based) out of ``total_steps`` for a ``ScheduleConfig``; ``epoch_steps`` for
    "cosine_epoch"."""
    top, low, start = config.learning_rate, config.lr_end, config.warmup_lr_init
    if config.type == "cosine_epoch":
        epoch, epochs = step // epoch_steps, -(-total_steps // epoch_steps)
        if epoch == 0:
            return min(top, start + (top - start) * step / max(config.warmup_steps, 1))
        return low + (top - low) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    warmup = config.warmup_steps
    if step < warmup:
        return start + (top - start) * step / warmup
    progress = (step - warmup) / max(total_steps - warmup, 1)
    return low + (top - low) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
