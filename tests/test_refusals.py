"""C1, C2, C3, C9, A17: what is refused names the way, and what is given is read as what it is."""

import functools
import json
import re
from pathlib import Path

import pytest

import run_blip2
from mindblip2 import (
    Blip2Classifier,
    Blip2Config,
    Blip2ImageToTextGeneration,
    Blip2Processor,
    Trainer,
    load_config,
    pipeline,
    pipelines,
)
from mindblip2.config import ConfigError, presets
from mindblip2.trainer.tasks import TASKS
from mindblip2.trainer.tasks.inputs import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parents[1]
CONVERT = "python convert/convert_weight.py --torch_path "


def entries(name):
    """Every way in that takes the name of a model."""
    yield lambda: pipeline("image_to_text_generation", model=name)
    yield lambda: pipeline("zero_shot_image_classification", model=name)
    yield lambda: Trainer(task="image_to_text_generation", model=name)
    yield lambda: Trainer(args=name)
    yield lambda: Blip2ImageToTextGeneration.from_pretrained(name)
    yield lambda: Blip2Config.from_pretrained(name)
    yield lambda: Blip2Processor.from_pretrained(name)
    yield lambda: run_blip2.run(["--config", str(name), "--run_mode", "predict", "--predict_data", "x.png"])


@pytest.mark.parametrize(
    "name, words",
    [
        (
            "Salesforce/blip2-opt-2.7b",
            [
                "huggingface-cli download Salesforce/blip2-opt-2.7b",
                CONVERT + "FOLDER --mindspore_path model.ckpt\n",
                "itt_blip2_stage2_vit_g_opt_2_7b",
                "--load_checkpoint model.ckpt",
                "its tokenizer is in the same folder",
            ],
        ),
        ("Salesforce/blip2-opt-2.7b-coco", ["--image_size 224"]),
        ("Salesforce/blip2-itm-vit-g", ["blip2_stage1_classification"]),
        ("Salesforce/blip2-flan-t5-xl", ["type 'blip-2' with t5, which mindblip2 does not have"]),
        (
            "Salesforce/instructblip-vicuna-7b",
            ["type 'instructblip' with llama, which mindblip2 does not have"],
        ),
        ("Salesforce/blip-image-captioning-base", ["type 'blip'", "does not have"]),
    ],
)
def test_c1_a_name_of_hugging_face_is_answered_with_the_way(name, words):
    for entry in entries(name):
        with pytest.raises(ConfigError) as error:
            entry()
        assert [one for one in words if one not in str(error.value)] == [] and "did you mean" not in str(
            error.value
        )


@pytest.mark.parametrize(
    "about, words",
    [
        (
            {
                "model_type": "blip-2",
                "architectures": ["Blip2ForConditionalGeneration"],
                "text_config": {"model_type": "opt"},
            },
            ["itt_blip2_stage2_vit_g_opt_2_7b"],
        ),
        # transformers leaves out what is the default
        ({"model_type": "blip-2"}, ["itt_blip2_stage2_vit_g_opt_2_7b"]),
        (
            {"model_type": "blip-2", "text_config": {"model_type": "llama"}},
            ["itt_blip2_stage2_vit_g_vicuna_7b"],
        ),
        (
            {"model_type": "blip-2", "architectures": ["Blip2ForImageTextRetrieval"]},
            ["blip2_stage1_classification"],
        ),
        (
            {"model_type": "blip-2", "text_config": {"model_type": "t5"}},
            ["type 'blip-2' with t5, which mindblip2 does not have"],
        ),
        (
            {"model_type": "opt"},
            ["type 'opt', which mindblip2 does not have", "--llm_path of convert/convert_weight.py"],
        ),
        ({"model_type": ["x"]}, ["which mindblip2 does not have"]),
        ({}, ["which mindblip2 does not have"]),
    ],
)
def test_c1_a_folder_of_hugging_face_is_answered_with_the_way(tmp_path, about, words):
    (tmp_path / "config.json").write_text(json.dumps(about))
    for entry in entries(tmp_path):
        with pytest.raises(ConfigError) as error:
            entry()
        assert [one for one in words if one not in str(error.value)] == []
        assert "does not have" in str(error.value) or f"{CONVERT}{tmp_path} --mindspore_path" in str(
            error.value
        )


