"""A1, A18: an accepted key or argument acts, or a printed line names it.

The tests walk dataclass fields and argparse actions."""

import argparse
import ast
import dataclasses
import fnmatch
import functools
import inspect
import logging
import re
import textwrap
import types
import typing
from pathlib import Path

import mindspore as ms
import pytest
import yaml

import mindblip2
import run_blip2
from mindblip2 import config as configuration
from mindblip2 import device
from mindblip2.compat.mindformers import keys as mindformers
from mindblip2.config import Blip2Config, ConfigError, RunConfig, load_config, presets, without_effect
from mindblip2.config.schema import Section, build, section
from mindblip2.trainer.tasks import pretrain

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = [
    one
    for one in vars(configuration).values()
    if isinstance(one, type) and issubclass(one, Section) and one is not Section
]
# What variables are called that hold a section, besides the fields of other sections that hold it.
CALLED = {
    "LlamaConfig": ("config", "text", "language", "self"),
    "OPTConfig": ("config", "text", "language", "self"),
    "ViTConfig": ("config", "vision", "self"),
    "QFormerConfig": ("config", "qformer", "self"),
    "Blip2Config": ("config", "model", "self"),
    "ContextConfig": ("context", "self"),
    "RunnerConfig": ("runner",),
    "OptimizerConfig": ("config",),
    "ScheduleConfig": ("config",),
    "LoaderConfig": ("loader", "data"),
    "TextTransformConfig": ("text",),
    "TokenizerConfig": ("config", "tokenizer"),
    "DatasetConfig": ("data", "section"),
    "ImageProcessorConfig": ("image", "self"),
    "ProcessorConfig": ("config",),
    "ParallelConfig": ("wanted",),
    "RunConfig": ("config", "self"),
    "MetricConfig": ("metric",),
    "TrainerConfig": ("trainer",),
}
# Read by name, where a walk over attributes does not see it.
BY_NAME = {
    "DataTokenizerConfig.type": "RunConfig._check_tokenizer compares all its keys with processor.tokenizer's",
    "DataTokenizerConfig.vocab_file": "likewise",
    "DatasetConfig.tokenizer": "likewise",
    "OptimizerConfig.type": "three names of the one optimizer; another is an error",
    **{
        f"{name}.checkpoint_name_or_path": "checkpoint.pretrained.PARTS; see tests/test_named_weights.py"
        for name in ("LlamaConfig", "OPTConfig", "QFormerConfig")
    },
}
# In the files that make a class from its own section the section is called config; elsewhere that is another
# one.
OWN_FILE = {
    "ViTConfig": ("models/vit.py", "trainer/activation_memory.py", "config/model.py"),
    "QFormerConfig": (
        "models/qformer.py",
        "models/blip2_qformer.py",
        "trainer/activation_memory.py",
        "config/model.py",
    ),
    "LlamaConfig": ("models/llama.py", "models/decoder.py", "config/language_model.py"),
    "OPTConfig": ("models/opt.py", "models/decoder.py", "config/language_model.py"),
    "Blip2Config": (
        "config/model.py",
        "checkpoint/pretrained.py",
        "device.py",
        "trainer/communication_volume.py",
        "trainer/activation_memory.py",
        "models/blip2_llm.py",
        "models/blip2_qformer.py",
    ),
    "OptimizerConfig": ("trainer/optimizer.py", "trainer/train_step.py"),
    "ScheduleConfig": ("trainer/lr_schedule.py",),
    "TokenizerConfig": ("data/text/tokenizer.py",),
    "ProcessorConfig": ("data/processor.py",),
}
# The classes of the sections themselves, whose methods read fields from self.
SECTION_FILES = ("config/model.py", "config/data.py", "config/run.py", "config/language_model.py")


def hint_sections(hint):
    return [
        one
        for one in (typing.get_args(hint) or (hint,))
        if isinstance(one, type) and issubclass(one, Section)
    ]


