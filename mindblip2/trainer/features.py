"""Embeddings of many pictures and texts as NumPy arrays.

I pictures · T texts · Q queries · D width · E embed · L tokens
"""
import numpy as np

from mindblip2.progress import progress
from mindblip2.trainer.retrieval import text_features


def extract(model, image_processor, pictures, ids_TL=None, batch_size=8):
    """Dict of float32 arrays with the names of LAVIS's ``extract_features``; only of what is given.

    ``image_embeds`` (I, Q, D): what the queries saw, not normalised; ``image_embeds_proj`` (I, Q, E): the same made comparable with
    texts, unit vectors; ``text_embeds_proj`` (T, E): the texts' [CLS], unit vectors.  The similarity of picture i and text t is
    ``(image_embeds_proj[i] @ text_embeds_proj[t]).max()``: the best query counts."""
    model.set_train(False)
    arrays, size = {}, min(batch_size, len(pictures))
    if pictures:
        made = [_seen(model, image_processor, pictures[start:start + size], size)
                for start in progress(range(0, len(pictures), size), desc="see", unit="batch")]
        for name, parts in zip(("image_embeds", "image_embeds_proj"), zip(*made)):
            arrays[name] = np.concatenate(parts)
    if ids_TL is not None:
        lengths_T = (ids_TL != model.config.qformer_config.pad_token_id).sum(1)
        arrays["text_embeds_proj"] = text_features(model, ids_TL, lengths_T).asnumpy()
    return arrays


def _seen(model, image_processor, pictures, size):
    """Both embeddings of one batch; a last batch that is not full is filled up, so that one shape is compiled."""
    full = pictures + pictures[-1:] * (size - len(pictures))
    features = model.extract_features({"image": image_processor(full)}, "image")
    return [array.asnumpy()[:len(pictures)] for array in (features.image_embeds, features.image_embeds_proj)]
