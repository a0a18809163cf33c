"""The import path of MindFormers' users: ``from mindblip2.pipeline import
ZeroShotImageClassificationPipeline``.

After that import ``mindblip2.pipeline`` is this module, and must still be the function of the same name: its
class makes it callable.
"""

import sys
import types

from mindblip2.pipelines import ImageToTextGenerationPipeline, ZeroShotImageClassificationPipeline, pipeline

__all__ = ["pipeline", "ImageToTextGenerationPipeline", "ZeroShotImageClassificationPipeline"]


class _CallableModule(types.ModuleType):
    def __call__(self, *arguments, **options):
        return pipeline(*arguments, **options)


sys.modules[__name__].__class__ = _CallableModule