def holders():
    """{name of a section class: names of the fields that hold it}."""
    found = {}
    for cls in SECTIONS:
        for name, hint in typing.get_type_hints(cls).items():
            for one in hint_sections(hint):
                found.setdefault(one.__name__, set()).add(name)
    return found


def reads(files):
    """{attribute: {(file, what it is read from)}} of Python files; what an error message alone shows does not
    count."""
    found = {}
    for file, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = re.split(r"[.\s]", ast.unparse(node.value))[-1]
                found.setdefault(node.attr, set()).add((file, owner))
    return found


@functools.cache
def sources():
    """{path below mindblip2: text} of the code that reads a configuration, without convert and parity."""
    package = ROOT / "mindblip2"
    files = {str(path.relative_to(package)): path for path in package.rglob("*.py")}
    files["run_blip2.py"] = ROOT / "run_blip2.py"
    return {
        name: path.read_text(encoding="utf-8")
        for name, path in files.items()
        if name not in ("compat/mindformers/keys.py", "config/schema.py")
        and not name.startswith(("convert/", "parity/"))
    }


def unread(cls, found, held):
    """The fields of a section that no code reads from something that is called as this section is."""
    names = {*held.get(cls.__name__, ()), *CALLED.get(cls.__name__, ())}

    def is_read(field):
        return any(
            owner in names
            and (owner not in ("config", "self") or file in OWN_FILE.get(cls.__name__, (file,)))
            and not (owner == "self" and file not in SECTION_FILES)
            for file, owner in found.get(field, ())
        )

    return {f.name for f in dataclasses.fields(cls) if not is_read(f.name)}


def only_value(cls, name):
    """Whether a field is accepted with its default alone: then another value is an error."""
    return (
        f'one_of(self, "{name}", (' in inspect.getsource(cls)
        and re.search(rf'one_of\(self, "{name}", \(("[^"]*",?)\)\)', inspect.getsource(cls)) is not None
    )


def everywhere(cls):
    return mindformers.WITHOUT_EFFECT.get(cls.__name__, set())


@pytest.mark.parametrize("cls", SECTIONS, ids=lambda cls: cls.__name__)
def test_a1_every_key_is_read_or_named(cls):
    files = sources()
    left = {
        name
        for name in unread(cls, reads(files), holders())
        if not only_value(cls, name)
        and name not in everywhere(cls)
        and f"{cls.__name__}.{name}" not in BY_NAME
    }
    assert left == set()


def test_a1_the_walk_sees_a_key_that_nothing_reads():
    @section
    class Silent(Section):
        image_size: int = 0  # read from others, but not from what is called as this section is
        nobody_reads_this: int = 0
        level: int = 0

    files = {**sources(), "x.py": "def f(silent):\n    return silent.level, other.nobody_reads_this\n"}
    assert unread(Silent, reads(files), {"Silent": {"silent"}}) == {"image_size", "nobody_reads_this"}
    assert len(SECTIONS) > 20 and not set(CALLED) - {cls.__name__ for cls in SECTIONS}


def other(cls, name):
    """Another value than the default of a field."""
    default = next(f.default for f in dataclasses.fields(cls) if f.name == name)
    return {
        bool: lambda: not default,
        int: lambda: default + 1,
        str: lambda: "x",
        tuple: lambda: ["x", "y"],
        float: lambda: default + 1,
        type(None): lambda: 1.0,
    }[type(default)]()  # None is the default of a number that is optional


PLACES = {
    "Blip2Config": ["model.model_config"],
    "LoaderConfig": ["train_dataset.data_loader", "eval_dataset.data_loader"],
    "train_dataset": ["train_dataset"],
    "eval_dataset": ["eval_dataset"],
    "train_dataset.data_loader": ["train_dataset.data_loader"],
    "eval_dataset.data_loader": ["eval_dataset.data_loader"],
}
CLASS_AT = {
    "model.model_config": Blip2Config,
    "train_dataset": configuration.DatasetConfig,
    "eval_dataset": configuration.DatasetConfig,
    "train_dataset.data_loader": configuration.LoaderConfig,
    "eval_dataset.data_loader": configuration.LoaderConfig,
}


