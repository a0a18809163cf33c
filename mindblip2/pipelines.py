"""Pipelines: pictures in, texts or label scores out, in one call: ``pipeline(task, model=…)``."""

from pathlib import Path

from mindblip2.checkpoint.pretrained import named_file
from mindblip2.compat.mindformers.printing import print_support_list
from mindblip2.config import presets
from mindblip2.data.own_processor import own_processor
from mindblip2.data.text.checks import split_labels
from mindblip2.evaluation.captioning import ImageTextGenerator
from mindblip2.evaluation.vqa import PROMPT
from mindblip2.evaluation.zero_shot import TEMPLATE, ZeroShotClassifier
from mindblip2.generation.generation_config import merged
from mindblip2.lock import exclusive
from mindblip2.models.blip2_llm import Blip2ImageToTextGeneration
from mindblip2.models.blip2_qformer import Blip2Classifier

GENERATION_DEFAULT = "itt_blip2_stage2_vit_g_opt_2_7b"  # of those that BLIP-2 published
CLASSIFICATION_DEFAULT = "blip2_stage1_classification"


def _load_model(model_class, model, checkpoint):
    """The model of a name or path with its weights; a model object as it is, with the weights of ``checkpoint``
    if there is one."""
    if isinstance(model, (str, Path)):
        return model_class.from_pretrained(model, checkpoint)
    if checkpoint:
        model.load_checkpoint(named_file(checkpoint, "checkpoint"))
    return model


class ImageToTextGenerationPipeline:
    """What does the picture show; what is the answer?

    ``model``: a preset's name, a YAML file, a folder of ``save_pretrained``, or a
    ``Blip2ImageToTextGeneration``, whose tokenizer is that of the preset or file that its configuration was
    read from; for another give ``processor``.  ``checkpoint``: the weights, where they do not lie under the
    preset's name in the cache.  ``hypothesis_template``: the prompt.  ``options``: defaults of a call's
    generation arguments."""

    @exclusive
    def __init__(
        self,
        model=None,
        processor=None,
        checkpoint=None,
        hypothesis_template="",
        batch_size=8,
        return_full_text=True,
        **options,
    ):
        self.model = _load_model(Blip2ImageToTextGeneration, model or GENERATION_DEFAULT, checkpoint)
        self._writer = ImageTextGenerator(self.model, processor or own_processor(self.model))
        self.hypothesis_template = hypothesis_template
        self.batch_size = batch_size
        self.return_full_text = return_full_text
        self.model.decoding(options)  # wrong ones are an error here
        self._options = options

    processor = property(lambda self: self._writer.processor)

    @exclusive
    def __call__(self, images, hypothesis_template=None, batch_size=None, return_full_text=None, **options):
        """Pictures (path, URL, bytes, PIL, array, dict ``{"image", "prompt"}``, or a list of them) → a text
        for each, prompt included unless ``return_full_text=False``.

        ``hypothesis_template``: a prompt for all, or a list of one for each.  ``options``: every argument of
        :class:`mindblip2.generation.generation_config.LanguageGenerationConfig`: max_new_tokens, num_beams,
        do_sample, top_k, … and ``on_text`` of :class:`mindblip2.evaluation.captioning.ImageTextGenerator`; another name
        is a TypeError."""
        return self._writer(
            images,
            self.hypothesis_template if hypothesis_template is None else hypothesis_template,
            self.batch_size if batch_size is None else batch_size,
            self.return_full_text if return_full_text is None else return_full_text,
            **merged(self._options, options),
        )

    @exclusive
    def predict_answers(self, images, questions, prompt=PROMPT, batch_size=None, **options):
        """Short answers to questions about pictures, one question for each or for all; LAVIS's defaults (10
        tokens, length_penalty 0)."""
        return self._writer.answers(
            images,
            questions,
            prompt,
            self.batch_size if batch_size is None else batch_size,
            **merged(self._options, options),
        )

    @classmethod
    def show_support_list(cls):
        """Print and return the names that ``model`` takes."""
        return print_support_list(cls.__name__, Blip2ImageToTextGeneration.preset_names())


class ZeroShotImageClassificationPipeline:
    """Which of the labels fits the picture?

    ``model``: a preset's name, a YAML file, a folder of ``save_pretrained``, or a ``Blip2Classifier``, whose
    processor is that of the preset or file that its configuration was read from; for another give
    ``processor``.  ``checkpoint``: the weights, where they do not lie under the preset's name in the cache.
    ``candidate_labels`` (a list, or one string with commas between the labels), ``hypothesis_template``,
    ``max_length``, ``use_itm`` and ``temperature`` (see
    :class:`~mindblip2.evaluation.zero_shot.ZeroShotClassifier`) may be given here or per call."""

    @exclusive
    def __init__(
        self,
        model=None,
        processor=None,
        checkpoint=None,
        candidate_labels=None,
        hypothesis_template=TEMPLATE,
        max_length=None,
        use_itm=False,
        batch_size=8,
        temperature=None,
    ):
        self.model = _load_model(Blip2Classifier, model or CLASSIFICATION_DEFAULT, checkpoint)
        self.processor = processor or own_processor(self.model)
        self.batch_size = batch_size
        self._options = {
            "candidate_labels": candidate_labels,
            "hypothesis_template": hypothesis_template,
            "max_length": max_length,
            "use_itm": use_itm,
            "temperature": temperature,
        }
        self._classifier = None, None

    @exclusive
    def __call__(self, images, top_k=None, batch_size=None, **options):
        """Pictures (path, URL, bytes, PIL, array, or a list of them) → per picture ``[{"score", "label"},
        …]``, best first.

        ``options``: candidate_labels, hypothesis_template, max_length, use_itm, temperature, for this
        call."""
        unknown = set(options) - set(self._options)
        if unknown:
            raise TypeError(
                f"unknown option {sorted(unknown)[0]!r}; a call takes top_k, batch_size, "
                + ", ".join(self._options)
            )
        return self._classify_with({**self._options, **options})(
            images, top_k, self.batch_size if batch_size is None else batch_size
        )

    @classmethod
    def show_support_list(cls):
        """Print and return the names that ``model`` takes."""
        return print_support_list(cls.__name__, presets())

    def _classify_with(self, options):
        """The classifier of these options; kept, so that the labels' features are computed once."""
        key = {**options, "candidate_labels": tuple(split_labels(options["candidate_labels"]))}
        if self._classifier[0] != key:
            self._classifier = key, ZeroShotClassifier(self.model, self.processor, **options)
        return self._classifier[1]


PIPELINES = {
    "zero_shot_image_classification": ZeroShotImageClassificationPipeline,
    "image_to_text_generation": ImageToTextGenerationPipeline,
}


def pipeline(task, model=None, **options):
    """The pipeline of a task.  ``model``: a preset's name, a YAML file, a folder of ``save_pretrained``, or a
    model; ``options`` go to the pipeline's class.

    Raises ValueError for an unknown task."""
    if task not in PIPELINES:
        raise ValueError(f"no pipeline for task {task!r}; there is: {', '.join(PIPELINES)}")
    return PIPELINES[task](model, **options)
