"""Beam search with either of two scorers, over a step function (see mindblip2.generation.generate).

``lavis``: the transformers releases that LAVIS ran on (< 4.36).  The length of a caption counts the given ids
and no end token. ``transformers``: release 5 (early_stopping False).  The length counts generated tokens, the
end token too; a caption that is cut at ``max_new_tokens`` competes as it stands; with ``do_sample`` the
candidates are drawn.

B prompts · M beams · N = B × M · T ids so far · V vocab · K candidates · R captions per prompt
"""

import numpy as np

from mindblip2.generation.logits_processors import (
    check_logits,
    gumbel_top_k,
    log_softmax,
    process_logits,
    random_generators,
    top_indices,
    top_k_top_p,
)

# score of what must not be chosen; as in transformers not -inf, so that too few candidates make no NaN
NEVER = np.float32(-1e9)


def beam_search(step, logits_NV, given_NT, generation_config):
    """The R best captions of each prompt, best first: a list of B × R int32 rows of generated ids, the end
    token included."""
    search = (_Lavis if generation_config.scorer == "lavis" else _Transformers)(given_NT, generation_config)
    for new in range(generation_config.max_new_tokens):
        if new:
            logits_NV = step(search.ids_NT[:, -1], new, search.order_N)
        scores_NV = process_logits(
            log_softmax(check_logits(logits_NV, new, generation_config)),
            search.ids_NT,
            new,
            generation_config,
        )
        if generation_config.do_sample:
            scores_NV = top_k_top_p(scores_NV, generation_config)
        if search.advance(scores_NV, new):
            break
    return search.captions()


class _Search:
    """The running beams."""

    def __init__(self, given_NT, generation_config):
        self.config, self.prompt_length = generation_config, given_NT.shape[1]
        self.batch, self.ids_NT = len(given_NT) // generation_config.beams, given_NT
        self.order_N = None
        # Only the first of the equal beams counts at first.
        self.total_BM = np.where(np.arange(generation_config.beams) == 0, np.float32(0), NEVER)[None].repeat(
            self.batch, 0
        )
        self.random = random_generators(generation_config)[0]

    def candidates(self, scores_NV):
        """(beam (B, K), token (B, K), total log-probability (B, K)), the best first, or in the order
        drawn."""
        vocab = scores_NV.shape[1]
        count = max(2, 1 + len(self.config.ends)) * self.config.beams
        total = (scores_NV + self.total_BM.reshape(-1, 1)).reshape(self.batch, -1)
        chosen = (
            gumbel_top_k(total, count, self.random) if self.config.do_sample else top_indices(total, count)
        )
        return chosen // vocab, chosen % vocab, np.take_along_axis(total, chosen, 1)

    def follow(self, beam_BM, token_BM, total_BM):
        """Go on with these beams."""
        self.order_N = (beam_BM + np.arange(self.batch)[:, None] * self.config.beams).reshape(-1)
        self.ids_NT = np.concatenate([self.ids_NT[self.order_N], token_BM.reshape(-1, 1).astype(np.int32)], 1)
        self.total_BM = total_BM


class _Transformers(_Search):
    def __init__(self, given_NT, generation_config):
        super().__init__(given_NT, generation_config)
        self.kept = [[] for _ in range(self.batch)]  # up to M of (score, ids), the best first
        self.open_B = np.ones(self.batch, bool)  # whether a running beam may still beat a finished one

    def advance(self, scores_NV, new):
        beam_BK, token_BK, total_BK = self.candidates(scores_NV)
        last = new + 1 == self.config.max_new_tokens
        ended_BK = np.isin(token_BK, self.config.ends) | last
        self._keep(beam_BK, token_BK, total_BK, ended_BK, new + 1)
        running_BK = total_BK + ended_BK.astype(np.float32) * NEVER
        go_BM = top_indices(running_BK, self.config.beams)
        self.follow(*(np.take_along_axis(x, go_BM, 1) for x in (beam_BK, token_BK, running_BK)))
        for row, kept in enumerate(self.kept):
            full = len(kept) == self.config.beams
            hope = self.total_BM[row, 0] / np.float32((new + 1) ** self.config.length_penalty)
            self.open_B[row] &= not full or bool(hope > kept[-1][0])
        return last or not self.open_B.any()

    def _keep(self, beam_BK, token_BK, total_BK, ended_BK, length):
        """Ended candidates among the M best join the finished captions; those further down are no
        candidates."""
        beams = self.config.beams
        weight = np.float32(length**self.config.length_penalty)
        for row in np.flatnonzero(self.open_B):
            for rank in np.flatnonzero(ended_BK[row, :beams]):
                ids = [
                    *self.ids_NT[row * beams + beam_BK[row, rank], self.prompt_length :],
                    token_BK[row, rank],
                ]
                self.kept[row].append((total_BK[row, rank] / weight, ids))
            self.kept[row] = sorted(self.kept[row], key=lambda pair: -pair[0])[:beams]

    def captions(self):
        return [
            np.array(ids, np.int32)
            for kept in self.kept
            for _, ids in kept[: self.config.num_return_sequences]
        ]


class _Lavis(_Search):
    def __init__(self, given_NT, generation_config):
        super().__init__(given_NT, generation_config)
        self.kept = [[] for _ in range(self.batch)]
        self.done_B = np.zeros(self.batch, bool)

    def advance(self, scores_NV, new):
        """The candidates of every row either end a caption or go on."""
        beam_BK, token_BK, total_BK = self.candidates(scores_NV)
        beams, length = self.config.beams, self.ids_NT.shape[1]
        go_BM = np.zeros((self.batch, beams), int)
        for row in np.flatnonzero(~self.done_B):
            ended_K = np.isin(token_BK[row], self.config.ends)
            for rank in np.flatnonzero(ended_K[:beams]):  # an end token further down is no candidate
                self._keep(row, row * beams + beam_BK[row, rank], token_BK[row, rank], total_BK[row, rank])
            go_BM[row] = np.flatnonzero(~ended_K)[:beams]
            self.done_B[row] = (
                len(self.kept[row]) == beams
                and self.kept[row][-1][0] >= float(total_BK[row].max()) / length**self.config.length_penalty
            )
        self.follow(*(np.take_along_axis(x, go_BM, 1) for x in (beam_BK, token_BK, total_BK)))
        return self.done_B.all()

    def _keep(self, row, source, end, total):
        ids = self.ids_NT[source]
        tokens = [*ids[self.prompt_length :], *([] if end is None else [end])]
        self.kept[row].append((float(total) / len(ids) ** self.config.length_penalty, tokens))
        self.kept[row] = sorted(self.kept[row], key=lambda pair: -pair[0])[: self.config.beams]

    def captions(self):
        for row in np.flatnonzero(~self.done_B):
            for beam in range(self.config.beams):
                self._keep(row, row * self.config.beams + beam, None, self.total_BM[row, beam])
        return [
            np.array(ids, np.int32)
            for kept in self.kept
            for _, ids in kept[: self.config.num_return_sequences]
        ]