@pytest.mark.parametrize(
    "where, key",
    [
        (where, key)
        for name, keys in mindformers.WITHOUT_EFFECT.items()
        for where in PLACES[name]
        for key in sorted(keys)
    ],
)
def test_a1_a_key_that_nothing_reads_is_named_and_keeps_its_default(tmp_path, caplog, where, key):
    cls = CLASS_AT[where]
    value = other(cls, key)
    nested = {key: value}
    for name in reversed(where.split(".")):
        nested = {name: nested}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(nested))
    config = load_config(tmp_path / "x.yaml")
    assert f"x.yaml: these keys have no effect in mindblip2 and are ignored: {where}.{key}" in caplog.text
    assert config.replace(seed=1) == RunConfig(seed=1)
    caplog.clear()
    build(RunConfig, nested)  # as Trainer(args={…}) does
    assert f"{where}.{key}" in caplog.text
    caplog.clear()
    load_config(tmp_path / "x.yaml", {f"{where}.{key}": getattr(cls(), key)})  # the control: the default
    config.replace(seed=3)
    assert not caplog.records


def test_a1_python_names_them_too(caplog):
    assert Blip2Config(batch_size=4).batch_size == 8
    assert "these keys have no effect in mindblip2 and are ignored: Blip2Config.batch_size" in caplog.text
    caplog.clear()
    Blip2Config(vision_config={"encoder_stride": 16})
    assert "Blip2Config.vision_config.encoder_stride" in caplog.text


LLAMA = "model.model_config.text_config."
CONDITIONAL = [  # what makes a key idle, the key, and what makes it act
    (
        {"eval_dataset.data_loader.type": "Cifar100DataLoader"},
        {"eval_dataset.data_loader.image_dirs": ["x"]},
        {"eval_dataset.data_loader.type": "MultiImgCapDataLoader"},
    ),
    (
        {"train_dataset.data_loader.type": "DigitScenes"},
        {"train_dataset.data_loader.dataset_dir": "x"},
        {"train_dataset.data_loader.type": "Flickr8kDataLoader"},
    ),
    ({}, {"context.save_graphs_path": "x"}, {"context.save_graphs": True}),
    ({}, {"optimizer.learning_rate": 1e-3}, {"lr_schedule.learning_rate": 1e-3}),
    ({}, {"parallel_config.data_parallel": 2}, {"use_parallel": True}),
    ({}, {"parallel_config.model_parallel": 2}, {"use_parallel": True}),
    ({}, {"parallel_config.model_parallel": 2}, {"run_mode": "split"}),
    ({}, {"parallel.enable_parallel_optimizer": True}, {"use_parallel": True}),
    ({}, {"layer_decay": 0.5}, {"model.model_config.freeze_vision": False}),
    ({}, {"model.model_config.prompt_length": 4}, {"model.model_config.prompt": True}),
    ({LLAMA + "type": "LlamaConfig"}, {LLAMA + "top_k": 5}, {LLAMA + "do_sample": True}),
    ({LLAMA + "type": "OPTConfig"}, {LLAMA + "top_p": 0.5}, {LLAMA + "do_sample": True}),
    ({LLAMA + "intermediate_size": 64}, {LLAMA + "multiple_of": 32}, {LLAMA + "intermediate_size": None}),
    (
        {LLAMA + "position_embedding": "alibi"},
        {LLAMA + "rope_theta": 5e5},
        {LLAMA + "position_embedding": "rope"},
    ),
    ({}, {"processor.tokenizer.added_tokens": ["<x>"]}, {"processor.tokenizer.type": "LlamaTokenizer"}),
    ({}, {"processor.tokenizer.pad_token": "<pad>"}, {"processor.tokenizer.pad_token": "[PAD]"}),
    (
        {"processor.tokenizer.vocab_file": "x.txt"},
        {"processor.tokenizer.checkpoint_name_or_path": "x"},
        {"processor.tokenizer.vocab_file": ""},
    ),
]


