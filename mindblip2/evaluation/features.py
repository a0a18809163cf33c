"""Embeddings of many pictures and texts as NumPy arrays.

I pictures · T texts · Q queries · D width · E embed · L tokens
"""

import numpy as np

from mindblip2.data.text.checks import cleaned
from mindblip2.data.text.cleaning import BlipCaption
from mindblip2.evaluation.retrieval import text_features
from mindblip2.evaluation.zero_shot import check_finite
from mindblip2.file_io import read_text
from mindblip2.progress import progress
from mindblip2.trainer.data_sources import text_arguments, token_ids


def caption_lines(path):
    """The captions of a text file, one per line; empty lines are left out.  Raises FileError for what is not
    UTF-8."""
    return [
        line
        for line in read_text(path, "a text file with a caption per line", "save it as UTF-8").splitlines()
        if line.strip()
    ]


def caption_ids(trainer, processor, captions):
    """Captions as the Q-Former reads them: (T, L) int32, by the rule of ``Blip2Processor``, which for a
    preset gives the same ids.

    Unless ``processor.clean`` is false they are cleaned as LAVIS's feature extraction does
    (``blip_caption``), with at most ``eval_dataset.text_transforms.max_words`` words; its ``prompt`` goes in
    front; L is the lesser of its ``max_length`` and the processor's.  Warns of captions that are cut."""
    text = text_arguments(trainer.config, trainer.config.eval_dataset.text_transforms, processor)
    if processor.cleans:
        texts = cleaned(captions, BlipCaption(text["prompt"], text["max_words"]))
    else:
        texts = [text["prompt"] + caption for caption in captions]
    return token_ids(trainer.model, processor.tokenizer, texts, text["max_length"])


def extract(model, image_processor, pictures, ids_TL=None, batch_size=8):
    """Dict of float32 arrays with the names of LAVIS's ``extract_features``; only of what is given.  Raises
    FloatingPointError where they are not finite.

    ``image_embeds`` (I, Q, D): what the queries saw, not normalised; ``image_embeds_proj`` (I, Q, E): the
    same made comparable with texts, unit vectors; ``text_embeds_proj`` (T, E): the texts' [CLS], unit
    vectors.  The similarity of picture i and text t is ``(image_embeds_proj[i] @
    text_embeds_proj[t]).max()``: the best query counts."""
    model.set_train(False)
    arrays, size = {}, min(batch_size, len(pictures))
    if pictures:
        made = [
            _seen(model, image_processor, pictures[start : start + size], size)
            for start in progress(range(0, len(pictures), size), desc="see", unit="batch")
        ]
        for name, parts in zip(("image_embeds", "image_embeds_proj"), zip(*made)):
            arrays[name] = np.concatenate(parts)
    if ids_TL is not None:
        lengths_T = (ids_TL != model.config.qformer_config.pad_token_id).sum(1)
        arrays["text_embeds_proj"] = text_features(model, ids_TL, lengths_T).asnumpy()
    return {name: check_finite(array, name) for name, array in arrays.items()}


def _seen(model, image_processor, pictures, size):
    """Both embeddings of one batch; a last batch that is not full is filled up, so that one shape is
    compiled."""
    full = pictures + pictures[-1:] * (size - len(pictures))
    features = model.extract_features({"image": image_processor(full)}, "image")
    return [array.asnumpy()[: len(pictures)] for array in (features.image_embeds, features.image_embeds_proj)]
