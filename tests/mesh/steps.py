"""The program of a mesh's processes: losses, gradients and five updates of small models, whole and in
float32, and what a small stage 2 writes, into one .npz.

    python tests/mesh/steps.py DATA MODEL FILE PART…    # name:mode[:sharded][:recompute][:wrong], a name of PARTS; writes:mode[:wrong];
                                                        # or "counts"
"""

import sys

import mindspore as ms
import numpy as np

from mindblip2 import device
from mindblip2.checkpoint.pretrained import unshard
from mindblip2.config import Blip2Config, ContextConfig, OptimizerConfig
from mindblip2.distributed import comm
from mindblip2.models.blip2_llm import Blip2ImageToTextGeneration, Blip2Llm
from mindblip2.models.blip2_qformer import Blip2Qformer
from mindblip2.trainer.tasks.pretrain import recompute
from mindblip2.trainer.train_step import TrainStep

BATCH, STEPS, RATE = 8, 5, 1e-2
VISION = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
}
QFORMER = {
    "vocab_size": 31,
    "bos_token_id": 30,
    "sep_token_id": 3,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "query_length": 4,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "encoder_width": 16,
    "head_embed_dim": 8,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
SIZES = {"max_txt_len": 8, "vision_config": VISION, "qformer_config": QFORMER}
LLAMA = {
    "type": "LlamaConfig",
    "vocab_size": 37,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 8,
    "n_kv_heads": 4,
    "intermediate_size": 32,
    "seq_length": 40,
    "initializer_range": None,
}
BAICHUAN = {**LLAMA, "n_kv_heads": 8, "position_embedding": "alibi", "normalized_head": True}
OPT = {
    "type": "OPTConfig",
    "vocab_size": 37,
    "hidden_size": 24,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "initializer_range": None,
}
ONE_LAYER = {
    "text_config": {**LLAMA, "num_layers": 1},
    "vision_config": {**VISION, "num_hidden_layers": 1},
    "freeze_vision": False,
    "qformer_config": {**QFORMER, "num_hidden_layers": 1},
}  # compiled in half of the time
PARTS = {
    "stage1": (Blip2Qformer, {}),
    "trained_vit": (Blip2Qformer, {"freeze_vision": False, "gather_with_grad": True}),
    "llama": (Blip2Llm, {"text_config": LLAMA}),
    "baichuan": (Blip2Llm, {"text_config": BAICHUAN, "freeze_text": False}),
    "opt": (Blip2Llm, {"text_config": OPT}),
    "accumulated": (Blip2Llm, ONE_LAYER),
}
ACCUMULATED = {"accumulated": 2}  # batches of an update, otherwise 1
WRITTEN = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 3},
    "drawn": {"do_sample": True, "temperature": 2.0, "seed": 3},
}


def batch_of(step):
    """The global batch: ragged texts, two pictures with the same id, and given negatives."""
    rng = np.random.default_rng(step)
    ids = rng.integers(4, 30, (BATCH, 8)).astype(np.int32)
    lengths = rng.integers(3, 9, BATCH)
    ids[np.arange(8)[None] >= lengths[:, None]] = 0
    return {
        "image": rng.standard_normal((BATCH, 3, 16, 16)).astype(np.float32),
        "input_ids": ids,
        "image_id": np.array([2**30, 1, 2, 3, 2**30, 5, 6, 7], np.int32),
        "negatives": np.stack([(np.arange(BATCH) + 3) % BATCH, (np.arange(BATCH) + 5) % BATCH]).astype(
            np.int32
        ),
        "prompt_length": np.full(BATCH, 1, np.int32),
        "length": lengths.astype(np.int32),
    }


def own_rows(batch):
    """This data rank's slice."""
    each = BATCH // comm.mesh.data
    rows = slice(comm.data_rank() * each, (comm.data_rank() + 1) * each)
    return {name: array[:, rows] if name == "negatives" else array[rows] for name, array in batch.items()}


