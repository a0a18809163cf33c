"""BLEU, ROUGE-L and CIDEr-D of captions, as pycocoevalcap computes them, without Java.

METEOR and SPICE, which LAVIS reports too, are Java programs: :mod:`mindblip2.evaluation.metrics.java`.  A
caption is scored by its words (:mod:`mindblip2.evaluation.metrics.ptb_tokenizer`).
"""

import math
from collections import Counter

import numpy as np

from mindblip2.evaluation.metrics.ptb_tokenizer import words

LONGEST = 4  # n-grams of 1 to 4 words
BETA = 1.2  # ROUGE-L: recall counts a little more than precision
SIGMA = 6.0  # CIDEr-D: standard deviation of the penalty on another length, in words
NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")


def caption_scores(captions, references):
    """``{"Bleu_1", …, "Bleu_4", "ROUGE_L", "CIDEr"}`` over all pictures; CIDEr goes up to 10, the others to
    1.

    ``captions``: picture → one caption.  ``references``: picture → list of captions by people.  CIDEr weighs
    words by how many of the given pictures' references hold them, so its value belongs to this set of
    pictures; where that leaves no word any weight, it is not among the scores, and a line says so
    (pycocoevalcap gives 0).

    Raises ValueError where the two name other pictures, or a picture has no reference."""
    pictures = _matched(captions, references)
    found = [words(captions[picture]) for picture in pictures]
    wanted = [[words(one) for one in references[picture]] for picture in pictures]
    scores = dict(zip(NAMES, [*bleu(found, wanted), float(np.mean(rouge_l(found, wanted)))]))
    why = why_no_cider([references[picture] for picture in pictures])
    if why:
        print(f"CIDEr left out: {why}")
        return scores
    return {**scores, "CIDEr": float(np.mean(cider_d(found, wanted)))}


def why_no_cider(references):
    """Why CIDEr says nothing about these pictures, each with its list of references; "" if it does.

    A word that every picture's references hold weighs nothing; where that is all there is, every caption
    scores 0."""
    if len(references) == 1:
        return (
            "there is one picture, and it weighs words by how many of several pictures have them; give at "
            "least two"
        )
    if len({frozenset(ngram for one in texts for ngram in _ngrams(words(one))) for texts in references}) == 1:
        return (
            f"the references of all {len(references)} pictures have the same words, and it weighs words by "
            "what tells pictures apart; "
            "give pictures with different references"
        )
    return ""


def _matched(captions, references):
    if not captions:
        raise ValueError("no captions to score")
    missing, more = set(captions) - set(references), set(references) - set(captions)
    if missing or more:
        raise ValueError(
            f"captions of {len(captions)} pictures but references of {len(references)}: without references "
            f"{sorted(map(str, missing))[:3]}, without a caption {sorted(map(str, more))[:3]}"
        )
    for picture, texts in references.items():
        if not isinstance(texts, (list, tuple)) or not texts:
            raise ValueError(f"references[{picture!r}] = {texts!r}: expected a list of at least one caption")
    return list(captions)


def bleu(found, wanted):
    """[BLEU-1 … BLEU-4] of all captions together; the reference closest in length counts for brevity."""
    guess, correct = np.zeros(LONGEST), np.zeros(LONGEST)
    length = reference_length = 0
    for caption, references in zip(found, wanted):
        most = Counter()
        for reference in references:
            most |= _ngrams(reference)
        for ngram, count in (_ngrams(caption) & most).items():
            correct[len(ngram) - 1] += count
        guess += [max(0, len(caption) - n) for n in range(LONGEST)]
        length += len(caption)
        reference_length += min((abs(len(one) - len(caption)), len(one)) for one in references)[1]
    precision = np.cumprod((correct + 1e-15) / (guess + 1e-9)) ** (1 / np.arange(1, LONGEST + 1))
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    return [float(one) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0) for one in precision]


def rouge_l(found, wanted):
    """The F-measure of the longest common subsequence, per picture; precision and recall each of the best
    reference."""
    scores = []
    for caption, references in zip(found, wanted):
        common = [_common(caption, one) for one in references]
        precision = max(common) / max(len(caption), 1)
        recall = max(length / max(len(one), 1) for length, one in zip(common, references))
        both = precision and recall
        scores.append((1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if both else 0.0)
    return scores


def cider_d(found, wanted):
    """CIDEr-D per picture: the cosine of tf-idf vectors of n-grams, clipped, with a penalty on another
    length, times 10."""
    counts = [[_ngrams(one) for one in references] for references in wanted]
    pictures_with = Counter(ngram for references in counts for ngram in set().union(*references))
    rarity = Rarity(pictures_with, math.log(len(counts)))
    scores = []
    for caption, references in zip(found, counts):
        vector = rarity.vector(_ngrams(caption))
        scores.append(10 * float(np.mean([_alike(vector, rarity.vector(one)) for one in references])))
    return scores


class Rarity:
    """Weights of n-grams: the fewer pictures have one in their references, the more it says."""

    def __init__(self, pictures_with, log_pictures):
        self.pictures_with, self.log_pictures = pictures_with, log_pictures

    def vector(self, counts):
        """({ngram: weight}, norm per length of n-grams, number of bigrams)."""
        weights = {
            ngram: count * (self.log_pictures - math.log(max(1, self.pictures_with[ngram])))
            for ngram, count in counts.items()
        }
        squares = np.zeros(LONGEST)
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight**2
        return weights, np.sqrt(squares), sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _alike(caption, reference):
    (weights, norm, length), (others, other_norm, other_length) = caption, reference
    products = np.zeros(LONGEST)
    for ngram, weight in weights.items():
        other = others.get(ngram, 0.0)
        products[len(ngram) - 1] += min(weight, other) * other
    norms = norm * other_norm
    cosine = np.divide(products, norms, out=products, where=norms != 0)
    return np.mean(cosine) * math.exp(-((length - other_length) ** 2) / (2 * SIGMA**2))


def _ngrams(caption):
    return Counter(
        tuple(caption[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(caption) - n + 1)
    )


def _common(one, other):
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for j, another in enumerate(other, 1):
            before, row[j] = row[j], before + 1 if word == another else max(row[j], row[j - 1])
    return row[-1]
