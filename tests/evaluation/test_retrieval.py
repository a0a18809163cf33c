"""Retrieval: recalls against brute force, the evaluator against LAVIS's two loops over single pairs."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from mindblip2.config import load_config
from mindblip2.evaluation import retrieval
from mindblip2.evaluation.retrieval import (
    FILL,
    Kept,
    RetrievalConfig,
    candidates,
    chunks,
    recalls,
    report,
    score,
    table,
)
from mindblip2.models.blip2_qformer import Blip2Qformer

TINY = Path(__file__).parents[1] / "fixtures" / "tiny.yaml"
NEAR, FAR = 1e-4, 0.02  # of scores that spread over several units: rounding, and another score
OWNERS = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5, 5])  # 6 pictures, 13 captions, one to four each


# ------------------------------------------------------------------------------------------------ recalls
def brute_force(i2t, t2i, owners):
    """As one would count with a pencil: sort the answers, look for the first right one."""
    first = {"txt": [], "img": []}
    for picture, row in enumerate(i2t):
        order = sorted(range(len(row)), key=lambda text: -row[text])
        first["txt"].append(min(place for place, text in enumerate(order) if owners[text] == picture))
    for text, row in enumerate(t2i):
        order = sorted(range(len(row)), key=lambda picture: -row[picture])
        first["img"].append(order.index(owners[text]))
    figures = {
        f"{side}_r{k}": 100 * sum(place < k for place in places) / len(places)
        for side, places in first.items()
        for k in (1, 5, 10)
    }
    for side in first:
        figures[f"{side}_r_mean"] = sum(figures[f"{side}_r{k}"] for k in (1, 5, 10)) / 3
    mean = (figures["txt_r_mean"] + figures["img_r_mean"]) / 2
    return {**figures, "r_mean": mean, "agg_metrics": figures["txt_r_mean"]}


def random_case(seed, pictures=40):
    rng = np.random.default_rng(seed)
    owners = rng.permutation(np.repeat(np.arange(pictures), rng.integers(1, 8, pictures)))
    right = owners[None] == np.arange(pictures)[:, None]
    noise = [rng.standard_normal(right.shape) for _ in range(2)]
    return 2 * right + noise[0], (2 * right + noise[1]).T, owners


@pytest.mark.parametrize("seed", range(20))
def test_recalls_are_those_of_brute_force(seed):
    case = random_case(seed)
    assert recalls(*case) == pytest.approx(brute_force(*case), abs=1e-9)
    # control: the neighbour's captions are not the own ones
    shifted = recalls(*case[:2], (case[2] + 1) % 40)
    assert (
        shifted["txt_r1"] < recalls(*case)["txt_r1"] - 20
        and shifted["img_r1"] < recalls(*case)["img_r1"] - 20
    )


def test_a_case_made_by_hand():
    """Four of six pictures find an own caption first, one as second, one as seventh; of 13 captions ten find
    their picture first, two as second, one as sixth."""
    right = OWNERS[None] == np.arange(6)[:, None]
    i2t, t2i = right.astype(float), right.T.astype(float)
    i2t[1, 12] = 2  # second
    i2t[3, [0, 1, 2, 7, 8, 9]] = 2, 3, 4, 5, 6, 7  # seventh
    t2i[0, 5], t2i[4, 1] = 2, 3  # second
    t2i[12, :5] = 2, 3, 4, 5, 6  # sixth
    figures = recalls(i2t, t2i, OWNERS)
    expected = {
        "txt_r1": 400 / 6,
        "txt_r5": 500 / 6,
        "txt_r10": 100,
        "img_r1": 1000 / 13,
        "img_r5": 1200 / 13,
        "img_r10": 100,
    }
    assert {key: figures[key] for key in expected} == pytest.approx(expected)
    assert figures["agg_metrics"] == figures["txt_r_mean"] == pytest.approx((400 / 6 + 500 / 6 + 100) / 3)
    assert figures["r_mean"] == pytest.approx((figures["txt_r_mean"] + figures["img_r_mean"]) / 2)


def test_the_order_of_pictures_and_texts_does_not_matter():
    i2t, t2i, owners = random_case(1)
    rng = np.random.default_rng(0)
    pictures, texts = rng.permutation(len(i2t)), rng.permutation(len(t2i))
    place = np.argsort(pictures)
    moved = (i2t[pictures][:, texts], t2i[texts][:, pictures], place[owners[texts]])
    assert recalls(*moved) == recalls(i2t, t2i, owners)
    assert recalls(*moved[:2], owners[texts]) != recalls(i2t, t2i, owners)  # control: owners by file order


def test_ties_count_against_the_right_answer():
    figures = recalls(np.zeros((6, 13)), np.zeros((13, 6)), OWNERS)
    assert figures["txt_r1"] == figures["img_r1"] == figures["img_r5"] == 0
    assert figures["img_r10"] == 100  # six pictures: the last is the sixth
    all_own = recalls(np.zeros((1, 5)), np.zeros((5, 1)), np.zeros(5, int))
    assert all_own["txt_r1"] == all_own["img_r1"] == 100  # own captions do not stand in each other's way


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda i2t, t2i, owners: (i2t * np.nan, t2i, owners), "NaN"),
        (lambda i2t, t2i, owners: (i2t, i2t, owners), r"expected shapes \(I, T\)"),
        (lambda i2t, t2i, owners: (i2t, t2i, np.where(owners == 3, 2, owners)), r"without text: \[3\]"),
        (lambda i2t, t2i, owners: (i2t, t2i, owners + 1), "every text needs one of the 6 pictures"),
    ],
)
def test_what_cannot_be_ranked_is_refused(change, words):
    right = (OWNERS[None] == np.arange(6)[:, None]).astype(float)
    with pytest.raises(ValueError, match=words):
        recalls(*change(right, right.T, OWNERS))


# ------------------------------------------------------------------------------------------------ candidates
def test_candidates_are_the_k_best_and_their_equals():
    scores = np.array([[3, 1, 2, 2], [0, 0, 0, 0]], np.float32)
    assert candidates(scores, 1).tolist() == [[True, False, False, False], [True] * 4]
    assert candidates(scores, 2)[0].tolist() == [True, False, True, True]
    assert candidates(scores, 9).all()


def test_chunks_hold_every_text_once_in_few_shapes():
    rng = np.random.default_rng(0)
    lengths, texts = rng.integers(3, 36, 200), rng.permutation(200)[:77]
    made = list(chunks(texts, lengths, 16))
    assert sorted(np.concatenate([part[:count] for part, count, _ in made])) == sorted(texts)
    assert {len(part) for part, _, _ in made} == {16}
    assert all(lengths[part].max() <= width <= lengths.max() for part, _, width in made)
    assert len({width for _, _, width in made}) <= retrieval.LENGTHS < len(made)


# ------------------------------------------------------------------------------------------------ the evaluat
@pytest.fixture(scope="module")
def model():
    """Tiny, with weights so large that every pair has a score of its own."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    config = load_config(TINY).model.model_config
    config = config.replace(vision_config={"num_hidden_layers": 1}, qformer_config={"num_hidden_layers": 2})
    model, rng = Blip2Qformer(config).set_train(False), np.random.default_rng(0)
    for parameter in model.qformer.get_parameters():
        if parameter.ndim > 1:
            parameter.set_data(Tensor(rng.standard_normal(parameter.shape, np.float32) * 0.3))
    model.itm_head.weight.set_data(Tensor(rng.standard_normal((2, 24), np.float32)))
    return model


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(3)
    ids = np.zeros((13, 8), np.int32)
    for row, length in zip(ids, rng.integers(3, 9, 13)):
        row[:length] = [2, *rng.integers(4, 49, length - 2), 3]
    return list(rng.standard_normal((6, 3, 56, 56), np.float32) * 2), ids


