"""Zero-shot classification with the embedded model: scores, options, and the errors of its input."""

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from mindblip2.data.processor import Blip2Processor
from mindblip2.demo import scenes
from mindblip2.evaluation.zero_shot import ZeroShotClassifier, checked_labels, hypotheses
from mindblip2.models import blip2_qformer
from mindblip2.models.blip2_qformer import Blip2Classifier

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def model():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    return Blip2Classifier.from_pretrained("blip2_digits")


@pytest.fixture(scope="module")
def processor():
    return Blip2Processor.from_pretrained("blip2_digits")


@pytest.fixture(scope="module")
def pictures():
    names = scenes.labelled_sets(48)[0]
    return names.pictures[::12], names.truths[::12]


def classifier(model, processor, **options):
    return ZeroShotClassifier(model, processor, options.pop("labels", DIGITS), "a handwritten {}", **options)


def test_held_out_digits_are_recognised_and_scores_are_probabilities(model, processor, pictures):
    probabilities = classifier(model, processor).probabilities(pictures[0])
    assert probabilities.shape == (len(pictures[0]), 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    right = [DIGITS[row.argmax()] == truth for row, truth in zip(probabilities, pictures[1])]
    assert np.mean(right) >= 0.9
    shuffled = [DIGITS[row.argmax()] == truth for row, truth in zip(probabilities[::-1], pictures[1])]
    assert np.mean(shuffled) < 0.4  # control: answers of other pictures are no answers


def test_results_are_sorted_and_cut_at_top_k(model, processor, pictures):
    whole = classifier(model, processor)(pictures[0][:3])
    assert [len(row) for row in whole] == [10] * 3
    assert all(a["score"] >= b["score"] for row in whole for a, b in zip(row, row[1:]))
    assert classifier(model, processor)(pictures[0][:3], top_k=2) == [row[:2] for row in whole]


def test_a_batch_gives_what_single_pictures_give(model, processor, pictures):
    together = classifier(model, processor).probabilities(pictures[0][:4], batch_size=4)
    alone = classifier(model, processor).probabilities(pictures[0][:4], batch_size=1)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_pictures_of_mixed_modes_go_together(model, processor, pictures):
    picture = Image.fromarray(pictures[0][0])
    mixed = [
        picture,
        picture.convert("P"),
        picture.convert("RGBA"),
        picture.convert("L"),
        np.asarray(picture),
    ]
    probabilities = classifier(model, processor).probabilities(mixed)
    np.testing.assert_allclose(probabilities[0], probabilities[2], atol=1e-6)
    np.testing.assert_allclose(probabilities[0], probabilities[4], atol=1e-6)


def test_first_query_and_matching_head_give_other_scores(model, processor, pictures):
    best = classifier(model, processor).probabilities(pictures[0][:2])
    matched = classifier(model, processor, use_itm=True).probabilities(pictures[0][:2])
    np.testing.assert_allclose(matched.sum(1), 1, atol=1e-5)
    assert np.abs(best - matched).max() > 1e-3
    first = Blip2Classifier(model.config.replace(query_reduce="first"))
    first.load_checkpoint(scenes_checkpoint())
    image = processor.image_processor(pictures[0][:2])
    features = model.extract_features({"image": image}, "image").image_embeds_proj
    labels = classifier(model, processor).label_features()
    logits = features[:, 0].asnumpy() @ labels.asnumpy().T / float(model.temp)
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(
        classifier(first, processor).probabilities(pictures[0][:2]), expected, atol=1e-5
    )
    assert np.abs(best - expected).max() > 1e-4


@pytest.mark.parametrize("use_itm", [False, True])
def test_labels_are_read_some_at_a_time(model, processor, pictures, use_itm, monkeypatch):
    """Ten labels in threes, the last three with two that were there; a picture's own memory meets its
    labels."""
    whole = classifier(model, processor, use_itm=use_itm).probabilities(pictures[0][:2])
    seen, real = (
        [],
        blip2_qformer.Blip2Qformer.match_logits if use_itm else blip2_qformer.Blip2Qformer.text_features,
    )
    monkeypatch.setattr(blip2_qformer, "LABELS", 3)
    monkeypatch.setattr(
        Blip2Classifier,
        real.__name__,
        lambda self, ids, *rest: seen.append(ids.shape[0]) or real(self, ids, *rest),
    )
    parts = classifier(model, processor, use_itm=use_itm).probabilities(pictures[0][:2])
    assert seen == [6 if use_itm else 3] * 4 and whole.shape == (2, 10)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    # the control: an order of labels that is not theirs
    assert np.abs(parts - np.roll(whole, 1, 1)).max() > 1e-2


def scenes_checkpoint():
    from mindblip2.checkpoint.pretrained import find_weights

    return find_weights("blip2_digits")


def test_a_label_longer_than_the_model_takes_is_cut(model, processor, pictures):
    long = "seven " * 60
    scores = classifier(model, processor, labels=["seven", long]).probabilities(pictures[0][:1])
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    "labels, word",
    [
        ([], "no labels"),
        (None, "no labels"),
        (["a", "a"], "more than once"),
        (["a", ""], "expected words"),
        (["a", 3], "expected words"),
    ],
)
def test_labels_that_mean_nothing_are_refused(labels, word):
    with pytest.raises(ValueError, match=word):
        checked_labels(labels)


