"""``Blip2ImageProcessor`` and ``Blip2Processor``: what a user holds in hand to feed the model."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mindblip2.compat.mindformers.printing import print_support_list
from mindblip2.config import (
    CLIP_MEAN,
    CLIP_STD,
    ImageProcessorConfig,
    ProcessorConfig,
    load_config,
    presets,
    save_sections,
)
from mindblip2.config.schema import Pixels, argument
from mindblip2.data.images.color_conversion import ImageError, array_of, array_to_rgb
from mindblip2.data.images.load import load_image
from mindblip2.data.images.transforms import EvalTransform
from mindblip2.data.text.checks import cleaned, warn_truncated
from mindblip2.data.text.cleaning import BlipCaption
from mindblip2.data.text.encoding import listed, texts_of
from mindblip2.data.text.language_tokenizer import LanguageTokenizer
from mindblip2.data.text.prompting import without_image_tokens
from mindblip2.data.text.tokenizer import BertTokenizer, load_tokenizer, save_tokenizer
from mindblip2.file_io import atomic_folder


class Blip2ImageProcessor:
    """Pictures to the model's input: upright RGB, bicubic to a square without a crop, [0, 1], normalised.

    ``image_size`` in pixels; ``mean`` and ``std`` per channel of values in [0, 1] (CLIP's).  The numbers are
    those of LAVIS's ``BlipImageEvalProcessor`` (MindFormers resized arrays without antialiasing).  ``alpha``:
    what becomes of transparency, "drop" as LAVIS (the colours under it show) or "white" as transformers (a
    white background).

    Raises ValueError for an argument out of range.
    """

    def __init__(
        self,
        image_size: int = 224,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        alpha: str = "drop",
    ):
        mean, std = (list(values) if isinstance(values, Iterable) else values for values in (mean, std))
        checked = ImageProcessorConfig(
            image_size=argument(Pixels, image_size, "image_size"),
            mean=mean,  # type: ignore[arg-type]  # the section makes a tuple of three of it, or refuses it
            std=std,  # type: ignore[arg-type]
            alpha=alpha,
        )
        self.transform = EvalTransform(checked.image_size, checked.mean, checked.std)  # type: ignore[arg-type]
        self.alpha = alpha

    image_size = property(lambda self: self.transform.image_size)
    mean = property(lambda self: self.transform.mean)
    std = property(lambda self: self.transform.std)

    def __call__(self, images, return_tensors="ms", normalized=False):
        """One picture or a list of them to a float32 Tensor (B, 3, S, S); ``return_tensors="np"`` gives an
        array.

        ``images``: anything :func:`load_image` takes, also mixed in one list; arrays and tensors (MindSpore,
        PyTorch, …) may also be 4-D for a batch.  Of pictures held in memory, float values must be in [0, 1]
        or whole in 0..255.

        ``normalized=True`` says that ``images`` are float arrays made by this processor: their shape and
        values are checked and they pass through.  This is not guessed, because a grey picture scaled to [0,
        1] and a normalised one can look alike; without the word, a normalised picture is an error (it has
        values below 0 or fractions above 1).

        Raises ImageError (a ValueError) or OSError as :func:`load_image`; ValueError for an empty list.
        """
        if return_tensors not in ("ms", "np"):
            raise ValueError(f"return_tensors = {return_tensors!r}: expected 'ms' or 'np'")
        pictures = _listed(images)
        if not pictures:
            raise ValueError("no pictures: the list or batch is empty")
        one = self._pass if normalized else self._process
        batch_BCHW = np.stack([one(picture, f"images[{i}]") for i, picture in enumerate(pictures)])
        return _tensor(batch_BCHW) if return_tensors == "ms" else batch_BCHW

    def __repr__(self):
        return (
            f"Blip2ImageProcessor(image_size={self.image_size}, mean={self.mean}, std={self.std}, "
            f"alpha={self.alpha!r})"
        )

    def _process(self, picture, name):
        return self.transform(rgb(picture, name, self.alpha))

    def _pass(self, picture, name):
        size = self.image_size
        if (
            not isinstance(picture, np.ndarray)
            or picture.dtype.kind != "f"
            or picture.shape != (3, size, size)
        ):
            got = (
                f"{picture.dtype} {picture.shape}"
                if isinstance(picture, np.ndarray)
                else type(picture).__name__
            )
            raise ImageError(
                f"{name} is {got}; with normalized=True expected floats of shape (3, {size}, {size}) or a "
                "batch of them: leave normalized out to have it processed"
            )
        if not np.isfinite(picture).all():
            raise ImageError(
                f"{name} holds NaN or infinity; expected a picture normalised by Blip2ImageProcessor"
            )
        return picture.astype(np.float32)


class Blip2Processor:
    """An image processor and a tokenizer together; without arguments those of BLIP-2 at 224 pixels.

    ``max_length`` (tokens) overrides the tokenizer's own if given.  ``padding`` is the tokenizer's option.

    ``clean``: whether texts are cleaned as captions (:class:`~mindblip2.data.text.cleaning.BlipCaption`:
    lower case, without punctuation, 50 words), as LAVIS does before it extracts features and as the task
    ``feature_extraction`` does.  None: with BERT's tokenizer, whose texts the Q-Former reads, and not with a
    language model's, to which LAVIS gives prompts as they are.
    """

    def __init__(
        self, image_processor=None, tokenizer=None, max_length=None, padding="max_length", clean=None
    ):
        self.image_processor = Blip2ImageProcessor() if image_processor is None else image_processor
        self.tokenizer = BertTokenizer() if tokenizer is None else tokenizer
        self.max_length = max_length
        self.padding = padding
        self.clean = clean

    @classmethod
    def from_pretrained(cls, name_or_path):
        """The processor of a preset (``blip2_stage1_vit_g``), of a YAML file or of a folder of
        ``save_pretrained``."""
        return cls.from_config(load_config(name_or_path).processor)

    @classmethod
    def from_config(cls, config):
        """The processor that a ``processor:`` section (``ProcessorConfig``) describes."""
        image = config.image_processor
        return cls(
            Blip2ImageProcessor(image.image_size, image.mean, image.std, image.alpha),
            load_tokenizer(config.tokenizer),
            padding=config.tokenizer.padding,
            clean=config.clean,
        )

    def save_pretrained(self, folder):
        """Write the tokenizer's files and the section ``processor`` of ``config.yaml`` into a folder, perhaps
        that of a model.

        Raises TypeError for an image processor or tokenizer that is not mindblip2's."""
        image = self.image_processor
        if not isinstance(image, Blip2ImageProcessor):
            raise TypeError(f"a {type(image).__name__} cannot be saved: expected a Blip2ImageProcessor")
        with atomic_folder(folder) as partial:
            tokenizer = save_tokenizer(self.tokenizer, partial)
            tokenizer = tokenizer.replace(
                max_length=self.max_length or tokenizer.max_length, padding=self.padding or False
            )
            image = ImageProcessorConfig(
                image_size=image.image_size, mean=image.mean, std=image.std, alpha=image.alpha
            )
            path = save_sections(
                partial,
                processor=ProcessorConfig(
                    image_processor=image, tokenizer=tokenizer, clean=self.clean
                ).to_dict(),
            )
        return Path(folder) / path.name

    @classmethod
    def show_support_list(cls):
        """Print and return the names that ``from_pretrained`` takes."""
        return print_support_list(cls.__name__, presets())

    def __call__(self, images=None, text=None, max_length=None, return_tensors="ms"):
        """A dict for the model: ``image`` (B, 3, S, S) float32, ``input_ids`` and ``attention_mask`` (B, T)
        int32.

        ``images``: as for :class:`Blip2ImageProcessor`; ``text``: a string or a list of strings, cleaned
        where ``clean`` says so.  Only the keys of what is given are present.  Warns of texts that are cut at
        ``max_length``.

        Raises as the image processor and the tokenizer; ValueError if neither pictures nor text are given,
        and for a text of which cleaning leaves nothing.
        """
        if images is None and text is None:
            raise ValueError("nothing to process: pass images=, text= or both")
        inputs = {}
        text = _without_image_tokens(text)
        if images is not None:
            inputs["image"] = self.image_processor(images, return_tensors=return_tensors)
        if text is not None:
            texts = cleaned(texts_of(text), BlipCaption()) if self.cleans else texts_of(text)
            length = self.max_length if max_length is None else max_length
            encoded = self.tokenizer(
                texts[0] if np.ndim(text) == 0 else texts,
                max_length=length,
                padding=self.padding,
                return_tensors=return_tensors,
            )
            masks = listed(encoded["attention_mask"])
            masks = masks if isinstance(masks[0], list) else [masks]  # a single text, without tensors
            warn_truncated(self.tokenizer, texts, masks, length or self.tokenizer.max_length, "max_length")
            inputs.update(encoded)
        return inputs

    @property
    def cleans(self):
        """Whether texts are cleaned as captions."""
        return self.clean if self.clean is not None else not isinstance(self.tokenizer, LanguageTokenizer)

    def __repr__(self):
        return f"Blip2Processor(image_processor={self.image_processor!r}, tokenizer={self.tokenizer!r})"


def _without_image_tokens(text):
    """A text or a list of texts without the placeholders of image tokens; anything else as it is."""
    if isinstance(text, (list, tuple)):
        return [_without_image_tokens(one) for one in text]
    return without_image_tokens(text) if isinstance(text, str) else text


def rgb(picture, name, alpha="drop"):
    """Anything that :class:`Blip2ImageProcessor` takes as one picture, as an RGB PIL picture; ``name`` is for
    messages of arrays."""
    return (
        array_to_rgb(picture, name, alpha)
        if isinstance(picture, np.ndarray)
        else load_image(picture, alpha=alpha)
    )


def _listed(images):
    """A list of single pictures; tensors become arrays, a 4-D array its pictures."""
    entries = list(images) if isinstance(images, (list, tuple)) else [images]
    arrays = [array_of(entry) for entry in entries]
    entries = [entry if array is None else array for entry, array in zip(entries, arrays)]
    if len(entries) == 1 and isinstance(entries[0], np.ndarray) and entries[0].ndim == 4:
        return list(entries[0])
    return entries


def _tensor(array):
    from mindspore import Tensor  # here, because importing MindSpore takes seconds

    return Tensor(array)
