"""Which keys of the configuration are used: by run mode and task, and given the values of other keys."""

import fnmatch
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mindblip2.compat.mindformers import keys as mindformers
from mindblip2.config.data import LoaderConfig, TokenizerConfig
from mindblip2.config.language_model import LlamaConfig, OPTConfig

if TYPE_CHECKING:
    from mindblip2.config.run import RunConfig

Add = Callable[[str, Any, Any, str], None]  # (key, value, default, reason)

# The keys of data_loader that each loader reads; candidate_labels and hypothesis_template belong to the task.
TASK_KEYS = ("type", "candidate_labels", "hypothesis_template")
LOADER_KEYS = {
    "MultiImgCapDataLoader": (
        "dataset_dir",
        "annotation_files",
        "image_dirs",
        "stage",
        "repeat_images",
        "shuffle",
        "ratios",
    ),
    "Flickr8kDataLoader": ("dataset_dir", "stage", "shuffle"),
    "Cifar100DataLoader": ("dataset_dir", "stage", "fine_label"),
    "ImageFolder": ("dataset_dir",),
    "DigitScenes": ("scenes", "property_epochs"),
}


# Which run modes, and of which tasks, use a key: the first pattern that fits counts.  () is all tasks.
TRAIN, RUN = ("train", "finetune"), ("train", "finetune", "eval", "predict", "export")
ZERO_SHOT, RETRIEVAL, FEATURES, GENERATION = (
    ("zero_shot_image_classification",),
    ("image_to_text_retrieval",),
    ("feature_extraction",),
    ("image_to_text_generation",),
)
PRETRAIN = ("contrastive_language_image_pretrain",)
# (run modes, tasks) pairs
Uses = list[tuple[tuple[str, ...], tuple[str, ...]]]
USED_BY: dict[str, Uses] = {
    "run_mode": [((*RUN, "check", "plan", "split", "merge"), ())],
    "output_dir": [((*RUN, "check", "split", "merge"), ())],
    "load_checkpoint": [((*RUN, "split", "merge"), ())],
    "use_parallel": [(RUN, ())],
    "context.device_target": [((*RUN, "plan"), ())],
    "context.*": [(RUN, ())],
    "trainer.*": [((*RUN, "split", "merge"), ())],
    "model.*": [((*RUN, "plan", "split", "merge"), ())],
    "processor.tokenizer.*": [((*RUN, "check", "plan"), ())],
    "processor.clean": [(("predict",), FEATURES)],
    "processor.*": [((*RUN, "check"), ())],
    "runner_config.batch_size": [((*TRAIN, "plan"), ())],
    "runner_config.accumulation_steps": [((*TRAIN, "plan"), ())],
    "parallel_config.model_parallel": [((*TRAIN, "eval", "predict", "split", "merge"), ())],
    "parallel_config.data_parallel": [((*TRAIN, "eval", "predict"), ())],
    "generation*": [((*TRAIN, "eval", "predict", "export", "plan"), GENERATION), (("plan",), ())],
    "train_dataset.text_transforms.prompt": [
        ((*TRAIN, "check", "plan"), ()),
        (("eval", "predict", "export"), GENERATION),
    ],
    "train_dataset.*": [((*TRAIN, "check", "plan"), ())],
    "eval_dataset.data_loader.candidate_labels": [(("predict", "export"), ZERO_SHOT)],
    "eval_dataset.data_loader.hypothesis_template": [
        (("eval", "predict", "export"), (*ZERO_SHOT, *GENERATION)),
        (TRAIN, GENERATION),
    ],
    "eval_dataset.k_test": [(("eval",), RETRIEVAL), (TRAIN, PRETRAIN)],
    "eval_dataset.rerank": [(("eval",), RETRIEVAL), (TRAIN, PRETRAIN)],
    "eval_dataset.add_extra_itm_score": [(("eval",), RETRIEVAL), (TRAIN, PRETRAIN)],
    "eval_dataset.memory_budget": [(("eval",), RETRIEVAL), (TRAIN, PRETRAIN)],
    "eval_dataset.temperature": [(("eval", "predict", "export"), ZERO_SHOT)],
    "eval_dataset.text_transforms.*": [
        ((*TRAIN, "eval", "check"), ()),
        (("predict", "export"), FEATURES),
        (("export",), RETRIEVAL),
        (("predict", "export"), GENERATION),
    ],
    "eval_dataset.batch_size": [((*TRAIN, "eval", "plan"), ())],
    "eval_dataset.*": [((*TRAIN, "eval", "check"), ())],
    **{
        key: [(TRAIN, ())]
        for key in (
            "seed",
            "resume_training",
            "do_eval",
            "eval_epoch_interval",
            "eval_step_interval",
            "metric.*",
            "layer_decay",
            "callbacks",
            "lr_schedule.*",
            "optimizer.*",
            "runner_config.*",
            "recompute_config.*",
            "parallel.*",
        )
    },
}


