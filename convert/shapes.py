"""Names and shapes of the parameters that a checkpoint must hold, from the cells themselves, without allocating them."""
from mindspore import nn

from mindblip2.cells.blip2_qformer import Blip2Qformer
from mindblip2.cells.layers import LayerNorm, Linear
from mindblip2.cells.llama import Llama
from mindblip2.cells.opt import OPT
from mindblip2.cells.qformer import QFormer
from mindblip2.cells.vit import ViT
from mindblip2.config import LlamaConfig
from mindblip2.hub import no_init


def model_shapes(config):
    """Name → shape of every parameter of stage 1."""
    with no_init():
        return _shapes(Blip2Qformer(config))


def stage_2_shapes(config, llm=True):
    """Name → shape of every parameter of stage 2, or of all but its language model's."""
    with no_init():
        return _shapes(_Bridge(config)) | (llm_shapes(config.text_config) if llm else {})


def llm_shapes(text_config):
    """Name → shape of every parameter of a language model, as part of stage 2: ``llm.*``."""
    with no_init():
        return {f"llm.{name}": shape for name, shape in
                _shapes((Llama if isinstance(text_config, LlamaConfig) else OPT)(text_config)).items()}


class _Bridge(nn.Cell):
    """Stage 2 without its language model."""

    def __init__(self, config):
        super().__init__()
        vision, qformer = config.vision_config, config.qformer_config
        self.vit = ViT(vision, config.compute_dtype)
        self.ln_vision = LayerNorm(vision.hidden_size, config.ln_vision_eps)
        self.qformer = QFormer(qformer, config.compute_dtype, text=False)
        self.llm_proj = Linear(qformer.hidden_size, config.text_config.hidden_size, config.compute_dtype)


def _shapes(model):
    return {name: tuple(p.shape) for name, p in model.parameters_dict().items()}
