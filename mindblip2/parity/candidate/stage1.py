"""Our side of every case of stage 1, by the case's name: what our model does with the named inputs. Needs no
torch, so a host that has only MindSpore runs the cases that another host wrote down (``dump`` in
mindblip2/parity/run.py).

    # B batch · Q queries · P patches + cls · W image width · T text · L = Q + T · D width
"""

import re
from collections.abc import Callable
from functools import partial

from mindspore import nn, ops

from mindblip2.models import losses, qformer
from mindblip2.models.kernels import cpu
from mindblip2.parity.candidate.chained import our_losses
from mindblip2.parity.candidate.language_model import LANGUAGE, MODEL
from mindblip2.parity.candidate.losses import LOSSES
from mindblip2.parity.candidate.preprocessing import AROUND

VERB = "(?P<verb>see|read|match|caption)"


def ours_of(name: str) -> Callable:
    """The function (model, **inputs) of the case called ``name``; a name that no row has is the path of a
    cell."""
    language = re.match(MODEL, name)
    table, name = (LANGUAGE, name[language.end() :]) if language else (STAGE_1, name)
    for pattern, function in table.items():
        if found := re.fullmatch(pattern, name):
            return partial(function, **found.groupdict()) if found.groupdict() else function
    return partial(our_module, path=name)


def our_module(model: nn.Cell, x, path: str):
    return get_cell(model, path)(x)


def get_cell(model: nn.Cell, path: str) -> nn.Cell:
    """The cell at a dotted path."""
    for part in path.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def block(model: nn.Cell, x, i: str):
    return model.vit.blocks[int(i)](x)


def memory(model: nn.Cell, image):
    return [x for pair in model.qformer.memory(image) for x in pair]


def text_embedding(model: nn.Cell, ids):
    return model.qformer.embedding_norm(model.qformer.embeddings(ids))


def layer(model: nn.Cell, x, i: str, verb: str, ids=None, image=None, key=None, value=None):
    """(B, L, D) and, where the verb hands them on, the keys and values; queries and text are apart in our
    layer."""
    part, freq, i = model.qformer, model.config.qformer_config.cross_attention_freq, int(i)
    queries = part.query_tokens.shape[1] if verb in ("see", "match") else 0
    query = x[:, :queries] if queries else None
    text = None if verb == "see" else x[:, queries:]
    bias = None
    if ids is not None:
        mask = qformer.pad_mask(ids, part.pad_id)
        bias = {
            "read": lambda: qformer.read_bias(mask),
            "match": lambda: qformer.match_bias(mask, queries),
            "caption": lambda: qformer.caption_bias(mask, key.shape[2]),
        }[verb]()
    memory = part.memory(image)[i // freq] if image is not None and i % freq == 0 else None
    query, text, own = part.encoder.layers[i](
        query, text, memory, None if key is None else (key, value), bias
    )
    if verb == "see":
        return query, *own
    return text if query is None else ops.cat((query, text), 1)


def see(model: nn.Cell, image):
    return model.qformer.see(model.qformer.memory(image))[0]


def match(model: nn.Cell, image, ids):
    return ops.cat(model.qformer.match(ids, model.qformer.memory(image)), 1)


def caption(model: nn.Cell, image, ids):
    return model.qformer.caption(ids, model.qformer.see(model.qformer.memory(image))[1])


def match_logits(model: nn.Cell, image, ids):
    return model.match_logits(ids, model.qformer.memory(image))


def next_token(model: nn.Cell, cache, ids):
    """Logits after the last of a few tokens, fed one by one behind the cached queries."""
    past = tuple((cache[i][0], cache[i][1]) for i in range(cache.shape[0]))
    for position in range(ids.shape[1]):
        logits, own = model.qformer.next_token(ids[:, position : position + 1], position, past, None)
        past = tuple(
            (ops.cat((key, k), 2), ops.cat((value, v), 2))
            for (key, value), (k, v) in zip(past, own, strict=True)
        )
    return logits


class OursGiven(nn.Cell):
    """Stands for a ViT whose output is there already: (B, 1, P, W) -> (B, P, W)."""

    def construct(self, x_B1PW):
        return x_B1PW[:, 0]


STAGE_1 = {
    r"vit\.patch_embed": lambda model, image: model.vit.patch_embed(image),
    r"vit": lambda model, image: model.vit(image),
    r"vit\.blocks\.(?P<i>\d+)": block,
    r"ln_vision": lambda model, x: model.ln_vision(x),
    r"memory": memory,
    r"embed\.text": text_embedding,
    r"embed\.queries": lambda model, x: model.qformer.embedding_norm(x),
    VERB + r"\.layers\.(?P<i>\d+)": layer,
    r"see": see,
    r"read": lambda model, ids: model.qformer.read(ids),
    r"match": match,
    r"caption": caption,
    r"image_feats": lambda model, x: losses.normalise(model.vision_proj(x)),
    r"text_feats": lambda model, x: losses.normalise(model.text_proj(x)),
    r"itm_logits": match_logits,
    r"lm_head": lambda model, x: model.qformer.lm_head(x, model.qformer.embeddings.word.embedding_table),
    r"next_token": next_token,
    r"fused\.gelu": lambda model, x: cpu.gelu(x),
    r"fused\.layer_norm": lambda model, x, gamma, beta: cpu.layer_norm(x, gamma, beta, 1e-6),
    r"stage1(\.losses|\.\d+)?": our_losses,
    **LOSSES,
    **AROUND,
}
