"""Every number of the model and of a run, on one page, as frozen dataclasses; and the presets that are made
of them.

Loadable without MindSpore: dtypes are strings.  A section name here is a section name of the YAML files.
"""

import difflib
import fnmatch
import logging
import os
import re
from dataclasses import field
from pathlib import Path

import yaml

from mindblip2.compat.mindformers import keys as mindformers
from mindblip2.config.language_model import GENERATION_ALIASES, LlamaConfig, OPTConfig
from mindblip2.config.schema import (
    ConfigError,
    Count,
    CountOrNone,
    Factor,
    Fraction,
    Natural,
    NonNegative,
    Pixels,
    Positive,
    Rate,
    Section,
    Seed,
    TokenId,
    build,
    divides,
    one_of,
    section,
    warn_ignored,
)
from mindblip2.file_io import FileError, read_json, read_yaml, write_text

logger = logging.getLogger("mindblip2")

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
DTYPES = ("float32", "float16", "bfloat16")
WEIGHTS = (".ckpt", ".pth", ".pt", ".bin", ".safetensors")
# arch.type; the last is an older name of MindFormers
STAGE_2 = ("Blip2Llm", "Blip2ImageToTextGeneration", "Blip2Llama")


# ------------------------------------------------------------------------------------------------ the model
@section
class ViTConfig(Section):
    """EVA-CLIP ViT-g/14 without its last block (LAVIS: "penultimate layer")."""

    image_size: Pixels = 224  # pixels, square
    patch_size: Count = 14
    num_channels: Count = 3
    hidden_size: Count = 1408
    num_hidden_layers: Count = 39  # the file eva_vit_g.pth has 40; BLIP-2 uses the output of the 39th
    num_attention_heads: Count = 16  # of 88
    intermediate_size: Count = 6144  # int(1408 * 4.3637)
    layer_norm_eps: Positive = 1e-6  # in the blocks; ln_vision after them has its own
    qkv_bias: bool = True  # on q and v; k has none
    drop_path_rate: Rate = 0.0
    # standard deviation of the weights before training; None: 1 / √inputs
    initializer_range: NonNegative | None = 0.02
    # the same of the position embeddings; a small ViT from scratch wants about 1
    position_range: NonNegative = 0.02
    checkpoint_name_or_path: str = ""

    def __post_init__(self):
        divides(self, "patch_size", "image_size", "choose an image size that is a multiple of the patch")
        divides(self, "num_attention_heads", "hidden_size", "each head needs a whole number of channels")

    @property
    def num_tokens(self):
        """Patches plus the class token: 257 at 224 px."""
        return (self.image_size // self.patch_size) ** 2 + 1


@section
class QFormerConfig(Section):
    """bert-base-uncased with cross-attention in every second layer and learnt queries (paper section 3.1)."""

    vocab_size: Count = 30523  # 30522 of BERT and [DEC]
    hidden_size: Count = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    intermediate_size: Count = 3072
    max_position_embeddings: Count = 512
    layer_norm_eps: Positive = 1e-12  # BERT's; the ViT uses 1e-6
    encoder_width: Count = 1408  # width of the image embeddings
    cross_attention_freq: Count = 2
    query_length: Count = 32
    head_embed_dim: Count = 256  # width of the ITC embeddings
    bos_token_id: TokenId = 30522  # [DEC], starts a caption
    pad_token_id: TokenId = 0
    sep_token_id: TokenId = 102  # [SEP], ends a caption
    hidden_dropout_prob: Rate = 0.1
    attention_probs_dropout_prob: Rate = 0.1
    initializer_range: NonNegative | None = 0.02  # as the ViT's
    checkpoint_name_or_path: str = ""

    def __post_init__(self):
        divides(self, "num_attention_heads", "hidden_size", "each head needs a whole number of channels")
        for name in ("pad_token_id", "sep_token_id"):
            if getattr(self, name) >= self.vocab_size:
                raise ConfigError(
                    f"qformer_config.{name} = {getattr(self, name)}: expected an id of the vocabulary, less "
                    "than "
                    f"vocab_size = {self.vocab_size}"
                )
        if self.bos_token_id >= self.vocab_size:
            raise ConfigError(
                f"qformer_config.bos_token_id = {self.bos_token_id} lies outside the vocabulary of "
                f"{self.vocab_size}; [DEC] is the last id, so vocab_size must be {self.bos_token_id + 1}"
            )


@section
class Blip2Config(Section):
    """Dimensions and numerics of one BLIP-2.  Nested sections may be given as dicts of what differs from the
    defaults.

    Raises :class:`ConfigError` on an unknown key (with the nearest name), a value of the wrong type, or sizes
    that do not fit together."""

    vision_config: ViTConfig = field(default_factory=ViTConfig)
    qformer_config: QFormerConfig = field(default_factory=QFormerConfig)
    text_config: LlamaConfig | OPTConfig | None = None  # its ``type`` says which; None: stage 1
    max_txt_len: Count = 32  # tokens of a caption, [CLS] and [SEP] included
    temperature: Positive = 0.07  # start value of the learnt ITC temperature, which divides
    label_smoothing: Rate = 0.1  # in ITC and LM, not in ITM
    ln_vision_eps: Positive = 1e-5  # LAVIS; transformers has 1e-6 here on the same weights
    gather_with_grad: bool = False  # LAVIS: no gradient through the gathered ITC features
    query_reduce: str = "max"  # zero-shot score over the queries; "first" is what MindFormers did
    freeze_vision: bool = True
    # more that is not trained: patterns of parameter names, "qformer.embeddings.*"
    frozen: tuple[str, ...] = ()
    freeze_text: bool = True
    # stage 2: the text before every caption; true (MindFormers): text_transforms.prompt is it
    prompt: bool | str = False
    # MindFormers: its tokens, counted by hand; the trainer counts them itself
    prompt_length: Natural = 0
    # stage 2: bos between queries and text; None: with OPT as LAVIS, not with Llama as MindFormers
    text_bos: bool | None = None
    dtype: str = "float32"  # of the parameters
    # of the products; norms, softmax, similarity, losses and temp stay in float32
    compute_dtype: str = "float32"
    layernorm_dtype: str = "float32"
    softmax_dtype: str = "float32"
    batch_size: Count = 8
    is_training: bool = True
    checkpoint_name_or_path: str = ""

    model_type = "blip2"
    # no field: the preset or file that the configuration was read from, whose processor fits
    preset = ""

    def replace(self, **changes):
        """See :meth:`Section.replace`."""
        return super().replace(**changes)._from(self.preset)

    def _from(self, preset):
        object.__setattr__(self, "preset", preset)
        return self

    def __post_init__(self):
        if self.qformer_config.encoder_width != self.vision_config.hidden_size:
            raise ConfigError(
                f"qformer_config.encoder_width = {self.qformer_config.encoder_width} but "
                f"vision_config.hidden_size = {self.vision_config.hidden_size}: the Q-Former reads the ViT's "
                "output, so give both the same width"
            )
        if self.max_txt_len > self.qformer_config.max_position_embeddings:
            raise ConfigError(
                f"max_txt_len = {self.max_txt_len} exceeds qformer_config.max_position_embeddings = "
                f"{self.qformer_config.max_position_embeddings}"
            )
        one_of(self, "query_reduce", ("max", "first"))
        one_of(self, "dtype", ("float32",))
        one_of(self, "compute_dtype", DTYPES)
        one_of(self, "layernorm_dtype", ("float32",))
        one_of(self, "softmax_dtype", ("float32",))

    @classmethod
    def from_pretrained(cls, name_or_path):
        """The model part of a preset (``blip2_stage1_vit_g``) or of a YAML file."""
        return load_config(name_or_path).model.model_config

    @classmethod
    def show_support_list(cls):
        """Print and return the names that ``from_pretrained`` takes."""
        return print_support_list(cls.__name__, presets())

    def save_pretrained(self, folder):
        """Write ``folder/config.yaml``, which ``from_pretrained`` reads back; sections of a processor that
        are there stay."""
        return save_sections(folder, model={"model_config": self.to_dict()})

    @property
    def begins_with_bos(self):
        """Whether what follows the queries of stage 2 begins with bos."""
        return isinstance(self.text_config, OPTConfig) if self.text_bos is None else self.text_bos

    # Names that the MindFormers card prints or uses.
    model = property(lambda self: self)
    model_config = property(lambda self: self)
    img_size = property(lambda self: self.vision_config.image_size)
    num_query_token = property(lambda self: self.qformer_config.query_length)
    cross_attention_freq = property(lambda self: self.qformer_config.cross_attention_freq)
    drop_path_rate = property(lambda self: self.vision_config.drop_path_rate)
    use_grad_checkpoint = property(lambda self: False)
    vit_model = property(lambda self: "vit_g_p16")
    embed_dim = property(lambda self: self.qformer_config.head_embed_dim)
    vocab_size = property(lambda self: self.qformer_config.vocab_size)


# ------------------------------------------------------------------------------------------------ the run
@section
class ContextConfig(Section):
    mode: int = 0  # 0 graph, 1 PyNative
    device_target: str = ""  # "" means what the host has
    device_id: Natural = 0
    max_device_memory: str = ""
    # CPU, graph mode: fuse what lies between the products; needs g++ and decorator
    enable_graph_kernel: bool = False
    save_graphs: bool = False
    save_graphs_path: str = "./graph"

    def __post_init__(self):
        one_of(self, "mode", (0, 1))
        if self.device_target == "GPU":
            raise ConfigError(
                "context.device_target = 'GPU': expected 'CPU' or 'Ascend', on which mindblip2 runs; its "
                "MindSpore has no "
                "GPU.  Remove the key for what the host has"
            )
        one_of(self, "device_target", ("", "CPU", "Ascend"))


@section
class RunnerConfig(Section):
    epochs: Count = 10
    batch_size: Count = 100  # per card; LAVIS's stage 1
    # MindFormers writes it here too; vision_config.image_size decides, and must be the same
    image_size: Count | None = None
    log_every: Count = 50  # steps between two log lines
    accumulation_steps: Count = 1  # batches whose gradients make one update
    save_steps: Natural = 0  # updates between two checkpoints; 0: one per epoch
    keep_checkpoint_max: Count = 3  # older ones are deleted; the best is kept
    save_trainable_only: bool = True  # what is frozen stays in its own file, where it came from one
    summary: bool = False  # MindSpore's summary files, for MindInsight


@section
class OptimizerConfig(Section):
    type: str = "adamw"
    beta1: Rate = 0.9
    beta2: Rate = 0.98  # the paper's; LAVIS's code default is 0.999
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.05
    learning_rate: NonNegative | None = None  # MindFormers writes it here too; lr_schedule decides
    max_grad_norm: Positive | None = None  # None: no clipping, as LAVIS
    # first value of the dynamic loss scale; None: 65536 in float16, else none
    loss_scale: Positive | None = None

    def __post_init__(self):
        # one optimizer, and MindFormers' names of it
        one_of(self, "type", ("adamw", "AdamW", "FP32StateAdamWeightDecay"))


@section
class ScheduleConfig(Section):
    type: str = "cosine"
    learning_rate: NonNegative = 1e-4
    lr_end: NonNegative = 1e-5
    warmup_lr_init: NonNegative = 1e-6
    warmup_steps: Natural = 5000
    total_steps: CountOrNone = -1  # -1: epochs times steps per epoch

    def __post_init__(self):
        if self.type == "CosineWithWarmUpLR":  # MindFormers' name
            object.__setattr__(self, "type", "cosine")
        one_of(self, "type", ("cosine", "cosine_epoch"))  # per step as the paper, per epoch as LAVIS


@section
class LoaderConfig(Section):
    type: str = "MultiImgCapDataLoader"
    dataset_dir: str = ""
    annotation_files: tuple[str, ...] = ()
    image_dirs: tuple[str, ...] = ()
    # train, eval (CIFAR-100, Flickr8k: also test, dev); "": what the data set is used for
    stage: str = ""
    column_names: tuple[str, ...] = ("image", "text")
    repeat_images: bool | None = None  # one sample per caption; None: in training, not in evaluation
    shuffle: bool | None = None  # None: in training
    # how often to draw from each annotation file; (): every sample once per epoch
    ratios: tuple[NonNegative, ...] = ()
    fine_label: bool = True
    hypothesis_template: str = ""
    scenes: Natural = 0  # DigitScenes: scenes per epoch
    # DigitScenes: the first epochs' captions name the digit or the colour, not both
    property_epochs: Natural = 0
    candidate_labels: tuple[str, ...] = ()

    def __post_init__(self):
        if self.ratios and not sum(self.ratios):
            raise ConfigError(
                f"data_loader.ratios = {list(self.ratios)}: expected at least one above 0, else nothing is "
                "drawn"
            )


@section
class TextTransformConfig(Section):
    type: str = "CaptionTransform"
    prompt: str = ""  # put before the cleaned caption, as LAVIS
    max_words: Count = 50
    # tokens; captions are never longer than the tokenizer's max_length either
    max_length: Count = 32

    def __post_init__(self):
        one_of(self, "type", ("CaptionTransform",))


@section
class TokenizerConfig(Section):
    # of a language model: LlamaTokenizer, BaichuanTokenizer, GPT2Tokenizer (OPT), …
    type: str = "BertTokenizer"
    max_length: Count = 32
    # "": the packaged bert-base-uncased vocabulary; a language model's is always named
    vocab_file: str = ""
    pad_token: str = ""  # "": what the files of the language model say; BERT's four are fixed
    bos_token: str = ""
    eos_token: str = ""
    unk_token: str = ""
    # appended to a language model's vocabulary, as LAVIS appends "[PAD]" to Vicuna's
    added_tokens: tuple[str, ...] = ()
    add_special_tokens: bool = True
    add_bos_token: bool | None = None  # None: as the language model's own tokenizer does
    add_eos_token: bool | None = None
    padding: bool | str = "max_length"
    # where vocab_file is "": the tokenizer's file or folder, or its name in the cache
    checkpoint_name_or_path: str = ""


@section
class DataTokenizerConfig(Section):
    type: str = ""
    vocab_file: str = ""


@section
class DatasetConfig(Section):
    data_loader: LoaderConfig = field(default_factory=LoaderConfig)
    # steps of MindFormers, or names of LAVIS's, one for all annotation files or one for each
    transforms: tuple[dict | str, ...] = ()
    text_transforms: TextTransformConfig = field(default_factory=TextTransformConfig)
    # MindFormers writes it here too; processor.tokenizer decides, and must be the same
    tokenizer: DataTokenizerConfig | None = None
    num_parallel_workers: Natural = 8  # at most the host's processors; 0: in a thread beside the training
    python_multiprocessing: bool = True  # workers are processes, else threads
    max_unreadable: Fraction = 0.01  # share of the pictures that training may skip
    # pictures per call in evaluation; runner_config.batch_size is that of training
    batch_size: Natural = 1
    repeat: Count = 1
    use_image_id: bool = True  # captions of the same picture are not each other's negatives
    k_test: Count = 128  # candidates that the ITM head ranks again
    # score of a candidate: ITM logit + cosine as LAVIS, "itm", or "none" for the cosine alone
    rerank: str = "itm+itc"
    add_extra_itm_score: bool = True  # MindFormers; false is rerank "none"
    # zero-shot classification: divides the similarities; None: the learnt one, 1: transformers
    temperature: Positive | None = None
    # GB kept of the pictures in retrieval, see mindblip2.evaluation.retrieval.Kept
    memory_budget: NonNegative = 8.0


@section
class ImageProcessorConfig(Section):
    type: str = "Blip2ImageProcessor"
    image_size: Pixels | tuple[Pixels, ...] = 224
    mean: tuple[Fraction, Fraction, Fraction] = CLIP_MEAN  # of values in [0, 1], per channel
    std: tuple[Positive, Positive, Positive] = CLIP_STD
    interpolation: str = "bicubic"
    # transparency: "drop" as LAVIS (the colours under it show), "white" (background) as transformers
    alpha: str = "drop"

    def __post_init__(self):
        one_of(self, "type", ("Blip2ImageProcessor",))
        size = self.image_size
        if isinstance(size, tuple):  # MindFormers writes [224, 224]
            if len(set(size)) != 1:
                raise ConfigError(
                    f"processor.image_processor.image_size = {list(size)}: BLIP-2 pictures are square"
                )
            object.__setattr__(self, "image_size", int(size[0]))
        one_of(self, "interpolation", ("bicubic",))
        one_of(self, "alpha", ("drop", "white"))


@section
class ProcessorConfig(Section):
    type: str = "Blip2Processor"
    image_processor: ImageProcessorConfig = field(default_factory=ImageProcessorConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    # texts as LAVIS cleans captions; None: with BERT's tokenizer, not with a language model's
    clean: bool | None = None

    def __post_init__(self):
        one_of(self, "type", ("Blip2Processor",))


@section
class ArchConfig(Section):
    type: str = "Blip2Qformer"  # in training the stage; elsewhere the task says which class it is

    def __post_init__(self):
        one_of(self, "type", ("Blip2Qformer", "Blip2Classifier", "Blip2ItmEvaluator", *STAGE_2))


@section
class ModelConfig(Section):
    model_config: Blip2Config = field(default_factory=Blip2Config)
    arch: ArchConfig = field(default_factory=ArchConfig)


@section
class TrainerConfig(Section):
    type: str = "contrastive_language_image_pretrain"
    model_name: str = ""


@section
class ParallelConfig(Section):
    """The mesh of processes, see docs/scaling.md; their product is the number of processes that msrun
    starts."""

    data_parallel: Count = 1  # how many read different samples
    model_parallel: Count = 1  # how many share the weights, and read the same samples


@section
class ParallelSection(Section):
    # each data-parallel card keeps the moments of its share of the parameters only
    enable_parallel_optimizer: bool = False


@section
class RecomputeConfig(Section):
    # feed-forwards are computed again for the gradient: less memory, more time
    recompute: bool = False


@section
class MetricConfig(Section):
    # decides which checkpoint is the best, see mindblip2.trainer.evaluator; stage 2: "loss", "CIDEr", …
    type: str = ""


@section
class RunConfig(Section):
    """One run: what ``configs/*.yaml`` and ``--a.b.c value`` are read into."""

    seed: Seed = 42
    run_mode: str = "train"
    output_dir: str = "./output"
    load_checkpoint: str = ""
    resume_training: bool | str = False
    use_parallel: bool = False
    context: ContextConfig = field(default_factory=ContextConfig)
    runner_config: RunnerConfig = field(default_factory=RunnerConfig)
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)
    parallel: ParallelSection = field(default_factory=ParallelSection)
    recompute_config: RecomputeConfig = field(default_factory=RecomputeConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    train_dataset: DatasetConfig = field(default_factory=DatasetConfig)
    eval_dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lr_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    callbacks: tuple[dict, ...] = ()
    processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    # arguments of generate in eval and predict of stage 2, see docs/generation.md
    generation: dict = field(default_factory=dict)
    # in training: evaluate on eval_dataset, and choose the best checkpoint by that
    do_eval: bool = False
    # epochs between two evaluations, -1: none; there is one at the end in any case
    eval_epoch_interval: CountOrNone = 1
    eval_step_interval: CountOrNone = -1  # updates between two evaluations, -1: none
    metric: MetricConfig = field(default_factory=MetricConfig)
    # learning rate of a trained ViT: times this per layer, from its end to its begin
    layer_decay: Factor | None = None

    def __post_init__(self):
        self._check_callbacks()
        one_of(
            self,
            "run_mode",
            ("train", "finetune", "eval", "predict", "export", "check", "plan", "split", "merge"),
        )
        size = self.model.model_config.vision_config.image_size
        if self.runner_config.image_size not in (None, size):
            raise ConfigError(
                f"runner_config.image_size = {self.runner_config.image_size}, but "
                "model.model_config.vision_config."
                f"image_size = {size}, which decides: give both the same, or remove the first"
            )
        for name in ("train_dataset", "eval_dataset"):
            self._check_tokenizer(name)

    def unused(self, keys, more=None):
        """Of dotted ``keys`` those that ``run_mode`` and the task do not use: {key: "--run_mode train,
        finetune"}, what does use them. ``more``: what uses names that are no keys, as ``USED_BY`` has it."""
        task, found = mindformers.TASK_ALIASES.get(self.trainer.type, self.trainer.type), {}
        for key in keys:
            uses = (more or {}).get(key) or used_by(key)
            if uses and not any(
                self.run_mode in modes and (not tasks or task in tasks) for modes, tasks in uses
            ):
                found[key] = "; ".join(
                    f"--run_mode {', '.join(modes)}" + f" of {', '.join(tasks)}" * bool(tasks)
                    for modes, tasks in uses
                )
        return found

    def _check_callbacks(self):
        """MindFormers' callbacks are mappings with a ``type``."""
        for i, callback in enumerate(self.callbacks):
            kind = callback.get("type")
            if not isinstance(kind, str) or kind not in mindformers.CALLBACKS:
                raise ConfigError(
                    f"callbacks[{i}]: unknown type {str(kind)[:100]!r}; expected a mapping such as "
                    "{type: CheckpointMonitor, save_checkpoint_steps: 100}; known: "
                    + ", ".join(mindformers.CALLBACKS)
                )

    def _check_tokenizer(self, name):
        """A data set that names a tokenizer names the one there is."""
        for key, value in (getattr(self, name).tokenizer or DataTokenizerConfig()).to_dict().items():
            if value and value != getattr(self.processor.tokenizer, key):
                raise ConfigError(
                    f"{name}.tokenizer.{key} = {value!r}, but processor.tokenizer.{key} = "
                    f"{getattr(self.processor.tokenizer, key)!r}, which decides: give both the same, or "
                    "remove the first"
                )


# ------------------------------------------------------------------------------------------------ presets
BESIDE = (
    "processor.tokenizer.vocab_file",
    "train_dataset.tokenizer.vocab_file",
    "eval_dataset.tokenizer.vocab_file",
    "processor.tokenizer.checkpoint_name_or_path",
    "model.model_config.checkpoint_name_or_path",
    *(
        f"model.model_config.{part}.checkpoint_name_or_path"
        for part in ("vision_config", "qformer_config", "text_config")
    ),
)


def cache_folder():
    """Where weights and tokenizers are looked for by name: ``$MINDBLIP2_CACHE`` or ``~/.cache/mindblip2``.
    Nothing is ever fetched."""
    return Path(os.environ.get("MINDBLIP2_CACHE", Path.home() / ".cache" / "mindblip2"))


def presets():
    """Names of the packaged configurations: the files of ``configs/``."""
    return sorted(path.stem for path in _config_folder().glob("*.yaml"))


def load_config(name_or_path, overrides=None):
    """A :class:`RunConfig` from a preset's name, a YAML file or a folder of ``save_pretrained``;
    ``overrides`` maps ``a.b.c`` to a value.

    The weights and the tokenizer that a file names are those beside it, if they lie there.

    Raises :class:`ConfigError` where the file is missing, is not YAML, or holds an unknown key or unusable
    value."""
    path = _find(name_or_path)
    try:
        raw = read_yaml(path) or {}
    except FileError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, but holds a {type(raw).__name__}")
    for dotted in BESIDE:
        _find_beside(path, raw, dotted)
    _drop_other_names(raw, overrides or {})
    for dotted, value in (overrides or {}).items():
        _override(raw, dotted, value)
    ignored = []
    try:
        config = build(RunConfig, raw, "", ignored)
    except ConfigError as error:
        raise ConfigError(f"{path}{' with the values given besides' if overrides else ''}: {error}") from None
    warn_ignored([*ignored, *without_effect(config)], path.name)
    config.model.model_config._from(str(path))
    return config


# The keys of data_loader that each loader reads; candidate_labels and hypothesis_template belong to the task.
_TASK_KEYS = ("type", "candidate_labels", "hypothesis_template")
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
USED_BY = {
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


def used_by(key):
    """[(run modes, tasks)] that use a dotted key; [] for a key that is unknown here."""
    return next((uses for pattern, uses in USED_BY.items() if fnmatch.fnmatchcase(key, pattern)), [])


def without_effect(config):
    """The keys of a RunConfig that differ from their defaults and that nothing reads because of what another
    key says, with this reason."""
    model, found = config.model.model_config, []

    def add(name, value, default, reason):
        if value != default:
            found.append(f"{name} ({reason})")

    for place in ("train_dataset", "eval_dataset"):
        loader = getattr(config, place).data_loader
        for key, default in LoaderConfig().to_dict().items():
            if loader.type in LOADER_KEYS and key not in (*_TASK_KEYS, *LOADER_KEYS[loader.type]):
                add(
                    f"{place}.data_loader.{key}",
                    loader.to_dict()[key],
                    default,
                    f"{loader.type} does not read it",
                )
    if not config.context.save_graphs:
        add(
            "context.save_graphs_path",
            config.context.save_graphs_path,
            ContextConfig().save_graphs_path,
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
                found.append(f"callbacks[{i}].{key}")
        if callback["type"] == "ObsMonitor":
            found.append(f"callbacks[{i}] (ObsMonitor: nothing is uploaded)")
    _add_tokenizer(add, config.processor.tokenizer)
    return found


def _add_text_config(add, text):
    is_llama, default = isinstance(text, LlamaConfig), type(text)()
    for is_idle, reason, keys in (
        (not text.do_sample, "do_sample is false", ("top_k", "top_p", "temperature")),
        (
            is_llama and text.intermediate_size is not None,
            "intermediate_size is given",
            ("multiple_of", "ffn_dim_multiplier"),
        ),
        (
            is_llama and text.position_embedding == "alibi",
            "position_embedding is alibi",
            ("rope_theta", "rope_scaling"),
        ),
    ):
        for key in keys if is_idle else ():
            add(
                f"model.model_config.text_config.{key}",
                getattr(text, key, None),
                getattr(default, key, None),
                reason,
            )


def _add_tokenizer(add, tokenizer):
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


def save_sections(folder, **sections):
    """Write sections into ``folder/config.yaml``, in place of those of the same name; others stay.  Returns
    its path."""
    path, known = Path(folder) / "config.yaml", saved_sections(folder)
    write_text(path, yaml.safe_dump({**known, **sections}, sort_keys=False, allow_unicode=True))
    return path


def saved_sections(folder):
    """The sections of ``folder/config.yaml``, as a dict; empty without that file."""
    path = Path(folder) / "config.yaml"
    return (read_yaml(path) or {}) if path.is_file() else {}


def print_support_list(class_name, names):
    """MindFormers' three lines."""
    print(f"support list of {class_name} is:\n{names}\n{'-' * 37}")
    return names


def _config_folder():
    here = Path(__file__).resolve().parents[1]
    packaged = here / "configs"  # in an installed wheel
    return packaged if packaged.is_dir() else here.parent / "configs"


def _find(name_or_path):
    path = Path(name_or_path)
    if path.is_file():
        if path.suffix in WEIGHTS:
            raise ConfigError(
                f"{path} holds weights, expected a configuration: give it as checkpoint (--load_checkpoint), "
                "and as model "
                "(--config) the preset or YAML file that belongs to it; files of torch are converted before, "
                "see "
                "convert/README.md"
            )
        return path
    if path.is_dir() and (path / "config.yaml").is_file():
        return path / "config.yaml"
    name = mindformers.PRESET_ALIASES.get(path.stem, path.stem)
    packaged = _config_folder() / f"{name}.yaml"
    if packaged.is_file() and path.suffix in ("", ".yaml", ".yml"):
        return packaged
    _refuse_foreign(name_or_path)
    near = difflib.get_close_matches(name, presets(), 1, 0.4)
    raise ConfigError(
        f"no configuration {str(name_or_path)!r}: it is neither a file ({path.absolute()}) nor a preset"
        + (f"; did you mean {near[0]!r}?" if near else "")
        + f"  Presets: {', '.join(presets())}"
    )


# What the language model of a BLIP-2 of Hugging Face is called there, "" for a model of stage 1 → its preset
# here, and its tokenizer.
HUGGING_FACE = {
    "": ("blip2_stage1_classification", ""),
    "opt": ("itt_blip2_stage2_vit_g_opt_2_7b", "opt_2_7b"),
    "llama": ("itt_blip2_stage2_vit_g_vicuna_7b", "vicuna_7b"),
}


def _refuse_foreign(name):
    """Raise ConfigError that names the way for a model of Hugging Face: a folder with its config.json, or a
    name such as "Salesforce/blip2-opt-2.7b"."""
    name = str(name)
    is_folder = (Path(name) / "config.json").is_file()
    if is_folder:
        kind, language = _described(Path(name) / "config.json")
    elif re.fullmatch(r"[\w.-]+/[\w.-]*blip[\w.-]*", name, re.IGNORECASE) and not name.endswith(
        (".yaml", ".yml")
    ):
        kind = (
            "instructblip"
            if "instruct" in name.lower()
            else "blip-2"
            if "blip2" in name.lower().replace("blip-2", "blip2")
            else "blip"
        )
        language = next(
            (model for mark, model in (("t5", "t5"), ("itm", ""), ("vicuna", "llama")) if mark in name), "opt"
        )
    else:
        return
    if not kind.startswith(("blip-2", "blip_2")) or language not in HUGGING_FACE:
        raise ConfigError(
            f"{name} is a model of Hugging Face of type {kind!r}"
            + f" with {language}" * bool(language)
            + ", which "
            "mindblip2 does not have: there are BLIP-2's stage 1, and its stage 2 with OPT, Llama, Vicuna "
            "and Baichuan"
            + (
                "; a language model alone is a --torch_path or --llm_path of convert/convert_weight.py"
                if kind in HUGGING_FACE
                else ""
            )
        )
    preset, tokenizer = HUGGING_FACE[language]
    get = (
        ""
        if is_folder
        else f"mindblip2 downloads nothing: get it (huggingface-cli download {name} --local-dir FOLDER) and "
    )
    source = name if is_folder else "FOLDER"
    raise ConfigError(
        f"{name} is a BLIP-2 of Hugging Face, expected a preset, a YAML file or a folder of save_pretrained: "
        f"{get}convert it once,\n"
        f"  python convert/convert_weight.py --torch_path {source} --mindspore_path model.ckpt"
        + " --image_size 224" * ("coco" in name)
        + f"\nand give model='{preset}' with checkpoint='model.ckpt' (--config {preset} --load_checkpoint model.ckpt)"
        + (
            f"; its tokenizer is in the same folder: copy that to {cache_folder() / tokenizer}, or give it "
            "as "
            f"processor.tokenizer.vocab_file"
            if language
            else ""
        )
    )


def _described(file):
    """(type, type of the language model) by a config.json of Hugging Face."""
    about = read_json(file, dict, "the config.json of a model")
    text, architectures = about.get("text_config"), about.get("architectures") or ()
    language = str(text.get("model_type", "opt")) if isinstance(text, dict) else "opt"
    kind = str(about.get("model_type"))
    if any("Retrieval" in str(one) for one in architectures) or not kind.startswith("blip"):
        language = ""
    return kind, language


def _find_beside(path, raw, dotted):
    """Make the file that ``raw`` names at ``dotted`` an absolute path, if it lies beside the YAML file
    ``path``."""
    *parents, last = dotted.split(".")
    for key in parents:
        raw = raw.get(key) if isinstance(raw, dict) else None
    name = raw.get(last) if isinstance(raw, dict) else None
    if not isinstance(name, str) or not name:
        return
    # a name without a suffix is one in the cache, unless it is the folder of a tokenizer
    found = path.parent / name
    if (found.suffix and found.is_file()) or (last == "vocab_file" and found.is_dir()):
        raw[last] = str(found.absolute())


def _drop_other_names(raw, overrides):
    """An override of ``generation.max_length`` goes over the file's ``max_new_tokens``, which is the same
    argument."""
    own = raw.get("generation")
    given = {
        GENERATION_ALIASES.get(name, name)
        for section, _, name in (dotted.partition(".") for dotted in overrides)
        if section == "generation"
    }
    if isinstance(own, dict) and given:
        raw["generation"] = {
            name: value for name, value in own.items() if GENERATION_ALIASES.get(name, name) not in given
        }


def _override(raw, dotted, value):
    *parents, last = dotted.split(".")
    for key in parents:
        below = {} if raw.get(key) is None else raw[key]
        if not isinstance(below, dict):
            raise ConfigError(
                f"--{dotted}: {key!r} is a value, not a section, so nothing can be set below it"
            )
        raw[key] = dict(below)  # a copy: a YAML anchor may have put the same section elsewhere too
        raw = raw[key]
    raw[last] = value
