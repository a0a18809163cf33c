"""What surrounds the networks: pictures and texts become input, and gradients an update. No weights of the
networks.

    # S steps · R, C of a matrix · L letters · T tokens
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from mindblip2.parity import seeded_weights
from mindblip2.parity.candidate.preprocessing import (
    BETAS,
    DECAY,
    EPOCH,
    EPS,
    RATES,
    SIZE,
    TOKENS,
    TOTAL,
    UPDATE_RATES,
    VOCABULARY,
    WARMUP,
)
from mindblip2.parity.candidate.stage1 import ours_of
from mindblip2.parity.inputs import MEAN, STD
from mindblip2.parity.model_triple import Case

TEXTS = (
    "A photo of two naïve cats, on the kitchen's mat!",
    "北京 is the capital; [SEP] 3,141.59 (approx.)",
    "",
    "an extraordinarily long caption that goes on and on, well behind the last of the tokens that there is "
    "room for in a row",
)


def around_cases() -> Iterator[Case]:
    """AdamW over three steps, the two schedules, a picture, tokens."""
    yield Case(
        "adamw",
        their_adamw,
        ours_of("adamw"),
        {
            "matrix": draw("matrix", 48, 64),
            "vector": draw("vector", 64),
            "matrix_gradients": draw("dm", 3, 48, 64),
            "vector_gradients": draw("dv", 3, 64),
        },
    )
    yield Case("schedule", their_schedule, ours_of("schedule"), {"steps": np.arange(TOTAL)})
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3))
    yield Case("picture", their_picture, ours_of("picture"), {"pixels": pixels})
    letters = np.zeros((len(TEXTS), max(map(len, TEXTS))), int)
    for row, text in zip(letters, TEXTS, strict=True):
        row[: len(text)] = [ord(letter) for letter in text]
    yield Case("tokens", their_tokens, ours_of("tokens"), {"letters": letters})


def draw(name: str, *shape: int) -> np.ndarray:
    """Seeded standard normal numbers."""
    return seeded_weights.normal(4, name, shape)


def their_adamw(_, matrix, vector, matrix_gradients, vector_gradients):
    """torch's, with LAVIS's groups: vectors do not decay."""
    found = torch.nn.Parameter(matrix.clone()), torch.nn.Parameter(vector.clone())
    groups = [
        {"params": [one], "weight_decay": decay} for one, decay in zip(found, (DECAY, 0.0), strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=EPS)
    for rate, *gradients in zip(UPDATE_RATES, matrix_gradients, vector_gradients, strict=True):
        for group, parameter, gradient in zip(optimizer.param_groups, found, gradients, strict=True):
            group["lr"], parameter.grad = rate, gradient
        optimizer.step()
    return tuple(one.detach() for one in found)


def their_schedule(twin, steps):
    """The paper's, falling step by step, and LAVIS's LinearWarmupCosineLRScheduler, which falls once per
    epoch."""
    (top, low, start), steps = RATES, steps.to(twin.query_tokens.dtype)
    warm = start + (top - start) * steps / WARMUP
    falling = low + (top - low) * (1 + torch.cos(math.pi * (steps - WARMUP) / (TOTAL - WARMUP))) / 2
    epoch = steps // EPOCH
    by_epoch = (top - low) * (1 + torch.cos(math.pi * epoch / (TOTAL // EPOCH))) / 2 + low
    by_epoch = torch.where(epoch == 0, torch.clamp(warm, max=top), by_epoch)
    return torch.where(steps < WARMUP, warm, falling), by_epoch


def their_picture(twin, pixels):
    """LAVIS's BlipImageEvalProcessor: torchvision resizes a PIL picture by PIL."""
    picture = Image.fromarray(pixels.numpy().astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    unit = torch.from_numpy(np.array(picture)).to(twin.query_tokens.dtype) / 255
    mean, std = (torch.from_numpy(one).to(unit.dtype) for one in (MEAN, STD))
    return ((unit - mean) / std).permute(2, 0, 1)[None]


def their_tokens(_, letters):
    """transformers' BERT tokenizer with LAVIS's [DEC], as numbers to be met exactly."""
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(str(VOCABULARY))
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    texts = ["".join(map(chr, row[row > 0].tolist())) for row in letters]
    return torch.tensor(
        tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS)["input_ids"]
    ).double()
