"""The three losses against torch's formulas, and hard negatives against the distribution they are drawn
from."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops

from mindblip2.models import losses

torch = pytest.importorskip("torch")
F = torch.nn.functional

RANDOM = np.random.default_rng(0)
B, Q, E, T, V = 6, 4, 8, 7, 29
TEMP = 0.07
IMAGE_ID = np.array([3, 8, 3, 5, 8, 3], np.int32)


@pytest.fixture(scope="module", autouse=True)
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def features():
    """Unit vectors of pictures (B, Q, E) and texts (B, E)."""
    image, text = RANDOM.standard_normal((B, Q, E)), RANDOM.standard_normal((B, E))
    return [(x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32) for x in (image, text)]


def itc(image, text, **options):
    return losses.itc(ms.Tensor(image), ms.Tensor(text), ms.Tensor(TEMP, ms.float32), **options)


def torch_similarities(image, text):
    """LAVIS: every query with every text, the maximum over the queries, over temp."""
    i2t = torch.einsum("bqe,ge->bgq", image, text).amax(2) / TEMP
    return i2t, i2t.T


def close(ours, theirs, tolerance=2e-6):
    np.testing.assert_allclose(
        ours.asnumpy(), theirs.numpy() if hasattr(theirs, "numpy") else theirs, rtol=tolerance, atol=tolerance
    )


# ------------------------------------------------------------------------------------------------ similarity
def test_unit_vectors_are_torchs():
    x = RANDOM.standard_normal((3, 5)).astype(np.float32) * 10
    x[1] = 0
    close(losses.normalise(ms.Tensor(x)), F.normalize(torch.from_numpy(x), dim=-1))
    assert losses.normalise(ms.Tensor(x.astype(np.float16))).dtype == ms.float32


def test_the_best_query_counts(features):
    image, text = features
    expected = np.einsum("bqe,ge->bgq", image, text).max(2)
    close(losses.similarity(*map(ms.Tensor, features)), expected)
    # not the first one
    assert np.abs(expected - np.einsum("bqe,ge->bgq", image, text)[..., 0]).max() > 0.1


# ------------------------------------------------------------------------------------------------ ITC
def test_itc_is_cross_entropy_with_label_smoothing(features):
    loss, sim_i2t, sim_t2i = itc(*features)
    i2t, t2i = torch_similarities(*map(torch.from_numpy, features))
    own = torch.arange(B)
    expected = (
        F.cross_entropy(i2t, own, label_smoothing=0.1) + F.cross_entropy(t2i, own, label_smoothing=0.1)
    ) / 2
    close(sim_i2t, i2t)
    close(sim_t2i, t2i)
    close(loss, expected)
    plain = (F.cross_entropy(i2t, own) + F.cross_entropy(t2i, own)) / 2
    assert abs(float(loss) - float(plain)) > 0.05
    close(itc(*features, smoothing=0.0)[0], plain)


def test_itc_shares_the_target_among_captions_of_one_picture(features):
    loss, *_ = itc(*features, image_id_B=ms.Tensor(IMAGE_ID))
    sims = torch_similarities(*map(torch.from_numpy, features))
    ids = torch.from_numpy(IMAGE_ID)
    same = (ids[:, None] == ids[None]).float()
    targets = 0.9 * same / same.sum(1, keepdim=True) + 0.1 / B
    close(loss, sum(-(F.log_softmax(sim, 1) * targets).sum(1).mean() for sim in sims) / 2)
    close(losses.itc_targets(B, B, ms.Tensor(IMAGE_ID)), targets)
    close(
        losses.itc_targets(B, B, ms.Tensor(np.arange(B, dtype=np.int32))), losses.itc_targets(B, B).asnumpy()
    )


def gradients(features, **options):
    image, text = map(ms.Tensor, features)
    return ms.grad(lambda i, t: losses.itc(i, t, ms.Tensor(TEMP, ms.float32), **options)[0], (0, 1))(
        image, text
    )


@pytest.mark.parametrize("with_grad", [False, True])
def test_gathered_features_carry_no_gradient_unless_asked(features, with_grad):
    image, text = (torch.from_numpy(x).requires_grad_() for x in features)
    others = (image, text) if with_grad else (image.detach(), text.detach())
    own = torch.arange(B)
    i2t, t2i = torch_similarities(image, others[1])[0], torch_similarities(others[0], text)[1]
    loss = (
        F.cross_entropy(i2t, own, label_smoothing=0.1) + F.cross_entropy(t2i, own, label_smoothing=0.1)
    ) / 2
    loss.backward()
    ours = gradients(features, gather_with_grad=with_grad)
    close(ours[0], image.grad, 1e-5)
    close(ours[1], text.grad, 1e-5)


def test_the_two_ways_to_gather_have_one_value_and_two_gradients(features):
    assert float(itc(*features)[0]) == float(itc(*features, gather_with_grad=True)[0])
    norms = [[float(g.norm()) for g in gradients(features, gather_with_grad=way)] for way in (False, True)]
    assert all(abs(with_grad / without - 1) > 0.1 for without, with_grad in zip(*norms))


# ------------------------------------------------------------------------------------------------ hard negati
def draws(sim, same, count=4000, seed=0):
    """How often each sample is drawn for each row: (B, G)."""
    noise = np.random.default_rng(seed).random((count, *sim.shape), np.float32)
    tall = [np.tile(x, (count, 1)) for x in (sim, same)]
    rows = losses.hard_negatives(
        ms.Tensor(tall[0]), ms.Tensor(tall[1]), ms.Tensor(noise.reshape(-1, sim.shape[1]))
    )
    rows = rows.asnumpy().reshape(count, len(sim))
    return np.stack([np.bincount(rows[:, b], minlength=sim.shape[1]) for b in range(len(sim))])


def chi_square(counts, probs):
    expected = probs * counts.sum()
    kept = expected > 0
    return ((counts - expected)[kept] ** 2 / expected[kept]).sum()


SAME = {"own": np.eye(B, dtype=bool), "same picture": IMAGE_ID[:, None] == IMAGE_ID[None]}


@pytest.mark.parametrize("case", SAME)
def test_negatives_are_drawn_from_the_softmax_over_other_pictures(case):
    same = SAME[case]
    sim = (RANDOM.standard_normal((B, B)) * 1.5).astype(np.float32)
    masked = np.where(same, -np.inf, sim)
    probs = np.exp(masked) / np.exp(masked).sum(1, keepdims=True)
    counts = draws(sim, same)
    assert not counts[same].any()
    for b in range(B):
        freedom = (~same[b]).sum() - 1
        # 1 in 10000
        assert chi_square(counts[b], probs[b]) < {1: 15.1, 2: 18.4, 3: 21.1, 4: 23.5}[freedom]
    wrong = np.where(same, 0, 1 / (~same).sum(1, keepdims=True))
    assert max(chi_square(counts[b], wrong[b]) for b in range(B)) > 100  # the test can tell


LARGEST = np.nextafter(np.float32(1), np.float32(0))


@pytest.mark.parametrize("noise", [0.0, 1e-9, 0.5, 1 - 1e-6, LARGEST])
@pytest.mark.parametrize("scale", [100.0, 1e-4, 0.0])
def test_at_the_ends_of_the_noise_it_is_still_another_picture(scale, noise):
    sim = (RANDOM.standard_normal((B, B)) * scale).astype(np.float32)
    sim[np.eye(B, dtype=bool)] = 1 / TEMP
    for b in range(B):  # the draw that could make the own picture win
        row = np.full((B, B), 0.5, np.float32)
        row[:, b] = noise
        found = losses.hard_negatives(*map(ms.Tensor, (sim, SAME["same picture"], row))).asnumpy()
        assert (IMAGE_ID[found] != IMAGE_ID).all() and found.dtype == np.int32


def test_all_of_one_picture_or_a_batch_of_one_is_finite():
    for size in (1, 4):
        found = losses.hard_negatives(
            ops.rand(size, size), ms.Tensor(np.ones((size, size), bool)), ops.rand(size, size)
        )
        assert ((0 <= found.asnumpy()) & (found.asnumpy() < size)).all()
    image, text = (x[:1] for x in (RANDOM.standard_normal((1, Q, E)), RANDOM.standard_normal((1, E))))
    loss, sim, _ = itc(image.astype(np.float32), text.astype(np.float32))
    assert float(loss) == pytest.approx(0, abs=1e-6) and sim.shape == (1, 1)
    assert np.isfinite(losses.itm(ms.Tensor(RANDOM.standard_normal((3, 2)), ms.float32)).asnumpy())


def test_negatives_carry_no_gradient():
    sim, noise = ms.Tensor(RANDOM.standard_normal((B, B)), ms.float32), ops.rand(B, B)
    same = ms.Tensor(SAME["own"])
    grad = ms.grad(lambda s: losses.hard_negatives(s, same, noise).astype(ms.float32).sum())(sim)
    assert not grad.asnumpy().any()


# ------------------------------------------------------------------------------------------------ ITM
def test_itm_counts_one_right_and_two_wrong_pairs():
    logits = RANDOM.standard_normal((3 * B, 2)).astype(np.float32)
    labels = torch.cat([torch.ones(B), torch.zeros(2 * B)]).long()
    close(losses.itm(ms.Tensor(logits)), F.cross_entropy(torch.from_numpy(logits), labels))
    prior = np.tile(np.log([2 / 3, 1 / 3]), (3 * B, 1)).astype(np.float32)
    # the value of a head that knows nothing
    assert float(losses.itm(ms.Tensor(prior))) == pytest.approx(0.6365, abs=1e-4)


# ------------------------------------------------------------------------------------------------ LM
@pytest.fixture(scope="module")
def caption():
    logits, ids = (
        RANDOM.standard_normal((B, T, V)).astype(np.float32) * 3,
        RANDOM.integers(1, V, (B, T)).astype(np.int32),
    )
    for row, length in enumerate((7, 5, 2, 1, 6, 3)):
        ids[row, length:] = 0
    return logits, ids


def torch_lm(logits, ids, smoothing):
    labels = ids[:, 1:].long().masked_fill(ids[:, 1:] == 0, -100)
    return F.cross_entropy(
        logits[:, :-1].reshape(-1, V), labels.reshape(-1), label_smoothing=smoothing, ignore_index=-100
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_lm_is_cross_entropy_over_real_tokens(caption, smoothing):
    logits, ids = map(torch.from_numpy, caption)
    close(losses.lm(*map(ms.Tensor, caption), 0, smoothing), torch_lm(logits, ids, smoothing))


def test_lm_ignores_padding_in_the_smoothing_too(caption):
    """MindFormers takes the mean of the smooth part over all positions: another number."""
    logits, ids = caption
    log_probs = F.log_softmax(torch.from_numpy(logits[:, :-1]), -1)
    labels = torch.from_numpy(ids[:, 1:]).long()
    hit = -log_probs.gather(2, labels[..., None])[..., 0][labels != 0].mean()
    elsewhere = 0.5 * hit - 0.5 * log_probs.mean()
    assert abs(float(losses.lm(*map(ms.Tensor, caption), 0, 0.5)) - float(elsewhere)) > 0.01
    changed = logits.copy()
    changed[:, :-1][ids[:, 1:] == 0] += RANDOM.standard_normal(V).astype(np.float32) * 9
    changed[:, -1] += 5
    assert float(losses.lm(ms.Tensor(changed), ms.Tensor(ids), 0)) == float(
        losses.lm(*map(ms.Tensor, caption), 0)
    )


def test_lm_gradients_are_torchs(caption):
    logits = torch.from_numpy(caption[0]).requires_grad_()
    torch_lm(logits, torch.from_numpy(caption[1]), 0.1).backward()
    ids = ms.Tensor(caption[1])
    close(ms.grad(lambda x: losses.lm(x, ids, 0))(ms.Tensor(caption[0])), logits.grad)


def test_lm_of_captions_without_a_word_is_zero():
    ids = np.zeros((2, T), np.int32)
    assert float(losses.lm(ms.Tensor(RANDOM.standard_normal((2, T, V)), ms.float32), ms.Tensor(ids), 0)) == 0


def test_losses_are_float32_whatever_comes_in(caption):
    logits, ids = ms.Tensor(caption[0].astype(np.float16)), ms.Tensor(caption[1])
    assert losses.lm(logits, ids, 0).dtype == ms.float32
    assert losses.itm(ms.Tensor(RANDOM.standard_normal((6, 2)), ms.float16)).dtype == ms.float32


def test_log_softmax_over_a_vocabulary_is_as_accurate_as_torchs():
    """Against float64, value and gradient; MindSpore's own sums over 30523 numbers are ten times as far
    off."""
    rng = np.random.default_rng(1)
    logits, weight = (
        (3 * rng.standard_normal((8, 30523))).astype(np.float32),
        rng.random((8, 30523)).astype(np.float32),
    )

    def with_torch(dtype):
        x = torch.tensor(logits, dtype=dtype, requires_grad=True)
        found = F.log_softmax(x, -1)
        (found * torch.tensor(weight, dtype=dtype)).sum().backward()
        return found.detach().double().numpy(), x.grad.double().numpy()

    def plain(x):
        x = x - ops.stop_gradient(ops.amax(x, -1, keepdims=True))
        return x - ops.log(ops.exp2(x * losses.LOG2_E).sum(-1, keepdims=True))

    def with_ours(function):
        x = ms.Tensor(logits)
        return function(x).asnumpy(), ops.grad(lambda x: (function(x) * ms.Tensor(weight)).sum())(x).asnumpy()

    truth, noise = with_torch(torch.float64), with_torch(torch.float32)
    far = [
        [np.sqrt(((one - right) ** 2).mean()) for one, right in zip(side, truth)]
        for side in (noise, with_ours(losses.log_softmax), with_ours(plain))
    ]
    assert far[1][0] < 2 * far[0][0] and far[1][1] < 2 * far[0][1]
    assert far[2][1] > 4 * far[1][1]  # control


# ------------------------------------------------------------------------------------------------ rounding wh
def text_gradient(image, text, log_softmax):
    losses.log_softmax, before = log_softmax, losses.log_softmax
    try:
        return ms.grad(
            lambda own: losses.itc(
                losses.normalise(ms.Tensor(image)), losses.normalise(own), ms.Tensor(TEMP, ms.float32)
            )[0]
        )(ms.Tensor(text)).asnumpy()
    finally:
        losses.log_softmax = before


def torch_text_gradient(image, text, dtype):
    image, text = torch.tensor(image, dtype=dtype), torch.tensor(text, dtype=dtype, requires_grad=True)
    image_GQE, text_BE = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    sims = (
        torch.einsum("gqe,be->bgq", image_GQE, text_BE),
        torch.einsum("bqe,ge->bgq", image_GQE, text_BE.detach()),
    )
    own = torch.arange(len(text))
    loss = sum(F.cross_entropy(sim.max(-1).values / TEMP, own, label_smoothing=0.1) for sim in sims) / 2
    loss.backward()
    return text.grad.double().numpy()


def test_the_gradient_of_two_alike_texts_rounds_as_torch_s():
    """The parts nearly cancel, so a row's ratio to torch's rounding is a matter of luck: 0.1 to 8.  Over many
    batches it is 1."""

    def ratios(log_softmax):
        draw, found = np.random.default_rng(0), []
        for _ in range(20):
            image, text = (
                draw.standard_normal((1, *shape)) + 0.02 * draw.standard_normal((2, *shape))
                for shape in ((32, 256), (256,))
            )
            image, text = image.astype(np.float32), text.astype(np.float32)
            truth = torch_text_gradient(image, text, torch.float64)
            noise = np.square(torch_text_gradient(image, text, torch.float32) - truth).mean()
            found.append(np.sqrt(np.square(text_gradient(image, text, log_softmax) - truth).mean() / noise))
        return found

    own = ratios(losses.log_softmax)
    assert np.median(own) < 2
    assert np.median(ratios(lambda x: ops.log_softmax(x, -1))) > 8  # negative control: MindSpore's own
