"""Sections of the configuration that describe a run, and ``RunConfig``, which holds all sections."""

from collections.abc import Iterable, Mapping
from dataclasses import field

from mindblip2.compat.mindformers import keys as mindformers
from mindblip2.config.data import DatasetConfig, DataTokenizerConfig, ProcessorConfig
from mindblip2.config.key_usage import Uses, used_by
from mindblip2.config.model import Blip2Config
from mindblip2.config.schema import (
    ConfigError,
    Count,
    CountOrNone,
    Factor,
    Natural,
    NonNegative,
    Positive,
    Rate,
    Section,
    Seed,
    one_of,
    section,
)

# arch.type; the last is an older name of MindFormers
STAGE_2 = ("Blip2Llm", "Blip2ImageToTextGeneration", "Blip2Llama")


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

    def __post_init__(self) -> None:
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

    def __post_init__(self) -> None:
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

    def __post_init__(self) -> None:
        if self.type == "CosineWithWarmUpLR":  # MindFormers' name
            object.__setattr__(self, "type", "cosine")
        one_of(self, "type", ("cosine", "cosine_epoch"))  # per step as the paper, per epoch as LAVIS


@section
class ArchConfig(Section):
    type: str = "Blip2Qformer"  # in training the stage; elsewhere the task says which class it is

    def __post_init__(self) -> None:
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
    model_parallel: Count = 1  # over how many the weights are sharded; they read the same samples


@section
class ParallelSection(Section):
    # each data-parallel card stores the moments of its shard of the parameters only
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

    def __post_init__(self) -> None:
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

    def unused(self, keys: Iterable[str], more: Mapping[str, Uses] | None = None) -> dict[str, str]:
        """The dotted ``keys`` that this run mode and task do not use, each with the run modes that use it:
        {key: "--run_mode train, finetune"}.  ``more``: uses of names that are not keys, as in ``USED_BY``."""
        task = mindformers.TASK_ALIASES.get(self.trainer.type, self.trainer.type)
        unused: dict[str, str] = {}
        for key in keys:
            uses = (more or {}).get(key) or used_by(key)
            if uses and not any(
                self.run_mode in modes and (not tasks or task in tasks) for modes, tasks in uses
            ):
                unused[key] = "; ".join(
                    f"--run_mode {', '.join(modes)}" + f" of {', '.join(tasks)}" * bool(tasks)
                    for modes, tasks in uses
                )
        return unused

    def _check_callbacks(self) -> None:
        """MindFormers' callbacks are mappings with a ``type``."""
        for i, callback in enumerate(self.callbacks):
            kind = callback.get("type")
            if not isinstance(kind, str) or kind not in mindformers.CALLBACKS:
                raise ConfigError(
                    f"callbacks[{i}]: unknown type {str(kind)[:100]!r}; expected a mapping such as "
                    "{type: CheckpointMonitor, save_checkpoint_steps: 100}; known: "
                    + ", ".join(mindformers.CALLBACKS)
                )

    def _check_tokenizer(self, name: str) -> None:
        """The tokenizer of a data set section must be that of the processor."""
        for key, value in (getattr(self, name).tokenizer or DataTokenizerConfig()).to_dict().items():
            if value and value != getattr(self.processor.tokenizer, key):
                raise ConfigError(
                    f"{name}.tokenizer.{key} = {value!r}, but processor.tokenizer.{key} = "
                    f"{getattr(self.processor.tokenizer, key)!r}, which decides: give both the same, or "
                    "remove the first"
                )
