"""Every number has its published default, and nothing that a user writes is swallowed."""

import dataclasses
import functools
import math
import subprocess
import sys
import types
import typing
from pathlib import Path

import pytest
import yaml

from mindblip2.compat.mindformers import keys
from mindblip2.config import (
    Blip2Config,
    ImageProcessorConfig,
    QFormerConfig,
    RunConfig,
    ViTConfig,
    load_config,
    presets,
)
from mindblip2.config.language_model import LlamaConfig, OPTConfig
from mindblip2.config.schema import ConfigError, Count, Section, _plain_type, build, section

ROOT = Path(__file__).resolve().parents[2]
MODEL = "model.model_config."
VISION = MODEL + "vision_config."
QFORMER = MODEL + "qformer_config."

# LAVIS's numbers, where it and the paper agree; facts about them stand beside the fields in config.py.
DEFAULTS = {
    VISION + "image_size": 224,
    VISION + "patch_size": 14,
    VISION + "num_channels": 3,
    VISION + "hidden_size": 1408,
    VISION + "num_hidden_layers": 39,
    VISION + "num_attention_heads": 16,
    VISION + "intermediate_size": 6144,
    VISION + "layer_norm_eps": 1e-6,
    VISION + "qkv_bias": True,
    VISION + "drop_path_rate": 0.0,
    VISION + "num_tokens": 257,
    QFORMER + "vocab_size": 30523,
    QFORMER + "hidden_size": 768,
    QFORMER + "num_hidden_layers": 12,
    QFORMER + "num_attention_heads": 12,
    QFORMER + "intermediate_size": 3072,
    QFORMER + "max_position_embeddings": 512,
    QFORMER + "layer_norm_eps": 1e-12,
    QFORMER + "encoder_width": 1408,
    QFORMER + "cross_attention_freq": 2,
    QFORMER + "query_length": 32,
    QFORMER + "head_embed_dim": 256,
    QFORMER + "bos_token_id": 30522,
    QFORMER + "pad_token_id": 0,
    QFORMER + "sep_token_id": 102,
    QFORMER + "hidden_dropout_prob": 0.1,
    QFORMER + "attention_probs_dropout_prob": 0.1,
    QFORMER + "initializer_range": 0.02,
    MODEL + "max_txt_len": 32,
    MODEL + "temperature": 0.07,
    MODEL + "label_smoothing": 0.1,
    MODEL + "ln_vision_eps": 1e-5,
    MODEL + "gather_with_grad": False,
    MODEL + "query_reduce": "max",
    MODEL + "freeze_vision": True,
    MODEL + "text_config": None,
    MODEL + "compute_dtype": "float32",
    "seed": 42,
    "runner_config.epochs": 10,
    "runner_config.batch_size": 100,
    "lr_schedule.learning_rate": 1e-4,
    "lr_schedule.lr_end": 1e-5,
    "lr_schedule.warmup_lr_init": 1e-6,
    "lr_schedule.warmup_steps": 5000,
    "lr_schedule.type": "cosine",
    "optimizer.type": "adamw",
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.98,
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.05,
    "optimizer.max_grad_norm": None,
    "layer_decay": None,
    "eval_dataset.k_test": 128,
    "eval_dataset.add_extra_itm_score": True,
    "train_dataset.text_transforms.max_words": 50,
    "train_dataset.text_transforms.max_length": 32,
    "processor.image_processor.image_size": 224,
    "processor.image_processor.interpolation": "bicubic",
    "processor.image_processor.mean": (0.48145466, 0.4578275, 0.40821073),
    "processor.image_processor.std": (0.26862954, 0.26130258, 0.27577711),
}


@pytest.fixture
def load(tmp_path):
    """load("yaml text", **overrides) → RunConfig."""

    def loaded(text, overrides=None):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides)

    return loaded


def at(config, dotted):
    return functools.reduce(getattr, dotted.split("."), config)


def sections(config, where=""):
    """(dotted name, section) of a configuration and everything below it."""
    yield where, config
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from sections(value, f"{where}{f.name}.")


SECTIONS = [where for where, _ in sections(RunConfig())]


