"""BLIP-2 on MindSpore: the public names, loaded when they are asked for (importing MindSpore takes
seconds)."""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "Blip2Config": "config",
    "QFormerConfig": "config",
    "ViTConfig": "config",
    "RunConfig": "config",
    "load_config": "config",
    "presets": "config",
    "ConfigError": "config.schema",
    "CheckpointError": "checkpoint.ckpt",
    "Blip2Qformer": "models.blip2_qformer",
    "Blip2Classifier": "models.blip2_qformer",
    "Blip2Llm": "models.blip2_llm",
    "Blip2ImageToTextGeneration": "models.blip2_llm",
    "LlamaConfig": "config",
    "OPTConfig": "config",
    "Blip2Processor": "data.processor",
    "Blip2ImageProcessor": "data.processor",
    "BertTokenizer": "data.text.tokenizer",
    "BlipCaption": "data.text.cleaning",
    "load_image": "data.images.load",
    "MultiImgCapDataLoader": "data.datasets.pairs",
    "Flickr8kDataLoader": "data.datasets.pairs",
    "Cifar100DataLoader": "data.datasets.cifar",
    "ImageFolder": "data.datasets.labelled_images",
    "read_annotations": "data.datasets.annotations",
    "check_data": "data.datasets.check",
    "Trainer": "trainer",
    "plan_mesh": "trainer.plan",
    "split_checkpoint": "checkpoint.split_merge",
    "merge_checkpoint": "checkpoint.split_merge",
    "pipeline": "pipelines",
    "ImageToTextGenerationPipeline": "pipelines",
    "ZeroShotImageClassificationPipeline": "pipelines",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mindblip2' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mindblip2.{_PUBLIC[name]}"), name)
    globals()[name] = value  # so that the function, not the package of the same name, answers from now on
    return value


def __dir__():
    return __all__
