"""The configuration of models, data and runs: frozen dataclasses, one per section of the YAML files.

``schema``: how a section is read and checked · ``model``, ``language_model``: dimensions and numerics ·
``data``: data sets, tokenizers, processors · ``run``: training, evaluation, and ``RunConfig`` ·
``key_usage``: which keys a run mode uses · ``loading``: presets and files.  Works without MindSpore.
"""

from mindblip2.config.data import (
    CLIP_MEAN,
    CLIP_STD,
    DatasetConfig,
    DataTokenizerConfig,
    ImageProcessorConfig,
    LoaderConfig,
    ProcessorConfig,
    TextTransformConfig,
    TokenizerConfig,
)
from mindblip2.config.key_usage import LOADER_KEYS, USED_BY, used_by, without_effect
from mindblip2.config.language_model import LlamaConfig, OPTConfig
from mindblip2.config.loading import (
    WEIGHTS,
    cache_folder,
    load_config,
    presets,
    save_sections,
    saved_sections,
)
from mindblip2.config.model import DTYPES, Blip2Config, QFormerConfig, ViTConfig
from mindblip2.config.run import (
    STAGE_2,
    ArchConfig,
    ContextConfig,
    MetricConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    ParallelSection,
    RecomputeConfig,
    RunConfig,
    RunnerConfig,
    ScheduleConfig,
    TrainerConfig,
)
from mindblip2.config.schema import ConfigError, Section

__all__ = [
    "ArchConfig",
    "Blip2Config",
    "CLIP_MEAN",
    "CLIP_STD",
    "ConfigError",
    "ContextConfig",
    "DTYPES",
    "DataTokenizerConfig",
    "DatasetConfig",
    "ImageProcessorConfig",
    "LOADER_KEYS",
    "LlamaConfig",
    "LoaderConfig",
    "MetricConfig",
    "ModelConfig",
    "OPTConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "ParallelSection",
    "ProcessorConfig",
    "QFormerConfig",
    "RecomputeConfig",
    "RunConfig",
    "RunnerConfig",
    "STAGE_2",
    "ScheduleConfig",
    "Section",
    "TextTransformConfig",
    "TokenizerConfig",
    "TrainerConfig",
    "USED_BY",
    "ViTConfig",
    "WEIGHTS",
    "cache_folder",
    "load_config",
    "presets",
    "save_sections",
    "saved_sections",
    "used_by",
    "without_effect",
]