# ------------------------------------------------------------------------------------------------ values
def test_defaults_are_those_of_the_paper_and_of_lavis():
    config = RunConfig()
    assert {name: at(config, name) for name in DEFAULTS} == DEFAULTS


def test_a_preset_is_what_differs_from_the_defaults(load):
    config = load("model:\n  model_config:\n    vision_config: {image_size: 364}\n")
    assert config.model.model_config.vision_config.num_tokens == 677
    assert config == RunConfig().replace(model={"model_config": {"vision_config": {"image_size": 364}}})


@pytest.mark.parametrize("written, value", [("1e-4", 1e-4), ("1.e-4", 1e-4), ("'0.5'", 0.5), ("3", 3.0)])
def test_numbers_that_yaml_reads_as_text_or_integers_become_floats(load, written, value):
    rate = load(f"lr_schedule: {{learning_rate: {written}}}").lr_schedule.learning_rate
    assert rate == value and isinstance(rate, float)


def test_an_empty_section_means_its_defaults(load):
    assert load("model:\nlr_schedule:\nmetric:\n") == RunConfig()


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("lr_schedule: {learning_rate: fast}", "lr_schedule.learning_rate = 'fast': expected float, got str"),
        ("seed: 1.5", "seed = 1.5: expected int, got float"),
        ("seed: .inf", "seed = inf: expected int, got float"),
        ("seed: true", "seed = True: expected int, got bool"),
        ("use_parallel: 1", "use_parallel = 1: expected bool, got int"),
        ("callbacks: MFLossMonitor", "callbacks = 'MFLossMonitor': expected tuple, got str"),
        ("model: {model_config: 3}", "model.model_config must be a mapping, got 3"),
        (
            "run_mode: fly",
            "run_mode = 'fly': expected one of 'train', 'finetune', 'eval', 'predict', 'export', 'check', "
            "'plan'",
        ),
        ("context: {mode: 2}", "ContextConfig.mode = 2: expected one of 0, 1"),
        ("context: {device_target: TPU}", "expected one of '', 'CPU', 'Ascend'"),
        ("context: {device_target: GPU}", "context.device_target = 'GPU': expected 'CPU' or 'Ascend'"),
        ("model: {model_config: {compute_dtype: half}}", "expected one of 'float32', 'float16', 'bfloat16'"),
        (
            "model: {model_config: {softmax_dtype: float16}}",
            "softmax_dtype = 'float16': expected one of 'float32'",
        ),
        ("processor: {image_processor: {image_size: [224, 196]}}", "[224, 196]: BLIP-2 pictures are square"),
        ("- a list", "must hold a mapping of sections, but holds a list"),
        ("a: [1", "is not YAML: "),
    ],
)
def test_an_unusable_value_is_named(load, text, complaint):
    with pytest.raises(ConfigError) as error:
        load(text)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    "make, complaint",
    [
        (
            lambda: ViTConfig(image_size=225),
            "image_size = 225 is not a multiple of patch_size = 14: choose an image size "
            "that is a multiple of the patch (nearest: 224 or 238)",
        ),
        (
            lambda: ViTConfig(num_attention_heads=15),
            "hidden_size = 1408 is not a multiple of num_attention_heads = 15",
        ),
        (lambda: ViTConfig(num_hidden_layers=0), "num_hidden_layers = 0: expected at least 1"),
        (lambda: ViTConfig(patch_size=0), "patch_size = 0: expected at least 1"),
        (
            lambda: QFormerConfig(num_attention_heads=7),
            "hidden_size = 768 is not a multiple of num_attention_heads = 7",
        ),
        (lambda: QFormerConfig(hidden_size=0), "hidden_size = 0: expected at least 1"),
        (lambda: QFormerConfig(vocab_size=30522), "so vocab_size must be 30523"),
        (
            lambda: Blip2Config(vision_config={"hidden_size": 1024}),
            "encoder_width = 1408 but vision_config.hidden_size = 1024",
        ),
        (
            lambda: Blip2Config(max_txt_len=513),
            "max_txt_len = 513 exceeds qformer_config.max_position_embeddings = 512",
        ),
        (
            lambda: Blip2Config(temperature="warm"),
            "Blip2Config.temperature = 'warm': expected float, got str",
        ),
        (lambda: ViTConfig(hidden_size="wide"), "ViTConfig.hidden_size = 'wide': expected int, got str"),
    ],
)
def test_sizes_that_do_not_fit_together_are_errors(make, complaint):
    with pytest.raises(ConfigError) as error:
        make()
    assert complaint in str(error.value)


