"""Greedy and beam decoding as transformers < 4.36 does it, which is what made the reference captions.

A hypothesis scores its summed log-probability over its length, which counts the prompt ([DEC]), not the end
token. The end token is barred while the sequence, prompt included, is shorter than ``min_length``.

``step(ids_NT, cache)`` -> (logits of the last position (N, V), the grown cache); a cache is a list of (key,
value).

    # B batch · K beams · N = B or B·K rows · T ids so far · V vocabulary
"""

from dataclasses import dataclass, field

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Rules:
    """What ends a sequence. Defaults are those of LAVIS's stage-1 ``generate``; lengths count the prompt."""

    max_length: int = 30
    min_length: int = 10
    end: int = 102  # [SEP]: BERT has no end token
    pad: int = 0

    def bar(self, scores_NV: torch.Tensor, length: int) -> torch.Tensor:
        """The scores with the end token impossible if a sequence of ``length`` ids must not end yet."""
        if length < self.min_length:
            scores_NV[:, self.end] = -torch.inf
        return scores_NV


def greedy(step, ids_N1: torch.Tensor, cache, rules: Rules) -> torch.Tensor:
    """The likeliest word each time; rows that have ended are padded. -> ids (N, T)."""
    ids, new, alive = ids_N1, ids_N1, torch.ones(len(ids_N1), dtype=torch.bool)
    while ids.shape[1] < rules.max_length and alive.any():
        logits, cache = step(new, cache)
        best = rules.bar(logits, ids.shape[1]).argmax(1)
        new = torch.where(alive, best, rules.pad)[:, None]
        alive = alive & (new[:, 0] != rules.end)
        ids = torch.cat([ids, new], dim=1)
    return ids


@dataclass
class Hypotheses:
    """The best ended sequences of one row, at most ``beams`` of them."""

    beams: int
    kept: list[tuple[float, torch.Tensor]] = field(default_factory=list)
    done: bool = False

    def add(self, ids_T: torch.Tensor, log_probability: float) -> None:
        self.kept.append((log_probability / len(ids_T), ids_T))
        self.kept = sorted(self.kept, key=lambda pair: -pair[0])[: self.beams]

    def settle(self, best_log_probability: float, length: int) -> None:
        """Done once no running beam, taken at its present length, can beat the worst sequence kept."""
        full = len(self.kept) == self.beams
        self.done = self.done or (full and self.kept[-1][0] >= best_log_probability / length)


def beam(step, ids_N1: torch.Tensor, cache, rules: Rules, beams: int) -> tuple[torch.Tensor, torch.Tensor]:
    """-> best ids of each image (B, T), end token included, and their scores (B,). Rows of one image are
    adjacent."""
    ids, rows = ids_N1, len(ids_N1) // beams
    ended = [Hypotheses(beams) for _ in range(rows)]
    scores_BK = torch.full((rows, beams), -1e9, dtype=cache[0][0].dtype)
    scores_BK[:, 0] = 0  # all beams start alike: only the first may branch
    new = ids
    while True:
        logits, cache = step(new, cache)
        words = rules.bar(F.log_softmax(logits, dim=1), ids.shape[1])
        total_BKV = scores_BK[:, :, None] + words.unflatten(0, (rows, beams))
        # 2K candidates: K of them may be end tokens, and K beams must go on
        top_scores, top = total_BKV.flatten(1).topk(2 * beams, dim=1)
        picks = [
            choose(ended[b], ids[b * beams : (b + 1) * beams], top_scores[b], top[b], words.shape[1], rules)
            for b in range(rows)
        ]
        scores_BK = torch.tensor([[score for score, _, _ in row] for row in picks], dtype=scores_BK.dtype)
        source = torch.tensor([b * beams + k for b, row in enumerate(picks) for _, k, _ in row])
        new = torch.tensor([[word] for row in picks for _, _, word in row])
        ids = torch.cat([ids[source], new], dim=1)
        cache = [(key[source], value[source]) for key, value in cache]
        if all(row.done for row in ended) or ids.shape[1] >= rules.max_length:
            return finish(ended, ids, scores_BK, rules)


def choose(ended: Hypotheses, ids_KT, scores, flat, vocab: int, rules: Rules) -> list[tuple[float, int, int]]:
    """(score, beam, word) of the K beams that go on; end tokens among the K best candidates become
    hypotheses."""
    beams = len(ids_KT)
    if ended.done:
        return [(0.0, 0, rules.pad)] * beams
    running = []
    for rank, (score, index) in enumerate(zip(scores.tolist(), flat.tolist(), strict=True)):
        source, word = divmod(index, vocab)
        if word != rules.end:
            running.append((score, source, word))
        elif rank < beams:
            ended.add(ids_KT[source], score)
        if len(running) == beams:
            break
    ended.settle(scores.max().item(), ids_KT.shape[1])
    return running


def finish(ended: list[Hypotheses], ids_NT, scores_BK, rules: Rules) -> tuple[torch.Tensor, torch.Tensor]:
    """Running beams of unfinished rows count as hypotheses too; the best of each row, closed and padded."""
    beams = scores_BK.shape[1]
    for b, row in enumerate(ended):
        if not row.done:
            for k in range(beams):
                row.add(ids_NT[b * beams + k], scores_BK[b, k].item())
    best = [row.kept[0] for row in ended]
    width = min(max(len(ids) for _, ids in best) + 1, rules.max_length)
    out = torch.full((len(best), width), rules.pad)
    for b, (_, ids) in enumerate(best):
        out[b, : len(ids)] = ids
        out[b, len(ids) : len(ids) + 1] = rules.end
    return out, torch.tensor([score for score, _ in best], dtype=scores_BK.dtype)
