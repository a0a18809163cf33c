"""Zero-shot classification: pictures and label texts in, sorted scores out.  What pipeline, predict and eval
share.

B pictures of one batch · L labels · E embed
"""

import math

import numpy as np
from mindspore import Tensor

from mindblip2.config.schema import Count, argument
from mindblip2.data.images.color_conversion import array_of
from mindblip2.data.images.decoded import DecodedPictures
from mindblip2.data.text.checks import check_labels, split_labels
from mindblip2.distributed import comm
from mindblip2.progress import progress

TEMPLATE = "a picture of {}."  # MindFormers' default


class ZeroShotClassifier:
    """A ``Blip2Classifier``, its processor, and the labels to choose from.

    ``candidate_labels``: a list of texts, or one string with commas between them.  The features of the label
    texts are computed once. ``use_itm`` asks the ITM head instead of the ITC similarity: slower, every
    picture meets every label in the Q-Former. ``temperature`` divides the similarities before the softmax;
    None is the learnt one (about 0.01 in published weights), 1 gives the probabilities of transformers'
    pipeline, which has none.  The order of the labels does not depend on it.

    Raises ValueError for no, empty or repeated labels, for labels whose tokens the vocabulary does not have
    or that have the same tokens, for a template without {}, and for a temperature that is not finite and
    above 0, or is given with ``use_itm``, which has none."""

    def __init__(
        self,
        model,
        processor,
        candidate_labels,
        hypothesis_template=TEMPLATE,
        max_length=None,
        use_itm=False,
        temperature=None,
    ):
        check_vocabulary(model, processor.tokenizer)
        self.model = model
        self.processor = processor
        self.temperature = checked_temperature(temperature, use_itm)
        self.labels = checked_labels(candidate_labels)
        self.texts = hypotheses(self.labels, hypothesis_template)
        length = model.config.max_txt_len if max_length is None else argument(Count, max_length, "max_length")
        encoded = processor.tokenizer(
            self.texts, max_length=length, padding="max_length", return_tensors="np"
        )
        check_labels(processor.tokenizer, self.labels, self.texts, encoded, hypothesis_template)
        self.ids_LT = Tensor(encoded["input_ids"])
        self.use_itm = use_itm
        self._label_LE = None

    def __call__(self, images, top_k=None, batch_size=8):
        """Pictures (anything ``load_image`` takes, or one of it) → per picture ``[{"score", "label"}, …]``,
        best first."""
        top_k = len(self.labels) if top_k is None else argument(Count, top_k, "top_k")
        return [self.ranked(row)[:top_k] for row in self.probabilities(images, batch_size)]

    def ranked(self, probability_L):
        """One row of probabilities as a list of ``{"score", "label"}``, best first."""
        order = np.argsort(-probability_L, kind="stable")
        return [{"score": float(probability_L[i]), "label": self.labels[i]} for i in order]

    def probabilities(self, images, batch_size=8):
        """Pictures → float32 array (number of pictures, L); rows sum to 1.  Raises FloatingPointError where
        they are not finite."""
        images, batch_size = _as_list(images), argument(Count, batch_size, "batch_size")
        if not images:
            raise ValueError("no pictures to classify: the list is empty")
        starts = range(0, len(images), batch_size)
        shown = progress(starts, desc="classify", unit="batch", disable=len(starts) <= 4)
        made = np.concatenate([self._batch(images[i : i + batch_size]) for i in shown])
        return check_finite(made, "the probabilities of the labels")

    def _batch(self, images):
        image = self.processor.image_processor(images)
        if self.use_itm:
            return self.model.match_probabilities(image, self.ids_LT).asnumpy()
        features = self.model.extract_features({"image": image}, "image").image_embeds_proj
        return self.model.probabilities(features, self.label_features(), self.temperature).asnumpy()

    def label_features(self):
        """Unit vectors of the label texts (L, E), computed once."""
        if self._label_LE is None:
            self._label_LE = self.model.label_features(self.ids_LT)
        return self._label_LE