def run(part, mode, *flags):
    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    kind, changes = PARTS[part]
    ms.set_seed(7)
    model = kind(Blip2Config(**{**SIZES, **changes}))
    # larger than at the begin of a training, so that everything has an effect
    for _, p in model.parameters_and_names():
        if p.ndim > 1:
            p.set_data(p * (5.0 if part in ("stage1", "trained_vit") else 1.0))
    model.set_train()
    if "recompute" in flags:
        recompute(model)
    step = TrainStep(model, OptimizerConfig(eps=1e-4), shard_optimizer="sharded" in flags)
    if "wrong" in flags:
        wrong_group()
    drop = ("image_id",) if "wrong" in flags else ()
    count = ACCUMULATED.get(part, 1)
    batches = [
        {name: array for name, array in own_rows(batch_of(i)).items() if name not in drop}
        for i in range(STEPS * count)
    ]
    values, _, gradients = step._gradients(batches[0])
    if step.mean is not None:
        _, gradients = step.mean(ms.mutable(gradients))
    made = {
        f"gradient {p.name}": unshard(p, g.asnumpy()) for p, g in zip(step.optimizer.parameters, gradients)
    }
    for number in range(STEPS):
        lot = batches[number * count : (number + 1) * count]
        made |= {f"{name} {number}": np.float32(value) for name, value in step(lot, RATE).items()}
    made |= {f"after {name}": unshard(p) for name, p in model.parameters_dict().items()}
    made |= {f"kept {name}": array for name, _, array in step.optimizer.entries()}
    return {f"{part} {mode} {name}": array for name, array in made.items()}


def written(mode, *flags):
    """Ids after pictures and ragged prompts, 0 behind their ends: the first card's, and how far those of its
    model group are apart."""
    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    ms.set_seed(7)
    model = Blip2ImageToTextGeneration(Blip2Config(**SIZES, text_config=LLAMA)).set_train(False)
    if "wrong" in flags:
        comm._gather_model.sum = ms.ops.identity  # a card sees the logits of its own words only
    image, made = ms.Tensor(batch_of(0)["image"][:3]), {}
    for name, how in WRITTEN.items():
        ids = model.generate(image, [[1, 5, 9], [1, 5], [1, 17, 30, 4]], max_new_tokens=8, **how)
        ids = np.pad(ids, ((0, 0), (0, 8 - ids.shape[1]))).astype(np.float32)
        made |= {
            f"writes {mode} {name}": ids,
            f"writes {mode} apart {name}": np.ptp(comm.gather_shards(ids), 0),
        }
    return made


def counts():
    """What travels in one pass forwards and back through a language model of 2 layers, and with the gradients
    of a step."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    kind, changes = PARTS["llama"]
    model = kind(Blip2Config(**{**SIZES, **changes}))
    x_BTD, mask_BT = ms.ops.ones((2, 6, 32), ms.float32), ms.ops.ones((2, 6), ms.float32)
    with comm.record_communication() as forwards:
        model.llm(x_BTD, mask_BT)
    with comm.record_communication() as both:
        ms.ops.grad(lambda x: model.llm(x, mask_BT).sum())(x_BTD)
    step = TrainStep(model, OptimizerConfig())
    gradients = tuple(ms.ops.ones_like(p) for p in step.optimizer.parameters)
    with comm.record_communication() as averaged:
        if step.mean is not None:
            step.mean(gradients)
    return {
        "forwards": _told(forwards),
        "both": _told(both),
        "averaged": _told([one for one in averaged if one[1] == "data"]),
        "trainable": np.array(sum(p.size * 4 for p in step.optimizer.parameters)),
    }


def _told(tally):
    """Number and bytes of what has travelled."""
    return np.array([len(tally), sum(size for *_, size in tally)])


def wrong_group():
    """The mistake of MindFormers: all processes are taken for data-parallel ones."""
    from mindspore import ops
    from mindspore.communication import GlobalComm

    for cell in (comm._total_data, comm._gather_data):
        cell.sum = ops.AllReduce(group=GlobalComm.WORLD_COMM_GROUP)


def main(data, model, file, parts):
    device.use(ContextConfig(device_target="CPU", mode=1))
    comm.init_mesh(int(data), int(model))
    made = {}
    for part in parts:
        name, *more = part.split(":")
        made |= counts() if name == "counts" else written(*more) if name == "writes" else run(name, *more)
    if comm.is_main_process():
        np.savez(file, **made)


if __name__ == "__main__":
    main(*sys.argv[1:4], sys.argv[4:])
