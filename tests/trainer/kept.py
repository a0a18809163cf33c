"""How much memory a training step keeps for its gradient: prints the bytes that a process of its own has
grown by.

    python tests/trainer/kept.py PART PAIRS     # a name of PARTS
"""

import sys

import mindspore as ms
import numpy as np
from mindspore import ops

from mindblip2 import device
from mindblip2.config import Blip2Config, ContextConfig
from mindblip2.models.blip2_llm import Blip2Llm
from mindblip2.models.blip2_qformer import Blip2Qformer
from mindblip2.trainer.train_step import losses_of

TEXT = 24
VISION = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 768,
}
QFORMER = {
    "vocab_size": 3001,
    "bos_token_id": 3000,
    "sep_token_id": 3,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "query_length": 16,
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "encoder_width": 192,
    "head_embed_dim": 64,
    "max_position_embeddings": 64,
}
SIZES = {"max_txt_len": TEXT, "vision_config": VISION, "qformer_config": QFORMER}
LLAMA = {
    "type": "LlamaConfig",
    "vocab_size": 3000,
    "hidden_size": 256,
    "num_layers": 4,
    "num_heads": 8,
    "intermediate_size": 688,
    "seq_length": 64,
}
OPT = {
    "type": "OPTConfig",
    "vocab_size": 3000,
    "hidden_size": 256,
    "num_layers": 4,
    "num_heads": 8,
    "intermediate_size": 1024,
    "max_position_embeddings": 64,
}
STILL = {**QFORMER, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PARTS = {
    "stage1": (Blip2Qformer, {}),
    "trained_vit": (Blip2Qformer, {"freeze_vision": False}),
    "still": (Blip2Qformer, {"qformer_config": STILL}),
    "llama": (Blip2Llm, {"text_config": LLAMA}),
    "trained_llama": (Blip2Llm, {"text_config": LLAMA, "freeze_text": False}),
    "opt": (Blip2Llm, {"text_config": OPT}),
    "trained_opt": (Blip2Llm, {"text_config": OPT, "freeze_text": False}),
}


def config_of(part):
    return Blip2Config(**{**SIZES, **PARTS[part][1]})


def resident():
    """Bytes of memory that this process has."""
    with open("/proc/self/statm", encoding="ascii") as numbers:
        return int(numbers.read().split()[1]) * 4096


def growth(part, pairs):
    """By how much the process has grown when the losses are there and their gradients are not."""
    config = config_of(part)
    model = PARTS[part][0](config).set_train()
    frozen = not any(p.requires_grad for p in model.vit.get_parameters())
    losses, rng = losses_of(model, frozen), np.random.default_rng(0)
    vision = config.vision_config
    shape = (vision.num_tokens, vision.hidden_size) if frozen else (3, vision.image_size, vision.image_size)
    # a frozen ViT has run before
    picture = ms.Tensor(rng.standard_normal((pairs, *shape)).astype(np.float32))
    ids = ms.Tensor(rng.integers(4, 3000, (pairs, TEXT)).astype(np.int32))
    sizes = [resident()]

    def passed(*inputs):
        loss = losses(*inputs)
        loss[0].asnumpy()
        sizes.append(resident())
        return loss

    ops.value_and_grad(passed, None, ms.ParameterTuple(model.trainable_params()), has_aux=True)(
        picture, ids, None, None, ms.Tensor(1.0, ms.float32)
    )
    return sizes[1] - sizes[0]


if __name__ == "__main__":
    device.use(ContextConfig(device_target="CPU", mode=1))
    print(growth(sys.argv[1], int(sys.argv[2])))
