"""Weights are found by name and loaded strictly: a model is either loaded whole or left as it was."""

import logging
import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from mindblip2.checkpoint import pretrained
from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError, write_checkpoint
from mindblip2.config import load_config, presets
from mindblip2.models.blip2_qformer import Blip2Classifier, Blip2Qformer

TINY = Path(__file__).resolve().parents[1] / "fixtures" / "tiny.yaml"


@pytest.fixture(scope="module", autouse=True)
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture(scope="module")
def config():
    return load_config(TINY).model.model_config


@pytest.fixture(scope="module")
def model(config):
    return Blip2Qformer(config)


@pytest.fixture
def saved(tmp_path, config):
    """The weights of another random model: {name: (type name, array)}, and a function that writes them."""
    arrays = {name: ["Float32", p.asnumpy()] for name, p in Blip2Qformer(config).parameters_dict().items()}

    def write():
        write_checkpoint(tmp_path / "x.ckpt", ((name, kind, array) for name, (kind, array) in arrays.items()))
        return tmp_path / "x.ckpt"

    return arrays, write


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDBLIP2_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def values(model):
    return {name: p.asnumpy().copy() for name, p in model.parameters_dict().items()}


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


# ------------------------------------------------------------------------------------------------ strict load
def test_every_parameter_is_loaded(model, saved, caplog):
    arrays, write = saved
    with caplog.at_level(logging.INFO, "mindblip2"):
        assert model.load_checkpoint(write()) is model
    assert_equal(values(model), {name: array for name, (_, array) in arrays.items()})
    assert f"{len(arrays)} of {len(arrays)} parameters" in caplog.text


def test_a_loaded_model_computes_what_the_saved_one_did(config, tmp_path):
    first, second = Blip2Qformer(config).set_train(False), Blip2Qformer(config).set_train(False)
    image = ms.Tensor(np.random.default_rng(0).standard_normal((2, 3, 56, 56)), ms.float32)
    ids = ms.Tensor([[1, 5, 3, 0], [1, 7, 9, 3]], ms.int32)
    expected = first.text_features(ids).asnumpy(), first.embed_image(image).asnumpy()
    first.save_checkpoint(tmp_path / "x.ckpt")
    second.load_checkpoint(tmp_path / "x.ckpt")
    np.testing.assert_array_equal(second.text_features(ids).asnumpy(), expected[0])
    np.testing.assert_array_equal(second.embed_image(image).asnumpy(), expected[1])


def test_float16_and_bfloat16_are_widened(model, saved):
    arrays, write = saved
    expected = {}
    for i, (name, (_, array)) in enumerate(arrays.items()):
        bits = array.view(np.uint32) if array.shape else np.asarray(array).view(np.uint32)
        arrays[name] = [("Float16", array.astype(np.float16)), ("BFloat16", (bits >> 16).astype(np.uint16))][
            i % 2
        ]
        expected[name] = (
            array.astype(np.float16).astype(np.float32)
            if i % 2 == 0
            else np.asarray(bits & 0xFFFF0000, np.uint32).view(np.float32)
        )
    assert arrays["temp"][0] in ("Float16", "BFloat16")
    model.load_checkpoint(write())
    assert_equal(values(model), expected)
    assert {p.dtype for p in model.get_parameters()} == {ms.float32}


def drop(*prefixes):
    def change(arrays):
        for name in [name for name in arrays if name.startswith(prefixes)]:
            del arrays[name]

    return change


def add(name):
    return lambda arrays: arrays.update({name: ["Float32", np.zeros(2, np.float32)]})


def put(name, shape):
    return lambda arrays: arrays.update({name: ["Float32", np.zeros(shape, np.float32)]})


def stage2(arrays):
    for name in [
        n for n in arrays if ".text_" in n or "embeddings" in n or n.startswith(("text_proj", "itm", "temp"))
    ]:
        del arrays[name]
    add("llm_proj.weight")(arrays)


