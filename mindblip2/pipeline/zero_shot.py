"""``pipeline('zero_shot_image_classification')``: pictures in, the labels' scores out."""
from pathlib import Path

from mindblip2.cells.blip2_qformer import Blip2Classifier
from mindblip2.config import presets, print_support_list
from mindblip2.data.own_processor import own_processor
from mindblip2.data.text_checks import split_labels
from mindblip2.hub import named_file
from mindblip2.lock import exclusive
from mindblip2.zero_shot import TEMPLATE, ZeroShotClassifier

DEFAULT = "blip2_stage1_classification"


class ZeroShotImageClassificationPipeline:
    """Which of the labels fits the picture?

    ``model``: a preset's name, a YAML file, a folder of ``save_pretrained``, or a ``Blip2Classifier``, whose processor is that of the
    preset or file that its configuration was read from; for another give ``processor``.  ``checkpoint``: the weights, where they do not
    lie under the preset's name in the cache.
    ``candidate_labels`` (a list, or one string with commas between the labels), ``hypothesis_template``, ``max_length``, ``use_itm``
    and ``temperature`` (see :class:`~mindblip2.zero_shot.ZeroShotClassifier`) may be given here or per call."""

    @exclusive
    def __init__(self, model=None, processor=None, checkpoint=None, candidate_labels=None, hypothesis_template=TEMPLATE,
                 max_length=None, use_itm=False, batch_size=8, temperature=None):
        self.model = (Blip2Classifier.from_pretrained(model or DEFAULT, checkpoint)
                      if isinstance(model, (str, Path, type(None))) else model)
        if checkpoint and self.model is model:
            model.load_checkpoint(named_file(checkpoint, "checkpoint"))
        self.processor = processor or own_processor(self.model)
        self.batch_size = batch_size
        self._options = {"candidate_labels": candidate_labels, "hypothesis_template": hypothesis_template,
                         "max_length": max_length, "use_itm": use_itm, "temperature": temperature}
        self._classifier = None, None

    @exclusive
    def __call__(self, images, top_k=None, batch_size=None, **options):
        """Pictures (path, URL, bytes, PIL, array, or a list of them) → per picture ``[{"score", "label"}, …]``, best first.

        ``options``: candidate_labels, hypothesis_template, max_length, use_itm, temperature, for this call."""
        unknown = set(options) - set(self._options)
        if unknown:
            raise TypeError(f"unknown option {sorted(unknown)[0]!r}; a call takes top_k, batch_size, "
                            + ", ".join(self._options))
        return self._classify_with({**self._options, **options})(images, top_k, self.batch_size if batch_size is None else batch_size)

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
