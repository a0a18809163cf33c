"""What a training step keeps for its gradient, in bytes: an estimate.

Counted are copies of what passes through a layer, per token: of its full width, of the width that a card's
heads have, of a card's feed-forward width; and per pair of tokens and head.  How many copies there are was
measured in PyNative mode on a CPU (see docs/scaling.md).  A graph for an NPU may keep fewer, never more.

D width · F feed-forward width · H heads · T tokens of a row · S tokens that they see · P image tokens · Q
queries
"""

from dataclasses import dataclass

from mindblip2.trainer.communication_volume import BYTES


@dataclass(frozen=True)
class Copies:
    """Of a layer's token: ``whole`` of its width, ``inner`` of the width of a card's heads, ``hidden`` of the
    feed-forward width; ``maps`` of a head's scores."""

    whole: float
    inner: float
    hidden: float
    maps: float = 1.0


SELF, CROSS, VIT = Copies(6.3, 6, 4), Copies(5, 3, 0), Copies(5, 3, 4.5, 1.2)
LANGUAGE = {  # (type, whether it is trained): a frozen one keeps no inputs of its products
    ("LlamaConfig", False): Copies(4, 4, 3, 2.6),
    ("LlamaConfig", True): Copies(9, 5, 4, 2.6),
    ("OPTConfig", False): Copies(2.5, 3, 1, 2.1),
    ("OPTConfig", True): Copies(6, 4, 2.4, 2.1),
}
KEYS, PICTURE = 7, 3  # of the image's keys and values, where ITM has one more, and of what the ViT makes
# more where there is dropout; other devices keep the result, and a bit per number
DROPPED_MAPS, DROPPED = {"CPU": 2.8}, {"CPU": 1.2}
# of the logits: MindSpore's PyNative keeps each step of the log-softmax and the smoothing
WORDS, LLM_WORDS = 18, 15


def activation_bytes(step, recompute=False, target="Ascend"):
    """Of a step of one card (:class:`mindblip2.trainer.communication_volume.Step`); ``recompute``:
    feed-forwards, and a trained ViT's attention, are computed again."""
    kept = _trained_vit(step, recompute) if step.trained_vit else 0
    kept += (_stage1 if step.config.text_config is None else _stage2)(step, recompute, target)
    return int(max(kept, 0 if step.trained_vit else _frozen_block(step)))


def _layer(step, copies, config, rows, length, seen, recompute=False, drop=0.0):
    """One layer over ``rows`` of ``length`` tokens that see ``seen``; ``drop``: additional copies of maps."""
    size, tokens = BYTES[step.dtype], rows * length
    hidden = getattr(config, "feed_forward_size", None) or config.intermediate_size
    heads = getattr(config, "num_heads", None) or config.num_attention_heads
    whole = copies.whole + (step.model > 1)
    each = size * config.hidden_size * (whole + copies.inner / step.model)
    each += 0 if recompute else size * copies.hidden * hidden / step.model
    half = size if size < 4 else 0  # the softmax is in float32, its product with the values is not
    return tokens * each + rows * length * seen * heads / step.model * (4 * (copies.maps + drop) + half)


def _pass(step, rows, queries, words, past, recompute, target):
    """One verb of the Q-Former over ``rows``."""
    config = step.config.qformer_config
    drop = DROPPED_MAPS.get(target, 1.0) if config.attention_probs_dropout_prob else 0.0
    length, crosses = queries + words, len(range(0, config.num_hidden_layers, config.cross_attention_freq))
    made = config.num_hidden_layers * _layer(step, SELF, config, rows, length, past + length, recompute, drop)
    if queries:
        made += crosses * _layer(
            step, CROSS, config, rows, queries, step.config.vision_config.num_tokens, False, drop
        )
    if config.hidden_dropout_prob:
        branches = 2 * length * config.num_hidden_layers + queries * crosses + length
        made += BYTES[step.dtype] * DROPPED.get(target, 1.0) * rows * branches * config.hidden_size
    return made


def _picture(step, copies):
    config = step.config.qformer_config
    crosses = len(range(0, config.num_hidden_layers, config.cross_attention_freq))
    width = (
        PICTURE * step.config.vision_config.hidden_size
        + copies * 2 * crosses * config.hidden_size / step.model
    )
    return BYTES[step.dtype] * step.batch * step.config.vision_config.num_tokens * width


def _stage1(step, recompute, target):
    config, batch, text = step.config, step.batch, step.text
    qformer, queries = config.qformer_config, config.qformer_config.query_length
    made = sum(
        _pass(step, *verb, recompute, target)
        for verb in (
            (batch, queries, 0, 0),
            (batch, 0, text, 0),
            (3 * batch, queries, text, 0),
            (batch, 0, text, queries),
        )
    )
    everyone = batch * step.data
    # similarities of own pictures and all texts, and the other way round
    made += 2 * 2 * 4 * batch * everyone * queries
    made += WORDS * 4 * batch * text * qformer.vocab_size / step.model + _picture(step, KEYS + 1)
    if step.data > 1:  # what all cards' ViTs made, from which the wrong pictures are taken
        made += (
            BYTES[step.dtype] * everyone * config.vision_config.num_tokens * config.vision_config.hidden_size
        )
    return made


def _stage2(step, recompute, target):
    config, batch, text = step.config, step.batch, step.text
    language, queries = config.text_config, config.qformer_config.query_length
    length, copies = queries + text, LANGUAGE[language.type, not config.freeze_text]
    made = _pass(step, batch, queries, 0, 0, recompute, target) + _picture(step, KEYS)
    made += language.num_layers * _layer(step, copies, language, batch, length, length, recompute)
    return made + LLM_WORDS * 4 * batch * text * language.vocab_size / step.model


def _trained_vit(step, recompute):
    vision, tokens = step.config.vision_config, step.config.vision_config.num_tokens
    if recompute:  # what enters attention and feed-forward, and the sums
        return vision.num_hidden_layers * 4 * BYTES[step.dtype] * step.batch * tokens * vision.hidden_size
    return vision.num_hidden_layers * _layer(step, VIT, vision, step.batch, tokens, tokens)


def _frozen_block(step):
    """A frozen ViT keeps nothing; one block works at a time."""
    vision, tokens = step.config.vision_config, step.config.vision_config.num_tokens
    return _layer(step, Copies(3, 4, 2, 2), vision, step.batch, tokens, tokens)
