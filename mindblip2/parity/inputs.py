"""What the networks are given: pictures and captions, the same on every host."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mindblip2.config import Blip2Config
from mindblip2.config.schema import ConfigError
from mindblip2.parity import seeded_weights

# CLIP's
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
CLS, FIRST_WORD = 101, 1000  # BERT's ids; in a smaller vocabulary all but the special ids are words
CAPTIONS = 8  # per picture


def pictures(count: int, size: int, channels: int = 3) -> np.ndarray:
    """``count`` pictures (B, C, S, S), normalised: scikit-learn's two photographs if it is installed and they
    have three channels, and random numbers."""
    # found, not imported, which takes a second
    sklearn = importlib.util.find_spec("sklearn") if channels == 3 else None
    files = (
        sorted((Path(sklearn.origin).parent / "datasets" / "images").glob("*.jpg"))[:count] if sklearn else []
    )
    found = []
    for file in files:
        with Image.open(file) as opened:
            photograph = np.asarray(opened)
        pixels = torch.from_numpy(((photograph / 255 - MEAN) / STD).transpose(2, 0, 1)[None])
        found.append(
            torch.nn.functional.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)[0]
        )
    noise = [
        seeded_weights.normal(5, f"picture {i}", (channels, size, size)) for i in range(len(found), count)
    ]
    return np.stack([*found, *noise]).astype(np.float32)


def captions(count: int, config: Blip2Config) -> np.ndarray:
    """Random words (N, B, T), [CLS] first, [SEP] last, padded."""
    qformer, rng = config.qformer_config, np.random.default_rng(6)
    cls, ordinary = words_of(config)
    words = ordinary[rng.integers(0, len(ordinary), (CAPTIONS, count, config.max_txt_len))]
    words[..., 0] = cls
    length = rng.integers(min(5, config.max_txt_len - 1), config.max_txt_len, (CAPTIONS, count, 1))
    place = np.arange(config.max_txt_len)
    return np.where(
        place < length, words, np.where(place == length, qformer.sep_token_id, qformer.pad_token_id)
    )


def words_of(config: Blip2Config) -> tuple[int, np.ndarray]:
    """The id that stands for [CLS], and the ids of ordinary words. Raises :class:`ConfigError` for a
    vocabulary without words."""
    qformer = config.qformer_config
    special = (qformer.bos_token_id, qformer.pad_token_id, qformer.sep_token_id)
    large = qformer.vocab_size > 2 * FIRST_WORD
    ordinary = np.setdiff1d(np.arange(FIRST_WORD if large else 0, qformer.vocab_size), special)
    if len(ordinary) < 2 or config.max_txt_len < 2:
        raise ConfigError(
            f"vocab_size = {qformer.vocab_size}, max_txt_len = {config.max_txt_len}: parity needs captions "
            "of two tokens, "
            "and two ids that are neither bos_token_id, pad_token_id nor sep_token_id"
        )
    return (CLS, ordinary) if large else (int(ordinary[0]), ordinary[1:])
