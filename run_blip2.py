"""The doorbell: ``python run_blip2.py --config PRESET|FILE --run_mode train|eval|predict …``; see
README.md."""

import argparse
import os
import sys

os.environ.setdefault("GLOG_v", "3")  # MindSpore's own warnings are about its insides

from mindblip2 import CheckpointError, ConfigError, check_data, load_config, presets  # noqa: E402
from mindblip2.file_io import FileError, parse_yaml  # noqa: E402

# flag → configuration key; a flag that is given overrides the file
KEYS = {
    "mode": "context.mode",
    "device_id": "context.device_id",
    "device_target": "context.device_target",
    "run_mode": "run_mode",
    "train_dataset_dir": "train_dataset.data_loader.dataset_dir",
    "eval_dataset_dir": "eval_dataset.data_loader.dataset_dir",
    "load_checkpoint": "load_checkpoint",
    "resume_training": "resume_training",
    "seed": "seed",
    "use_parallel": "use_parallel",
    "epochs": "runner_config.epochs",
    "batch_size": "runner_config.batch_size",
    "gradient_accumulation_steps": "runner_config.accumulation_steps",
    "sink_mode": "runner_config.sink_mode",
    "do_eval": "do_eval",
    "output_dir": "output_dir",
    "k_test": "eval_dataset.k_test",
    "rerank": "eval_dataset.rerank",
    "candidate_labels": "eval_dataset.data_loader.candidate_labels",
    "hypothesis_template": "eval_dataset.data_loader.hypothesis_template",
}
# MindFormers' flags for machinery that does not exist here: taken, and said
ZERO_SHOT, GENERATION = "zero_shot_image_classification", "image_to_text_generation"
# flags that are no keys → the run modes, and the tasks, that use them; () is all tasks
USED_BY = {
    "predict_data": [(("predict",), ())],
    "predict_batch_size": [(("predict", "export"), ())],
    "answer_only": [(("predict",), (GENERATION,))],
    "top_k": [(("predict",), (ZERO_SHOT,))],
    "use_itm": [(("predict", "eval"), (ZERO_SHOT,))],
    "device_memory": [(("plan",), ())],
    "cards": [(("plan",), ())],
}
# flags of keys that mean nothing but to their task: given to another, they are an error, as those above
TASK_FLAGS = ("candidate_labels", "hypothesis_template", "k_test", "rerank")
IGNORED = (
    "src_strategy_path_or_dir",
    "auto_trans_ckpt",
    "only_save_strategy",
    "strategy_load_checkpoint",
    "remote_save_url",
    "profile",
    "num_samples",
)


def _count(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected at least 1")
    return number


def _yaml(text, name=""):
    """What a text on the command line means, as YAML reads it."""
    try:
        return parse_yaml(text, name or repr(text[:50]))
    except FileError as error:
        raise argparse.ArgumentTypeError(" ".join(str(error).split())) from None


def arguments(argv):
    """(options, overrides) of a command line.  Exits with a message on an unknown flag."""
    parser = argparse.ArgumentParser(
        prog="run_blip2.py",
        description=__doc__,
        allow_abbrev=False,
        epilog=(
            f"presets: {', '.join(presets())}.  Any key of the configuration can be set as --a.b.c value."
        ),
    )
    parser.add_argument("--config", required=True, help="a preset's name or a YAML file")
    parser.add_argument(
        "--run_mode",
        choices=("train", "finetune", "eval", "predict", "export", "check", "plan", "split", "merge"),
    )
    parser.add_argument("--device_target", choices=("CPU", "Ascend"), help="default: what the host has")
    parser.add_argument("--mode", type=int, choices=(0, 1), help="0 graph, 1 PyNative")
    parser.add_argument("--load_checkpoint", help="the .ckpt to start from or to use")
    parser.add_argument(
        "--predict_data",
        nargs="+",
        help="pictures: files, folders, URLs; for feature_extraction also .txt files with a caption per line",
    )
    parser.add_argument(
        "--predict_batch_size",
        type=_count,
        help="default 8; export: how many pictures the graphs take, default 1",
    )
    parser.add_argument(
        "--candidate_labels",
        nargs="+",
        help=(
            "the labels to choose from: one argument is split at its commas ('a red cat, dog'); several are "
            "one label each, with the commas "
            "inside them"
        ),
    )
    parser.add_argument(
        "--hypothesis_template",
        help="the label's text, with {} for the label; image_to_text_generation: the prompt.  "
        "Its other arguments are --generation.num_beams 3 and so on",
    )
    parser.add_argument(
        "--answer_only", action="store_true", help="image_to_text_generation: texts without their prompt"
    )
    parser.add_argument("--top_k", type=_count, help="labels reported per picture, default 5")
    parser.add_argument(
        "--use_itm", action="store_true", help="score with the ITM head instead of the similarity"
    )
    parser.add_argument("--k_test", type=int, help="retrieval: candidates that the ITM head ranks again")
    parser.add_argument(
        "--rerank", choices=("itm+itc", "itm", "none"), help="retrieval: the score of a candidate"
    )
    parser.add_argument("--device_memory", help="plan: memory of a card, 32GB or 64GB (the default)")
    parser.add_argument("--cards", type=int, help="plan: how many cards there are, default 1")
    parser.add_argument("--output_dir")
    for name in ("train_dataset_dir", "eval_dataset_dir"):
        parser.add_argument(f"--{name}")
    for name in ("device_id", "seed", "epochs", "batch_size", "gradient_accumulation_steps"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("use_parallel", "sink_mode", "resume_training", "do_eval"):
        parser.add_argument(f"--{name}", type=_yaml)
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="a.b.c=value", help="the same as --a.b.c value"
    )
    for name in IGNORED:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args(argv)
    if options.candidate_labels:
        options.candidate_labels = _labels(options.candidate_labels)
    return options, _overrides(parser, options, rest)


def _labels(given):
    """The labels of a command line, see --candidate_labels; of `cat, dog` the comma that ends an argument is
    no part of a label."""
    parts = given[0].split(",") if len(given) == 1 else [one.strip().removesuffix(",") for one in given]
    return [one.strip() for one in parts if one.strip()] or given


def _overrides(parser, options, rest):
    overrides = {
        key: getattr(options, flag) for flag, key in KEYS.items() if getattr(options, flag) is not None
    }
    for pair in options.options:
        key, equals, value = pair.partition("=")
        if not equals:
            parser.error(f"--options {pair}: expected a.b.c=value")
        overrides[key] = _value(parser, f"--options {key}", value)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not flag.startswith("--") or "." not in flag:
            parser.error(f"unknown argument {flag!r}" + _nearest(flag, parser))
        if not equals and not rest:
            parser.error(f"{flag}: expected a value after it, {flag} VALUE or {flag}=VALUE")
        overrides[flag[2:]] = _value(parser, flag, value if equals else rest.pop(0))
    return overrides


def _value(parser, flag, text):
    try:
        return _yaml(text, flag)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))


