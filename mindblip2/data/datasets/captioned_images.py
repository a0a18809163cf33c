"""Pictures with their captions for evaluation: however given, as flat lists; and a look at every file
beforehand."""

from pathlib import Path

import numpy as np

from mindblip2.data.images.load import sizes
from mindblip2.data.text.checks import cleaned
from mindblip2.data.text.cleaning import BlipCaption

SHOWN = 5  # unreadable files named in a message


def pictures_and_captions(samples):
    """Samples → pictures (what ``load_image`` takes), and for each the list of its captions as they are.

    A sample is one picture with all its captions, as many as it has: ``{"image", "captions", "image_id"?}``
    (``"caption"`` is read too, a string or several), or an object with ``path``, ``captions`` and
    ``image_id``.  Raises ValueError for a sample without a picture or without text, and for a picture that
    comes twice: its captions would count as wrong answers to each other."""
    pictures, captions, seen = [], [], {}
    for i, sample in enumerate(samples):
        picture, own, image_id = _parts(sample, i)
        for key in _names(picture, image_id):
            if key in seen:
                raise ValueError(
                    f"samples {seen[key]} and {i} are the same picture ({key[0]} {key[1]}): give it once, "
                    "with "
                    "all its captions"
                )
            seen[key] = i
        pictures.append(picture)
        captions.append(own)
    if not pictures:
        raise ValueError("nothing to evaluate: there are no samples")
    return pictures, captions


def pictures_and_texts(samples, prompt="", max_words=50):
    """Samples → pictures, cleaned texts of all, and the index of each text's picture (T,) int64.

    Raises ValueError as :func:`pictures_and_captions`, and for a caption of which nothing is left; warns of
    more than ``max_words``."""
    pictures, captions = pictures_and_captions(samples)
    clean = BlipCaption(prompt, max_words)
    empty = [(i, caption) for i, own in enumerate(captions) for caption in own if clean(caption) == prompt]
    if empty:
        raise ValueError(
            f"{_where(samples, empty[0][0])}: nothing is left of the caption {empty[0][1]!r} when it is "
            "cleaned; remove it"
        )
    texts = cleaned([caption for own in captions for caption in own], clean)
    return pictures, texts, np.repeat(np.arange(len(captions)), [len(own) for own in captions])


def check_readable(pictures):
    """Read every file once, before hours of work depend on it.  Raises ValueError that names those that
    cannot be read."""
    files = [one for one in pictures if isinstance(one, (str, Path))]
    found = sizes(files, "check", quiet=None if len(files) > 100 else True)
    bad = [f"\n  {error}" for error in found if isinstance(error, Exception)]
    if bad:
        bad[SHOWN:] = [f"\n  … and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        raise ValueError(
            f"{len(files)} pictures were looked at; mend or take out those that cannot be read:"
            + "".join(bad)
        )


def _parts(sample, i):
    """(picture, list of captions, image_id or None) of one sample."""
    read = sample.get if isinstance(sample, dict) else lambda key: getattr(sample, key, None)
    picture = next((value for value in map(read, ("image", "path")) if value is not None), None)
    captions = next((value for value in map(read, ("captions", "caption")) if value is not None), ())
    captions = [captions] if isinstance(captions, str) else list(captions)
    if picture is None or not captions:
        raise ValueError(
            f"sample {i} has no {'picture' if picture is None else 'caption'}: expected "
            f'{{"image": …, "captions": [text, …]}}, got {str(sample)[:200]}'
        )
    return picture, captions, read("image_id")


def _where(samples, i):
    """A sample in a message, with the file and row that it is from where the samples say so."""
    return f"sample {i}" + (f" ({samples.source(i)})" if hasattr(samples, "source") else "")


def _names(picture, image_id):
    """What tells a picture from the others."""
    names = [("file", str(picture))] if isinstance(picture, (str, Path)) else []
    return names + ([("image_id", str(image_id))] if image_id is not None else [])