FLAWS = {
    "missing": (
        drop("itm_head.bias"),
        ["missing: itm_head.bias", "Use the --config that belongs to the file"],
    ),
    "unexpected": (add("itm_head.scale"), ["unexpected: itm_head.scale", "Use the --config that belongs"]),
    "one block less": (drop("vit.blocks.1."), ["(13 in all)", "Use the --config that belongs to the file"]),
    "both": (
        lambda arrays: (drop("temp")(arrays), add("logit_scale")(arrays)),
        ["missing: temp", "unexpected: logit_scale"],
    ),
    "no ViT": (drop("vit."), ["missing: vit.", "It has no ViT: convert again with --vit_path eva_vit_g.pth"]),
    "stage 2": (
        stage2,
        ["missing:", "in all", "stage-2 checkpoint", "convert blip2_pretrained.pth (stage 1)"],
    ),
    "another model": (
        drop("vit.", "qformer."),
        ["It is not a mindblip2 stage-1 checkpoint: convert one with python convert/convert_weight.py"],
    ),
    "shape": (
        put("itm_head.weight", (3, 24)),
        [
            "1 parameters have another shape, first itm_head.weight: (3, 24) in the file, (2, 24) expected",
            "use the --config that belongs to the file",
        ],
    ),
    "transposed": (put("vit.blocks.0.mlp.up.weight", (32, 48)), ["(32, 48) in the file, (48, 32) expected"]),
    "image size": (
        put("vit.pos_embed", (1, 26, 32)),
        [
            "(1, 26, 32) in the file, (1, 17, 32) expected",
            "convert it with --image_size",
            "vision_config.image_size",
        ],
    ),
    "scalar": (put("temp", (1,)), ["temp: (1,) in the file, () expected"]),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_what_does_not_fit_is_an_error_that_names_the_next_step_and_changes_nothing(model, saved, flaw):
    arrays, write = saved
    change, complaints = FLAWS[flaw]
    change(arrays)
    before = values(model)
    with pytest.raises(CheckpointError) as error:
        model.load_checkpoint(write())
    assert [text for text in complaints if text not in str(error.value)] == []
    assert_equal(values(model), before)


def test_the_numbers_of_both_sides_are_in_the_report(model, saved):
    arrays, write = saved
    drop("vit.blocks.1.")(arrays)
    with pytest.raises(CheckpointError, match=rf"{len(arrays)} of {len(arrays) + 13} parameters are in it"):
        model.load_checkpoint(write())


def test_a_torch_file_is_answered_with_the_command_that_converts_it(model, tmp_path):
    (tmp_path / "blip2_pretrained.pth").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(
        CheckpointError, match="convert/convert_weight.py --torch_path .*blip2_pretrained.pth"
    ):
        model.load_checkpoint(tmp_path / "blip2_pretrained.pth")


def test_a_truncated_file_changes_nothing(model, saved):
    _, write = saved
    path = write()
    path.write_bytes(path.read_bytes()[:-100])
    before = values(model)
    with pytest.raises(CheckpointError, match="truncated"):
        model.load_checkpoint(path)
    assert_equal(values(model), before)


# ------------------------------------------------------------------------------------------------ by name
def test_save_and_from_pretrained_are_inverse(model, config, tmp_path):
    model.save_pretrained(tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "config.yaml",
        "model.ckpt",
        "vocab.txt",
    ]
    again = Blip2Qformer.from_pretrained(tmp_path / "mine")
    assert (
        again.config == config.replace(checkpoint_name_or_path=str(tmp_path / "mine" / "model.ckpt"))
        and not again.training
    )
    assert_equal(values(again), values(model))
    assert_equal(values(Blip2Classifier.from_pretrained(str(tmp_path / "mine"))), values(model))


def test_weights_are_found_in_the_cache_folder(model, cache, tmp_path):
    model.save_checkpoint(cache / "mine.ckpt")
    shutil.copy(TINY, tmp_path / "mine.yaml")
    assert_equal(values(Blip2Qformer.from_pretrained(tmp_path / "mine.yaml")), values(model))
    assert pretrained.find_weights("mine") == cache / "mine.ckpt"


def test_a_checkpoint_that_is_given_wins(model, cache, tmp_path):
    other = Blip2Qformer(model.config)
    other.save_checkpoint(cache / "tiny.ckpt")
    model.save_checkpoint(tmp_path / "given.ckpt")
    assert_equal(values(Blip2Qformer.from_pretrained(TINY, tmp_path / "given.ckpt")), values(model))
    assert_equal(values(Blip2Qformer.from_pretrained(TINY, str(tmp_path / "given.ckpt"))), values(model))
    assert_equal(values(Blip2Qformer.from_pretrained(TINY)), values(other))


def test_the_configuration_may_name_the_checkpoint(model, cache, tmp_path):
    model.save_checkpoint(tmp_path / "elsewhere.ckpt")
    text = TINY.read_text(encoding="utf-8") + f"    checkpoint_name_or_path: {tmp_path / 'elsewhere.ckpt'}\n"
    (tmp_path / "pointing.yaml").write_text(text, encoding="utf-8")
    assert_equal(values(Blip2Qformer.from_pretrained(tmp_path / "pointing.yaml")), values(model))


def test_missing_weights_are_answered_with_files_and_command(cache):
    with pytest.raises(FileNotFoundError) as error:
        Blip2Qformer.from_pretrained(TINY)
    for part in (
        "no weights for 'tiny'",
        str(cache / "tiny.ckpt"),
        "LAVIS/models/BLIP2/blip2_pretrained.pth",
        "eva_vit_g.pth",
        "python convert/convert_weight.py --torch_path blip2_pretrained.pth --vit_path "
        f"eva_vit_g.pth --mindspore_path {cache / 'tiny.ckpt'}",
    ):
        assert part in str(error.value)


def test_a_given_file_that_is_missing_is_named(cache):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*none.ckpt"):
        Blip2Qformer.from_pretrained(TINY, "none.ckpt")


def test_the_cache_folder_is_the_users_unless_the_environment_says_otherwise(cache, monkeypatch):
    assert pretrained.cache_folder() == cache
    monkeypatch.delenv("MINDBLIP2_CACHE")
    assert pretrained.cache_folder() == Path.home() / ".cache" / "mindblip2"


def test_the_support_list_is_printed_as_mindformers_does(capsys):
    names = Blip2Qformer.show_support_list()
    assert names == [name for name in presets() if name.startswith("blip2_stage1_") or name == "blip2_digits"]
    assert "blip2_stage1_vit_g" in names and len(names) < len(presets())
    assert capsys.readouterr().out == f"support list of Blip2Qformer is:\n{names}\n{'-' * 37}\n"


def test_loading_draws_no_random_values(config, monkeypatch, model, tmp_path):
    model.save_checkpoint(tmp_path / "x.ckpt")
    ms.set_seed(1)
    expected = ms.ops.rand(3).asnumpy()
    ms.set_seed(1)
    Blip2Qformer.from_pretrained(TINY, tmp_path / "x.ckpt")
    np.testing.assert_array_equal(ms.ops.rand(3).asnumpy(), expected)


def test_a_saved_checkpoint_is_float32_and_complete(model, tmp_path):
    model.save_checkpoint(tmp_path / "x.ckpt")
    stored = Checkpoint(tmp_path / "x.ckpt")
    assert set(stored) == set(model.parameters_dict()) and set(stored.types.values()) == {"Float32"}