def test_python_takes_nested_dicts_sections_and_numbers_as_text():
    config = Blip2Config(
        vision_config=ViTConfig(hidden_size=64), qformer_config={"encoder_width": 64}, temperature="1e-1"
    )
    assert config.vision_config.hidden_size == 64 and config.temperature == 0.1


# ------------------------------------------------------------------------------------------------ unknown key
@pytest.mark.parametrize("where", SECTIONS)
def test_a_misspelt_key_is_an_error_with_a_suggestion_in_every_section(load, where):
    section = at(RunConfig(), where.rstrip(".")) if where else RunConfig()
    field = dataclasses.fields(section)[0].name
    typo = field + "x"
    nested = {typo: 1}
    for key in reversed(where.split(".")[:-1]):
        nested = {key: nested}
    with pytest.raises(ConfigError) as error:
        load(yaml.safe_dump(nested))
    assert f"unknown key {where + typo!r} in the configuration; did you mean {field!r}?" in str(error.value)


def test_a_key_that_resembles_none_is_answered_with_the_known_ones(load):
    with pytest.raises(
        ConfigError, match="unknown key 'context.zzz' .* known keys here: mode, device_target"
    ):
        load("context: {zzz: 1}")


def test_python_keywords_are_as_strict_as_yaml():
    with pytest.raises(ConfigError, match="did you mean 'image_size'"):
        ViTConfig(image_sizes=224)
    with pytest.raises(ConfigError, match="did you mean 'query_length'"):
        Blip2Config(qformer_config={"query_lenght": 32})