@pytest.mark.parametrize("idle, key, acts", CONDITIONAL, ids=lambda value: next(iter(value), "default"))
def test_a1_a_key_that_another_one_makes_idle_is_named_with_the_reason(tmp_path, caplog, idle, key, acts):
    (tmp_path / "x.yaml").touch()
    (name,) = key
    load_config(tmp_path / "x.yaml", {**idle, **key})
    assert f"are ignored: {name} (" in caplog.text
    caplog.clear()
    load_config(tmp_path / "x.yaml", {**idle, **key, **acts})
    assert not caplog.records


def test_a1_a_callback_s_keys_are_named(caplog):
    config = RunConfig(
        callbacks=[
            {"type": "CheckpointMonitor", "prefix": "x", "save_checkpoint_steps": 5},
            {"type": "ObsMonitor"},
        ]
    )
    assert without_effect(config) == ["callbacks[0].prefix", "callbacks[1] (ObsMonitor: nothing is uploaded)"]
    for wrong in ([{"kind": 1}], [{"type": ["x"]}], [{"type": "x"}], [None]):  # B12
        with pytest.raises(
            ConfigError,
            match=r"callbacks\[0\]: unknown type .*; expected a mapping such as .* known: CheckpointMointor",
        ):
            RunConfig(callbacks=wrong)


def test_a1_the_type_of_a_section_is_one_that_there_is():
    for nested in (
        {"processor": {"type": "X"}},
        {"processor": {"image_processor": {"type": "X"}}},
        {"model": {"arch": {"type": "X"}}},
        {"train_dataset": {"text_transforms": {"type": "X"}}},
    ):
        with pytest.raises(ConfigError, match="type = 'X': expected one of"):
            build(RunConfig, nested)


# ------------------------------------------------------------------------------------------------ run modes a
def leaves(config, where=""):
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{where}{f.name}.")
        else:
            yield where + f.name


MODES = typing.get_args(
    typing.Literal["train", "finetune", "eval", "predict", "export", "check", "plan", "split", "merge"]
)


def test_a18_every_key_says_which_run_modes_and_tasks_use_it():
    keys = [
        *leaves(RunConfig()),
        "model.model_config.text_config.top_k",
        "generation.num_beams",
        "train_dataset.tokenizer.type",
    ]
    assert [key for key in keys if not configuration.used_by(key)] == []
    # none is left over
    assert [pattern for pattern in configuration.USED_BY if not fnmatch.filter(keys, pattern)] == []
    tasks = {task for uses in configuration.USED_BY.values() for _, some in uses for task in some}
    modes = {mode for uses in configuration.USED_BY.values() for some, _ in uses for mode in some}
    assert modes == set(MODES) and tasks <= set(mindformers.TASK_ALIASES.values()) | {"feature_extraction"}
    assert not configuration.used_by("no.such.key")


def actions():
    """The flags of the parser, --options and --config aside, by walking it."""
    made = []

    class Stop(Exception):
        pass

    def stop(parser, argv):
        made.append(parser)
        raise Stop

    real, argparse.ArgumentParser.parse_known_args = argparse.ArgumentParser.parse_known_args, stop
    try:
        run_blip2.arguments([])
    except Stop:
        pass
    finally:
        argparse.ArgumentParser.parse_known_args = real
    return [one for one in made[0]._actions if one.dest not in ("help", "config", "options")]


