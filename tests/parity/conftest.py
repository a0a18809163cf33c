"""Networks of the tiny LAVIS checkpoint: ours through the real converter, the twin's in both precisions, made
once."""

import json
from pathlib import Path

import pytest

TINY = Path(__file__).parents[1] / "reference" / "tiny"
FILES = ("blip2_tiny.pth", "blip2_tiny_fp16vit.pth")


def tiny_config(**changes):
    """Our configuration of the tiny checkpoint, from what LAVIS resolved."""
    from mindblip2.config import Blip2Config

    resolved = json.loads((TINY / "config.json").read_text())
    vit, qformer = resolved["resolved"]["vit"], resolved["resolved"]["qformer"]
    same = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "encoder_width",
        "cross_attention_freq",
        "query_length",
    )
    return Blip2Config(
        vision_config=dict(
            image_size=vit["img_size"],
            patch_size=vit["patch_size"],
            hidden_size=vit["embed_dim"],
            num_hidden_layers=vit["depth"],
            num_attention_heads=vit["num_heads"],
            intermediate_size=vit["mlp_hidden"],
        ),
        qformer_config={key: qformer[key] for key in same} | {"head_embed_dim": resolved["embed_dim"]},
        **changes,
    )


def load_model(ckpt, config):
    """Ours, strictly loaded."""
    from mindblip2.models.blip2_qformer import Blip2Qformer

    return Blip2Qformer(config).load_checkpoint(ckpt).set_train(False)


@pytest.fixture(scope="module")
def pynative():
    """PyNative with one torch thread: two that wait for each other on busy cores take ten times as long."""
    import mindspore as ms
    import torch

    from mindblip2.parity.model_triple import pynative

    mode, threads = ms.get_context("mode"), torch.get_num_threads()
    pynative()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    ms.set_context(mode=mode)


@pytest.fixture(scope="session")
def ckpts(tmp_path_factory):
    """File of LAVIS's -> .ckpt, by the converter."""
    from mindblip2.convert.convert_weight import to_mindspore

    folder = tmp_path_factory.mktemp("converted")
    paths = {name: folder / f"{Path(name).stem}.ckpt" for name in FILES}
    for name, path in paths.items():
        to_mindspore(TINY / name, path, config=tiny_config())
    return paths


@pytest.fixture(scope="session")
def lavis():
    """What LAVIS computed."""
    from mindblip2.parity.reference.lavis_arrays import Reference

    return Reference(TINY)


@pytest.fixture(scope="session")
def model(ckpts):
    """Ours, of the float32 file."""
    return load_model(ckpts[FILES[0]], tiny_config())


@pytest.fixture(scope="session")
def suite(model, lavis):
    """All cases on the reference's batch."""
    import torch

    from mindblip2.parity.candidate.chained import batch
    from mindblip2.parity.model_triple import ModelTriple
    from mindblip2.parity.suite import Suite

    nets = ModelTriple(lavis.twin(torch.float64), lavis.twin(torch.float32), model)
    return Suite(nets, batch(lavis.inputs["image"].numpy(), lavis.inputs["input_ids"].numpy()))
