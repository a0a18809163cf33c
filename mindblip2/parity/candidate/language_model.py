"""Our side of the cases of a language model (mindblip2/parity/cases/language_model.py), by the case's name
behind the model's.

Padding has no meaning, so what comes out there is multiplied by the mask.

    # B batch · T positions · N new tokens · D width · V vocabulary
"""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from mindblip2.config import OPTConfig
from mindblip2.models.llama import Llama
from mindblip2.models.opt import OPT

MODEL = r"(llama3?|baichuan2?_7b|baichuan_13b|opt) "  # how the name of such a case begins


ROWS = 64  # words that a window of one layer is built with; the head is compared by itself


def one_layer(config):
    """The configuration of a window: one layer, few words. No special id is used there."""
    return config.replace(
        num_layers=1, vocab_size=min(ROWS, config.vocab_size), bos_token_id=0, eos_token_id=0, pad_token_id=0
    )


def is_baichuan(config) -> bool:
    """Has the model what Baichuan has and no Llama? Then its seeded weights have Baichuan's names."""
    return not isinstance(config, OPTConfig) and (
        config.position_embedding == "alibi" or config.normalized_head
    )


class Holder(nn.Cell):
    """Gives the parameters the names that they have in a BLIP-2."""

    def __init__(self, llm: nn.Cell):
        super().__init__()
        self.llm = llm


def new_cell(config) -> nn.Cell:
    """Our model without weights."""
    with ms.nn.utils.no_init_parameters():
        return Holder(OPT(config) if isinstance(config, OPTConfig) else Llama(config))


def kept(y_BTD, mask_BT):
    """Only where there are tokens."""
    return y_BTD * (mask_BT[..., None] > 0)


def part(model: nn.Cell, x, path: str, counted=None):
    cell = model.llm
    for name in path.split("."):
        cell = cell[int(name)] if name.isdigit() else getattr(cell, name)
    return cell(x) if counted is None else kept(cell(x), counted)


def attention(model: nn.Cell, x, mask, i: str):
    return kept(model.llm.layers[int(i)].attention(x, *model.llm.begin(x, mask)[1:])[0], mask)


def layer(model: nn.Cell, x, mask, i: str, counted=None):
    return kept(
        model.llm.layers[int(i)](x, *model.llm.begin(x, mask)[1:])[0], mask if counted is None else counted
    )


def hidden(model: nn.Cell, x, mask):
    """What goes into the first layer, what comes out of each, the last through the final norm: errors add
    up."""
    llm = model.llm
    x, bias, turn = llm.begin(x, mask)
    found = [x]
    for one in llm.layers:
        found.append(one(found[-1], bias, turn)[0])
    return tuple(kept(y, mask) for y in (*found[:-1], llm.norm(found[-1])))


def logits(model: nn.Cell, x, mask):
    return kept(model.llm.head(model.llm(x, mask)), mask)


def decoding(model: nn.Cell, x, mask, ids, orders=None):
    """Logits (B, 1 + N, V) after the prompt and after each new token."""
    rows = np.arange(x.shape[0])
    logits, state = model.llm.prefill(x, mask, ids.shape[1])
    found = [logits]
    for n in range(ids.shape[1]):
        logits, state = model.llm.decode(ids[:, n], rows if orders is None else orders[n], state)
        found.append(logits)
    return ops.stack(found, 1)


LANGUAGE = {
    r"embed": lambda model, ids: model.llm.embed(ids),
    r"layers\.(?P<i>\d+)\.attention": attention,
    r"layers\.(?P<i>\d+)": layer,
    r"(?P<path>norm|layers\.\d+\.(norm1|norm2|ffn))": part,
    r"head": lambda model, x: model.llm.head(x),
    r"hidden": hidden,
    r"logits": logits,
    r"decode|beams": decoding,
}
