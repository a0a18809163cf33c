"""Deliberate defects of what surrounds the networks, see mindblip2/parity/defects/stage1.py."""

from PIL import Image

from mindblip2.data.images import transforms
from mindblip2.data.text.tokenizer import BertTokenizer
from mindblip2.parity.defects.patches import replaced
from mindblip2.trainer import lr_schedule, optimizer


def no_decay(model):
    """MindFormers' groups, when the first parameter is one that must not decay."""
    yield replaced(optimizer, "decayed", lambda parameter: False)


def warm_up_late(model):
    """The rate of the step before."""
    right = lr_schedule.learning_rate
    yield replaced(
        lr_schedule, "learning_rate", lambda config, step, *rest: right(config, max(step - 1, 0), *rest)
    )


def not_antialiased(model):
    """MindFormers' resize of arrays: a filter that does not grow with the reduction."""
    yield replaced(
        transforms, "resize", lambda image, size: image.resize((size, size), Image.Resampling.NEAREST)
    )


def truncated_early(model):
    """Texts lose a token more than they must."""
    encode = BertTokenizer._encode
    yield replaced(BertTokenizer, "_encode", lambda self, text, length: encode(self, text, length - 1))


def converted_in_half(model):
    """A converter that keeps matrices in half precision."""
    from mindblip2.convert import plan  # needs torch, as both sides of this case do

    cast = plan.cast
    yield replaced(plan, "cast", lambda value, dtype, name: cast(value, dtype or "float16", name))


def norms_exchanged_on_the_way_back(model):
    """Two modules of the same shape under each other's names."""
    from mindblip2.convert import to_torch

    right = to_torch.source_name
    other = {"norm1": "norm2", "norm2": "norm1"}
    yield replaced(
        to_torch,
        "source_name",
        lambda source, name, freq: right(
            source, ".".join(other.get(part, part) for part in name.split(".")), freq
        ),
    )


def thirds_exchanged(model):
    """Baichuan's W_pack read as key, query, value."""
    from mindblip2.convert import tensor_transforms

    part = tensor_transforms.take_third
    yield replaced(tensor_transforms, "take_third", lambda value, index: part(value, (1, 0, 2)[index]))
