"""What the processes of mesh_full_width.py compute: single layers with parity's seeded weights, forwards and
back.

    python benchmarks/mesh_layer.py FOLDER CARDS full|small RUN…

RUN is layer:mode[:mistake]; the result of each is a folder of .npy files.

On a mesh of 1 x CARDS each process cuts its pieces of the weights, and the gradients of the pieces are
joined.

B batch · T positions · P image tokens · D width
"""

import contextlib
import dataclasses
import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import nn, ops  # noqa: E402

from mindblip2 import Blip2Config, device
from mindblip2.checkpoint.pretrained import local_shard, no_init, unshard  # noqa: E402
from mindblip2.config import ContextConfig  # noqa: E402
from mindblip2.convert.parameter_shapes import llm_shapes, stage_1_shapes  # noqa: E402
from mindblip2.distributed import comm  # noqa: E402
from mindblip2.distributed.sharding import Split, is_split, whole_shape  # noqa: E402
from mindblip2.models.blip2_qformer import Blip2Qformer  # noqa: E402
from mindblip2.models.layers import Linear, linear  # noqa: E402
from mindblip2.models.qformer import match_bias, pad_mask  # noqa: E402
from mindblip2.parity import seeded_weights  # noqa: E402
from mindblip2.parity.candidate import language_model
from mindblip2.parity.candidate.weights import seeded  # noqa: E402
from mindblip2.parity.defects.patches import replaced  # noqa: E402
from mindblip2.parity.model_triple import Case, cotangent, flattened, tensor  # noqa: E402

MODES = {"pynative": ms.PYNATIVE_MODE, "graph": ms.GRAPH_MODE}
LAYERS = {  # name → what it is, and where its weights are
    "vit": ("a block of ViT-g", ("vit.blocks.0.",)),
    "qformer": ("a layer of the Q-Former", ("qformer.encoder.layers.0.", "qformer.memory.")),
    "llama": ("a layer of Llama-7B", ("llm.layers.0.",)),
}
SMALL = {
    "vision_config": {"image_size": 56, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96},
    "qformer_config": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "encoder_width": 64,
    },
    "text_config": {"hidden_size": 64, "num_heads": 4, "intermediate_size": 96},
}


def configured(small):
    """The published widths, or small ones, with one layer of each kind."""

    def section(name, **changes):
        return {name: {**(SMALL[name] if small else {}), **changes}}

    return Blip2Config(
        **section("vision_config", num_hidden_layers=1),
        **section("qformer_config", num_hidden_layers=1),
        **section("text_config", num_layers=1),
        freeze_vision=False,
    )


def inputs_of(layer, config):
    """{name: array}, in the order of the layer's arguments."""

    def normal(name, *shape):
        return seeded_weights.normal(7, f"{layer} {name}", shape)

    vision, qformer, text = config.vision_config, config.qformer_config, config.text_config
    image_BPD = (2, vision.num_tokens, vision.hidden_size)
    if layer == "vit":
        return {"x": normal("x", *image_BPD)}
    if layer == "qformer":
        ids = np.random.default_rng(7).integers(1000, 20000, (2, 8))
        ids[1, 5:] = qformer.pad_token_id
        return {
            "x": normal("x", 2, qformer.query_length + 8, qformer.hidden_size),
            "image": normal("image", *image_BPD),
            "ids": ids,
        }
    mask = np.ones((3, 12), np.int64)
    mask[1, 8:], mask[2, :4] = 0, 0
    return {"x": normal("x", *mask.shape, text.hidden_size), "mask": mask}


def vit(model, x):
    return model.vit.blocks[0](x)


def qformer(model, x, image, ids):
    """Queries and the text behind them: match, the verb in which all weights of a layer take part."""
    part = model.qformer
    queries = part.query_tokens.shape[1]
    bias = match_bias(pad_mask(ids, part.pad_id), queries)
    query, text, _ = part.encoder.layers[0](x[:, :queries], x[:, queries:], part.memory(image)[0], None, bias)
    return ops.cat((query, text), 1)


def llama(model, x, mask):
    return language_model.kept(model.llm.layers[0](x, *model.llm.begin(x, mask)[1:])[0], mask)