def test_a18_every_flag_is_a_key_or_says_what_uses_it_or_is_named():
    flags = {one.dest for one in actions()}
    assert flags == {*run_blip2.KEYS, *run_blip2.USED_BY, *run_blip2.IGNORED} and len(flags) > 30
    assert set(run_blip2.TASK_FLAGS) < set(run_blip2.KEYS)
    assert all(
        configuration.used_by(key) or key.startswith("runner_config.sink") for key in run_blip2.KEYS.values()
    )
    (device,) = (one for one in actions() if one.dest == "device_target")
    assert device.choices == ("CPU", "Ascend")


def value_of(action):
    """Words that give a flag a value."""
    if action.nargs == 0:
        return []
    if action.choices:
        return [str(list(action.choices)[0])]
    return {
        "hypothesis_template": ["a {}"],
        "candidate_labels": ["a", "b"],
        "device_memory": ["64GB"],
        "resume_training": ["x"],
        "use_parallel": ["true"],
        "do_eval": ["true"],
        "sink_mode": ["true"],
        "output_dir": ["x"],
        "load_checkpoint": ["x.ckpt"],
        "train_dataset_dir": ["x"],
        "eval_dataset_dir": ["x"],
        "predict_data": ["x.png"],
    }.get(action.dest, ["3"])


TASKS = (
    "contrastive_language_image_pretrain",
    "zero_shot_image_classification",
    "image_to_text_retrieval",
    "feature_extraction",
    "image_to_text_generation",
)


@functools.cache
def run_of(mode, task):
    return RunConfig(run_mode=mode, trainer={"type": task})


@pytest.mark.parametrize(
    "action", [one for one in actions() if one.dest != "run_mode"], ids=lambda action: action.dest
)
def test_a18_a_flag_is_used_or_an_error_or_a_printed_line(action, capsys):
    """With every run mode and task."""
    flag, outcomes = action.dest, set()
    options, overrides = run_blip2.arguments(["--config", "x", f"--{flag}", *value_of(action)])
    uses = run_blip2.USED_BY.get(flag) or configuration.used_by(run_blip2.KEYS.get(flag, ""))
    for mode in MODES:
        for task in TASKS:
            config = run_of(mode, task)
            # none: load_config names it
            used = not uses or any(mode in modes and (not tasks or task in tasks) for modes, tasks in uses)
            if not used and flag in (*run_blip2.USED_BY, *run_blip2.TASK_FLAGS):
                with pytest.raises(
                    ValueError,
                    match=f"--{flag} is not used by --run_mode {mode} .task {task}., but by --run_mode",
                ):
                    run_blip2._check_used(options, overrides, config)
                outcomes.add("error")
                continue
            run_blip2._check_used(options, overrides, config)
            assert (f"--{flag}" in capsys.readouterr().err) is not used, (mode, task)
            outcomes.add("used" if used else "line")
    assert "used" in outcomes and (outcomes != {"used"} or not uses)


@pytest.mark.parametrize(
    "argv, words",
    [
        (
            ["itt_blip2_digits", "predict", "--predict_data", "x.png", "--candidate_labels", "a"],
            "--candidate_labels is not used by --run_mode predict (task image_to_text_generation), but by "
            "--run_mode predict, export of "
            "zero_shot_image_classification",
        ),
        (
            ["blip2_digits", "predict", "--predict_data", "x.png", "--answer_only"],
            "--answer_only is not used by",
        ),
        (
            ["blip2_stage1_evaluator", "eval", "--hypothesis_template", "a {}"],
            "--hypothesis_template is not used by",
        ),
        (["blip2_stage1_evaluator", "eval", "--use_itm"], "--use_itm is not used by"),
        (
            ["itt_blip2_digits", "predict", "--predict_data", "x.png", "--top_k", "3"],
            "--top_k is not used by",
        ),
        (["blip2_digits", "eval", "--k_test", "3"], "--k_test is not used by"),
        (["blip2_digits", "eval", "--rerank", "itm"], "--rerank is not used by"),
        (["blip2_digits", "eval", "--cards", "3"], "--cards is not used by --run_mode eval"),
        (
            ["blip2_digits", "eval", "--predict_data", "x.png"],
            "--predict_data is not used by --run_mode eval",
        ),
    ],
)
def test_a18_a_flag_of_another_task_ends_the_command(argv, words):
    with pytest.raises(ValueError) as error:
        run_blip2.run(["--config", argv[0], "--run_mode", *argv[1:]])
    assert words in str(error.value)


