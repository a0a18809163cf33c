"""``pipeline('image_to_text_generation')``: pictures and a prompt in, texts out."""
from pathlib import Path

from mindblip2.cells.blip2_llm import Blip2ImageToTextGeneration
from mindblip2.cells.decoding import merged
from mindblip2.config import print_support_list
from mindblip2.data.own_processor import own_processor
from mindblip2.data.vqa import PROMPT
from mindblip2.hub import named_file
from mindblip2.image_to_text import Writer
from mindblip2.lock import exclusive

DEFAULT = "itt_blip2_stage2_vit_g_opt_2_7b"     # of those that BLIP-2 published


class ImageToTextGenerationPipeline:
    """What does the picture show; what is the answer?

    ``model``: a preset's name, a YAML file, a folder of ``save_pretrained``, or a ``Blip2ImageToTextGeneration``, whose tokenizer is that
    of the preset or file that its configuration was read from; for another give ``processor``.  ``checkpoint``: the weights, where they
    do not lie under the preset's name in the cache.  ``hypothesis_template``: the prompt.  ``options``: defaults of a call's generation
    arguments."""

    @exclusive
    def __init__(self, model=None, processor=None, checkpoint=None, hypothesis_template="", batch_size=8, return_full_text=True, **options):
        self.model = (Blip2ImageToTextGeneration.from_pretrained(model or DEFAULT, checkpoint)
                      if isinstance(model, (str, Path, type(None))) else model)
        if checkpoint and self.model is model:
            model.load_checkpoint(named_file(checkpoint, "checkpoint"))
        self._writer = Writer(self.model, processor or own_processor(self.model))
        self.hypothesis_template, self.batch_size, self.return_full_text = hypothesis_template, batch_size, return_full_text
        self.model.decoding(options)        # wrong ones are an error here
        self._options = options

    processor = property(lambda self: self._writer.processor)

    @exclusive
    def __call__(self, images, hypothesis_template=None, batch_size=None, return_full_text=None, **options):
        """Pictures (path, URL, bytes, PIL, array, dict ``{"image", "prompt"}``, or a list of them) → a text for each, prompt included
        unless ``return_full_text=False``.

        ``hypothesis_template``: a prompt for all, or a list of one for each.  ``options``: every argument of
        :class:`mindblip2.cells.decoding.LanguageDecoding`: max_new_tokens, num_beams, do_sample, top_k, … and ``on_text`` of
        :class:`mindblip2.image_to_text.Writer`; another name is a TypeError."""
        return self._writer(images, self.hypothesis_template if hypothesis_template is None else hypothesis_template,
                            self.batch_size if batch_size is None else batch_size,
                            self.return_full_text if return_full_text is None else return_full_text, **merged(self._options, options))

    @exclusive
    def predict_answers(self, images, questions, prompt=PROMPT, batch_size=None, **options):
        """Short answers to questions about pictures, one question for each or for all; LAVIS's defaults (10 tokens, length_penalty 0)."""
        return self._writer.answers(images, questions, prompt, self.batch_size if batch_size is None else batch_size,
                                    **merged(self._options, options))

    @classmethod
    def show_support_list(cls):
        """Print and return the names that ``model`` takes."""
        return print_support_list(cls.__name__, Blip2ImageToTextGeneration.preset_names())
