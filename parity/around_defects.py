"""Deliberate defects of what surrounds the networks, see parity/defects.py."""

from PIL import Image

from mindblip2.data import transforms
from mindblip2.data.tokenizer import BertTokenizer
from mindblip2.trainer import optim, schedule
from parity.patches import replaced


def no_decay(model):
    """MindFormers' groups, when the first parameter is one that must not decay."""
    yield replaced(optim, "decayed", lambda parameter: False)


def warm_up_late(model):
    """The rate of the step before."""
    right = schedule.learning_rate
    yield replaced(schedule, "learning_rate", lambda config, step, *rest: right(config, max(step - 1, 0), *rest))


def not_antialiased(model):
    """MindFormers' resize of arrays: a filter that does not grow with the reduction."""
    yield replaced(transforms, "resize", lambda image, size: image.resize((size, size), Image.Resampling.NEAREST))


def truncated_early(model):
    """Texts lose a token more than they must."""
    encode = BertTokenizer._encode
    yield replaced(BertTokenizer, "_encode", lambda self, text, length: encode(self, text, length - 1))
