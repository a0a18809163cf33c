"""One call for a user: ``pipeline(task, model=…)`` is a dictionary look-up."""
import sys
import types

from mindblip2.pipeline.image_to_text import ImageToTextGenerationPipeline
from mindblip2.pipeline.zero_shot import ZeroShotImageClassificationPipeline

PIPELINES = {"zero_shot_image_classification": ZeroShotImageClassificationPipeline,
             "image_to_text_generation": ImageToTextGenerationPipeline}


def pipeline(task, model=None, **options):
    """The pipeline of a task.  ``model``: a preset's name, a YAML file, a folder of ``save_pretrained``, or a model;
    ``options`` go to the pipeline's class.

    Raises ValueError for an unknown task."""
    if task not in PIPELINES:
        raise ValueError(f"no pipeline for task {task!r}; there is: {', '.join(PIPELINES)}")
    return PIPELINES[task](model, **options)


class _CallableModule(types.ModuleType):
    """``from mindblip2 import pipeline`` may give this package, once it is imported, instead of the function of its name."""

    def __call__(self, *arguments, **options):
        return pipeline(*arguments, **options)


sys.modules[__name__].__class__ = _CallableModule

__all__ = ["pipeline", "ImageToTextGenerationPipeline", "ZeroShotImageClassificationPipeline"]
