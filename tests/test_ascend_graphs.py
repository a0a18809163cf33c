"""The graphs of an Ascend device at full width, one layer deep: they pass MindSpore's front end (shapes,
dtypes, attributes), hold the kernels of ``cells.ascend``, and nothing that this MindSpore cannot call on such
a device.

No NPU computes them here; tests/models/test_ascend.py has the numbers.
"""

import contextlib
import re
from collections import Counter
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops
from mindspore.common.api import _cell_graph_executor
from mindspore.train import mind_ir_pb2

from mindblip2 import device, load_config
from mindblip2.checkpoint.pretrained import no_init
from mindblip2.models.blip2_llm import Blip2ImageToTextGeneration, Blip2Llm
from mindblip2.models.blip2_qformer import Blip2Qformer
from mindblip2.models.kernels import ascend
from mindblip2.models.vit import ViTBlock
from mindblip2.trainer import export
from mindblip2.trainer.optimizer import AdamW
from mindblip2.trainer.train_step import Gradients

PLUGINS = Path(ms.__file__).parent / "lib" / "plugin"
# Of the front end: no kernel belongs to them.
VIRTUAL = {"Depend", "Load", "MakeTuple", "TupleGetItem", "UpdateState", "Return", "Reshape", "ExpandDims"}
# Of the older kind (aclop), whose name is nowhere in the wheel as a class or a word: MindSpore's own models
# are made of them too.
UNSEEN = {"BiasAddGrad", "Gather", "Stack"}
NARROW = {
    "vision_config": {"num_hidden_layers": 1},
    "qformer_config": {"num_hidden_layers": 2, "vocab_size": 96, "bos_token_id": 95, "sep_token_id": 3},
}
LANGUAGE = {
    "llama": ("blip2_stage2_vit_g_llama_7b", {}),
    "baichuan-13b": (
        "blip2_stage2_vit_g_baichuan_7b",
        {"hidden_size": 5120, "num_heads": 40, "intermediate_size": 13696, "position_embedding": "alibi"},
    ),
    "opt": ("blip2_stage2_vit_g_opt_2_7b", {}),
}
BATCH, TEXT, PROMPT, NEW = 2, 32, 8, 30


@pytest.fixture(scope="module", autouse=True)
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)


def made(cell, preset, dtype, **text):
    config = load_config(preset).model.model_config.replace(compute_dtype=dtype, **NARROW, **text)
    with device.simulate_device("Ascend"), no_init():
        return cell(config)


def primitives(cell, *inputs):
    """How often each primitive is in the graph that ``ms.export`` would write, without the weights, which are
    large."""
    number, _ = _cell_graph_executor.compile(cell, *inputs, phase="export.mindir", do_convert=False)
    graph = mind_ir_pb2.ModelProto()
    graph.ParseFromString(_cell_graph_executor._get_func_graph_proto(cell, number, "mind_ir"))
    own = {one.name for one in graph.functions}
    found = (node.op_type for one in (graph.graph, *graph.functions) for node in one.node)
    return Counter(
        re.sub(r"^REF::|:\d+$", "", name) for name in found if name != "Constant" and name not in own
    )


def all_parts(parts):
    return {
        name: primitives(part.cell.set_train(False), *part.inputs.values()) for name, part in parts.items()
    }


# ------------------------------------------------------------------------------------------------ which kerne
def words():
    """All words in the libraries for Ascend."""
    libraries = (
        "libmindspore_ops_ascend.so",
        "libmindspore_ascend.so.2",
        "ascend/libmindspore_graph_ir.so",
        "ascend/libhccl_plugin.so",
    )
    text = b"\0".join((PLUGINS / name).read_bytes() for name in libraries)
    return {one.decode() for one in re.findall(rb"[A-Za-z0-9_]{3,}", text)}


@pytest.fixture(scope="module")
def known():
    """Is there a kernel of this name: a word of its own, an aclnn function, a class of MindSpore's (C++
    writes a name's length before it) that calls one, or one that takes the primitive apart
    ("UnifyMindIR")?"""
    found = words()
    classes = {
        name
        for word in found
        for length, name in re.findall(r"(?=(?<!\d)(\d+)([A-Z]\w+))", word)
        for name in [name[: int(length)]]
        if len(name) == int(length)
    }
    kernels = {re.sub(r"(Ascend|AclnnKernelMod|UnifyMindIR)$", "", one) for one in classes}

    def knows(name):
        return (
            name in VIRTUAL or name in UNSEEN or name in found or name in kernels or f"aclnn{name}" in found
        )

    return knows


def unknown(known, *graphs):
    return sorted({name for graph in graphs for name in graph if not known(name)})


def test_a_primitive_of_no_ascend_kernel_is_noticed(known):
    """Negative control: names of CPU kernels, and one that does not exist."""
    assert (
        unknown(
            known,
            {"FlashAttentionScore": 1, "MatMul": 1, "LayerNormExt": 1, "RotaryPositionEmbeddingGrad": 1},
        )
        == []
    )
    assert unknown(known, {"FlashAttentionScores": 1, "Eig": 1, "LstsqV2": 1}) == [
        "Eig",
        "FlashAttentionScores",
        "LstsqV2",
    ]