def test_a18_a_key_of_another_run_mode_is_named(capsys):
    argv = [
        "--config",
        "blip2_digits",
        "--run_mode",
        "predict",
        "--predict_data",
        "x.png",
        "--seed",
        "3",
        "--generation.num_beams",
        "2",
        "--lr_schedule.learning_rate=1e-3",
        "--mode",
        "1",
    ]
    options, overrides = run_blip2.arguments(argv)
    run_blip2._check_used(options, overrides, load_config("blip2_digits", overrides))
    assert capsys.readouterr().err == (
        "not used by --run_mode predict (task zero_shot_image_classification), and without effect: --seed, "
        "--generation.num_beams, --lr_schedule.learning_rate\n"
    )


# ------------------------------------------------------------------------------------------------ C8
def test_c8_a_value_may_follow_an_equals_sign():
    for argv in (
        ["--model.model_config.query_reduce=first", "--seed=3"],
        ["--model.model_config.query_reduce", "first", "--seed", "3"],
    ):
        _, overrides = run_blip2.arguments(["--config", "blip2_digits", *argv])
        assert overrides == {"model.model_config.query_reduce": "first", "seed": 3}
    _, overrides = run_blip2.arguments(
        ["--config", "blip2_digits", "--eval_dataset.data_loader.hypothesis_template=a=b {}"]
    )
    assert overrides == {"eval_dataset.data_loader.hypothesis_template": "a=b {}"}


@pytest.mark.parametrize(
    "argv, words",
    [
        (
            ["--model.model_config.query_reduce"],
            "--model.model_config.query_reduce: expected a value after it",
        ),
        (["--seeds=3"], "unknown argument '--seeds'; did you mean --seed?"),
        (["--a.b=[1"], "--a.b is not YAML: "),
        (["--options", "a.b=&x [*x]"], "--options a.b is not usable YAML: "),
        (["--a.b", "[" * 60_000 + "]" * 60_000], "--a.b is not usable YAML: it is nested too deeply"),
        (["--use_parallel", "[1"], "argument --use_parallel: '[1' is not YAML: "),
        (["--device_target", "GPU"], "invalid choice: 'GPU'"),
    ],
)
def test_c8_what_cannot_be_read_is_a_usage_error(argv, words, capsys):
    with pytest.raises(SystemExit) as error:
        run_blip2.arguments(["--config", "blip2_digits", *argv])
    assert error.value.code == 2 and words in capsys.readouterr().err


def test_c8_predict_of_a_data_set_names_run_mode_eval():
    with pytest.raises(ValueError, match="needs --predict_data: .* take --run_mode eval"):
        run_blip2.run(["--config", "blip2_digits", "--run_mode", "predict", "--eval_dataset_dir", "x"])
    with pytest.raises(ValueError, match="needs --predict_data: files, folders or URLs of pictures$"):
        run_blip2.run(["--config", "blip2_digits", "--run_mode", "predict"])