def stacked(pictures):
    return Tensor(np.stack(pictures))


@pytest.fixture(scope="module")
def alone(model, case):
    """Cosine and ITM logit of every pair, one pair at a time: (6, 13) each."""
    pictures, ids = case
    itc = np.concatenate([model.itc_similarity(stacked([one]), Tensor(ids)).asnumpy() for one in pictures])
    itm = [
        [float(model.itm_logits(stacked([one]), Tensor(ids[t : t + 1]))[0, 1]) for t in range(len(ids))]
        for one in pictures
    ]
    return itc, np.array(itm, np.float32)


def two_loops(alone, k, rerank="itm+itc"):
    """LAVIS: for every picture its k best texts, then for every text its k best pictures."""
    itc, itm = alone
    i2t, t2i = np.full(itc.shape, FILL, np.float32), np.full(itc.T.shape, FILL, np.float32)
    for scores, cosines, logits in ((i2t, itc, itm), (t2i, itc.T, itm.T)):
        for row in range(len(scores)):
            best = np.argsort(-cosines[row])[:k]
            scores[row, best] = logits[row, best] + (cosines[row, best] if rerank == "itm+itc" else 0)
    return i2t, t2i


def same(scores, expected):
    np.testing.assert_allclose(scores.i2t, expected[0], atol=NEAR)
    np.testing.assert_allclose(scores.t2i, expected[1], atol=NEAR)


@pytest.mark.parametrize("rerank", ["itm+itc", "itm"])
def test_scores_are_those_of_lavis_two_loops(model, case, alone, rerank):
    scores = score(model, stacked, *case, RetrievalConfig(k_test=4, rerank=rerank, batch_size=4))
    same(scores, two_loops(alone, 4, rerank))
    assert (scores.i2t > FILL).sum(1).tolist() == [4] * 6 and (scores.t2i > FILL).sum(1).tolist() == [4] * 13
    other = two_loops(alone, 4, {"itm": "itm+itc", "itm+itc": "itm"}[rerank])
    assert np.abs(scores.i2t - other[0]).max() > FAR  # control: with or without the cosine is seen