# ------------------------------------------------------------------------------------------------ frozen, cop
@pytest.mark.parametrize("where", SECTIONS)
def test_fields_cannot_be_assigned(where):
    section = at(RunConfig(), where.rstrip(".")) if where else RunConfig()
    for field in dataclasses.fields(section):
        if field.name != "checkpoint_name_or_path":
            with pytest.raises(dataclasses.FrozenInstanceError, match="replace"):
                setattr(section, field.name, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        section.a_new_field = 1


def test_the_path_of_the_weights_may_be_assigned_as_the_model_card_does():
    config = Blip2Config()
    config.checkpoint_name_or_path = "mine.ckpt"
    assert config.checkpoint_name_or_path == "mine.ckpt"
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().checkpoint_name_or_path = "no such field here"


def test_replace_changes_a_copy_at_any_depth():
    config = Blip2Config()
    changed = config.replace(temperature=0.5, vision_config={"image_size": 364})
    assert (config.temperature, config.vision_config.image_size) == (0.07, 224)
    assert (changed.temperature, changed.vision_config.image_size) == (0.5, 364)
    assert changed.vision_config.hidden_size == 1408
    with pytest.raises(ConfigError, match="unknown key"):
        config.replace(temprature=0.5)


def test_a_saved_model_configuration_is_read_back_equal(tmp_path):
    config = Blip2Config(
        vision_config={"image_size": 364}, text_config={"seq_length": 99}, prompt="a photo of"
    )
    config.save_pretrained(tmp_path / "mine")
    assert Blip2Config.from_pretrained(tmp_path / "mine") == config
    assert Blip2Config.from_pretrained(tmp_path / "mine" / "config.yaml") == config


# ------------------------------------------------------------------------------------------------ overrides
def test_dotted_overrides_win_over_the_file(load):
    config = load(
        "seed: 1\ncontext:\n",
        {"seed": 2, "context.mode": 1, VISION + "image_size": "364", "lr_schedule.learning_rate": "3e-4"},
    )
    assert (config.seed, config.context.mode) == (2, 1)
    assert (at(config, VISION + "image_size"), config.lr_schedule.learning_rate) == (364, 3e-4)


def test_an_override_of_one_section_spares_another_that_shares_its_yaml_anchor(load):
    text = "train_dataset: &d\n  max_unreadable: 0.4\n  text_transforms: {max_length: 8}\neval_dataset: *d\n"
    config = load(text, {"train_dataset.text_transforms.max_length": 16, "train_dataset.max_unreadable": 0.5})
    assert (config.train_dataset.max_unreadable, config.train_dataset.text_transforms.max_length) == (0.5, 16)
    assert (config.eval_dataset.max_unreadable, config.eval_dataset.text_transforms.max_length) == (0.4, 8)


@pytest.mark.parametrize(
    "dotted, complaint",
    [
        ("context.modes", "unknown key 'context.modes' in the configuration; did you mean 'mode'?"),
        ("contexts.mode", "unknown key 'contexts' in the configuration; did you mean 'context'?"),
        ("seed.value", "--seed.value: 'seed' is a value, not a section"),
    ],
)
def test_an_override_that_goes_nowhere_is_an_error(load, dotted, complaint):
    with pytest.raises(ConfigError) as error:
        load("seed: 1", {dotted: 1})
    assert complaint in str(error.value)


# ------------------------------------------------------------------------------------------------ presets
@pytest.mark.parametrize("name", presets())
def test_every_packaged_preset_loads_without_a_warning(name, caplog):
    config = load_config(name)
    assert not caplog.records and config == load_config(f"configs/{name}.yaml")


def test_the_names_of_mindformers_files_lead_to_presets():
    for alias, name in keys.PRESET_ALIASES.items():
        if name in presets():
            assert load_config(f"configs/{alias}.yaml") == load_config(name)


def test_an_unknown_preset_is_answered_with_the_nearest(load):
    with pytest.raises(
        ConfigError, match="no configuration 'blip2_stage9': it is neither a file .* nor a preset"
    ):
        load_config("blip2_stage9")


def test_the_support_list_is_printed_as_mindformers_does(capsys):
    assert Blip2Config.show_support_list() == presets()
    assert capsys.readouterr().out == f"support list of Blip2Config is:\n{presets()}\n{'-' * 37}\n"


def test_the_image_processor_takes_the_square_as_a_pair():
    assert ImageProcessorConfig(image_size=[224, 224]).image_size == 224


def test_configurations_load_without_mindspore_or_torch():
    code = (
        "import sys; from mindblip2.config import load_config; load_config(sys.argv[1]); "
        "print({'mindspore', 'torch', 'numpy'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, "tests/fixtures/mindformers_keys.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


# ------------------------------------------------------------------------------------------------ ranges
OUTSIDE = (-2, 0, 1, 2**40)  # of these every number of a configuration refuses at least one


def numeric_keys(cls, where=""):
    """(dotted key, how many numbers it holds or None for one) of every number below a section; a tuple's
    elements too."""
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        for option in (
            typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
        ):
            key = f"{where}.{name}" if where else name
            # named, and not read
            if name in {*keys.WITHOUT_EFFECT.get(where, ()), *keys.WITHOUT_EFFECT.get(cls.__name__, ())}:
                continue
            plain = _plain_type(option)
            if dataclasses.is_dataclass(option):
                yield from numeric_keys(option, key)
            elif plain in (int, float):
                yield key, None
            elif plain is tuple and any(_plain_type(one) in (int, float) for one in typing.get_args(option)):
                elements = typing.get_args(option)
                yield key, 1 if elements[-1] is ... else len(elements)


def nested(dotted, value):
    first, _, rest = dotted.partition(".")
    return {first: nested(rest, value) if rest else value}


def unchecked(cls):
    """The numbers of a section that take NaN, infinity or whatever number."""
    found = []
    for key, count in numeric_keys(cls):

        def refused(number, key=key, count=count):
            try:
                build(cls, nested(key, number if count is None else [number] * count))
            except ConfigError as error:
                return key.rpartition(".")[2] in str(error)
            return False

        if not all(map(refused, (math.nan, math.inf, -math.inf, "nan"))) or not any(map(refused, OUTSIDE)):
            found.append(key)
    return found


@pytest.mark.parametrize("cls", [RunConfig, LlamaConfig, OPTConfig])
def test_a7_every_number_is_finite_and_has_a_range(cls):
    assert unchecked(cls) == []
    assert len(list(numeric_keys(cls))) > {RunConfig: 110, LlamaConfig: 15, OPTConfig: 10}[cls]


def test_a7_a_number_without_a_range_is_found():
    """Negative control of the test above."""

    @section
    class Careless(Section):
        steps: int = 3
        rate: float = 0.1
        weights: tuple[float, ...] = ()
        checked: Count = 1

    globals()["Careless"] = Careless
    assert unchecked(Careless) == ["steps", "rate", "weights"]


@pytest.mark.parametrize(
    "text, complaint",
    [
        (
            "processor: {image_processor: {std: [.nan, 1, 1]}}",
            "processor.image_processor.std[0] = nan: expected a finite number",
        ),
        (
            "processor: {image_processor: {std: [a, b, c]}}",
            "processor.image_processor.std[0] = 'a': expected float, got str",
        ),
        (
            "processor: {image_processor: {std: [0, 1, 1]}}",
            "processor.image_processor.std[0] = 0.0: expected above 0",
        ),
        (
            "processor: {image_processor: {std: [1, 1]}}",
            "processor.image_processor.std = [1, 1]: expected 3 values, got 2",
        ),
        (
            "processor: {image_processor: {image_size: [-14, -14]}}",
            "processor.image_processor.image_size[0] = -14: expected from 1 to 16384",
        ),
        (
            "processor: {image_processor: {image_size: [a, a]}}",
            "processor.image_processor.image_size[0] = 'a': expected int, got str",
        ),
        ("lr_schedule: {learning_rate: .nan}", "lr_schedule.learning_rate = nan: expected a finite number"),
        ("lr_schedule: {total_steps: 0}", "lr_schedule.total_steps = 0: expected at least 1, or -1 for none"),
        (
            "model: {model_config: {qformer_config: {hidden_dropout_prob: 2}}}",
            "hidden_dropout_prob = 2.0: expected from 0 to less than 1",
        ),
        (
            "model: {model_config: {qformer_config: {sep_token_id: 30523}}}",
            "sep_token_id = 30523: expected an id of the vocabulary",
        ),
        ("model: {model_config: {temperature: 0}}", "model.model_config.temperature = 0.0: expected above 0"),
        ("runner_config: {save_steps: -1}", "runner_config.save_steps = -1: expected at least 0"),
        ("seed: -1", "seed = -1: expected from 0 to 4294967295"),
        ("generation: {length_penalty: .nan}", "generation.length_penalty = nan: expected a finite number"),
        (
            "train_dataset: {transforms: [{type: Normalize, std: [.inf, 1, 1]}]}",
            "train_dataset.transforms[0].std[0] = inf: expected a finite",
        ),
        (
            "train_dataset: {data_loader: {ratios: [0, 0]}}",
            "ratios = [0.0, 0.0]: expected at least one above 0",
        ),
        (
            "train_dataset: {data_loader: {image_dirs: [1]}}",
            "train_dataset.data_loader.image_dirs[0] = 1: expected str, got int",
        ),
        ("callbacks: [abc]", "callbacks[0] = 'abc': expected dict, got str"),
    ],
)
def test_a7_a_number_out_of_range_names_its_key_and_file(load, text, complaint):
    with pytest.raises(ConfigError) as error:
        load(text)
    assert complaint in str(error.value) and ".yaml" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "seed: 0",
        "seed: 4294967295",
        "runner_config: {save_steps: 0}",
        "lr_schedule: {total_steps: -1}",
        "lr_schedule: {learning_rate: 0}",
        "model: {model_config: {qformer_config: {hidden_dropout_prob: 0}}}",
        "train_dataset: {max_unreadable: 1}",
        "processor: {image_processor: {std: [1, 1, 1], mean: [0, 0, 0]}}",
    ],
)
def test_a7_the_ends_of_the_ranges_are_taken(load, text):
    load(text)
