"""Pictures and prompts in, texts out: what pipeline, predict and eval of stage 2 share."""

from numbers import Integral

import numpy as np

from mindblip2.data.images.decoded import DecodedPictures
from mindblip2.data.text.prompting import check_language_vocabulary, prompt_ids, without_image_tokens
from mindblip2.evaluation.vqa import PROMPT
from mindblip2.generation.generation_config import merged
from mindblip2.generation.streamer import TextStream
from mindblip2.lock import unlocked
from mindblip2.models.inputs import array
from mindblip2.progress import progress

ANSWER = {"max_new_tokens": 10, "length_penalty": 0.0}  # LAVIS's predict_answers


class ImageTextGenerator:
    """A ``Blip2ImageToTextGeneration`` and the processor of its language model.

    Raises ValueError where the tokenizer's ids are not the language model's words."""

    def __init__(self, model, processor):
        check_language_vocabulary(model.config, processor.tokenizer)
        self.model, self.processor, self.words = model, processor, _Words(processor.tokenizer)

    def __call__(self, inputs, prompts="", batch_size=8, return_full_text=True, on_text=None, **decoding):
        """A text per picture; a list of texts per picture where ``num_return_sequences`` is above 1.

        ``inputs``: pictures (anything ``load_image`` takes), or dicts ``{"image", "prompt"}``, or one of
        them.  ``prompts``: one for all pictures, or a list of one for each; a dict's own goes before;
        placeholders of image tokens (``<image>``) are taken out.  The texts begin with their prompts, or
        without ``return_full_text`` are what follows them; they end before the first end token of this call.
        ``on_text``: called with the new text of each picture of a batch, a list of strings, as it grows (not
        with beams); it may wait for other threads that use models.  ``decoding``: see
        ``Blip2ImageToTextGeneration.generate``; a wrong argument is an error before any picture is read."""
        how = self.model.decoding(decoding)
        if not isinstance(batch_size, Integral) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size = {batch_size!r}: expected a whole number of at least 1")
        images, prompts = pairs(inputs, prompts)
        prompts = [without_image_tokens(prompt) for prompt in prompts]
        size, texts, many = min(batch_size, len(images)), [], how.num_return_sequences
        starts = range(0, len(images), size)
        for start in progress(starts, desc="write", unit="batch", disable=len(starts) <= 4):
            part = slice(start, start + size)
            texts += self._batch(images[part], prompts[part], size, return_full_text, on_text, how, decoding)
        return texts if many == 1 else [texts[i : i + many] for i in range(0, len(texts), many)]

    def answers(self, images, questions, template=PROMPT, batch_size=8, **decoding):
        """Short answers to questions, one for each picture (or one for all): LAVIS's ``predict_answers`` and
        its defaults."""
        if "{}" not in template:
            raise ValueError(f"prompt = {template!r}: expected {{}} where the question goes, e.g. {PROMPT!r}")
        asked = [questions] if isinstance(questions, str) else list(questions)
        prompts = [template.replace("{}", question) for question in asked]
        return self(
            images, prompts if len(prompts) > 1 else prompts[0], batch_size, False, **merged(ANSWER, decoding)
        )

    def prompt_ids(self, prompt):
        """What follows the queries: bos, where the model has one, and the prompt."""
        return prompt_ids(self.model.config, self.processor.tokenizer, prompt)

    def _batch(self, images, prompts, size, full, on_text, how, decoding):
        rest = size - len(images)  # filled up, so that the last batch has the shape of the others
        image = self.processor.image_processor([*images, *images[-1:] * rest])
        rows = [self.prompt_ids(prompt) for prompt in [*prompts, *prompts[-1:] * rest]]
        many = how.num_return_sequences
        asked, shown = len(prompts) * many, TextStream(self.words, how.ends)
        on_text = unlocked(on_text)
        ids_NT = self.model.generate(
            image, rows, on_text and (lambda token_N: on_text(shown.put(token_N)[:asked])), **decoding
        )
        if on_text:
            on_text(shown.end()[:asked])
        return [
            self._text(prompts[i // many], rows[i // many], ids, full, how.ends)
            for i, ids in enumerate(ids_NT[:asked])
        ]

    def _text(self, prompt, prompt_ids, ids, full, ends):
        """The prompt as it was given and what the new ids add to it up to an end token, or the latter alone.

        Padding stands behind an end token only: a padding token that the model wrote itself ends nothing."""
        ids = [int(one) for one in ids]
        ids = ids[: next((i for i, one in enumerate(ids) if one in ends), len(ids))]
        decode = self.words.decode
        before, whole = decode(prompt_ids), decode(prompt_ids + ids)
        added = whole[len(before) :] if whole.startswith(before) else decode(ids)
        return prompt + added if full else added.strip()


class _Words:
    """A tokenizer to which the rows behind its vocabulary, up to which a model's is rounded, are no text:
    nothing but training keeps a model from writing them."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def decode(self, ids, skip_special_tokens=True):
        return self.tokenizer.decode(
            [int(one) for one in ids if one < len(self.tokenizer)], skip_special_tokens
        )


def pairs(inputs, prompts):
    """Lists of pictures and prompts of the same length; pictures that are decoded on demand as they are."""
    if isinstance(inputs, DecodedPictures) and len(prompts) == len(inputs) and not isinstance(prompts, str):
        return inputs, prompts
    inputs = inputs.asnumpy() if hasattr(inputs, "asnumpy") else array(inputs)
    if isinstance(inputs, np.ndarray) and inputs.ndim == 4:
        inputs = list(inputs)
    inputs = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if not inputs:
        raise ValueError("no pictures to write about: the list is empty")
    if not isinstance(prompts, str):
        prompts = list(prompts)
        if not prompts:
            raise ValueError(
                "the list of prompts is empty: give one prompt for all pictures ('' for none), or one for "
                "each"
            )
        inputs = inputs * len(prompts) if len(inputs) == 1 else inputs
    prompts = [prompts] * len(inputs) if isinstance(prompts, str) else prompts
    if len(prompts) != len(inputs):
        raise ValueError(
            f"{len(inputs)} pictures and {len(prompts)} prompts: give one prompt for all, or one for each "
            "picture"
        )
    images, texts = [], []
    for one, prompt in zip(inputs, prompts):
        if isinstance(one, dict):
            unknown = sorted(set(one) - {"image", "prompt"})
            if "image" not in one or unknown:
                raise ValueError(
                    f"an input is a picture or a dict with 'image' and 'prompt', this one has {sorted(one)}"
                )
            one, prompt = one["image"], one.get("prompt", prompt)
        if not isinstance(prompt, str):
            raise ValueError(f"a prompt is {prompt!r}: expected a string, '' for none")
        images.append(one)
        texts.append(prompt)
    return images, texts