# ------------------------------------------------------------------------------------------------ B12, B4
@pytest.mark.parametrize(
    "text, words",
    [
        ("a: " + "[" * 60_000 + "]" * 60_000, "nested too deeply"),
        ("a: &a [*a]", "anchor refers to itself"),
        (
            "a0: &a0 [x]\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)),
            "anchors expand to over",
        ),
        ("callbacks: [abc]", "callbacks[0] = 'abc': expected dict, got str"),
        ("- a", "must hold a mapping"),
        ("seed: 2001-99-99", "is not YAML"),
        ("model: " + "x" * 100_000, "model must be a mapping, got 'xxx"),
        ("context: {mode: [" + "1, " * 50_000 + "]}", "context.mode = [1, 1, "),
        ("seed: {" + ", ".join(f"k{i}: 1" for i in range(9999)) + "}", "seed = {"),
    ],
)
def test_b12_a_damaged_configuration_is_one_short_line(tmp_path, text, words):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "x.yaml")
    assert words in str(error.value) and len(str(error.value)) < 900
    (tmp_path / "x.yaml").write_text("seed: 3")  # the control
    assert load_config(tmp_path / "x.yaml").seed == 3


def test_a1_no_preset_holds_a_key_without_effect(caplog):
    with caplog.at_level(logging.WARNING, "mindblip2"):
        assert [name for name in presets() if without_effect(load_config(name))] == [] and not caplog.records
    assert isinstance(run_blip2, types.ModuleType)


# ------------------------------------------------------------------------------------------------ arguments o
def public_functions():
    """(name, function) of what users call: the functions of ``mindblip2.__all__``, and the public methods of
    its classes."""
    found = {}
    for name in mindblip2.__all__:
        value = getattr(mindblip2, name)
        # of the callable package mindblip2.pipeline
        value = getattr(value, name) if inspect.ismodule(value) else value
        if inspect.isclass(value):
            for cls in value.__mro__:
                if cls.__module__.startswith("mindblip2."):
                    found |= {
                        f"{cls.__name__}.{key}": method
                        for key, method in vars(cls).items()
                        if not key.startswith("_") or key in ("__init__", "__call__")
                    }
        elif callable(value):
            found[name] = value
    found = {name: inspect.unwrap(getattr(value, "__func__", value)) for name, value in found.items()}
    return {
        name: value
        for name, value in found.items()
        if inspect.isfunction(value)
        and value.__module__.startswith("mindblip2.")
        and value.__name__ not in ("checked_init", "<lambda>")
        and not value.__code__.co_filename.startswith("<")
    }


def idle_arguments(function):
    """The parameters of a function that its body never reads."""
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    every = [
        *node.args.posonlyargs,
        *node.args.args,
        *node.args.kwonlyargs,
        node.args.vararg,
        node.args.kwarg,
    ]
    names = {one.arg for one in every if one is not None} - {"self", "cls"}
    return names - {
        one.id for statement in node.body for one in ast.walk(statement) if isinstance(one, ast.Name)
    }


def test_a1_every_argument_of_a_public_function_is_read():
    functions = public_functions()
    assert len(functions) > 60
    assert {"Trainer.predict", "pipeline", "Blip2Qformer.construct", "MultiImgCapDataLoader.__init__"} <= set(
        functions
    )
    assert {name: idle for name, function in functions.items() if (idle := idle_arguments(function))} == {}

    def silent(image, padding=True, **more):
        """The control: ``padding`` in a docstring is not read."""
        return [image for _ in more]

    assert idle_arguments(silent) == {"padding"}


def test_a1_keys_that_a_cpu_cannot_use_are_named(caplog):
    before = ms.get_context("mode")
    device.use(configuration.ContextConfig(mode=1, max_device_memory="12GB", device_id=1))
    assert (
        "ignored: context.device_id (a CPU has none), context.max_device_memory (a CPU has none)"
        in caplog.text
    )
    caplog.clear()
    device.use(configuration.ContextConfig(mode=before))
    assert not caplog.records


def test_a1_keys_of_an_evaluation_that_there_is_not_are_named(capsys):
    pretrain._say_unused_evaluation(RunConfig(metric={"type": "CIDEr"}, eval_step_interval=3))
    assert capsys.readouterr().out.startswith(
        "no effect: metric, eval_step_interval, since nothing is evaluated in training"
    )
    pretrain._say_unused_evaluation(RunConfig())
    assert capsys.readouterr().out == ""