# ------------------------------------------------------------------------------------------------ inference
def test_stage_1(known):
    model = made(Blip2Qformer, "blip2_stage1_vit_g", "bfloat16").set_train(False)
    graphs = all_parts(export.stage1(model, BATCH, TEXT))
    # a ViT block, two layers of the Q-Former, one of which also looks at the image
    assert graphs["see"]["FlashAttentionScore"] == 4
    assert graphs["match"]["FlashAttentionScore"] == 4 and graphs["read"]["FlashAttentionScore"] == 2
    assert all(
        graph["LayerNormExt"] and graph["GeluExt"] and not graph["Softmax"] and not graph["Erf"]
        for graph in graphs.values()
    )
    assert unknown(known, *graphs.values()) == []


@pytest.mark.parametrize("name", LANGUAGE)
def test_stage_2(known, name):
    preset, changes = LANGUAGE[name]
    model = made(
        Blip2ImageToTextGeneration,
        preset,
        "float16",
        text_config={"num_layers": 1, "vocab_size": 96, **changes},
    ).set_train(False)
    parts = export.language(model, BATCH, PROMPT, NEW)
    graphs = all_parts({part: parts[part] for part in ("prefill", "decode")})
    for graph in graphs.values():
        assert graph["FlashAttentionScore"] == 1 and not graph["Softmax"]
        assert graph["RotaryPositionEmbedding"] == (2 if name == "llama" else 0)
        assert (graph["RmsNorm"], graph["LayerNormExt"]) == ((0, 3) if name == "opt" else (3, 0))
    assert unknown(known, *graphs.values()) == []


# ------------------------------------------------------------------------------------------------ training
def test_a_step_of_stage_1(known):
    model = made(Blip2Qformer, "blip2_stage1_vit_g", "bfloat16", freeze_vision=False).set_train()
    image = export.pictures(model, BATCH)
    step = primitives(
        Gradients(model, False),
        image,
        export.whole_numbers(BATCH, TEXT),
        export.whole_numbers(BATCH),
        None,
        Tensor(1.0, ms.float32),
    )
    # Q-Former: see 3, read 2, match 3, caption 2; a block of the ViT. Dropout in the Q-Former's attention
    # keeps that composed.
    assert (
        step["FlashAttentionScore"] == step["FlashAttentionScoreGrad"] == 1
        and step["LayerNormGradExt"]
        and step["GeluGradExt"]
    )
    assert unknown(known, step) == []


def test_a_step_of_stage_2(known):
    model = made(
        Blip2Llm, "blip2_stage2_vit_g_llama_7b", "bfloat16", text_config={"num_layers": 1, "vocab_size": 96}
    ).set_train()
    vit_BPW = Tensor(np.zeros((BATCH, model.config.vision_config.num_tokens, 1408), np.float32))
    lengths = export.whole_numbers(BATCH)
    step = primitives(
        Gradients(model, True),
        vit_BPW,
        export.whole_numbers(BATCH, TEXT),
        lengths,
        lengths,
        Tensor(1.0, ms.float32),
    )
    assert (
        step["RotaryPositionEmbeddingGrad"] == 2
        and step["RmsNormGrad"] == 3
        and step["FlashAttentionScoreGrad"] == 1
    )
    assert unknown(known, step) == []


def test_an_update(known):
    block = ViTBlock(
        load_config("blip2_stage1_vit_g").model.model_config.vision_config.replace(
            hidden_size=64, num_attention_heads=4, intermediate_size=96
        )
    )
    optimizer = AdamW(block.trainable_params(), load_config("blip2_stage1_vit_g").optimizer)
    gradients = tuple(tuple(optimizer.parameters[i] * 1.0 for i in members) for members in optimizer.members)
    update = primitives(optimizer.update, gradients, Tensor(1e-4, ms.float32), Tensor(0.5, ms.float32))
    assert update["AdamWeightDecay"] == len(optimizer.parameters)
    assert unknown(known, update) == []


# ------------------------------------------------------------------------------------------------ what the fr
@pytest.mark.parametrize("wrong", ["nothing", "heads", "layout", "rotation", "norm"])
def test_a_wrong_attribute_does_not_pass(wrong, monkeypatch):
    attention, rotation, norm = ops.flash_attention_score, ops.rotary_position_embedding, ops.rms_norm
    if wrong == "heads":
        monkeypatch.setattr(
            ascend.ops,
            "flash_attention_score",
            lambda q, k, v, heads, **how: attention(q, k, v, heads + 1, **how),
        )
    if wrong == "layout":
        monkeypatch.setattr(
            ascend.ops,
            "flash_attention_score",
            lambda q, k, v, heads, **how: attention(q, k, v, heads, **{**how, "input_layout": "BSH"}),
        )
    if wrong == "rotation":
        monkeypatch.setattr(
            ascend.ops,
            "rotary_position_embedding",
            lambda x, cos, sin, mode: rotation(x, cos, sin[..., 1:], mode),
        )
    if wrong == "norm":
        monkeypatch.setattr(ascend.ops, "rms_norm", lambda x, gamma, eps: norm(x, gamma[1:], eps))
    text = {"num_layers": 1, "vocab_size": 96, "hidden_size": 512, "num_heads": 4, "intermediate_size": 96}
    model = made(Blip2ImageToTextGeneration, "blip2_stage2_vit_g_llama_7b", "float16", text_config=text)
    part = export.language(model, BATCH, PROMPT, NEW)["prefill"]
    with (
        contextlib.nullcontext()
        if wrong == "nothing"
        else pytest.raises((RuntimeError, ValueError, TypeError))
    ):
        primitives(part.cell.set_train(False), *part.inputs.values())