def accuracy(classifier, pictures, truths, batch_size=8):
    """Examine a classifier: figures, and the (L, L) counts of truth (rows) and answer (columns).

    ``pictures``: a sequence of what ``load_image`` takes, ``truths``: the right label of each.  The figures:
    ``top1`` and ``top5``, shares of pictures whose label is the best or among the best five (a label of the
    same probability counts as better); ``per_class``, the share of right answers per label that occurs.
    Raises ValueError for a truth that is no label, FloatingPointError for probabilities that are not
    finite."""
    unknown = sorted(set(truths) - set(classifier.labels))
    if unknown or not truths or len(truths) != len(pictures):
        raise ValueError(
            f"{len(pictures)} pictures with {len(truths)} truths: expected one of the labels for each"
            + (f"; {unknown[0]!r} is none" if unknown else "")
        )
    truth_I = np.array([classifier.labels.index(label) for label in truths])
    own_I, probability_IL = (
        comm.data_shard(np.arange(len(truths))),
        np.zeros((len(truths), len(classifier.labels)), np.float32),
    )
    for part in progress(
        [own_I[start : start + batch_size] for start in range(0, len(own_I), batch_size)],
        desc="classify",
        unit="batch",
    ):
        probability_IL[part] = classifier.probabilities([pictures[i] for i in part], batch_size)
    probability_IL = check_finite(
        comm.host_all_reduce_data(probability_IL), "the probabilities of the labels"
    )
    rank_I = (probability_IL >= probability_IL[np.arange(len(truths)), truth_I][:, None]).sum(1) - 1
    counts_LL = np.zeros((len(classifier.labels),) * 2, int)
    np.add.at(counts_LL, (truth_I, probability_IL.argmax(1)), 1)
    right = {
        label: float(counts_LL[i, i] / counts_LL[i].sum())
        for i, label in enumerate(classifier.labels)
        if counts_LL[i].any()
    }
    return {
        "top1": float((rank_I < 1).mean()),
        "top5": float((rank_I < 5).mean()),
        "pictures": len(truths),
        "labels": len(classifier.labels),
        "per_class": right,
    }, counts_LL


def checked_labels(labels):
    """The labels as a list; raises ValueError where a user would get scores that mean nothing."""
    labels = split_labels(labels)
    if not labels:
        raise ValueError(
            "no labels: pass candidate_labels=['cat', 'dog', …] (command line: --candidate_labels cat dog)"
        )
    wrong = [label for label in labels if not isinstance(label, str) or not label.strip()]
    if wrong:
        raise ValueError(f"candidate_labels holds {wrong[0]!r}: expected words")
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(
            f"candidate_labels holds {', '.join(map(repr, twice))} more than once: their probability would "
            "be "
            "split; name every label once"
        )
    return labels


def hypotheses(labels, template):
    """The label texts: the template with each label in the place of {}."""
    if "{}" not in template:
        raise ValueError(
            f"hypothesis_template = {template!r}: expected {{}} where the label goes, e.g. {TEMPLATE!r}"
        )
    return [template.replace("{}", label) for label in labels]


def checked_temperature(temperature, use_itm=False):
    """The temperature as a float, or None for the learnt one; raises ValueError for what cannot divide
    similarities."""
    if temperature is None:
        return None
    if use_itm:
        raise ValueError(
            f"temperature = {temperature!r} with use_itm: a temperature divides ITC similarities, of which "
            "the ITM head makes "
            "none; leave one of them out"
        )
    number = isinstance(temperature, (int, float, np.number)) and not isinstance(temperature, bool)
    if not number or not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature = {temperature!r}: expected a finite number above 0, or None for the learnt one"
        )
    return float(temperature)


def check_finite(array, what):
    """The array; raises FloatingPointError that names ``what`` it holds where that is NaN or infinite."""
    wrong = int(np.size(array) - np.isfinite(array).sum())
    if wrong:
        raise FloatingPointError(
            f"{what}: {wrong} of {np.size(array)} numbers are NaN or infinite: the weights are damaged or "
            "belong to "
            "another model; load others, or convert them again"
        )
    return array


def check_vocabulary(model, tokenizer):
    """Raises ValueError where the tokenizer's ids are not the model's words."""
    rows = model.config.qformer_config.vocab_size
    if len(tokenizer) != rows:
        raise ValueError(
            f"the tokenizer knows {len(tokenizer)} tokens, the model {rows} ({tokenizer!r}): use the "
            "processor of the same "
            "preset, Blip2Processor.from_pretrained(name)"
        )


def _as_list(images):
    """One picture, a list of them or a batch (B, …) as a list; pictures that are decoded on demand as they
    are."""
    if isinstance(images, (list, tuple, DecodedPictures)):
        return images if isinstance(images, DecodedPictures) else list(images)
    array = array_of(images)
    return list(array) if array is not None and array.ndim == 4 else [images]
