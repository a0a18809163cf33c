"""A1: weights that a configuration names are loaded, whoever reads the configuration; a name without a file
is an error.

Every class × every key that names weights × every way to a model.  Classes and keys are found by walking the
code."""

import copy
import dataclasses
import logging
import typing
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
import yaml

import run_blip2
from mindblip2 import Trainer, pipeline
from mindblip2.checkpoint import pretrained
from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError, write_checkpoint
from mindblip2.compat.mindformers import keys as mindformers
from mindblip2.config import Blip2Config, load_config
from mindblip2.config.schema import Section
from mindblip2.demo import digits
from mindblip2.models import blip2_llm, blip2_qformer
from mindblip2.trainer import trainer as trainer_module
from mindblip2.trainer.tasks import pretrain
from tests import stage2_small

NAME = "checkpoint_name_or_path"
TASKS = {
    "Blip2Qformer": "feature_extraction",
    "Blip2Classifier": "zero_shot_image_classification",
    "Blip2Llm": "image_to_text_generation",
    "Blip2ImageToTextGeneration": "image_to_text_generation",
}
SHORT = {"max_new_tokens": 2, "num_beams": 1}


def classes(cls=pretrained.Pretrained):
    """Every model that a user constructs."""
    assert blip2_llm and blip2_qformer  # the modules that define them
    return [
        one
        for sub in cls.__subclasses__()
        if sub.__module__.startswith("mindblip2.")
        for one in (sub, *classes(sub))
    ]


def keys(cls=Blip2Config, where=""):
    """Dotted names of all fields ``checkpoint_name_or_path`` in a section and below it."""
    found = []
    for name, hint in typing.get_type_hints(cls).items():
        if name not in {field.name for field in dataclasses.fields(cls)}:
            continue
        for option in typing.get_args(hint) or (hint,):
            if isinstance(option, type) and issubclass(option, Section):
                found += keys(option, f"{where}{name}.")
        found += [where + name] * (name == NAME)
    return list(dict.fromkeys(found))


def test_a1_the_walk_finds_all_classes_and_keys():
    assert {cls.__name__ for cls in classes()} == set(TASKS)
    assert set(keys()) == {NAME, f"vision_config.{NAME}", f"qformer_config.{NAME}", f"text_config.{NAME}"}
    # each has its part of the weights
    assert {begin.split(".")[0] for begin in keys() if "." in begin} == set(pretrained.PARTS.values())


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    """Per stage the sections of a YAML file, and the weights of a model of random values, as {name:
    array}."""
    folder = tmp_path_factory.mktemp("named")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "green", "blue", "square", "of", "picture"]
    (folder / "vocab.txt").write_text("\n".join(words + [f"w{i}" for i in range(29 - len(words))]) + "\n")
    second = yaml.safe_load(open(small.yaml, encoding="utf-8"))
    first = copy.deepcopy(second)
    del first["model"]["model_config"]["text_config"]
    first["processor"]["tokenizer"] = {"vocab_file": str(folder / "vocab.txt"), "max_length": 16}
    stages = {}
    for stage, raw in (("1", first), ("2", second)):
        raw["context"] = {"mode": 1}
        raw["eval_dataset"] = {
            "text_transforms": {"max_length": 16},
            "data_loader": {"candidate_labels": ["red", "green"]},
        }
        config = Blip2Config(**raw["model"]["model_config"])
        ms.set_seed(11)
        donor = (blip2_qformer.Blip2Qformer if stage == "1" else blip2_llm.Blip2Llm)(config)
        stages[stage] = SimpleNamespace(
            raw=raw, arrays={name: p.asnumpy() for name, p in donor.parameters_dict().items()}
        )
    return SimpleNamespace(
        stages=stages,
        folder=folder,
        picture=small.pictures["red"],
        samples=stage2_small.samples(small.pictures),
    )


