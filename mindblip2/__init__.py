"""BLIP-2 on MindSpore: the public names, loaded when they are asked for (importing MindSpore takes seconds)."""
import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "Blip2Config": "config", "QFormerConfig": "config", "ViTConfig": "config", "RunConfig": "config", "load_config": "config",
    "presets": "config", "ConfigError": "sections", "CheckpointError": "checkpoint",
    "Blip2Qformer": "cells.blip2_qformer", "Blip2Classifier": "cells.blip2_qformer",
    "Blip2Llm": "cells.blip2_llm", "Blip2ImageToTextGeneration": "cells.blip2_llm", "LlamaConfig": "config", "OPTConfig": "config",
    "Blip2Processor": "data.processor", "Blip2ImageProcessor": "data.processor", "BertTokenizer": "data.tokenizer",
    "BlipCaption": "data.captions", "load_image": "data.image",
    "MultiImgCapDataLoader": "data.pairs", "Flickr8kDataLoader": "data.pairs", "Cifar100DataLoader": "data.cifar",
    "ImageFolder": "data.labelled", "read_annotations": "data.annotations", "check_data": "data.check",
    "Trainer": "trainer", "plan_mesh": "trainer.plan", "split_checkpoint": "trainer.pieces",
    "merge_checkpoint": "trainer.pieces", "pipeline": "pipeline", "ImageToTextGenerationPipeline": "pipeline",
    "ZeroShotImageClassificationPipeline": "pipeline",
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
