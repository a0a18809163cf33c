"""The language model of the demo, taught by itself: it reads the demo's texts without pictures, and stays as
it is from then on.

    python -m mindblip2.demo.pretrain_lm itt_blip2_digits output/digits_words/words.ckpt

B batch · T text
"""

import itertools
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindblip2 import device
from mindblip2.checkpoint.ckpt import write_checkpoint
from mindblip2.config import ScheduleConfig, load_config
from mindblip2.data.processor import Blip2Processor
from mindblip2.data.text.prompting import check_language_vocabulary
from mindblip2.demo import scenes
from mindblip2.models import losses
from mindblip2.models.blip2_llm import LANGUAGE_MODELS
from mindblip2.trainer.logging import TrainingLog
from mindblip2.trainer.lr_schedule import learning_rate
from mindblip2.trainer.optimizer import AdamW

STEPS, BATCH = 1500, 64
NOTES = 0.1  # what a word of the notes counts
SCHEDULE = ScheduleConfig(learning_rate=2e-3, lr_end=2e-5, warmup_lr_init=2e-5, warmup_steps=100)


class Words(nn.Cell):
    """(loss, share of words foreseen) of the language model over ids (B, T) of texts of ``length`` (B,)
    tokens.  The first, the ``notes`` (B,), count less: nobody can foresee what a scene holds."""

    def __init__(self, config):
        super().__init__()
        self.llm = LANGUAGE_MODELS[type(config)](config, "float32", "float32")

    def construct(self, ids_BT, length, notes):
        place_1T = ops.arange(ids_BT.shape[1])[None]
        read_BT = (place_1T < length[:, None]).astype(ms.float32)
        counts_BT = read_BT * (1.0 - (1.0 - NOTES) * (place_1T < notes[:, None]).astype(ms.float32))
        logits_BTV = self.llm.head(self.llm(self.llm.embed(ids_BT), read_BT)[:, :-1])
        return (
            losses.next_token_loss(logits_BTV, ids_BT[:, 1:], counts_BT[:, 1:]),
            losses.token_accuracy(logits_BTV, ids_BT[:, 1:], read_BT[:, 1:]),
        )


def batches(config, tokenizer, steps, batch):
    """(ids (B, T), length (B,), notes (B,)) int32, ``steps`` times: texts between bos and end, padded on the
    right."""
    text, length = config.model.model_config.text_config, config.processor.tokenizer.max_length
    told = scenes.texts(steps * batch, config.seed)
    for _ in range(steps):
        rows, begins = [], []
        for notes, said in itertools.islice(told, batch):
            rows.append(
                [
                    text.bos_token_id,
                    *tokenizer.encode(notes + said, add_special_tokens=False),
                    text.end_token_ids[0],
                ]
            )
            begins.append(1 + len(tokenizer.encode(notes, add_special_tokens=False)))
        longest = max(map(len, rows))
        if longest > length:
            raise ValueError(
                f"a text of {longest} tokens, but processor.tokenizer.max_length = {length}: raise it"
            )
        padded = [row + [text.pad_token_id] * (length - len(row)) for row in rows]
        yield tuple(np.array(x, np.int32) for x in (padded, [len(row) for row in rows], begins))


def teach(config, path, steps=STEPS, batch=BATCH):
    """Train the language model of a RunConfig on the demo's texts and write it to ``path``, as a file of
    stage 2's ``llm.*``; the log and the curves lie beside it.  Returns the log."""
    device.use(config.context)
    ms.set_seed(config.seed)
    tokenizer = Blip2Processor.from_config(config.processor).tokenizer
    check_language_vocabulary(config.model.model_config, tokenizer)
    model = Words(config.model.model_config.text_config)
    value_and_grad = ops.value_and_grad(
        model, None, ms.ParameterTuple(model.trainable_params()), has_aux=True
    )
    update = AdamW(model.trainable_params(), config.optimizer)
    monitor = TrainingLog(Path(path).parent / "log", steps, config.runner_config.log_every)
    try:
        for step, made in enumerate(batches(config, tokenizer, steps, batch)):
            (loss, accuracy), gradients = value_and_grad(*map(Tensor, made))
            rate = learning_rate(SCHEDULE, step, steps, steps)
            update(gradients, rate)
            monitor.add({"lm": float(loss), "word_acc": float(accuracy), "lr": rate}, batch)
    finally:
        monitor.close()
    write_checkpoint(path, ((name, str(p.dtype), p.asnumpy()) for name, p in model.parameters_dict().items()))
    print(f"language model is saved at: {path}")
    return monitor.log


if __name__ == "__main__":
    teach(load_config(sys.argv[1]), sys.argv[2])