def written(made, cls, key, folder, **change):
    """A YAML file that names the donor's weights: the model's own file under the first key; where ``key`` is
    of a part, that part's in a file of its own."""
    stage = made.stages["2" if issubclass(cls, blip2_llm.Blip2Llm) else "1"]
    begin = {section: begin for begin, section in pretrained.PARTS.items()}.get(key.split(".")[0], "none")
    raw = copy.deepcopy(stage.raw)
    raw["trainer"]["type"] = TASKS[cls.__name__]
    raw["output_dir"] = str(folder / "output")
    raw["model"]["arch"]["type"] = cls.__name__
    section = raw["model"]["model_config"]
    for path, mine in (("model.ckpt", False), ("part.ckpt", True)):
        write_checkpoint(
            folder / path,
            (
                (name, "Float32", array)
                for name, array in stage.arrays.items()
                if name.startswith(begin) is mine
            ),
        )
    section[NAME] = change.get("whole", str(folder / "model.ckpt"))
    if key != NAME:
        section[key.split(".")[0]][NAME] = change.get("part", str(folder / "part.ckpt"))
    (folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder / "run.yaml", stage.arrays


def asked(trainer, made, cls):
    """Use a Trainer as the class is meant to be used; returns its model."""
    if cls is blip2_llm.Blip2Llm:
        trainer.train()
    else:
        trainer.predict(made.picture, **SHORT if "text_generation" in trainer.task else {})
    return trainer.model


def by_command_line(path, made, cls, monkeypatch):
    seen, real = [], trainer_module.Trainer.__init__
    monkeypatch.setattr(
        trainer_module.Trainer, "__init__", lambda self, *a, **k: seen.append(self) or real(self, *a, **k)
    )
    if cls is blip2_llm.Blip2Llm:
        monkeypatch.setattr(
            trainer_module.Trainer,
            "train",
            lambda self, real=trainer_module.Trainer.train: (
                setattr(self, "train_dataset", made.samples),
                real(self),
            )[1],
        )
        run_blip2.run(["--config", str(path), "--run_mode", "train"])
    else:
        more = ["--generation.max_new_tokens", "2"] if "text_config" in path.read_text() else []
        run_blip2.run(["--config", str(path), "--run_mode", "predict", "--predict_data", made.picture, *more])
    return seen[-1].model


WAYS = {
    "constructor": lambda path, made, cls, patch: cls(Blip2Config.from_pretrained(path)),
    "from_pretrained": lambda path, made, cls, patch: cls.from_pretrained(path),
    "Trainer of an object": lambda path, made, cls, patch: asked(
        Trainer(
            task=TASKS[cls.__name__], model=cls(Blip2Config.from_pretrained(path)), train_dataset=made.samples
        ),
        made,
        cls,
    ),
    "Trainer of a name": lambda path, made, cls, patch: asked(
        Trainer(model=path, train_dataset=made.samples), made, cls
    ),
    "Trainer of a configuration": lambda path, made, cls, patch: asked(
        Trainer(args=path, train_dataset=made.samples), made, cls
    ),
    "pipeline of an object": lambda path, made, cls, patch: (
        pipeline(TASKS[cls.__name__], cls(Blip2Config.from_pretrained(path))).model
    ),
    "pipeline of a name": lambda path, made, cls, patch: pipeline(TASKS[cls.__name__], path).model,
    "command line": by_command_line,
}
# of the parts; the other ways go through these
QUICK = ("constructor", "from_pretrained", "Trainer of a configuration")
CASES = [
    pytest.param(
        cls, key, way, marks=[pytest.mark.slow] * (key.startswith(("vision", "qformer")) and way not in QUICK)
    )
    for cls in classes()
    for key in keys()
    for way in WAYS
    if not ("text_config" in key and not issubclass(cls, blip2_llm.Blip2Llm))
    and not (
        "pipeline" in way and cls not in (blip2_qformer.Blip2Classifier, blip2_llm.Blip2ImageToTextGeneration)
    )
]


@pytest.mark.parametrize("cls, key, way", CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a1_what_a_configuration_names_is_loaded(made, cls, key, way, here, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "fit", lambda model, *arguments, **options: [])
    path, wanted = written(made, cls, key, tmp_path)
    model = WAYS[way](path, made, cls, monkeypatch)
    got = model.parameters_dict()
    assert got.keys() == wanted.keys()
    assert [name for name in wanted if not np.array_equal(got[name].asnumpy(), wanted[name])] == []
    bad = tmp_path / "bad"  # the control: a name without a file
    bad.mkdir()
    written(made, cls, key, bad, **{"whole" if key == NAME else "part": "nowhere.ckpt"})
    with pytest.raises(FileNotFoundError) as error:
        WAYS[way](bad / "run.yaml", made, cls, monkeypatch)
    assert f"model.model_config.{key} = 'nowhere.ckpt': no checkpoint at " in str(error.value)
    assert str(tmp_path / "nowhere.ckpt") in str(error.value) and "convert_weight.py" in str(error.value)


@pytest.mark.parametrize("cls", classes())
def test_a1_without_a_file_of_the_model_the_parts_are_loaded_and_the_rest_is_said_to_be_random(
    made, cls, here, tmp_path, caplog
):
    path, wanted = written(made, cls, f"vision_config.{NAME}", tmp_path, whole="")
    model = cls(Blip2Config.from_pretrained(path))
    same = {name: np.array_equal(p.asnumpy(), wanted[name]) for name, p in model.parameters_dict().items()}
    assert all(same[name] for name in same if name.startswith("vit.")) and not same["qformer.query_tokens"]
    (said,) = caplog.messages
    assert "only vit 30 are loaded; with random values: " in said and "ln_vision 2, qformer " in said
    caplog.clear()
    bare = written(made, cls, NAME, tmp_path, whole="")[0]
    cls(Blip2Config.from_pretrained(bare))  # nothing is named: random values were asked for
    assert not caplog.records


@pytest.mark.parametrize("key", [f"vision_config.{NAME}", f"qformer_config.{NAME}"])
def test_a1_stage_1_training_starts_from_the_parts_that_are_named(
    made, here, tmp_path, monkeypatch, capsys, key
):
    """As MindFormers' file has it: vit_g_p16 and bert_base_uncased, and no file of the model."""
    monkeypatch.setattr(pretrain, "fit", lambda model, *arguments, **options: [])
    path, wanted = written(made, blip2_qformer.Blip2Qformer, key, tmp_path, whole="")
    keys = {"trainer.type": "contrastive_language_image_pretrain"}
    trainer = Trainer(args=load_config(path, keys), train_dataset=made.samples)
    trainer.train()
    (begin,) = (begin for begin, section in pretrained.PARTS.items() if key.startswith(section))
    same = {
        name: np.array_equal(p.asnumpy(), wanted[name]) for name, p in trainer.model.parameters_dict().items()
    }
    assert all(same[name] for name in same if name.startswith(begin)) and not same["vision_proj.weight"]
    assert ("the frozen ViT has random weights" in capsys.readouterr().out) is key.startswith("qformer")
    path, _ = written(made, blip2_qformer.Blip2Qformer, key, tmp_path, whole="", part="vit_g_p16")
    with pytest.raises(FileNotFoundError, match=f"{key} = 'vit_g_p16': no weights for"):
        Trainer(args=load_config(path, keys), train_dataset=made.samples).train()


def test_a1_a_part_that_does_not_fit_is_an_error(made, here, tmp_path):
    cls = blip2_qformer.Blip2Qformer
    path, wanted = written(made, cls, f"vision_config.{NAME}", tmp_path)
    less = {
        name: array for name, array in wanted.items() if name.startswith("vit.") and "blocks.1" not in name
    }
    for arrays, words in (
        (
            less,
            r"(?s)part.ckpt \(model.*vision_config.checkpoint_name_or_path\) does not fit.*missing: vit.blocks.1",
        ),
        ({**wanted, "vit.pos_embed": np.zeros((1, 7, 16), np.float32)}, "is for another image size"),
    ):
        write_checkpoint(tmp_path / "part.ckpt", ((name, "Float32", array) for name, array in arrays.items()))
        with pytest.raises(CheckpointError, match=words):
            cls(Blip2Config.from_pretrained(path))
    write_checkpoint(tmp_path / "part.ckpt", ((name, "Float32", array) for name, array in wanted.items()))
    assert cls(Blip2Config.from_pretrained(path))  # a whole model's file, of which the part is taken


def test_a1_a_name_that_is_not_read_is_said(made, here, tmp_path, caplog):
    cls = blip2_qformer.Blip2Classifier
    path, wanted = written(made, cls, NAME, tmp_path)
    config = Blip2Config.from_pretrained(path)
    config.vision_config.checkpoint_name_or_path = "vit_g_p16"
    cls(config)
    assert (
        f"model.model_config.vision_config.{NAME} = 'vit_g_p16' is not read: {tmp_path / 'model.ckpt'} holds "
        "this part" in caplog.text
    )
    text = config.replace(text_config={"type": "OPTConfig", NAME: "opt_2_7b"})
    caplog.clear()
    cls(text)
    assert (
        "model.model_config.text_config has no effect: a Blip2Classifier has no language model" in caplog.text
    )


@pytest.mark.parametrize(
    "name, words",
    [
        ("vit_g_p16", "--vit_path eva_vit_g.pth --mindspore_path start.ckpt"),
        ("bert_base_uncased", "ViT and BERT are converted into one file"),
        ("llama_7b", "--torch_path FOLDER_OF_THE_LANGUAGE_MODEL"),
        ("blip2_stage1_pretrained", "blip2_pretrained.pth"),
        ("itt_blip2_stage2_vit_g_baichuan_7b", "no published stage 2 for Baichuan-7B"),
    ],
)
def test_a1_names_of_mindformers_say_how_to_get_the_file(made, here, tmp_path, name, words, monkeypatch):
    monkeypatch.setenv("MINDBLIP2_CACHE", str(tmp_path))
    config = Blip2Config.from_pretrained(written(made, blip2_qformer.Blip2Qformer, NAME, tmp_path)[0])
    config.checkpoint_name_or_path = name
    with pytest.raises(FileNotFoundError) as error:
        blip2_qformer.Blip2Qformer(config)
    assert f"model.model_config.{NAME} = '{name}'" in str(error.value) and words in str(error.value)
    file = mindformers.WEIGHT_ALIASES.get(name, name)
    (tmp_path / "model.ckpt").rename(tmp_path / f"{file}.ckpt")
    (tmp_path / "here" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")  # a folder without weights is no file of weights
    assert blip2_qformer.Blip2Qformer(config)  # in the cache folder it is found by its name


def test_a1_a_saved_folder_names_its_own_file_alone(made, here, tmp_path):
    path, wanted = written(made, blip2_qformer.Blip2Qformer, f"vision_config.{NAME}", tmp_path)
    blip2_qformer.Blip2Qformer(Blip2Config.from_pretrained(path)).save_pretrained(tmp_path / "mine")
    config = load_config(tmp_path / "mine").model.model_config
    assert (config.checkpoint_name_or_path, config.vision_config.checkpoint_name_or_path) == (
        str(tmp_path / "mine" / "model.ckpt"),
        "",
    )


def test_a1_stage_2_begins_with_a_file_of_stage_1_in_training_only(made, here, tmp_path, caplog):
    first = made.stages["1"].arrays
    write_checkpoint(tmp_path / "one.ckpt", ((name, "Float32", array) for name, array in first.items()))
    path, wanted = written(
        made, blip2_llm.Blip2Llm, f"text_config.{NAME}", tmp_path, whole=str(tmp_path / "one.ckpt")
    )
    config = Blip2Config.from_pretrained(path)
    with caplog.at_level(logging.WARNING, "mindblip2"):
        model = blip2_llm.Blip2Llm(config)
    assert "new, with random values: llm_proj 2" in caplog.text
    got = model.parameters_dict()
    assert np.array_equal(got["qformer.query_tokens"].asnumpy(), first["qformer.query_tokens"])
    assert np.array_equal(got["llm.norm.gamma"].asnumpy(), wanted["llm.norm.gamma"])
    with pytest.raises(
        CheckpointError, match="It is a stage-1 checkpoint: a training of stage 2 starts from it"
    ):
        blip2_llm.Blip2ImageToTextGeneration(config)


def test_a1_a_resumed_training_does_not_need_the_file_that_it_began_with_by_name(made, here, tmp_path):
    path, wanted = written(made, blip2_qformer.Blip2Qformer, f"vision_config.{NAME}", tmp_path)
    keys = {
        "trainer.type": "contrastive_language_image_pretrain",
        "runner_config.save_trainable_only": False,
        "runner_config.epochs": 1,
    }
    Trainer(args=load_config(path, keys), train_dataset=made.samples).train()
    assert np.array_equal(_saved(tmp_path)["vit.pos_embed"], wanted["vit.pos_embed"])
    assert not np.array_equal(_saved(tmp_path)["qformer.query_tokens"], wanted["qformer.query_tokens"])
    for name in ("model.ckpt", "part.ckpt"):
        (tmp_path / name).unlink()
    resumed = load_config(path, {**keys, "resume_training": True})
    Trainer(args=resumed, train_dataset=made.samples).train()
    assert np.array_equal(_saved(tmp_path)["vit.pos_embed"], wanted["vit.pos_embed"])
    # the control: a new run needs it
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*model.ckpt"):
        Trainer(args=load_config(path, {**keys, "output_dir": "new"}), train_dataset=made.samples).train()


def _saved(folder):
    return Checkpoint(sorted((folder / "output" / "checkpoint" / "rank_0").glob("step_*"))[-1] / "model.ckpt")


def test_a1_the_snippets_of_the_card_give_the_captions_of_the_preset(here, tmp_path):
    pictures = [digits.render(scene, 48) for scene in digits.held_out("told")[:2]]
    wanted = pipeline("image_to_text_generation", model="itt_blip2_digits", max_new_tokens=8)(pictures)
    hub_file = pretrained.find_weights("itt_blip2_digits")
    (tmp_path / "itt.ckpt").write_bytes(hub_file.read_bytes())

    # the card's lines
    config = Blip2Config.from_pretrained("itt_blip2_digits")
    config.checkpoint_name_or_path = str(tmp_path / "itt.ckpt")
    model = blip2_llm.Blip2ImageToTextGeneration(config)
    trainer = Trainer(task="image_to_text_generation", model=model, model_name="itt_blip2_digits")
    assert trainer.predict(input_data=pictures, max_new_tokens=8) == wanted
    assert pipeline("image_to_text_generation", model=model, max_new_tokens=8)(pictures) == wanted

    # the card's other spelling
    config.model.model_config.text_config.checkpoint_name_or_path = str(tmp_path / "itt.ckpt")
    config.checkpoint_name_or_path = ""
    # the control: the language model alone does not see
    other = blip2_llm.Blip2ImageToTextGeneration(config)
    assert pipeline("image_to_text_generation", model=other, max_new_tokens=8)(pictures) != wanted


@pytest.mark.parametrize("cls", classes())
def test_a1_a_model_that_is_loaded_at_once_reads_nothing_in_its_constructor(
    made, cls, here, tmp_path, monkeypatch
):
    path, wanted = written(made, cls, f"vision_config.{NAME}", tmp_path)
    read, real = [], pretrained.Pretrained._load
    monkeypatch.setattr(
        pretrained.Pretrained, "_load", lambda self, files, path: read.append(path) or real(self, files, path)
    )
    cls.from_pretrained(path)
    assert len(read) == 1  # and not once more by the constructor
    with pretrained.no_init():
        with pretrained.no_init():
            pass
        empty = cls(Blip2Config.from_pretrained(path).replace(**{NAME: "nowhere.ckpt"}))
    assert len(read) == 1 and len(empty.parameters_dict()) == len(wanted)