def case_of(layer, config):
    """The layer's comparison, but for the functions."""
    shapes = (
        llm_shapes(language_model.one_layer(config.text_config))
        if layer == "llama"
        else stage_1_shapes(config)
    )
    weights = tuple(name for name in shapes if name.startswith(LAYERS[layer][1]))
    return Case(layer, None, None, inputs_of(layer, config), weights, backward=True)


class Weighted(nn.Cell):
    """(the random linear function of a layer's output, the output)."""

    def __init__(self, model, layer, weights_BTD):
        super().__init__(auto_prefix=False)
        self.model, self.layer, self.weights_BTD = model, layer, weights_BTD

    def construct(self, *inputs):
        y_BTD = self.layer(self.model, *inputs)
        return (y_BTD * self.weights_BTD).sum(), y_BTD


def made(layer, config):
    """Our model with this card's pieces of the layer's weights, and these."""
    with no_init():
        model = (
            language_model.new_cell(language_model.one_layer(config.text_config))
            if layer == "llama"
            else Blip2Qformer(config)
        ).set_train(False)
    weights, given = (
        [p for p in model.get_parameters() if p.name.startswith(LAYERS[layer][1])],
        seeded(config, seeded_weights.SEED),
    )
    for p in weights:
        p.set_data(ms.Tensor(local_shard(p, given(p.name, whole_shape(p)))))
    return model, weights


def computed(case, config):
    """Yields (name, whole array) of the output and the gradients, then "apart": how far the cards are apart
    in what each holds whole."""
    model, weights = made(case.name, config)
    inputs, places = (
        list(case.inputs.values()),
        tuple(i for i, name in enumerate(case.inputs) if name in case.differentiated),
    )
    net = Weighted(model, globals()[case.name], tensor(cotangent(case, 0, inputs[0].shape)))
    (_, y_BTD), gradients = ms.value_and_grad(net, places, weights, has_aux=True)(*map(tensor, inputs))
    found, apart = [y_BTD, *flattened(gradients)], 0.0
    holders = [None] * (1 + len(places)) + weights
    names = ["output", *(f"d {name}" for name in (*case.differentiated, *(p.name for p in weights)))]
    for name, holder in zip(names, holders, strict=True):
        array = found.pop(0).asnumpy()  # one after the other: a layer of Llama has 0.8 GB of gradients
        if holder is None or not is_split(holder, comm.mesh.model):
            apart = max(apart, *(float(np.abs(piece - array).max()) for piece in comm.gather_shards(array)))
            yield name, array
        else:
            yield name, unshard(holder, array)
    yield "apart", np.array(apart)


def every_card_adds(cell, x, bias=None):
    """``Linear.construct`` with the bias within the sum."""
    bias = cell.bias if bias is None else bias
    y = linear(x, cell.weight, bias)
    return comm.reduce_from_tensor_parallel(y) if cell.sums else y


def cut_in_one(split, array, cards, rank):
    """``Split.cut`` of a fused product as if it were a plain one."""
    return CUT(dataclasses.replace(split, parts=1), array, cards, rank)


CUT = Split.cut
MISTAKES = {  # name → in which layers it can be seen, and what is replaced by what
    "no sum of the gradients behind split weights": (LAYERS, comm, "copy_to_tensor_parallel", lambda x: x),
    "no sum of the products": (LAYERS, comm, "reduce_from_tensor_parallel", lambda x: x),
    "a bias that every card adds": (("vit", "qformer"), Linear, "construct", every_card_adds),
    "q, k and v cut as one": (("vit",), Split, "cut", cut_in_one),
}


def place(folder, cards, run):
    """Where a run's arrays are."""
    return Path(folder) / f"{cards} {run}"


def main(folder, cards, size, *runs):
    # a process waits for the other, which writes or is slow; otherwise 30 s
    os.environ.setdefault("MS_NODE_TIMEOUT", "300")
    device.use(ContextConfig(device_target="CPU", mode=1))
    comm.init_mesh(1, int(cards))
    config = configured(size == "small")
    for run in runs:
        layer, mode, *mistake = run.split(":")
        ms.set_context(mode=MODES[mode])
        with replaced(*MISTAKES[mistake[0]][1:]) if mistake else contextlib.nullcontext():
            for name, array in computed(case_of(layer, config), config):
                if comm.is_main_process():
                    place(folder, cards, run).mkdir(exist_ok=True)
                    np.save(place(folder, cards, run) / f"{name}.npy", array)
        gc.collect()


if __name__ == "__main__":
    main(*sys.argv[1:])
