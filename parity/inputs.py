"""What the networks are given: pictures and captions, the same on every host."""

import numpy as np
import torch

from mindblip2.config import Blip2Config
from parity import seeded_weights

MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])  # CLIP's
CLS, FIRST_WORD = 101, 1000  # BERT's ids
CAPTIONS = 8  # per picture


def pictures(count: int, size: int) -> np.ndarray:
    """``count`` pictures (B, 3, S, S), normalised: scikit-learn's two photographs if it is installed, and noise."""
    try:
        from sklearn.datasets import load_sample_images
        photographs = load_sample_images().images[:count]
    except ImportError:
        photographs = []
    found = []
    for photograph in photographs:
        pixels = torch.from_numpy(((photograph / 255 - MEAN) / STD).transpose(2, 0, 1)[None])
        found.append(torch.nn.functional.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)[0])
    noise = [seeded_weights.normal(5, f"picture {i}", (3, size, size)) for i in range(len(found), count)]
    return np.stack([*found, *noise]).astype(np.float32)


def captions(count: int, config: Blip2Config) -> np.ndarray:
    """Random words (N, B, T), [CLS] first, [SEP] last, padded."""
    qformer, rng = config.qformer_config, np.random.default_rng(6)
    words = rng.integers(FIRST_WORD, qformer.vocab_size - 1, (CAPTIONS, count, config.max_txt_len))
    words[..., 0] = CLS
    length = rng.integers(5, config.max_txt_len, (CAPTIONS, count, 1))
    place = np.arange(config.max_txt_len)
    return np.where(place < length, words, np.where(place == length, qformer.sep_token_id, qformer.pad_token_id))
