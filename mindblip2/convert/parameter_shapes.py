"""Names and shapes of the parameters that a checkpoint must hold, from the models themselves, without
allocating them."""

from mindblip2.checkpoint.pretrained import no_init
from mindblip2.models.blip2_llm import LANGUAGE_MODELS, Blip2Llm
from mindblip2.models.blip2_qformer import Blip2Qformer


def stage_1_shapes(config):
    """Name → shape of every parameter of stage 1."""
    with no_init():
        return _shapes(Blip2Qformer(config))


def stage_2_shapes(config, llm=True):
    """Name → shape of every parameter of stage 2, or of all but its language model's."""
    with no_init():
        shapes = _shapes(Blip2Llm(config))
    return {name: shape for name, shape in shapes.items() if llm or not name.startswith("llm.")}


def llm_shapes(text_config):
    """Name → shape of every parameter of a language model, as part of stage 2: ``llm.*``."""
    with no_init():
        return {
            f"llm.{name}": shape
            for name, shape in _shapes(LANGUAGE_MODELS[type(text_config)](text_config)).items()
        }


def _shapes(model):
    return {name: tuple(p.shape) for name, p in model.parameters_dict().items()}