def test_a_pair_is_scored_once_and_a_picture_remembered_once(model, case, monkeypatch):
    met, made = [], []
    monkeypatch.setattr(
        retrieval.Match, "construct", lambda self, ids, memory: met.append(len(ids)) or ops.ones(len(ids))
    )
    real = type(model.qformer.memory).construct
    monkeypatch.setattr(
        type(model.qformer.memory), "construct", lambda self, x: made.append(len(x)) or real(self, x)
    )
    scores = score(model, stacked, *case, RetrievalConfig(k_test=4, batch_size=3))
    wanted = (scores.i2t > FILL) | (scores.t2i > FILL).T
    assert scores.pairs == wanted.sum() < 6 * 4 + 13 * 4 and made == [3, 3]
    assert len(met) == 6 and met == [wanted.sum(1).max()] * 6


@pytest.mark.parametrize(
    "budget, kept", [(8.0, "memory"), (6 * 17 * 32 * 4 / 1e9, "embeddings"), (0.0, "nothing")]
)
def test_whatever_is_kept_the_scores_are_the_same(model, case, alone, budget, kept, monkeypatch):
    stores, real = [], Kept.__init__
    monkeypatch.setattr(Kept, "__init__", lambda self, *inputs: real(self, *inputs) or stores.append(self))
    scores = score(model, stacked, *case, RetrievalConfig(k_test=3, batch_size=4, memory_budget=budget))
    assert stores[0].what == kept and len(stores[0].store) == (0 if kept == "nothing" else 6)
    same(scores, two_loops(alone, 3))


def test_the_memory_of_another_picture_would_be_noticed(model, case, alone, monkeypatch):
    real = Kept.__getitem__
    monkeypatch.setattr(Kept, "__getitem__", lambda self, i: real(self, (i + 1) % 6))
    scores = score(model, stacked, *case, RetrievalConfig(k_test=4))
    assert np.abs(scores.i2t - two_loops(alone, 4)[0]).max() > FAR


@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_texts_together_score_as_texts_alone(model, case, alone, chunk, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    monkeypatch.setattr(retrieval, "TEXT_BATCH", chunk)
    wide = np.pad(case[1], ((0, 0), (0, 8)))  # more padding changes nothing either
    same(score(model, stacked, case[0], wide, RetrievalConfig(k_test=13)), two_loops(alone, 13))


def test_without_reranking_the_scores_are_the_cosines(model, case):
    scores = score(model, stacked, *case, RetrievalConfig(rerank="none"))
    assert scores.pairs == 0
    np.testing.assert_array_equal(scores.i2t, scores.t2i.T)
    np.testing.assert_allclose(
        scores.i2t, model.itc_similarity(stacked(case[0]), Tensor(case[1])).asnumpy(), atol=1e-5
    )


def test_graph_mode_gives_the_same(model, case, alone):
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        same(score(model, stacked, *case, RetrievalConfig(k_test=4, batch_size=4)), two_loops(alone, 4))
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


def test_damaged_weights_are_an_error_and_not_a_recall(model, case):
    bias = model.itm_head.bias.asnumpy()
    model.itm_head.bias.set_data(Tensor(bias * np.nan))
    try:
        with pytest.raises(
            FloatingPointError, match="the ITM logits of pictures and texts: .* are NaN or infinite"
        ):
            score(model, stacked, *case, RetrievalConfig(k_test=2))
    finally:
        model.itm_head.bias.set_data(Tensor(bias))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"k_test": 0}, "k_test"),
        ({"rerank": "itc"}, "'itm\\+itc', 'itm', 'none'"),
        ({"text_length": 1}, "text_length"),
        ({"memory_budget": -1}, "memory_budget"),
        ({"memory_budget": float("nan")}, "memory_budget = nan"),
        ({"k_test": "8"}, "k_test = '8'"),
    ],
)
def test_a_recipe_that_means_nothing_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        RetrievalConfig(**options)


def test_the_report_says_how_it_was_made(model, case):
    recipe = RetrievalConfig(k_test=4)
    scores = score(model, stacked, *case, recipe)
    figures = report(scores, OWNERS, recipe, weights="x.ckpt")
    assert {key: figures[key] for key in recalls(scores.i2t, scores.t2i, OWNERS)} == recalls(
        scores.i2t, scores.t2i, OWNERS
    )
    assert figures["itc"] == recalls(scores.itc, scores.itc.T, OWNERS)
    expected = {"weights": "x.ckpt", "pictures": 6, "texts": 13, "k_test": 4, "pairs": scores.pairs}
    assert expected.items() <= figures["recipe"].items()
    text = table(figures)
    assert f"{figures['txt_r1']:.2f}" in text and "rerank itm+itc" in text and "weights x.ckpt" in text