def test_c1_other_names_are_answered_as_before(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'blip2_digits'"):
        load_config("blip2_digit")
    with pytest.raises(ConfigError, match="neither a file .* nor a preset"):
        load_config("folder/mine")
    (tmp_path / "config.json").write_text("{" * 9)
    with pytest.raises(ValueError, match="config.json is not the config.json of a model"):
        load_config(tmp_path)
    # the control: a folder of save_pretrained may hold other files too
    (tmp_path / "config.yaml").write_text("seed: 5")
    assert load_config(tmp_path).seed == 5
    for suffix in (".ckpt", ".pth", ".safetensors"):
        (tmp_path / f"x{suffix}").write_bytes(b"\x0a\xff")
        with pytest.raises(
            ConfigError, match=rf"x{suffix} holds weights, expected a configuration: give it as checkpoint"
        ):
            load_config(tmp_path / f"x{suffix}")


def test_c2_the_default_of_generation_has_public_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDBLIP2_CACHE", str(tmp_path))
    assert (
        pipelines.GENERATION_DEFAULT
        == DEFAULT_MODEL["image_to_text_generation"]
        == "itt_blip2_stage2_vit_g_opt_2_7b"
    )
    for entry in (
        lambda: pipeline("image_to_text_generation"),
        lambda: Trainer(task="image_to_text_generation").predict("x.png"),
    ):
        with pytest.raises((FileNotFoundError, ValueError)) as error:
            entry()
        assert "blip2_pretrained_opt2.7b.pth" in str(error.value) or "no tokenizer file opt_2_7b" in str(
            error.value
        )


@pytest.mark.parametrize("name", [name for name in presets() if "stage2" in name])
def test_c2_weights_that_nobody_published_are_not_offered(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MINDBLIP2_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        Blip2ImageToTextGeneration.from_pretrained(name)
    public = "opt" in name or "vicuna" in name
    assert ("no published stage 2 for" in str(error.value)) is not public
    assert (".pth" in str(error.value)) is public
    assert public or "itt_blip2_stage2_vit_g_opt_2_7b" in str(error.value)


def test_c3_the_file_of_364_pixels_has_its_size_in_the_guide():
    (row,) = [
        line
        for line in (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8").splitlines()
        if '"caption_coco_opt2.7b"' in line
    ]
    assert "--torch_path blip2_caption_opt2.7b.pth" in row and "364" in row
    overrides = dict(re.findall(r'"([a-z_.]+)": (364)', row))
    assert len(overrides) == 2
    config = load_config("itt_blip2_stage2_vit_g_opt_2_7b", overrides)
    assert (
        config.model.model_config.vision_config.num_tokens == 677
        and config.processor.image_processor.image_size == 364
    )


# ------------------------------------------------------------------------------------------------ C9
def test_c9_a_model_object_brings_its_own_processor(here):
    model = Blip2Classifier.from_pretrained("blip2_digits")
    piped = pipeline("zero_shot_image_classification", model=model, candidate_labels=["three", "seven"])
    assert len(piped.processor.tokenizer) == 120 and piped.processor.image_processor.image_size == 48
    given = Blip2Processor.from_pretrained("blip2_digits")
    assert pipeline("zero_shot_image_classification", model=model, processor=given).processor is given
    bare = Blip2Classifier(Blip2Config(**model.config.to_dict()))
    with pytest.raises(
        ValueError, match="made in Python, so nothing says which tokenizer belongs to it: pass processor="
    ):
        pipeline("zero_shot_image_classification", model=bare)
    small = {
        "vision_config": {**model.config.vision_config.to_dict(), "image_size": 64},
        "qformer_config": {**model.config.qformer_config.to_dict(), "vocab_size": 30523},
    }
    published = pipeline("zero_shot_image_classification", model=Blip2Classifier(Blip2Config(**small)))
    assert (
        len(published.processor.tokenizer) == 30523 and published.processor.image_processor.image_size == 64
    )


def test_a18_a_checkpoint_that_a_pipeline_is_given_is_loaded_into_a_model_object(small, here, tmp_path):
    model = Blip2ImageToTextGeneration(Blip2Config.from_pretrained(small.yaml))
    picture, short = small.pictures["red"], {"max_new_tokens": 4, "num_beams": 1}
    wanted = pipeline("image_to_text_generation", model=small.yaml, checkpoint=small.ckpt)(picture, **short)
    assert pipeline("image_to_text_generation", model=model)(picture, **short) != wanted
    assert (
        pipeline("image_to_text_generation", model=model, checkpoint=small.ckpt)(picture, **short) == wanted
    )
    with pytest.raises(FileNotFoundError, match="checkpoint = 'none.ckpt': no checkpoint at"):
        pipeline("image_to_text_generation", model=model, checkpoint="none.ckpt")


@pytest.mark.parametrize(
    "task, verb",
    [
        (task, verb)
        for task, functions in TASKS.items()
        for verb in ("predict", "evaluate")
        if hasattr(functions, verb)
    ],
)
def test_a18_an_option_that_a_task_does_not_have_is_an_error(small, here, task, verb):
    stage2 = task == "image_to_text_generation"
    trainer = Trainer(
        task=task,
        model=small.yaml if stage2 else "blip2_digits",
        eval_dataset=None if not stage2 else [{"image": small.pictures["red"], "captions": ["a red square"]}],
    )
    given = {"predict_checkpoint" if verb == "predict" else "eval_checkpoint": small.ckpt} if stage2 else {}
    given |= {"candidate_labels": ["three", "seven"]} if task.startswith("zero_shot") else {}
    work = (
        functools.partial(trainer.predict, small.pictures["red"]) if verb == "predict" else trainer.evaluate
    )
    with pytest.raises((TypeError, ValueError), match="frobnicate"):
        work(frobnicate=3, **given)


# ------------------------------------------------------------------------------------------------ A17
@pytest.fixture
def pairs(small, tmp_path):
    """A folder of pictures and captions, and the YAML file of a loader that names its files."""
    rows = [
        {"image": Path(path).name, "caption": f"a {colour} square", "image_id": i}
        for i, (colour, path) in enumerate(small.pictures.items())
    ]
    (tmp_path / "pairs").mkdir()
    for path in small.pictures.values():
        (tmp_path / "pairs" / Path(path).name).write_bytes(Path(path).read_bytes())
    (tmp_path / "pairs" / "rows.json").write_text(json.dumps(rows))
    loader = {"annotation_files": ["rows.json"], "image_dirs": ["."]}
    return load_config(
        small.yaml,
        {
            "context.mode": 1,
            "train_dataset.data_loader": loader,
            "eval_dataset.data_loader": loader,
            "output_dir": "run",
        },
    )


@pytest.mark.parametrize("kind", [str, Path])
def test_a17_the_path_of_a_data_set_is_read(pairs, here, tmp_path, kind):
    trainer = Trainer(
        args=pairs, train_dataset=kind(tmp_path / "pairs"), eval_dataset=kind(tmp_path / "pairs")
    )
    assert trainer.train_dataset is None and trainer.eval_dataset is None
    report = trainer.check()
    assert report["train_dataset"]["captions"] == report["eval_dataset"]["pictures"] == 4
    with pytest.raises(Exception, match="rows.json"):  # the control: another folder is read too
        (tmp_path / "empty").mkdir(exist_ok=True)
        Trainer(args=pairs, train_dataset=kind(tmp_path / "empty")).check()


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_a17_what_is_no_data_set_is_an_error(pairs, here, tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"{name} = 'nofolder': no folder {tmp_path}/nofolder: give"):
        Trainer(args=pairs, **{name: "nofolder"})
    for wrong in ({"image": "x.png", "caption": "a"}, ["x.png", "y.png"], [tmp_path], 5, b"x", [3]):
        with pytest.raises(TypeError, match=rf"{name}: (it|one of them) is a .* expected a list of samples"):
            Trainer(args=pairs, **{name: wrong})
    with pytest.raises(ValueError, match="the loader DigitScenes draws its own pictures"):
        Trainer(args="blip2_digits", **{name: tmp_path})
    samples = [{"image": "x.png", "caption": "a"}]
    assert getattr(Trainer(args=pairs, **{name: samples}), name) is samples


def test_a18_arguments_of_another_task_are_an_error(pairs, here, caplog):
    with pytest.raises(
        ValueError,
        match="candidate_labels is not used by the task image_to_text_generation, but by zero_shot",
    ):
        Trainer(args=pairs, candidate_labels=["a"])
    with pytest.raises(
        ValueError, match="hypothesis_template is not used by the task image_to_text_retrieval"
    ):
        Trainer(task="image_to_text_retrieval", model="blip2_digits", hypothesis_template="a {}")
    Trainer(args=pairs, model=Blip2ImageToTextGeneration(pairs.model.model_config))
    assert not caplog.records
    named = pairs.replace(model={"model_config": {"checkpoint_name_or_path": "x.ckpt"}})
    Trainer(args=named, model=Blip2ImageToTextGeneration(pairs.model.model_config))
    assert (
        "args: these keys have no effect in mindblip2 and are ignored: "
        "model.model_config.checkpoint_name_or_path (" in caplog.text
    )
    Trainer(model="blip2_digits", model_name="other")
    assert "model_name = 'other' has no effect: model = 'blip2_digits' decides" in caplog.text
    assert Trainer(args=pairs, hypothesis_template="a photo of").hypothesis_template == "a photo of"
