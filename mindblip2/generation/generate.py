"""Greedy, beam and nucleus decoding over any step function; plain NumPy on the host, float32 scores.

A step function takes ``(tokens (N,) int, position, order (N,) int)``: it first reorders its caches by
``order``, then feeds the tokens at ``position``, and returns the logits (N, V) of the next token.

Two beginnings: ``generate`` starts from a token, as the Q-Former's captions do; ``complete`` and ``stream``
go on from the logits that prompts have left, as a language model's answers do, whatever the prompts were made
of.

B prompts · N = B × beams or captions · T ids · V vocab
"""

import numpy as np

from mindblip2.generation.beam_search import beam_search
from mindblip2.generation.generation_config import GenerationConfig, LanguageGenerationConfig
from mindblip2.generation.logits_processors import (
    check_logits,
    process_logits,
    random_generators,
    sample_tokens,
    top_k_top_p,
)

__all__ = ["GenerationConfig", "LanguageGenerationConfig", "complete", "generate", "stream"]


def generate(step, start_B1, generation_config):
    """Token ids (B × captions, 1 + at most max_new_tokens) int32: the start token, the caption, the end
    token, padding."""
    start_N1 = np.repeat(np.asarray(start_B1, np.int32), generation_config.rows, 0)
    # the first row of each prompt
    first_N = np.arange(len(start_N1)) // generation_config.rows * generation_config.rows
    logits_NV = step(start_N1[:, -1], 0, first_N)
    ids_NT = _decode(step, logits_NV, start_N1, generation_config)
    return np.concatenate(
        [np.repeat(start_B1, generation_config.num_return_sequences, 0).astype(np.int32), ids_NT], 1
    )


def complete(step, logits_BV, generation_config, prompt_BT=None, on_token=None):
    """Token ids (B × captions, at most max_new_tokens) int32 that follow B prompts: the text, the end token,
    padding.

    ``logits_BV``: of the first new token, as the prompts' prefill left them.  ``step``: position 0 is the
    first new token; the first ``order`` picks N rows out of the B of the prefill, later ones out of N.
    ``prompt_BT``: ids of the prompts, of -1 where there is none, for the penalty on repetition and for
    n-grams; without them these see new tokens only, as transformers does with ``inputs_embeds`` and no
    ``input_ids``. ``on_token``: called with the (N,) ids of every step as soon as they are there; after its
    end a row gives padding.

    Raises ValueError for ``on_token`` with beams, an end token outside the vocabulary, and NaN."""
    if on_token is not None:
        tokens = []
        for token_N in stream(step, logits_BV, generation_config, prompt_BT):
            on_token(token_N)
            tokens.append(token_N)
        return np.stack(tokens, 1)
    return _decode(*_prepared(step, logits_BV, generation_config, prompt_BT), generation_config)


def stream(step, logits_BV, generation_config, prompt_BT=None):
    """Like :func:`complete`, an iterator over the (N,) ids of every step; a model step runs only when its
    token is asked for."""
    if generation_config.beams > 1:
        raise ValueError(
            f"no streaming with num_beams = {generation_config.beams}: a beam may still be dropped "
            "after it was shown; use num_beams=1 or do_sample=True"
        )
    return _one_by_one(*_prepared(step, logits_BV, generation_config, prompt_BT), generation_config)


def _prepared(step, logits_BV, generation_config, prompt_BT):
    """(step, logits, ids) with N rows, where ``step`` counts the new tokens that are there."""

    def from_one(tokens_N, new, order_N):
        return step(tokens_N, new - 1, order_N // generation_config.rows if new == 1 else order_N)

    if prompt_BT is None:  # the old scorer always saw one id, a placeholder
        prompt_BT = np.full((len(logits_BV), int(generation_config.scorer == "lavis")), -1)
    return (
        from_one,
        np.repeat(logits_BV, generation_config.rows, 0),
        np.repeat(np.asarray(prompt_BT, np.int32), generation_config.rows, 0),
    )


def _decode(step, logits_NV, given_NT, generation_config):
    if generation_config.beams == 1:
        return np.stack(list(_one_by_one(step, logits_NV, given_NT, generation_config)), 1)
    captions = beam_search(step, logits_NV, given_NT, generation_config)
    ids_NT = np.full((len(captions), max(map(len, captions))), generation_config.pad_token_id, np.int32)
    for row, caption in zip(ids_NT, captions):
        row[: len(caption)] = caption
    return ids_NT


def _one_by_one(step, logits_NV, ids_NT, generation_config):
    """Yield the next token of every row until all have ended."""
    captions, prompts = random_generators(generation_config), len(ids_NT) // generation_config.rows
    rows, done_N = np.arange(len(ids_NT)), np.zeros(len(ids_NT), bool)
    for new in range(generation_config.max_new_tokens):
        if new:
            logits_NV = step(ids_NT[:, -1], new, rows)
        scores_NV = process_logits(
            check_logits(logits_NV, new, generation_config), ids_NT, new, generation_config
        )
        if generation_config.do_sample:
            token_N = sample_tokens(
                top_k_top_p(scores_NV, generation_config),
                np.tile([caption.random() for caption in captions], prompts),
            )
        else:
            token_N = scores_NV.argmax(1)
        token_N = np.where(done_N, generation_config.pad_token_id, token_N).astype(np.int32)
        ids_NT = np.concatenate([ids_NT, token_N[:, None]], 1)
        done_N |= np.isin(token_N, generation_config.ends)
        yield token_N
        if done_N.all():
            return
