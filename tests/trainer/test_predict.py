"""predict of every task: pictures are decoded once, results are finite, numbers of a call are in range."""

from collections import Counter
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindblip2 import Trainer, load_config, pipeline
from mindblip2.data.images import load as images
from mindblip2.data.processor import Blip2Processor
from mindblip2.demo import scenes
from mindblip2.evaluation.zero_shot import ZeroShotClassifier
from mindblip2.models.blip2_qformer import Blip2Classifier

LABELS = ["three", "seven"]
PYNATIVE = {"context.mode": 1}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    scenes.draw(folder, 48)
    return [str(path) for path in sorted(folder.iterdir())[:3]]


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def decodes(monkeypatch):
    """How often each file was decoded, whoever asked for it."""
    counted, decode = Counter(), images._upright_rgb

    def counting(picture, frame, name, alpha):
        if name != "the PIL picture":  # one that is decoded already goes through here too
            counted[name] += 1
        return decode(picture, frame, name, alpha)

    monkeypatch.setattr(images, "_upright_rgb", counting)
    return counted


def test_a20_classification_decodes_each_picture_once(pictures, decodes):
    Trainer(
        args=load_config("blip2_digits", PYNATIVE),
        task="zero_shot_image_classification",
        candidate_labels=LABELS,
    ).predict(pictures, save_picture="page.png", batch_size=2)
    assert Path("page.png").is_file() and decodes == dict.fromkeys(pictures, 1)
    images.load_image(pictures[0])
    assert decodes[pictures[0]] == 2  # negative control


def test_a20_features_decode_each_picture_once(pictures, decodes):
    Trainer(args=load_config("blip2_digits", PYNATIVE), task="feature_extraction").predict(
        pictures, batch_size=2
    )
    assert decodes == dict.fromkeys(pictures, 1)


def test_a20_generation_decodes_each_picture_once(pictures, decodes):
    trainer = Trainer(args=load_config("itt_blip2_digits", PYNATIVE))
    texts = trainer.predict(pictures, max_new_tokens=3, num_beams=1, batch_size=2)
    assert len(texts) == 3 and decodes == dict.fromkeys(pictures, 1)
    decodes.clear()
    trainer.predict(
        [{"image": pictures[0], "prompt": "the"}], hypothesis_template="", max_new_tokens=2, num_beams=1
    )
    assert decodes == {pictures[0]: 1}


# ------------------------------------------------------------------------------------------------ results
@pytest.fixture
def damaged():
    """A function that puts a value into a weight of a fresh model, and gives the model."""

    def damage(value, name="vision_proj.weight"):
        model = Blip2Classifier.from_pretrained("blip2_digits")
        weight = model.parameters_dict()[name]
        array = weight.asnumpy().copy()
        array.flat[0] = value
        weight.set_data(Tensor(array))
        return model

    return damage


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a7_scores_that_are_not_finite_are_an_error(damaged, pictures, value):
    processor = Blip2Processor.from_pretrained("blip2_digits")
    for options in ({}, {"use_itm": True}) if np.isnan(value) else ({},):
        name = "itm_head.weight" if options else "vision_proj.weight"
        with pytest.raises(
            FloatingPointError,
            match="the probabilities of the labels: .* are NaN or infinite: the weights are damaged",
        ):
            ZeroShotClassifier(damaged(value, name), processor, LABELS, **options)(pictures)
    assert ZeroShotClassifier(damaged(0.1), processor, LABELS)(pictures)  # negative control


def test_a7_features_that_are_not_finite_are_an_error(damaged, pictures):
    run = {"args": load_config("blip2_digits", PYNATIVE), "task": "feature_extraction"}
    with pytest.raises(FloatingPointError, match="image_embeds_proj: .* are NaN or infinite"):
        Trainer(model=damaged(np.nan), **run).predict(pictures)
    with pytest.raises(FloatingPointError, match="text_embeds_proj: .* are NaN or infinite"):
        Trainer(model=damaged(np.nan, "text_proj.weight"), **run).predict(pictures, captions=["a three"])
    assert not Path("feature_extraction_result.npz").exists()


# ------------------------------------------------------------------------------------------------ numbers of
@pytest.mark.parametrize("name", ["top_k", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True, np.nan, np.inf])
def test_a7_numbers_of_a_call_are_in_range(pictures, name, value):
    trainer = Trainer(
        args=load_config("blip2_digits", PYNATIVE),
        task="zero_shot_image_classification",
        candidate_labels=LABELS,
    )
    with pytest.raises(ValueError, match=f"{name} = .*expected") as error:
        trainer.predict(pictures, **{name: value})
    assert "\n" not in str(error.value) and trainer.model is None  # before a model is made


def test_a7_numbers_of_a_pipeline_are_in_range(pictures):
    piped = pipeline("zero_shot_image_classification", model="blip2_digits", candidate_labels=LABELS)
    for options in ({"top_k": 0}, {"top_k": "2"}, {"batch_size": -1}, {"batch_size": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} = .*expected"):
            piped(pictures, **options)
    assert len(piped(pictures, top_k=np.int64(1), batch_size=np.int32(2))) == 3  # negative control
