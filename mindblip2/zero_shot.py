"""Zero-shot classification: pictures and label texts in, sorted scores out.  What pipeline, predict and eval share.

B pictures of one batch · L labels · E embed
"""
import numpy as np
from mindspore import Tensor

from mindblip2 import comm
from mindblip2.progress import progress

TEMPLATE = "a picture of {}."    # MindFormers' default


class ZeroShotClassifier:
    """A ``Blip2Classifier``, its processor, and the labels to choose from.

    The features of the label texts are computed once.  ``use_itm`` asks the ITM head instead of the ITC similarity:
    slower, every
    picture meets every label in the Q-Former.  Raises ValueError for no, empty or repeated labels and for a template
    without {}."""

    def __init__(self, model, processor, candidate_labels, hypothesis_template=TEMPLATE, max_length=None, use_itm=False):
        check_vocabulary(model, processor.tokenizer)
        self.model = model
        self.processor = processor
        self.labels = checked_labels(candidate_labels)
        self.texts = hypotheses(self.labels, hypothesis_template)
        self.ids_LT = processor.tokenizer(self.texts, max_length=max_length or model.config.max_txt_len,
                                          padding="max_length", return_tensors="ms")["input_ids"]
        self.use_itm = use_itm
        self._label_LE = None

    def __call__(self, images, top_k=None, batch_size=8):
        """Pictures (anything ``load_image`` takes, or one of it) → per picture ``[{"score", "label"}, …]``, best first."""
        top_k = len(self.labels) if top_k is None else _checked_top_k(top_k)
        return [self.ranked(row)[:top_k] for row in self.probabilities(images, batch_size)]

    def ranked(self, probability_L):
        """One row of probabilities as a list of ``{"score", "label"}``, best first."""
        order = np.argsort(-probability_L, kind="stable")
        return [{"score": float(probability_L[i]), "label": self.labels[i]} for i in order]

    def probabilities(self, images, batch_size=8):
        """Pictures → float32 array (number of pictures, L); rows sum to 1."""
        images = _as_list(images)
        if not images:
            raise ValueError("no pictures to classify: the list is empty")
        starts = range(0, len(images), batch_size)
        shown = progress(starts, desc="classify", unit="batch", disable=len(starts) <= 4)
        return np.concatenate([self._batch(images[i:i + batch_size]) for i in shown])

    def _batch(self, images):
        image = self.processor.image_processor(images)
        if self.use_itm:
            return self.model.match_probabilities(image, self.ids_LT).asnumpy()
        features = self.model.extract_features({"image": image}, "image").image_embeds_proj
        return self.model.scores(features, self.label_features()).asnumpy()

    def label_features(self):
        """Unit vectors of the label texts (L, E), computed once."""
        if self._label_LE is None:
            self._label_LE = self.model.label_features(self.ids_LT)
        return self._label_LE


def accuracy(classifier, pictures, truths, batch_size=8):
    """Examine a classifier: figures, and the (L, L) counts of truth (rows) and answer (columns).

    ``pictures``: a sequence of what ``load_image`` takes, ``truths``: the right label of each.  The figures: ``top1`` and ``top5``,
    shares of pictures whose label is the best or among the best five (a label of the same probability counts as better);
    ``per_class``, the share of right answers per label that occurs.  Raises ValueError for a truth that is no label, and for
    probabilities that are not finite."""
    unknown = sorted(set(truths) - set(classifier.labels))
    if unknown or not truths or len(truths) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures with {len(truths)} truths: expected one of the labels for each"
                         + (f"; {unknown[0]!r} is none" if unknown else ""))
    truth_I = np.array([classifier.labels.index(label) for label in truths])
    own_I, probability_IL = comm.share(np.arange(len(truths))), np.zeros((len(truths), len(classifier.labels)), np.float32)
    for part in progress([own_I[start:start + batch_size] for start in range(0, len(own_I), batch_size)], desc="classify", unit="batch"):
        probability_IL[part] = classifier.probabilities([pictures[i] for i in part], batch_size)
    probability_IL = comm.added(probability_IL)
    if not np.isfinite(probability_IL).all():
        raise ValueError("probabilities are not finite: the weights are damaged or belong to another model")
    rank_I = (probability_IL >= probability_IL[np.arange(len(truths)), truth_I][:, None]).sum(1) - 1
    counts_LL = np.zeros((len(classifier.labels),) * 2, int)
    np.add.at(counts_LL, (truth_I, probability_IL.argmax(1)), 1)
    right = {label: float(counts_LL[i, i] / counts_LL[i].sum()) for i, label in enumerate(classifier.labels) if counts_LL[i].any()}
    return {"top1": float((rank_I < 1).mean()), "top5": float((rank_I < 5).mean()), "pictures": len(truths),
            "labels": len(classifier.labels), "per_class": right}, counts_LL


def checked_labels(labels):
    """The labels as a list; raises ValueError where a user would get scores that mean nothing."""
    labels = [labels] if isinstance(labels, str) else list(labels or ())
    if not labels:
        raise ValueError("no labels: pass candidate_labels=['cat', 'dog', …] (command line: --candidate_labels cat dog)")
    wrong = [label for label in labels if not isinstance(label, str) or not label.strip()]
    if wrong:
        raise ValueError(f"candidate_labels holds {wrong[0]!r}: expected words")
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"candidate_labels holds {', '.join(map(repr, twice))} more than once: their probability would be "
                         "split; name every label once")
    return labels


def hypotheses(labels, template):
    """The label texts: the template with each label in the place of {}."""
    if "{}" not in template:
        raise ValueError(f"hypothesis_template = {template!r}: expected {{}} where the label goes, e.g. {TEMPLATE!r}")
    return [template.replace("{}", label) for label in labels]


def _checked_top_k(top_k):
    if not isinstance(top_k, int) or top_k < 1:
        raise ValueError(f"top_k = {top_k!r}: expected a whole number of labels to report, at least 1")
    return top_k


def check_vocabulary(model, tokenizer):
    """Raises ValueError where the tokenizer's ids are not the model's words."""
    rows = model.config.qformer_config.vocab_size
    if len(tokenizer) != rows:
        raise ValueError(f"the tokenizer knows {len(tokenizer)} tokens, the model {rows}: use the processor of the same "
                         "preset, Blip2Processor.from_pretrained(name)")


def _as_list(images):
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
        return list(images if isinstance(images, np.ndarray) else images.asnumpy())
    return list(images) if isinstance(images, (list, tuple)) else [images]
