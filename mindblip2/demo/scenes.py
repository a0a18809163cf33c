"""The demo's data sets, made of ``digits``: scenes to train on, and held-out pictures to classify.

python -m mindblip2.demo.scenes FOLDER      draws some of the held-out pictures as PNG files
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mindblip2.data.datasets.labelled_images import LabelledSet
from mindblip2.data.datasets.questions import Question
from mindblip2.demo import digits
from mindblip2.evaluation.vqa import PROMPT
from mindblip2.file_io import atomic_file

# captions with colour and digit, digit, colour: at first, and later
DETAIL_ODDS = ((0, 0.7, 0.3), (0.8, 0.2, 0))
SEVERAL = 0.8  # share of the later batches whose scenes have two or three digits
COUNT_ODDS = (0.4, 0.6)  # of these, two or three
ASKED = 0.5  # share of questions and answers, instead of captions, in stage 2
SHOWN = 12  # held-out pictures that the demo draws


class TrainingScenes:
    """``count`` scenes per epoch, never the same twice; an epoch depends only on the seed and its number.

    Up to ``property_passes`` a scene has one digit and its caption names only the digit or only the colour;
    later scenes have mostly two or three, and captions name mostly both: were they so from the start, the
    model would learn colours, which suffice for a long while."""

    def __init__(self, count, seed, property_passes=0, size=digits.SIZE, batch=32):
        if count < 1:
            raise ValueError(
                f"train_dataset.data_loader.scenes = {count}: expected the number of scenes per epoch"
            )
        self.count, self.seed, self.size = count, seed, size
        self.property_passes, self.batch = property_passes, batch

    def __len__(self):
        return self.count

    def epoch(self, number):
        """The samples of epoch ``number``, from 0."""
        rng = np.random.default_rng([self.seed, number])
        early = number < self.property_passes
        odds = DETAIL_ODDS[0 if early else 1]
        for i in range(self.count):
            # one kind of caption per batch: "a handwritten seven" fits every other seven there is
            if i % self.batch == 0:
                detail = str(rng.choice(digits.DETAILS, p=odds))
                several = not early and rng.random() < SEVERAL
            scene = digits.sample_scene(
                rng, count=int(rng.choice(digits.COUNTS[1:], p=COUNT_ODDS)) if several else 1
            )
            text = digits.caption(scene, detail)
            yield {
                "image": digits.render(scene, self.size),
                "caption": text,
                "image_id": digits.caption_id(text),
            }


class CaptionedScenes:
    """Stage 2: ``count`` scenes of one to three digits per epoch, never the same twice, with their whole
    captions, or with a question as the sample's own prompt and the answer as its caption."""

    def __init__(self, count, seed, size=digits.SIZE):
        self.count, self.seed, self.size = count, seed, size

    def __len__(self):
        return self.count

    def epoch(self, number):
        """The samples of epoch ``number``, from 0."""
        rng = np.random.default_rng([self.seed, number])
        for _ in range(self.count):
            scene, own = digits.sample_scene(rng), {}
            if rng.random() < ASKED:
                question, own["caption"] = digits.one_of(digits.questions(scene), rng)
                own["prompt"] = PROMPT.replace("{}", question)
            yield {"image": digits.render(scene, self.size), "caption": digits.caption(scene), **own}


def texts(count, seed):
    """What the demo's language model learns before it is frozen: ``count`` pairs of texts.  The first are
    notes of what a scene holds, "row seven red two blue"; the second, what is said on their account: the
    caption, or a question and its answer.

    A model that has only learnt captions listens to nothing in front of them.  This one has learnt to: the
    bridge takes the place of the notes."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        scene = digits.sample_scene(rng)
        notes = " ".join(
            [
                *[scene.layout] * (len(scene.digits) > 1),
                *(f"{digits.DIGITS[digit]} {colour}" for digit, colour in zip(scene.digits, scene.colours)),
            ]
        )
        if rng.random() < ASKED:
            question, answer = digits.one_of(digits.questions(scene), rng)
            yield notes, f" {PROMPT.replace('{}', question)} {answer}"
        else:
            yield notes, f" {digits.caption(scene)}"


def labelled_sets(size=digits.SIZE):
    """Digit names over the held-out scans in colours seen with them; and the ten colour-digit pairs never
    seen in training, to be told from all eighty."""
    names, pairs = digits.held_out("digits"), digits.held_out("pairs")
    all_pairs = tuple(_pair(digit, colour) for digit in range(10) for colour in digits.COLOURS)
    return [
        LabelledSet(
            "digit names",
            [digits.render(s, size) for s in names],
            [digits.DIGITS[s.digits[0]] for s in names],
            digits.DIGITS,
            "a handwritten {}",
        ),
        LabelledSet(
            "colour-digit pairs never seen",
            [digits.render(s, size) for s in pairs],
            [_pair(s.digits[0], s.colours[0]) for s in pairs],
            all_pairs,
            "{}",
        ),
    ]


def captioned(size=digits.SIZE, kind="scenes"):
    """The retrieval examination: 500 held-out scenes of two or three digits, one caption each, no caption
    twice; with ``kind`` "told" that of stage 2, scenes of one or two digits."""
    return [
        {"image": digits.render(scene, size), "captions": [digits.caption(scene)]}
        for scene in digits.held_out(kind)
    ]


def questions(size=digits.SIZE):
    """A question about each scene that stage 2 is examined with."""
    rng, asked = np.random.default_rng(digits.EXAM_SEED), []
    for i, scene in enumerate(digits.held_out("told")):
        question, answer = digits.one_of(digits.questions(scene), rng)
        asked.append(Question(digits.render(scene, size), question, (answer,), i))
    return asked


def _pair(digit, colour):
    return digits.caption(digits.Scene((digit,), (colour,), (0,), "black"))


def draw(folder, size=digits.SIZE):
    """Write a few held-out pictures of each kind, named after what they show; returns the paths."""
    folder, paths = Path(folder), []
    pairs = labelled_sets(size)[1]
    for i in np.random.default_rng(0).choice(len(pairs.pictures), SHOWN, replace=False):
        paths.append(folder / f"{len(paths):02d}_{pairs.truths[i].replace(' ', '_')}.png")
        with atomic_file(paths[-1], "wb") as file:
            Image.fromarray(pairs.pictures[i]).save(file, "PNG")
    return paths


if __name__ == "__main__":
    print(f"{len(draw(sys.argv[1]))} held-out pictures in {sys.argv[1]}")
