"""Greedy, beam and nucleus decoding over any step function; plain NumPy on the host, float32 log-probabilities.

A step function takes ``(tokens (N,) int, position, order (N,) int)``: it first reorders its caches by ``order``, then feeds the
tokens at ``position``, and returns the logits (N, V) of the next token.  Beam search follows the scorer of the transformers
releases that LAVIS ran on (< 4.36), where the length of a hypothesis counts the given ids too.

B rows · M beams · N = B × M · T ids so far · V vocab
"""
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Decoding:
    """How to decode.  Lengths count generated tokens only, the start token never."""
    max_new_tokens: int = 29            # the end token included; LAVIS: max_length 30 with [DEC]
    min_new_tokens: int = 9             # before the end token; LAVIS: min_length 10 with [DEC]
    num_beams: int = 3
    do_sample: bool = False             # nucleus sampling; num_beams is not used then
    top_p: float = 0.9
    top_k: int = 0                      # 0: no limit
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    seed: int = 0
    eos_token_id: int = 102
    pad_token_id: int = 0

    def __post_init__(self):
        if not 0 <= self.min_new_tokens <= self.max_new_tokens or self.max_new_tokens < 1:
            raise ValueError(f"min_new_tokens = {self.min_new_tokens}, max_new_tokens = {self.max_new_tokens}: expected "
                             "0 <= min_new_tokens <= max_new_tokens and at least one new token")
        if self.num_beams < 1 or not 0 < self.top_p <= 1 or self.temperature <= 0 or self.repetition_penalty <= 0:
            raise ValueError(f"num_beams = {self.num_beams}, top_p = {self.top_p}, temperature = {self.temperature}, "
                             f"repetition_penalty = {self.repetition_penalty}: expected num_beams >= 1, 0 < top_p <= 1, and "
                             "the other two above 0")


def generate(step, start_B1, how):
    """Token ids (B, 1 + at most max_new_tokens) int32: the start token, the caption, the end token, padding."""
    start_B1 = np.asarray(start_B1, np.int32)
    if how.do_sample or how.num_beams == 1:
        return _one_by_one(step, start_B1, how)
    return _beams(step, start_B1, how)


def _one_by_one(step, ids_BT, how):
    rows = np.arange(len(ids_BT))
    random = np.random.default_rng(how.seed)
    done_B = np.zeros(len(ids_BT), bool)
    for new in range(how.max_new_tokens):
        scores_BV = _scores(step(ids_BT[:, -1], new, rows), ids_BT, new, how)
        token_B = _sample(scores_BV, random, how) if how.do_sample else scores_BV.argmax(1)
        token_B = np.where(done_B, how.pad_token_id, token_B).astype(np.int32)
        ids_BT = np.concatenate([ids_BT, token_B[:, None]], 1)
        done_B |= token_B == how.eos_token_id
        if done_B.all():
            break
    return ids_BT


def _scores(logits_NV, ids_NT, new, how, beam=False):
    """Logits → log-probabilities.  As in transformers the repetition penalty works on the logits, but in beam search on the
    log-probabilities, and the minimal length comes last."""
    logits_NV = np.array(logits_NV, np.float32)
    if not beam:
        _penalise(logits_NV, ids_NT, how.repetition_penalty)
    top = logits_NV.max(1, keepdims=True)
    scores_NV = logits_NV - top - np.log(np.exp(logits_NV - top).sum(1, keepdims=True))
    if beam:
        _penalise(scores_NV, ids_NT, how.repetition_penalty)
    if new < how.min_new_tokens:
        scores_NV[:, how.eos_token_id] = -np.inf
    return scores_NV


def _penalise(scores_NV, ids_NT, penalty):
    """Make tokens that are there already less likely, in place."""
    if penalty != 1.0:
        seen = np.take_along_axis(scores_NV, ids_NT, 1)
        np.put_along_axis(scores_NV, ids_NT, np.where(seen < 0, seen * penalty, seen / penalty), 1)


