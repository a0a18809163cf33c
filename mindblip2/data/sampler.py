"""Which sample stands where in an epoch: pure functions of (seed, epoch), so that a cursor is all there is to
save."""

import numpy as np

RATIO_DRAWS = 1  # tells the generator that draws sets from the one that permutes samples


def sample_order(sizes, seed, epoch, batch, ratios=(), shuffle=True):
    """Indices of the samples of an epoch, whole batches only: int64 (steps * batch,).

    ``sizes``: samples of each set; they stand behind one another.  Without ``ratios`` every sample comes
    once, but for the rest that makes no batch.  With ``ratios`` each batch comes from one set, drawn by its
    ratio (LAVIS's MultiIterLoader), whose samples come in a random order and again from the start when they
    are used up.  Without ``shuffle`` samples keep their order."""
    total = sum(sizes)
    steps = total // batch
    if not ratios:
        rng = np.random.default_rng([seed, epoch])
        return (rng.permutation(total) if shuffle else np.arange(total))[: steps * batch]
    rng = np.random.default_rng([seed, epoch, RATIO_DRAWS])
    sets = rng.choice(len(sizes), steps, p=np.asarray(ratios, float) / sum(ratios))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    placed = np.empty((steps, batch), np.int64)
    for number, size in enumerate(sizes):
        wanted = int((sets == number).sum()) * batch
        rounds = -(-wanted // size)
        drawn = [rng.permutation(size) if shuffle else np.arange(size) for _ in range(rounds)] or [
            np.arange(0)
        ]
        placed[sets == number] = starts[number] + np.concatenate(drawn)[:wanted].reshape(-1, batch)
    return placed.reshape(-1)
