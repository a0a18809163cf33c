"""Our side of the cases of what surrounds the networks (mindblip2/parity/cases/preprocessing.py)."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor
from PIL import Image

from mindblip2.config import OptimizerConfig, ScheduleConfig
from mindblip2.data.processor import Blip2ImageProcessor
from mindblip2.data.text.tokenizer import VOCAB_FILE, BertTokenizer
from mindblip2.trainer import lr_schedule, optimizer

BETAS, EPS, DECAY = (0.9, 0.98), 1e-8, 0.05
UPDATE_RATES = (1e-3, 2e-3, 5e-4)
RATES = (1e-4, 1e-5, 1e-6)  # highest, last, first of the warm-up
TOTAL, EPOCH, WARMUP = 60, 20, 15  # steps
SIZE, TOKENS = 32, 24
VOCABULARY = VOCAB_FILE


def adamw(_, matrix, vector, matrix_gradients, vector_gradients):
    """Both parameters after three steps."""
    parameters = [
        Parameter(Tensor(value.asnumpy()), name=name)
        for name, value in (("weight", matrix), ("bias", vector))
    ]
    update = optimizer.AdamW(
        parameters, OptimizerConfig(beta1=BETAS[0], beta2=BETAS[1], eps=EPS, weight_decay=DECAY)
    )
    for rate, *gradients in zip(UPDATE_RATES, matrix_gradients, vector_gradients, strict=True):
        update(gradients, rate)
    return tuple(Tensor(one.asnumpy()) for one in parameters)


def rates(_, steps):
    """Those of both schedules."""
    top, low, start = RATES
    configs = (
        ScheduleConfig(type=name, learning_rate=top, lr_end=low, warmup_lr_init=start, warmup_steps=WARMUP)
        for name in ("cosine", "cosine_epoch")
    )
    return tuple(
        Tensor(
            np.array(
                [lr_schedule.learning_rate(config, int(step), TOTAL, EPOCH) for step in steps.asnumpy()],
                np.float32,
            )
        )
        for config in configs
    )


def picture(_, pixels):
    """One picture, normalised (1, 3, S, S)."""
    return Blip2ImageProcessor(SIZE)(Image.fromarray(pixels.asnumpy().astype(np.uint8)))


def tokens(_, letters):
    """Ids (B, T), as numbers."""
    texts = ["".join(map(chr, row[row > 0].tolist())) for row in letters.asnumpy()]
    return BertTokenizer()(texts, max_length=TOKENS, return_tensors="ms")["input_ids"].astype(ms.float32)


AROUND = {r"adamw": adamw, r"schedule": rates, r"picture": picture, r"tokens": tokens}