def _sample(scores_BV, random, how):
    """One draw per row from the smallest set of tokens whose probability reaches top_p."""
    scores_BV = scores_BV / how.temperature
    order_BV = np.argsort(-scores_BV, 1, kind="stable")
    sorted_BV = np.take_along_axis(scores_BV, order_BV, 1)
    probs_BV = np.exp(sorted_BV - sorted_BV[:, :1])
    if how.top_k:
        probs_BV[:, how.top_k:] = 0
    probs_BV /= probs_BV.sum(1, keepdims=True)
    before_BV = np.cumsum(probs_BV, 1) - probs_BV
    if how.top_p < 1:
        probs_BV[before_BV >= how.top_p] = 0  # the token that crosses top_p stays
    edges_BV = np.cumsum(probs_BV, 1)
    draw_B1 = random.random((len(scores_BV), 1)) * edges_BV[:, -1:]
    choice_B = np.minimum((edges_BV <= draw_B1).sum(1), (probs_BV > 0).sum(1) - 1)
    return np.take_along_axis(order_BV, choice_B[:, None], 1)[:, 0]


class _Hypotheses:
    """The best finished captions of one row."""

    def __init__(self, size, length_penalty):
        self.size, self.length_penalty, self.kept = size, length_penalty, []

    def add(self, ids, log_prob):
        self.kept.append((log_prob / len(ids) ** self.length_penalty, ids))
        self.kept = sorted(self.kept, key=lambda pair: -pair[0])[:self.size]

    def is_done(self, best_log_prob, length):
        full = len(self.kept) == self.size
        return full and self.kept[-1][0] >= best_log_prob / length ** self.length_penalty


def _beams(step, start_B1, how):
    batch, beams = len(start_B1), how.num_beams
    ids_NT = np.repeat(start_B1, beams, 0)
    order_N = np.repeat(np.arange(batch) * beams, beams)
    total_BM = np.where(np.arange(beams)[None] == 0, 0.0, -1e9).repeat(batch, 0).astype(np.float32)
    finished = [_Hypotheses(beams, how.length_penalty) for _ in range(batch)]
    done_B = np.zeros(batch, bool)
    for new in range(how.max_new_tokens):
        scores_NV = _scores(step(ids_NT[:, -1], new, order_N), ids_NT, new, how, beam=True) + total_BM.reshape(-1, 1)
        token_BM, order_BM, total_BM = _advance(scores_NV, ids_NT, finished, done_B, how)
        order_N = order_BM.reshape(-1)
        ids_NT = np.concatenate([ids_NT[order_N], token_BM.reshape(-1, 1).astype(np.int32)], 1)
        if done_B.all():
            break
    for row in range(batch):
        for beam in range(beams if not done_B[row] else 0):
            finished[row].add(ids_NT[row * beams + beam], float(total_BM[row, beam]))
    return _pad([hypotheses.kept[0][1] for hypotheses in finished], start_B1.shape[1] + how.max_new_tokens, how)


def _advance(scores_NV, ids_NT, finished, done_B, how):
    """One step of every row: the 2 × beams best continuations either end a caption or go on; ``done_B`` is updated."""
    batch, beams, vocab = len(finished), how.num_beams, scores_NV.shape[1]
    token_BM = np.full((batch, beams), how.pad_token_id)
    order_BM = np.zeros((batch, beams), int)
    total_BM = np.zeros((batch, beams), np.float32)
    for row in range(batch):
        flat = scores_NV[row * beams:(row + 1) * beams].reshape(-1)
        best = np.argpartition(-flat, 2 * beams - 1)[:2 * beams]
        best = best[np.argsort(-flat[best], kind="stable")]
        if done_B[row]:
            order_BM[row] = row * beams
            continue
        slot = 0
        for rank, index in enumerate(best):
            source = row * beams + index // vocab
            if index % vocab == how.eos_token_id:
                if rank < beams:  # an end token further down is no candidate
                    finished[row].add(ids_NT[source], float(flat[index]))
            elif slot < beams:
                token_BM[row, slot], order_BM[row, slot], total_BM[row, slot] = index % vocab, source, flat[index]
                slot += 1
        done_B[row] = finished[row].is_done(float(flat[best[0]]), ids_NT.shape[1])
    return token_BM, order_BM, total_BM


def _pad(rows, longest, how):
    """Captions of different lengths → (B, T): the end token where there is room for it, then padding."""
    width = min(max(map(len, rows)) + 1, longest)
    ids_BT = np.full((len(rows), width), how.pad_token_id, np.int32)
    for ids, row in zip(ids_BT, rows):
        ids[:len(row)] = row
        if len(row) < longest:
            ids[len(row)] = how.eos_token_id
    return ids_BT
