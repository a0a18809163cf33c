"""What travels between the cards in one training step, from the configuration alone: what ``comm.counted``
counts, before there are cards.

Bytes are those of a card's own contribution to a collective, as in ``comm``.  What the host exchanges beside,
a few numbers per step, is left out.

B pairs of a card · T text · Q queries · P image tokens · W image width · D width
"""

from collections import Counter
from dataclasses import dataclass

from mindblip2.distributed.data_parallel import buckets

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Step:
    """One step of a card: ``batch`` pairs with texts of ``text`` tokens on a mesh of ``data`` x ``model``.
    ``trained_vit``: gradients go through the ViT; ``image_id``: pictures have ids; ``dtype``: what the
    products are computed in."""

    config: object
    data: int
    model: int
    batch: int
    text: int
    trained_vit: bool
    image_id: bool
    dtype: str


def traffic(step):
    """{(what, group, when, bytes): times} of one batch, forwards and back: ``what`` is "all_reduce" or
    "all_gather", ``group`` "model" or "data", ``when`` "forwards" or "back"."""
    parts = [_vit(step), _norm(step)]
    parts += [_stage1(step)] if step.config.text_config is None else [_stage2(step)]
    return sum(parts, Counter())


def update(parameters, data, model, sharded):
    """The same of an update after the batches: the gradients of ``parameters`` are averaged, and where the
    moments are ``sharded`` the updated parameters given to all."""
    made = Counter()
    if data > 1:
        for bucket in buckets(parameters):
            size = sum(parameters[i].size * parameters[i].itemsize for i in bucket)
            made["all_reduce", "data", "gradients", size] += 1
            if sharded:
                made["all_reduce", "data", "parameters", size] += 1
        if model > 1:
            made["all_reduce", "model", "gradients", 4] += 1  # their norm
    return made


def _stage1(step):
    config, batch, text, queries = step.config, step.batch, step.text, step.config.qformer_config.query_length
    made = _memory(step)
    if step.model > 1:
        width = config.qformer_config.hidden_size
        made += _passes(
            step,
            {
                "see": (batch * queries, 0),
                "read": (0, batch * text),
                "match": (3 * batch * queries, 3 * batch * text),
                "caption": (0, batch * text),
            },
        )
        # nobody asks what match's last layer makes of words
        made["all_reduce", "model", "back", 4 * 3 * batch * text * width] -= 1
        for texts in (batch, 3 * batch, batch):  # read, match and caption look up their words
            made["all_reduce", "model", "forwards", 4 * texts * text * width] += 1
        # before the logits
        made["all_reduce", "model", "back", BYTES[step.dtype] * batch * text * width] += 1
        made += _word_loss(batch * (text - 1))
    if step.data > 1:
        made += _memory(step) + _contrast(step)
        made["all_reduce", "data", "forwards", 4] += 1  # how many words are learnt
    return made


def _contrast(step):
    """What ITC and the negatives of ITM need of the other cards."""
    config, batch, made = step.config, step.batch, Counter()
    embed, queries = config.qformer_config.head_embed_dim, config.qformer_config.query_length
    for size in (4 * batch * queries * embed, 4 * batch * embed):
        made["all_gather", "data", "forwards", size] += 1
        if config.gather_with_grad:
            made["all_reduce", "data", "back", size * step.data] += 1
    if step.image_id:
        made["all_gather", "data", "forwards", 4 * batch] += 4  # twice, each in two halves
    made["all_gather", "data", "forwards", 4 * batch * step.text] += 2
    picture = BYTES[step.dtype] * batch * config.vision_config.num_tokens * config.vision_config.hidden_size
    made["all_gather", "data", "forwards", picture] += 1
    if step.trained_vit:
        made["all_reduce", "data", "back", picture * step.data] += 1
    return made


def _stage2(step):
    config, batch, text = step.config, step.batch, step.text
    language, queries = config.text_config, config.qformer_config.query_length
    made, size = _memory(step), BYTES[step.dtype]
    if step.model > 1:
        made += _passes(step, {"see": (batch * queries, 0)})
        token = size * language.hidden_size
        # words
        made[
            "all_reduce",
            "model",
            "forwards",
            batch * text * (token if config.freeze_text else 4 * language.hidden_size),
        ] += 1
        for when in ("forwards", "back"):
            made["all_reduce", "model", when, batch * (queries + text) * token] += 2 * language.num_layers
        made["all_reduce", "model", "back", batch * text * token] += 1
        made += _word_loss(batch * text)
        made["all_gather", "model", "forwards", 4 * batch * text] += 2  # the likeliest words
    if step.data > 1:
        # how many words are learnt, for the loss and for the share of right ones
        made["all_reduce", "data", "forwards", 4] += 2
    return made


def _vit(step):
    """Attention and feed-forward of each block; a frozen ViT has no way back."""
    vision, made = step.config.vision_config, Counter()
    if step.model > 1:
        size = BYTES[step.dtype] * step.batch * vision.num_tokens * vision.hidden_size
        for when in ("forwards", "back") if step.trained_vit else ("forwards",):
            made["all_reduce", "model", when, size] += 2 * vision.num_hidden_layers
    return made


def _memory(step):
    """Back from the keys and values of the image."""
    vision, size = step.config.vision_config, BYTES[step.dtype]
    image = size * step.batch * vision.num_tokens * vision.hidden_size
    return Counter({("all_reduce", "model", "back", image): 1} if step.model > 1 else {})


def _passes(step, passes):
    """Passes of the Q-Former, {verb: (queries, words)}: its sums are of the products' dtype, what enters is
    float32."""
    qformer, made = step.config.qformer_config, Counter()
    crosses = len(range(0, qformer.num_hidden_layers, qformer.cross_attention_freq))
    for queries, words in passes.values():
        for tokens, times in (
            (queries + words, qformer.num_hidden_layers),
            (queries, crosses),
            (queries, qformer.num_hidden_layers),
            (words, qformer.num_hidden_layers),
        ):
            if tokens:
                made["all_reduce", "model", "forwards", BYTES[step.dtype] * tokens * qformer.hidden_size] += (
                    times
                )
                made["all_reduce", "model", "back", 4 * tokens * qformer.hidden_size] += times
    return made


def _word_loss(words):
    """A cross entropy whose logits stay where they are: the largest, the sum and its gradient, and two
    numbers per word."""
    return Counter(
        {
            ("all_gather", "model", "forwards", 4 * words): 1,
            ("all_reduce", "model", "forwards", 4 * words): 1,
            ("all_reduce", "model", "back", 4 * words): 1,
            ("all_reduce", "model", "forwards", 8 * words): 1,
        }
    )


def _norm(step):
    """The norm of gradients of which every card has pieces."""
    return Counter({("all_reduce", "model", "back", 4): 1} if step.model > 1 else {})