def used_by(key: str) -> Uses:
    """[(run modes, tasks)] that use a dotted key; [] for a key that is unknown here."""
    return next((uses for pattern, uses in USED_BY.items() if fnmatch.fnmatchcase(key, pattern)), [])


def without_effect(config: "RunConfig") -> list[str]:
    """The keys of a RunConfig that differ from their defaults and that nothing reads because of what another
    key says, with this reason."""
    model = config.model.model_config
    unread: list[str] = []

    def add(name: str, value: Any, default: Any, reason: str) -> None:
        if value != default:
            unread.append(f"{name} ({reason})")

    for dataset in ("train_dataset", "eval_dataset"):
        loader = getattr(config, dataset).data_loader
        for key, default in LoaderConfig().to_dict().items():
            if loader.type in LOADER_KEYS and key not in (*TASK_KEYS, *LOADER_KEYS[loader.type]):
                add(
                    f"{dataset}.data_loader.{key}",
                    loader.to_dict()[key],
                    default,
                    f"{loader.type} does not read it",
                )
    if not config.context.save_graphs:
        add(
            "context.save_graphs_path",
            config.context.save_graphs_path,
            type(config.context)().save_graphs_path,
            "save_graphs is false",
        )
    add(
        "optimizer.learning_rate",
        config.optimizer.learning_rate or config.lr_schedule.learning_rate,
        config.lr_schedule.learning_rate,
        f"lr_schedule.learning_rate = {config.lr_schedule.learning_rate:g} decides",
    )
    if not config.use_parallel:
        add("parallel_config.data_parallel", config.parallel_config.data_parallel, 1, "use_parallel is false")
        if config.run_mode not in ("split", "merge", "plan"):
            add(
                "parallel_config.model_parallel",
                config.parallel_config.model_parallel,
                1,
                "use_parallel is false",
            )
        add(
            "parallel.enable_parallel_optimizer",
            config.parallel.enable_parallel_optimizer,
            False,
            "use_parallel is false",
        )
    if model.freeze_vision:
        add("layer_decay", config.layer_decay, None, "model.model_config.freeze_vision is true")
    if not model.prompt:
        add("model.model_config.prompt_length", model.prompt_length, 0, "model.model_config.prompt is empty")
    if model.text_config is not None:
        _add_text_config(add, model.text_config)
    for i, callback in enumerate(config.callbacks):
        known = mindformers.CALLBACKS[callback["type"]]
        for key in callback:
            if key not in ("type", *known):
                unread.append(f"callbacks[{i}].{key}")
        if callback["type"] == "ObsMonitor":
            unread.append(f"callbacks[{i}] (ObsMonitor: nothing is uploaded)")
    _add_tokenizer(add, config.processor.tokenizer)
    return unread


def _add_text_config(add: Add, text: LlamaConfig | OPTConfig) -> None:
    llama = text if isinstance(text, LlamaConfig) else None
    default = type(text)()
    for is_unread, reason, keys in (
        (not text.do_sample, "do_sample is false", ("top_k", "top_p", "temperature")),
        (
            llama is not None and llama.intermediate_size is not None,
            "intermediate_size is given",
            ("multiple_of", "ffn_dim_multiplier"),
        ),
        (
            llama is not None and llama.position_embedding == "alibi",
            "position_embedding is alibi",
            ("rope_theta", "rope_scaling"),
        ),
    ):
        for key in keys if is_unread else ():
            add(
                f"model.model_config.text_config.{key}",
                getattr(text, key, None),
                getattr(default, key, None),
                reason,
            )


def _add_tokenizer(add: Add, tokenizer: TokenizerConfig) -> None:
    name = "processor.tokenizer."
    if tokenizer.type == "BertTokenizer":
        for key, fixed in (
            ("pad_token", "[PAD]"),
            ("bos_token", "[DEC]"),
            ("eos_token", "[SEP]"),
            ("unk_token", "[UNK]"),
            ("added_tokens", ()),
            ("add_special_tokens", True),
            ("add_bos_token", None),
            ("add_eos_token", None),
        ):
            value = getattr(tokenizer, key)
            add(name + key, fixed if value == "" else value, fixed, "BertTokenizer has its own")
    if tokenizer.vocab_file:
        add(name + "checkpoint_name_or_path", tokenizer.checkpoint_name_or_path, "", "vocab_file is given")
