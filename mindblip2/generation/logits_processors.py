"""From logits to the next token: what is forbidden or made less likely, and draws; NumPy, float32, the order
of transformers.

N rows · T ids so far · V vocab · K draws
"""

import numpy as np


def log_softmax(logits_NV):
    top_N1 = logits_NV.max(1, keepdims=True)
    return logits_NV - top_N1 - np.log(np.exp(logits_NV - top_N1).sum(1, keepdims=True))


def check_logits(logits_NV, new, generation_config):
    """A float32 copy; raises ValueError for what no caption can be made of."""
    scores_NV = np.array(logits_NV, np.float32)
    outside = [end for end in generation_config.ends if not 0 <= end < scores_NV.shape[1]]
    if outside:
        raise ValueError(
            f"eos_token_id = {outside[0]} lies outside the model's vocabulary of {scores_NV.shape[1]}: give "
            "the end "
            "token of the model's own tokenizer"
        )
    if np.isnan(scores_NV).any() or np.isposinf(scores_NV).any():
        raise ValueError(
            f"the logits of new token {new + 1} hold NaN or infinity: check the checkpoint, or that "
            "compute_dtype is not "
            "float16 for a model that overflows in it"
        )
    return scores_NV


def process_logits(scores_NV, ids_NT, new, generation_config):
    """Penalty, repeated n-grams, minimal length, in place.  What is no id of the vocabulary (-1) counts as no
    token."""
    if generation_config.repetition_penalty != 1.0:
        seen_NV = _marked(scores_NV.shape, ids_NT)
        penalty = np.float32(generation_config.repetition_penalty)
        np.copyto(scores_NV, np.where(scores_NV < 0, scores_NV * penalty, scores_NV / penalty), where=seen_NV)
    if generation_config.no_repeat_ngram_size:
        scores_NV[
            _marked(scores_NV.shape, _repeats(ids_NT, generation_config.no_repeat_ngram_size))
        ] = -np.inf
    if new < generation_config.min_new_tokens:
        scores_NV[:, list(generation_config.ends)] = -np.inf
    return scores_NV


def _marked(shape, ids_NT):
    """True (N, V) at the ids of each row."""
    marked = np.zeros(shape, bool)
    rows_NT = np.broadcast_to(np.arange(shape[0])[:, None], ids_NT.shape)
    real_NT = (ids_NT >= 0) & (ids_NT < shape[1])
    marked[rows_NT[real_NT], ids_NT[real_NT]] = True
    return marked


def _repeats(ids_NT, size):
    """The tokens that would end an n-gram for the second time, -1 elsewhere."""
    if ids_NT.shape[1] < size:
        return ids_NT[:, :0]
    windows = np.lib.stride_tricks.sliding_window_view(ids_NT, size, 1)
    last = ids_NT[:, None, ids_NT.shape[1] + 1 - size :]
    return np.where((windows[:, :, :-1] == last).all(2), windows[:, :, -1], -1)


def top_k_top_p(scores_NV, generation_config):
    """Temperature, top-k, top-p: scores of the tokens that may be drawn, -inf for the others.

    As in transformers all tokens as likely as the k-th stay, top-p is counted among what top-k left, and
    beams keep one token more than there are end tokens, so that they can go on."""
    fewest = len(generation_config.ends) + 1 if generation_config.beams > 1 else 1
    scores_NV = scores_NV / np.float32(generation_config.temperature)
    vocab = scores_NV.shape[1]
    if generation_config.top_k:
        keep = min(max(generation_config.top_k, fewest), vocab)
        least_N1 = np.partition(scores_NV, vocab - keep, 1)[:, vocab - keep, None]
        scores_NV = np.where(scores_NV < least_N1, -np.inf, scores_NV)
    if generation_config.top_p < 1:
        order_NV = np.argsort(-scores_NV, 1, kind="stable")
        sorted_NV = np.take_along_axis(scores_NV, order_NV, 1)
        probs_NV = np.exp(sorted_NV - sorted_NV[:, :1])
        probs_NV /= probs_NV.sum(1, keepdims=True)
        # the token that crosses top_p stays
        drop_NV = np.cumsum(probs_NV, 1) - probs_NV >= generation_config.top_p
        drop_NV[:, :fewest] = False
        np.put_along_axis(scores_NV, order_NV, np.where(drop_NV, -np.inf, sorted_NV), 1)
    return scores_NV


def random_generators(generation_config):
    """One random generator for each caption of a prompt, made from the seed and the caption's number only.

    All prompts of a batch take the same draws, so that what is drawn for a prompt does not depend on the
    others of its batch."""
    return [
        np.random.default_rng((generation_config.seed, caption)) for caption in range(generation_config.rows)
    ]


def sample_tokens(scores_NV, uniform_N):
    """One token per row, chosen by a number from 0 to less than 1."""
    order_NV = np.argsort(-scores_NV, 1, kind="stable")
    sorted_NV = np.take_along_axis(scores_NV, order_NV, 1)
    probs_NV = np.exp(sorted_NV - sorted_NV[:, :1])
    probs_NV /= probs_NV.sum(1, keepdims=True)
    edges_NV = np.cumsum(probs_NV, 1)
    draw_N1 = np.asarray(uniform_N)[:, None] * edges_NV[:, -1:]
    choice_N = np.minimum((edges_NV <= draw_N1).sum(1), (probs_NV > 0).sum(1) - 1)
    return np.take_along_axis(order_NV, choice_N[:, None], 1)[:, 0]


def gumbel_top_k(scores_NV, count, random):
    """``count`` different candidates per row, in the order drawn: the largest sums of score and Gumbel noise
    are such draws.  All rows take the same noise, see ``random_generators``."""
    return top_indices(scores_NV + random.gumbel(size=(1, scores_NV.shape[1])), count)


def top_indices(scores_NV, count):
    """Indices (N, K) of the largest scores, the largest first; of equal ones the first."""
    part_NK = np.sort(np.argpartition(-scores_NV, count - 1, 1)[:, :count], 1)
    order_NK = np.argsort(-np.take_along_axis(scores_NV, part_NK, 1), 1, kind="stable")
    return np.take_along_axis(part_NK, order_NK, 1)
