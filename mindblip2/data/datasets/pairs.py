"""Loaders of pictures with captions, by the names that MindFormers gives them."""

import logging
import os
from pathlib import Path

import numpy as np

from mindblip2.data.datasets.annotations import AnnotationError, Picture, read_annotations
from mindblip2.file_io import read_text

logger = logging.getLogger("mindblip2")

STAGES = ("train", "eval")
FLICKR8K_PARTS = {"train": "trainImages", "dev": "devImages", "test": "testImages", "eval": "testImages"}


class Pairs:
    """Captioned pictures as samples: iterable, with a length, and indexable.

    A sample is ``{"image": path, "caption": text, "image_id": int}``, one per caption, where
    ``repeat_images`` is true; otherwise one per picture, whose "caption" is the list of its captions.

    ``pictures``: list of :class:`~mindblip2.data.datasets.annotations.Picture`.  ``sizes``: samples of each
    set, in order; a set is what came from one annotation file, named by ``names``.  ``ratios``: how often a
    set is drawn from in training, empty for all samples once.  ``shuffle``: whether training puts the samples
    in another order each epoch; iterating does not."""

    def __init__(self, pictures, repeat_images=True, shuffle=True, ratios=()):
        self.pictures, self.repeat_images, self.shuffle = pictures, repeat_images, shuffle
        counts = [len(picture.captions) if repeat_images else 1 for picture in pictures]
        self._ends = np.cumsum(counts)  # of each picture's samples
        sets = {}
        for picture, count in zip(pictures, counts):
            sets[picture.file] = sets.get(picture.file, 0) + count
        self.names, self.sizes = tuple(sets), tuple(sets.values())
        self.ratios = tuple(map(float, ratios or ()))
        if self.ratios and (
            len(self.ratios) != len(self.sizes) or min(self.ratios) < 0 or not sum(self.ratios)
        ):
            raise ValueError(
                f"ratios = {list(ratios)}: expected a number from 0 for each of the {len(self.sizes)} "
                "annotation files"
            )

    def __len__(self):
        return int(self._ends[-1])

    def __getitem__(self, index):
        place = range(len(self))[index]  # negative ones too, and IndexError beyond the end
        i = int(np.searchsorted(self._ends, place, "right"))
        path, captions, image_id = self.pictures[i][:3]
        caption = captions[place - self._ends[i]] if self.repeat_images else list(captions)
        return {"image": path, "caption": caption, "image_id": image_id}

    def source(self, index):
        """Where sample ``index`` is written, for messages: file and row."""
        return self.pictures[int(np.searchsorted(self._ends, range(len(self))[index], "right"))].source

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    def __repr__(self):
        sets = ", ".join(f"{name}: {size}" for name, size in zip(self.names, self.sizes))
        return f"{type(self).__name__}({len(self)} samples, {len(self.pictures)} pictures; {sets})"


class MultiImgCapDataLoader(Pairs):
    """COCO, Visual Genome, Flickr30k or your own captions, from one or several annotation files (see
    ``annotations``).

    ``annotation_files`` and ``image_dirs`` are relative to ``dataset_dir`` and as many; the lists are not
    changed.  ``stage``: "train" gives one sample per caption, "eval" one per picture with all its captions;
    ``repeat_images`` says it directly. ``column_names``: MindFormers' two names, which only a MindFormers
    pipeline used: samples are dicts here.  ``shuffle`` and ``ratios``: see :class:`Pairs`.

    Raises FileNotFoundError or AnnotationError, with absolute paths."""

    def __init__(
        self,
        dataset_dir,
        annotation_files=None,
        image_dirs=None,
        stage="train",
        column_names=("image", "text"),
        repeat_images=None,
        shuffle=None,
        ratios=(),
    ):
        if stage not in STAGES:
            raise ValueError(f"stage = {stage!r}: expected one of {', '.join(map(repr, STAGES))}")
        if len(column_names) != 2:
            raise ValueError(
                f"column_names = {list(column_names)}: expected two, of the picture and of the text"
            )
        if tuple(column_names) != ("image", "text"):
            logger.warning(
                "column_names = %s has no effect: samples are dicts with image, caption and image_id",
                list(column_names),
            )
        if not annotation_files:
            raise AnnotationError(
                f"no annotation_files: name the JSON files under {os.path.abspath(dataset_dir)}, and for "
                "each "
                "its folder of pictures in image_dirs"
            )
        under = [
            [os.path.join(dataset_dir, name) for name in names or ()]
            for names in (annotation_files, image_dirs)
        ]
        train = stage == "train"
        super().__init__(
            read_annotations(*under),
            train if repeat_images is None else repeat_images,
            train if shuffle is None else shuffle,
            ratios,
        )


class Flickr8kDataLoader(Pairs):
    """Flickr8k as its two archives unpack: ``Flickr8k.token.txt`` and the lists of the parts, and the folder
    of pictures, each at ``dataset_dir`` or in Flickr8k_text/ and Flickr8k_Dataset/ below it.  ``stage``:
    train, dev, test or eval (= test)."""

    def __init__(self, dataset_dir, stage="train", shuffle=None):
        if stage not in FLICKR8K_PARTS:
            raise ValueError(f"stage = {stage!r}: expected one of {', '.join(map(repr, FLICKR8K_PARTS))}")
        texts = _first(dataset_dir, ("Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt"))
        part = _first(texts.parent, (f"Flickr_8k.{FLICKR8K_PARTS[stage]}.txt",))
        folder = _first(
            dataset_dir, ("Flickr8k_Dataset/Flickr8k_Dataset", "Flickr8k_Dataset", "Flicker8k_Dataset")
        )
        captions = {}
        for line in read_text(texts, "Flickr8k's file of captions").splitlines():
            name, tab, caption = line.partition("\t")  # "123.jpg#0<tab>A child …"
            if tab:
                captions.setdefault(name.rpartition("#")[0], []).append(caption)
        names = read_text(part, "one of Flickr8k's lists of pictures").split()
        bare = [name for name in names if name not in captions]
        if bare:
            raise AnnotationError(
                f"{part.absolute()} lists {bare[0][:80]}, of which {texts.absolute()} has no caption; get "
                "both again"
            )
        if not names:
            raise AnnotationError(f"{part.absolute()} lists no pictures; get it again")
        pictures = [
            Picture(str(folder / name), tuple(captions[name]), i, str(part), i)
            for i, name in enumerate(names)
        ]
        train = stage == "train"
        super().__init__(pictures, train, train if shuffle is None else shuffle)


def _first(folder, names):
    """The first of ``names`` that is there."""
    for name in names:
        if (Path(folder) / name).exists():
            return Path(folder) / name
    raise FileNotFoundError(f"none of {', '.join(names)} in {Path(folder).absolute()}")
