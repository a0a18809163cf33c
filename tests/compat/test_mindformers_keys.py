"""A configuration of MindFormers r1.0 is read as it is, and what it cannot mean here is said."""

import functools
import logging
from pathlib import Path

import pytest

from mindblip2.compat.mindformers import keys as mindformers
from mindblip2.config import RunConfig, load_config
from mindblip2.config.schema import ConfigError

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "mindformers_keys.yaml"
MODEL = "model.model_config."
VISION = MODEL + "vision_config."
QFORMER = MODEL + "qformer_config."


def at(config, dotted):
    return functools.reduce(getattr, dotted.split("."), config)


@pytest.fixture
def override(tmp_path):
    """override({"a.b": value}) → RunConfig of an empty file."""
    path = tmp_path / "run.yaml"
    path.touch()
    return functools.partial(load_config, path)


@pytest.fixture(scope="module")
def from_mindformers():
    return load_config(FIXTURE)


def test_a_configuration_of_mindformers_is_read(from_mindformers):
    config = from_mindformers
    expected = {
        "seed": 7,
        "run_mode": "finetune",
        "layer_decay": 0.75,
        "context.max_device_memory": "12GB",
        "runner_config.image_size": 112,
        "parallel_config.model_parallel": 4,
        "eval_dataset.k_test": 16,
        "train_dataset.text_transforms.prompt": "a drawing of ",
        "eval_dataset.tokenizer.vocab_file": "words.txt",
        MODEL + "max_txt_len": 24,
        MODEL + "freeze_vision": False,
        MODEL + "compute_dtype": "float16",
        VISION + "patch_size": 16,
        VISION + "initializer_range": 1e-3,
        QFORMER + "layer_norm_eps": 1e-11,
        QFORMER + "cross_attention_freq": 3,
        MODEL + "text_config.top_p": 0.5,
        "model.arch.type": "Blip2ItmEvaluator",
        "lr_schedule.warmup_lr_init": 4e-7,
        "optimizer.eps": 1e-7,
        "processor.image_processor.image_size": 112,
    }
    assert {name: at(config, name) for name in expected} == expected
    assert config.callbacks[1]["save_checkpoint_steps"] == 10
    assert (config.eval_dataset.batch_size, config.train_dataset.repeat) == (6, 2)


def test_mindformers_counts_the_vocabulary_without_dec(from_mindformers):
    assert (
        at(from_mindformers, QFORMER + "vocab_size")
        == 1001
        == at(from_mindformers, QFORMER + "bos_token_id") + 1
    )


def test_one_line_names_the_keys_that_have_no_meaning_here(caplog):
    with caplog.at_level(logging.WARNING, "mindblip2"):
        load_config(FIXTURE)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "\n" not in line and "are ignored" in line
    named = {name.partition(" (")[0] for name in line.partition("are ignored: ")[2].split(", ")}
    last = {name.rpartition(".")[2] for name in named}
    assert set().union(*mindformers.IGNORED.values(), {"type"}) <= last
    assert "eval_dataset.numa_enable" in named and QFORMER + "convert_param_from_bert" in named
    assert {
        "runner_config.sink_mode",
        "runner_config.initial_epoch",
        "eval_callbacks",
        "metric.type",
        "train_dataset.prefetch_size",
        "train_dataset.tokenizer.max_length",
        "train_dataset.batch_size",
        "callbacks[1].prefix",
    } <= named


@pytest.mark.parametrize(
    "key, acts_in, not_in",
    [
        ("batch_size", "eval_dataset", "train_dataset"),
        ("k_test", "eval_dataset", "train_dataset"),
        ("num_parallel_workers", "train_dataset", "eval_dataset"),
    ],
)
def test_a_key_that_acts_in_one_data_set_only_is_named_in_the_other(override, caplog, key, acts_in, not_in):
    config = override({f"{acts_in}.{key}": 3, f"{not_in}.{key}": 4})
    assert at(config, f"{acts_in}.{key}") == 3 and at(config, f"{not_in}.{key}") == at(
        RunConfig(), f"{not_in}.{key}"
    )
    assert caplog.records[0].getMessage().endswith(f": {not_in}.{key}")


@pytest.mark.parametrize(
    "name, wrong, complaint",
    [
        (
            "runner_config.image_size",
            364,
            "but model.model_config.vision_config.image_size = 112, which decides: give both the same",
        ),
        ("train_dataset.tokenizer.type", "LlamaTokenizer", "but processor.tokenizer.type = 'BertTokenizer'"),
        (
            "eval_dataset.tokenizer.vocab_file",
            "other.txt",
            "but processor.tokenizer.vocab_file = 'words.txt'",
        ),
    ],
)
def test_what_is_said_twice_must_be_the_same(name, wrong, complaint):
    # the file as it is: the control, see from_mindformers
    with pytest.raises(ConfigError, match=f"{name} = {wrong!r}, {complaint}"):
        load_config(FIXTURE, {name: wrong})


def test_our_own_configuration_warns_of_nothing(override, caplog):
    override({"seed": 1})
    assert not caplog.records


@pytest.mark.parametrize(
    "section, key", [(section, key) for section, keys in mindformers.FIXED.items() for key in keys]
)
def test_a_choice_that_blip2_has_made_cannot_be_made_otherwise(override, section, key):
    right = mindformers.FIXED[section][key]
    wrong = {bool: not right, float: 0.5, str: "other"}[type(right)]
    name = (VISION if section == "ViTConfig" else QFORMER) + key
    assert override({name: right}) == RunConfig()
    with pytest.raises(ConfigError) as error:
        override({name: wrong})
    assert f"{name} = {wrong!r}: BLIP-2 has {right!r} here" in str(error.value)