def test_a_template_needs_a_place_for_the_label():
    assert hypotheses(["x{}"], "a {}") == ["a x{}"]
    with pytest.raises(ValueError, match="where the label goes"):
        hypotheses(["cat"], "a picture")


def test_no_pictures_and_a_bad_top_k_are_refused(model, processor, pictures):
    with pytest.raises(ValueError, match="no pictures"):
        classifier(model, processor)([])
    with pytest.raises(ValueError, match="top_k"):
        classifier(model, processor)(pictures[0][:1], top_k=0)


def test_the_tokenizer_of_another_model_is_refused(model):
    with pytest.raises(ValueError, match="knows 30523 tokens, the model 120"):
        ZeroShotClassifier(model, Blip2Processor(), ["cat"])


# ------------------------------------------------------------------------------------------------ labels that
def test_a8_labels_of_unknown_tokens_are_refused(model, processor):
    """The right ones of the list are not named; two unknown words of one label among known ones are a warning
    only."""
    with pytest.raises(
        ValueError,
        match=r"knows no token of 2 of 3 labels \('cat', 'lorry truck'\).*vocabulary has 120 tokens",
    ):
        classifier(model, processor, labels=["cat", "seven", "lorry truck"])
    assert classifier(model, processor, labels=["seven", "one"]).labels == ["seven", "one"]


def test_a8_labels_with_the_same_tokens_are_refused(model, processor):
    with pytest.raises(
        ValueError, match="the labels 'seven', 'Seven' have the same tokens as 'a handwritten {}'"
    ):
        classifier(model, processor, labels=["one", "seven", "Seven"])
    # [UNK] for both
    with pytest.raises(ValueError, match=r"the labels 'red truck', 'red cat' have the same tokens"):
        classifier(model, processor, labels=["one", "red truck", "red cat"])
    with pytest.raises(ValueError, match="have the same tokens .of 18 at most.*or raise max_length"):
        classifier(model, processor, labels=["seven " * 30 + "one", "seven " * 30 + "two"])
    assert len(classifier(model, processor, labels=["seven seven one", "seven seven two"]).labels) == 2


def test_a8_some_unknown_words_are_a_warning_that_names_them(model, processor, caplog):
    classifier(model, processor, labels=["one", "red cat"])
    assert (
        "do not know all" not in caplog.text
        and "does not know all words of 1 of 2 labels: 'red cat' (cat)" in caplog.text
    )
    caplog.clear()
    ZeroShotClassifier(model, processor, ["one", "two"], "my snapshot of {}")
    assert "does not know 'my', 'snapshot' of hypothesis_template = 'my snapshot of {}'" in caplog.text
    caplog.clear()
    classifier(model, processor)
    assert caplog.text == ""