def _check_used(options, overrides, config):
    """Flags and keys that the run mode or the task does not use: those of one task are an error, the others
    are named in one line."""
    named = {key: flag for flag, key in KEYS.items()}
    unused = config.unused(
        [*overrides, *(flag for flag in USED_BY if getattr(options, flag) not in (None, False))], USED_BY
    )
    asked = f"--run_mode {config.run_mode} (task {config.trainer.type})"
    for key, uses in unused.items():
        flag = named.get(key, key)
        if flag in (*USED_BY, *TASK_FLAGS):
            raise ValueError(f"--{flag} is not used by {asked}, but by {uses}")
    if unused:
        print(
            f"not used by {asked}, and without effect: "
            + ", ".join(f"--{named.get(key, key)}" for key in unused),
            file=sys.stderr,
        )


def _nearest(flag, parser):
    import difflib

    known = [name for action in parser._actions for name in action.option_strings]
    near = difflib.get_close_matches(flag, known, 1)
    return f"; did you mean {near[0]}?" if near else "; a configuration key is set as --a.b.c value"


def run(argv=None):
    """Run one command line; returns what the verb returns."""
    options, overrides = arguments(argv)
    for name in IGNORED:
        if getattr(options, name) is not None:
            print(f"--{name} has no meaning in mindblip2 and is ignored", file=sys.stderr)
    config = load_config(options.config, overrides)
    if config.run_mode == "predict" and not options.predict_data:
        raise ValueError(
            "--run_mode predict needs --predict_data: files, folders or URLs of pictures"
            + (
                "; for a data set with captions or labels (--eval_dataset_dir) take --run_mode eval"
                if options.eval_dataset_dir
                else ""
            )
        )
    _check_used(options, overrides, config)
    if config.run_mode == "check":
        return check_data(config)
    from mindblip2 import (  # here, because importing MindSpore takes seconds
        Trainer,
        merge_checkpoint,
        plan_mesh,
        split_checkpoint,
    )

    if config.run_mode == "plan":
        return plan_mesh(
            config, options.device_memory or "64GB", 1 if options.cards is None else options.cards
        )
    if config.run_mode in ("split", "merge"):
        return {"split": split_checkpoint, "merge": merge_checkpoint}[config.run_mode](config)
    if config.run_mode == "export":  # which needs no device of that kind
        trainer = Trainer(args=config.replace(context={"device_target": ""}))
        return trainer.export(
            device_target=config.context.device_target, batch_size=options.predict_batch_size or 1
        )
    trainer = Trainer(args=config)
    if config.run_mode == "eval":
        return trainer.evaluate(**{"use_itm": True} if options.use_itm else {})
    if config.run_mode != "predict":
        return {"train": trainer.train, "finetune": trainer.finetune}[config.run_mode]()
    folder = config.output_dir if "output_dir" in overrides else "."
    name = os.path.join(folder, f"{trainer.task}_result")
    extra = {"save_picture": f"{name}.png", "top_k": options.top_k or 5, "use_itm": options.use_itm}
    if trainer.task == "feature_extraction":
        extra = {"save_arrays": f"{name}.npz"}
    if trainer.task == "image_to_text_generation":
        extra = {"return_full_text": not options.answer_only}
    return trainer.predict(
        options.predict_data, save_file=f"{name}.txt", batch_size=options.predict_batch_size or 8, **extra
    )


if __name__ == "__main__":
    try:
        result = run()
    except (
        ConfigError,
        CheckpointError,
        ValueError,
        OSError,
        FloatingPointError,
        NotImplementedError,
    ) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # a training has said how it goes on
        sys.exit(130)
    sys.exit(isinstance(result, dict) and result.get("ok") is False)  # of a check
