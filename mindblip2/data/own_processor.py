"""The processor that belongs to a model."""

from mindblip2.config import QFormerConfig
from mindblip2.data.processor import Blip2ImageProcessor, Blip2Processor


def own_processor(model):
    """The processor of the preset or file that the configuration of ``model`` was read from.

    For a configuration made in Python: where the Q-Former reads BERT's vocabulary and there is no language
    model, the packaged tokenizer with the picture size of the model.  Raises ValueError where nothing says
    which tokenizer it is."""
    config = model.config
    if config.preset:
        return Blip2Processor.from_pretrained(config.preset)
    if config.text_config is None and config.qformer_config.vocab_size == QFormerConfig().vocab_size:
        return Blip2Processor(Blip2ImageProcessor(config.vision_config.image_size))
    raise ValueError(
        "this model's configuration was made in Python, so nothing says which tokenizer belongs to it: pass "
        "processor="
        "Blip2Processor.from_pretrained(name), or a Blip2Processor with the model's own tokenizer"
    )
