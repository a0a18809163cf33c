"""What ``save_pretrained`` writes is a name for every door, wherever it is carried: both stages, their
processors and tokenizers."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

import run_blip2
from mindblip2 import (
    Blip2Classifier,
    Blip2Config,
    Blip2ImageToTextGeneration,
    Blip2Processor,
    Blip2Qformer,
    ConfigError,
    Trainer,
    load_config,
    pipeline,
)
from mindblip2.data.images.load import load_image
from mindblip2.data.processor import Blip2ImageProcessor
from tests import stage2_small

LABELS = {"candidate_labels": ["three", "seven", "nine"], "hypothesis_template": "a handwritten {}"}
SHORT = {"max_new_tokens": 5, "num_beams": 2}

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def pictures(small):
    return list(small.pictures.values())[:2]


@pytest.fixture
def carried(tmp_path):
    """carried(save) → a folder that ``save(folder)`` wrote and that was then moved: nothing in it may name
    the old place."""

    def made(save):
        save(tmp_path / "written" / "mine")
        (tmp_path / "elsewhere").mkdir()
        shutil.move(tmp_path / "written" / "mine", tmp_path / "elsewhere" / "mine")
        return tmp_path / "elsewhere" / "mine"

    return made


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------ stage 1
def test_a_saved_model_of_stage_1_is_a_name_for_every_door(carried, pictures):
    model = Blip2Classifier.from_pretrained("blip2_digits")
    folder = carried(model.save_pretrained)
    assert files(folder) == ["config.yaml", "model.ckpt", "vocab.txt"]
    wanted = pipeline("zero_shot_image_classification", model="blip2_digits", **LABELS)(pictures)
    assert pipeline("zero_shot_image_classification", model=folder, **LABELS)(pictures) == wanted
    assert pipeline("zero_shot_image_classification", model=str(folder), **LABELS)(pictures) == wanted
    assert Trainer(model=folder, **LABELS).predict(pictures, top_k=3) == wanted
    ran = run_blip2.run(
        [
            "--config",
            str(folder),
            "--run_mode",
            "predict",
            "--mode",
            "1",
            "--top_k",
            "3",
            "--predict_data",
            *pictures,
            "--candidate_labels",
            *LABELS["candidate_labels"],
            "--hypothesis_template",
            LABELS["hypothesis_template"],
        ]
    )
    assert ran == wanted
    # the control: other weights, another answer
    model.vision_proj.weight.set_data(model.vision_proj.weight * -1)
    model.save_pretrained(folder)
    assert pipeline("zero_shot_image_classification", model=folder, **LABELS)(pictures) != wanted


def test_the_processor_of_stage_1_is_the_same(carried, pictures):
    original = Blip2Processor.from_pretrained("blip2_digits")
    again = Blip2Processor.from_pretrained(carried(original.save_pretrained))
    for call in ({"images": pictures}, {"text": ["a red seven", "a blue unheard-of one"]}):
        one, other = (processor(**call, return_tensors="np") for processor in (original, again))
        assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    # the control: BERT's, at 224 pixels
    plain = Blip2Processor()
    assert plain.image_processor.image_size != again.image_processor.image_size and len(
        plain.tokenizer
    ) != len(again.tokenizer)


def test_what_a_processor_was_told_is_kept(carried, pictures):
    told = Blip2Processor(
        Blip2ImageProcessor(28, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), max_length=7, padding=False
    )
    again = Blip2Processor.from_pretrained(carried(told.save_pretrained))
    assert np.array_equal(
        told(pictures, return_tensors="np")["image"], again(pictures, return_tensors="np")["image"]
    )
    long, short = "a picture of a very large and very red seven", "a seven"
    for text in (long, short):
        assert told(text=text, return_tensors=None) == again(text=text, return_tensors=None)
    assert (
        len(again(text=long, return_tensors=None)["input_ids"])
        == 7
        > len(again(text=short, return_tensors=None)["input_ids"])
    )


# ------------------------------------------------------------------------------------------------ stage 2
def test_a_saved_model_of_stage_2_is_a_name_for_every_door(small, carried, pictures):
    model = Blip2ImageToTextGeneration.from_pretrained(small.yaml, small.ckpt)
    folder = carried(model.save_pretrained)
    assert files(folder) == ["config.yaml", "merges.txt", "model.ckpt", "vocab.json"]
    wanted = pipeline("image_to_text_generation", model=small.yaml, checkpoint=small.ckpt)(pictures, **SHORT)
    piped = pipeline("image_to_text_generation", model=folder)
    assert (
        piped(pictures, **SHORT) == wanted
        and piped(pictures, hypothesis_template="a green", **SHORT) != wanted
    )
    assert str(piped.processor.tokenizer.vocab_file) == str(folder / "vocab.json")
    assert Trainer(model=folder).predict(pictures, **SHORT) == wanted
    ran = run_blip2.run(
        [
            "--config",
            str(folder),
            "--run_mode",
            "predict",
            "--mode",
            "1",
            "--predict_data",
            *pictures,
            "--generation.max_new_tokens",
            "5",
            "--generation.num_beams",
            "2",
        ]
    )
    assert ran == wanted
    assert type(piped.model).from_pretrained(folder / "config.yaml").config.checkpoint_name_or_path == str(
        folder / "model.ckpt"
    )


def test_training_goes_on_from_a_saved_folder(small, carried):
    folder = carried(Blip2ImageToTextGeneration.from_pretrained(small.yaml, small.ckpt).save_pretrained)
    config = load_config(
        folder,
        {
            "context.mode": 1,
            "runner_config.batch_size": 4,
            "runner_config.epochs": 1,
            "output_dir": "run",
            "train_dataset.num_parallel_workers": 0,
            "train_dataset.text_transforms.max_length": 16,
        },
    )
    Trainer(args=config, model=folder, train_dataset=stage2_small.samples(small.pictures)).train()
    assert list(Path("run/checkpoint/rank_0").glob("step_*")) and files(folder) == [
        "config.yaml",
        "merges.txt",
        "model.ckpt",
        "vocab.json",
    ]


# ------------------------------------------------------------------------------------------------ whose proce
def test_the_processor_that_is_given_or_there_goes_before_the_presets(small, tmp_path):
    model = Blip2Classifier.from_pretrained("blip2_digits")
    other = Blip2Processor(Blip2ImageProcessor(28))
    model.save_pretrained(tmp_path / "given", other)
    other.save_pretrained(tmp_path / "there")
    model.save_pretrained(tmp_path / "there")
    model.save_pretrained(tmp_path / "presets")
    sizes = [
        Blip2Processor.from_pretrained(tmp_path / name).image_processor.image_size
        for name in ("given", "there", "presets")
    ]
    assert sizes == [28, 28, 48]
    assert Blip2Config.from_pretrained(tmp_path / "there").vision_config == model.config.vision_config


def test_a_model_whose_processor_is_not_to_be_had_is_saved_all_the_same(small, tmp_path, caplog):
    bare = Blip2Config(**load_config("blip2_digits").model.model_config.to_dict())
    with caplog.at_level(logging.WARNING, "mindblip2"):
        Blip2Qformer(bare).save_pretrained(tmp_path / "bare")
        assert (
            "bare holds a model without its processor (its configuration was made in Python): add it by"
            in caplog.text
        )
        lost = shutil.copytree(small.folder, tmp_path / "lost")
        text = Path(small.yaml).read_text(encoding="utf-8").replace(str(small.words.folder), "nowhere")
        (lost / "small.yaml").write_text(text, encoding="utf-8")
        Blip2ImageToTextGeneration.from_pretrained(lost / "small.yaml", small.ckpt).save_pretrained(
            tmp_path / "second"
        )
    assert "no tokenizer file nowhere" in caplog.text
    assert files(tmp_path / "bare") == files(tmp_path / "second") == ["config.yaml", "model.ckpt"]
    # what the warning advises
    Blip2Processor.from_pretrained(small.yaml).save_pretrained(tmp_path / "second")
    assert pipeline("image_to_text_generation", model=tmp_path / "second")(
        small.pictures["red"], **SHORT
    ) == pipeline("image_to_text_generation", model=small.yaml, checkpoint=small.ckpt)(
        small.pictures["red"], **SHORT
    )


def test_what_cannot_be_saved_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="a dict cannot be saved: expected a tokenizer of mindblip2"):
        Blip2Processor(tokenizer={"a": 1}).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="a function cannot be saved: expected a Blip2ImageProcessor"):
        Blip2Processor(load_image).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ beside the
def test_files_beside_the_configuration_are_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "words.txt").write_text("x")
    (tmp_path / "there" / "x.yaml").write_text(
        "processor: {tokenizer: {vocab_file: words.txt}}\ntrain_dataset: {tokenizer: {vocab_file: "
        "words.txt}}\nmodel: {model_config: {checkpoint_name_or_path: none.ckpt}}\n"
    )
    config = load_config(tmp_path / "there" / "x.yaml")
    assert (
        config.processor.tokenizer.vocab_file
        == config.train_dataset.tokenizer.vocab_file
        == str(tmp_path / "there" / "words.txt")
    )
    assert config.model.model_config.checkpoint_name_or_path == "none.ckpt"  # which does not lie there
    (tmp_path / "there" / "opt").mkdir()
    (tmp_path / "there" / "blip2").write_text("x")
    (tmp_path / "there" / "y.yaml").write_text(
        "processor: {tokenizer: {vocab_file: opt}}\nmodel: {model_config: {checkpoint_name_or_path: "
        "blip2, text_config: {checkpoint_name_or_path: opt}}}\n"
    )
    config = load_config(tmp_path / "there" / "y.yaml")
    assert config.processor.tokenizer.vocab_file == str(tmp_path / "there" / "opt")
    # names of weights are looked for in the cache
    assert config.model.model_config.checkpoint_name_or_path == "blip2"
    assert config.model.model_config.text_config.checkpoint_name_or_path == "opt"
    said = load_config(
        "there/x.yaml",
        {"processor.tokenizer.vocab_file": "words.txt", "train_dataset.tokenizer.vocab_file": "words.txt"},
    )
    # a command line means where it is written
    assert said.processor.tokenizer.vocab_file == "words.txt"
    with pytest.raises(ConfigError, match="no configuration 'nowhere'"):
        load_config("nowhere")
