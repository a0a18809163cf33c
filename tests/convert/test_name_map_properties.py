"""Name maps and their inverses: a checkpoint of any dimensions, converted to torch and back, is the same.

The dimensions are drawn by hypothesis.  Every parameter has different numbers, so a tensor that gets the
wrong name is noticed."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from mindblip2.checkpoint.ckpt import Checkpoint, write_checkpoint  # noqa: E402
from mindblip2.checkpoint.pretrained import no_init  # noqa: E402
from mindblip2.config import Blip2Config, LlamaConfig, OPTConfig  # noqa: E402
from mindblip2.convert.parameter_shapes import llm_shapes  # noqa: E402
from mindblip2.convert.to_mindspore import to_mindspore  # noqa: E402
from mindblip2.convert.to_torch import to_torch  # noqa: E402
from mindblip2.models.blip2_qformer import Blip2Qformer  # noqa: E402

FEW = settings(max_examples=12, deadline=None)
HEAD = 8  # channels of an attention head


def write(path, shapes):
    """A .ckpt with these parameters: positive numbers, no two parameters alike."""
    arrays = {}
    for number, (name, shape) in enumerate(shapes.items(), 1):
        size = int(np.prod(shape))
        arrays[name] = (number + np.arange(size) / (size + 1)).astype(np.float32).reshape(shape)
    write_checkpoint(path, [(name, "Float32", array) for name, array in arrays.items()])
    return arrays


def changed(path, arrays):
    """Names of the parameters of a .ckpt that differ from ``arrays``, or are in one of the two only."""
    stored = Checkpoint(path)
    common = set(stored) & set(arrays)
    return {name for name in common if not np.array_equal(stored[name], arrays[name])} | set(stored) ^ set(
        arrays
    )


@st.composite
def stage_1(draw):
    """A Blip2Config of stage 1 with drawn dimensions."""
    layers = draw(st.integers(1, 4))
    vocabulary, width = draw(st.integers(103, 130)), HEAD * draw(st.integers(1, 3))
    vision = {
        "image_size": 14 * draw(st.integers(1, 3)),
        "patch_size": 14,
        "hidden_size": HEAD * draw(st.integers(1, 3)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": 1,
        "intermediate_size": draw(st.integers(5, 30)),
    }
    qformer = {
        "vocab_size": vocabulary,
        "bos_token_id": vocabulary - 1,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 1,
        "intermediate_size": draw(st.integers(5, 30)),
        "max_position_embeddings": draw(st.integers(8, 20)),
        "encoder_width": vision["hidden_size"],
        "query_length": draw(st.integers(1, 5)),
        "head_embed_dim": draw(st.integers(2, 20)),
        "cross_attention_freq": draw(st.integers(1, layers)),
    }
    return Blip2Config(vision_config=vision, qformer_config=qformer, max_txt_len=8)


@st.composite
def language_model(draw):
    """(LlamaConfig or OPTConfig with drawn dimensions, names of the torch file)."""
    heads = draw(st.integers(1, 4))
    sizes = {
        "hidden_size": HEAD * heads,
        "num_heads": heads,
        "num_layers": draw(st.integers(1, 3)),
        "vocab_size": draw(st.integers(5, 40)),
        "intermediate_size": draw(st.integers(5, 40)),
    }
    names = draw(st.sampled_from(["transformers", "baichuan", "meta", "opt"]))
    if names == "opt":
        return OPTConfig(**sizes, max_position_embeddings=draw(st.integers(4, 20))), None
    kv_heads = draw(st.sampled_from([n for n in range(1, heads) if heads % n == 0] + [None]))
    return LlamaConfig(**sizes, n_kv_heads=None if names == "baichuan" else kv_heads), names


def convert_back(folder, config, names, change=lambda state: state):
    """The .ckpt of a language model → torch file → .ckpt; ``change`` may alter the tensors in between."""
    file = "consolidated.00.pth" if names == "meta" else "pytorch_model.bin"
    to_torch(folder / "model.ckpt", folder / file, names=names, config=config if names == "meta" else None)
    torch.save(change(torch.load(folder / file, weights_only=True)), folder / file)
    if names == "meta":
        (folder / "params.json").write_text(json.dumps({"n_heads": config.num_heads}))
    to_mindspore(folder / file, folder / "back.ckpt", config=Blip2Config(text_config=config))
    return folder / "back.ckpt"


def swapped(state):
    """Two norms of a layer under each other's names."""
    norms = [name for name in state if "norm" in name and "layers.0." in name and name.endswith("weight")]
    first, second = norms[:2]
    return {**state, first: state[second], second: state[first]}


@FEW
@given(language_model())
def test_language_models_are_the_same_after_conversion_in_both_directions(tmp_path_factory, model):
    config, names = model
    folder = tmp_path_factory.mktemp("model")
    arrays = write(folder / "model.ckpt", llm_shapes(config))
    assert changed(convert_back(folder, config, names), arrays) == set()
    wrong = changed(convert_back(folder, config, names, swapped), arrays)  # negative control
    assert wrong == {"llm.layers.0.norm1.gamma", "llm.layers.0.norm2.gamma"}


@FEW
@given(stage_1())
def test_stage_1_is_the_same_after_conversion_in_both_directions(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("model")
    with no_init():
        shapes = {name: tuple(p.shape) for name, p in Blip2Qformer(config).parameters_dict().items()}
    arrays = write(folder / "model.ckpt", shapes)
    state = to_torch(folder / "model.ckpt", folder / "model.pth")
    to_mindspore(folder / "model.pth", folder / "back.ckpt")
    assert changed(folder / "back.ckpt", arrays) == set()
    layer = "Qformer.bert.encoder.layer.0.crossattention.self."
    key, value = layer + "key.weight", layer + "value.weight"
    torch.save({**state, key: state[value], value: state[key]}, folder / "model.pth")  # negative control
    to_mindspore(folder / "model.pth", folder / "back.ckpt")
    memory = ("qformer.memory.key.0.weight", "qformer.memory.value.0.weight")
    assert changed(folder / "back.ckpt", arrays) == set(memory)


@pytest.mark.parametrize("names", ["baichuan", "meta"])
def test_tensors_in_another_layout_are_noticed(tmp_path, names):
    """Negative control of the transforms: W_pack in another order, rotary rows in other pairs."""
    config = LlamaConfig(hidden_size=16, num_heads=2, num_layers=1, vocab_size=5, intermediate_size=7)
    arrays = write(tmp_path / "model.ckpt", llm_shapes(config))
    mark = "W_pack" if names == "baichuan" else "attention.wq"

    def roll(state):
        return {name: value.roll(1, 0) if mark in name else value for name, value in state.items()}

    wrong = changed(convert_back(tmp_path, config, names, roll), arrays)
    projections = ("query", "key", "value") if names == "baichuan" else ("query",)
    assert wrong == {f"llm.layers.0.attention.{name}.weight" for name in projections}