def test_a8_one_string_is_split_at_its_commas(model, processor, pictures):
    """As transformers: in the pipeline, the Trainer, and as one argument of the command line."""
    import run_blip2
    from mindblip2 import Trainer, pipeline

    said = {"hypothesis_template": "a handwritten {}"}
    ours = pipeline("zero_shot_image_classification", model=model, processor=processor, **said)
    split, listed = (
        ours(pictures[0][:1], candidate_labels=labels)
        for labels in ("seven, one,,nine ", ["seven", "one", "nine"])
    )
    assert split == listed and len(split[0]) == 3
    trainer = Trainer(
        task="zero_shot_image_classification", model=model, candidate_labels="seven, one", **said
    )
    assert trainer.model is model and checked_labels(trainer.candidate_labels) == ["seven", "one"]
    for given, labels in (
        (["cat, big dog"], ["cat", "big dog"]),
        (["cat,", "dog,", "bird"], ["cat", "dog", "bird"]),
        (["cat", "truck, big"], ["cat", "truck, big"]),
        (["cat"], ["cat"]),
    ):
        options, overrides = run_blip2.arguments(["--config", "blip2_digits", "--candidate_labels", *given])
        assert options.candidate_labels == labels == overrides["eval_dataset.data_loader.candidate_labels"]
    # the control: a list says itself what its labels are
    assert checked_labels(["truck, big"]) == ["truck, big"]


# ------------------------------------------------------------------------------------------------ temperature
def test_a15_a_temperature_divides_the_similarities(model, processor, pictures):
    """1 gives the softmax of the cosines, which are transformers' probabilities; the learnt one is the
    default."""
    image = processor.image_processor(pictures[0][:3])
    features = model.extract_features({"image": image}, "image").image_embeds_proj.asnumpy()
    labels = classifier(model, processor).label_features().asnumpy()
    cosine = np.einsum("bqe,le->bql", features, labels).max(1)

    def softmax(logits):
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    learnt = classifier(model, processor).probabilities(pictures[0][:3])
    one = classifier(model, processor, temperature=1).probabilities(pictures[0][:3])
    np.testing.assert_allclose(one, softmax(cosine), atol=1e-5)
    np.testing.assert_allclose(learnt, softmax(cosine / float(model.temp)), atol=1e-5)
    same = classifier(model, processor, temperature=float(model.temp)).probabilities(pictures[0][:3])
    np.testing.assert_allclose(same, learnt, atol=1e-6)
    assert np.abs(one - learnt).max() > 0.1 and (one.argmax(1) == learnt.argmax(1)).all()


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), "1", True])
def test_a15_a_temperature_is_finite_and_above_0(model, processor, wrong):
    with pytest.raises(ValueError, match="temperature = .*expected a finite number above 0"):
        classifier(model, processor, temperature=wrong)
    with pytest.raises(ValueError, match="with use_itm: .*leave one of them out"):
        classifier(model, processor, temperature=1.0, use_itm=True)


def test_a15_pipeline_trainer_and_configuration_take_it(model, processor, pictures, here, capsys):
    from mindblip2 import Trainer, pipeline
    from mindblip2.config import load_config

    said = {"candidate_labels": DIGITS, "hypothesis_template": "a handwritten {}"}
    ours = pipeline("zero_shot_image_classification", model=model, processor=processor, **said)
    warm = pipeline("zero_shot_image_classification", model=model, processor=processor, temperature=1, **said)
    expected = ours(pictures[0][:2], temperature=1.0)
    assert warm(pictures[0][:2]) == expected != ours(pictures[0][:2])
    trainer = Trainer(task="zero_shot_image_classification", model="blip2_digits", **said)
    assert trainer.predict(pictures[0][:2], temperature=1, top_k=10) == expected
    config = load_config("blip2_digits", {"eval_dataset.temperature": 1, "context.mode": 1})
    trainer = Trainer(args=config, task="zero_shot_image_classification", **said)
    assert trainer.predict(pictures[0][:2], top_k=10) == expected
    with pytest.raises(
        ValueError, match="the exported classifier divides ITC similarities by the learnt temperature"
    ):
        trainer.export(folder="mindir")
