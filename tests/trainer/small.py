"""A model small enough to train in a test, and batches for it."""

import numpy as np

from mindblip2.config import Blip2Config, load_config
from mindblip2.models.blip2_qformer import Blip2Qformer

SIZES = {
    "max_txt_len": 8,
    "freeze_vision": False,
    "vision_config": {
        "image_size": 16,
        "patch_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "drop_path_rate": 0.2,
    },
    "qformer_config": {
        "vocab_size": 30,
        "bos_token_id": 29,
        "sep_token_id": 3,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "query_length": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "encoder_width": 16,
        "head_embed_dim": 8,
        "max_position_embeddings": 16,
    },
}


class Batches:
    """``count`` batches per epoch, a function of (epoch, place), as ``Feed`` gives them."""

    def __init__(self, count=3, size=4):
        self.count, self.size = count, size

    def __len__(self):
        return self.count

    def epoch(self, epoch, start_step=0):
        for place in range(start_step, self.count):
            rng = np.random.default_rng([epoch, place])
            yield {
                "image": rng.standard_normal((self.size, 3, 16, 16)).astype(np.float32),
                "input_ids": rng.integers(4, 29, (self.size, 8)).astype(np.int32),
                "image_id": np.arange(self.size, dtype=np.int32),
            }


def small_model(**changes):
    import mindspore as ms

    ms.set_seed(3)
    return Blip2Qformer(Blip2Config(**SIZES).replace(**changes))


def run_config(**changes):
    overrides = {
        "runner_config.epochs": 2,
        "runner_config.batch_size": 4,
        "runner_config.log_every": 2,
        "lr_schedule.warmup_steps": 2,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return load_config("blip2_digits", overrides)


# ------------------------------------------------------------------------------------------------ evaluation
class Numbers:
    """A processor of arrays, and of texts that are token ids already."""

    max_length = 8

    def __init__(self):
        self.tokenizer = self

    def image_processor(self, pictures, return_tensors=None):
        from mindspore import Tensor

        stacked = np.stack([np.asarray(picture) for picture in pictures])
        return stacked if return_tensors else Tensor(stacked)

    def __call__(self, texts, max_length, padding, return_tensors):
        rows = [[int(word) for word in text.split()] for text in texts]
        return {
            "input_ids": np.array([row + [0] * (max_length - len(row)) for row in rows], np.int32),
            "attention_mask": np.array(
                [[1] * len(row) + [0] * (max_length - len(row)) for row in rows], np.int32
            ),
        }


class OneCaptionEach(list):
    """Samples as a loader with ``stage: train`` gives them."""

    repeat_images = True


def held_out_samples(count=6):
    """Pictures with their captions, always the same."""
    rng = np.random.default_rng(5)
    return [
        {
            "image": rng.standard_normal((3, 16, 16)).astype(np.float32),
            "captions": [" ".join(map(str, rng.integers(4, 29, 5)))],
        }
        for _ in range(count)
    ]


def held_out_losses(model, config):
    """The evaluation of the losses of ``held_out_samples``."""
    from mindblip2.trainer.evaluator import make_evaluator

    pairs = OneCaptionEach(
        {"image": one["image"], "caption": one["captions"][0], "image_id": i}
        for i, one in enumerate(held_out_samples())
    )
    return make_evaluator(config, model, Numbers(), pairs)
