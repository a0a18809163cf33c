"""Language models go to .ckpt and back without a bit lost, in whichever of the published orders."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError, write_checkpoint  # noqa: E402
from mindblip2.convert.convert_weight import main, to_mindspore, to_torch  # noqa: E402
from tests.convert.stage2 import SAID, llama, meta, opt, packed, save  # noqa: E402

MHA = {"num_key_value_heads": 4}


def there_and_back(path, folder, *flags):
    to_mindspore(path, folder / "x.ckpt")
    assert (
        main(
            [
                "--to_torch",
                "--mindspore_path",
                str(folder / "x.ckpt"),
                "--torch_path",
                str(folder / "back.pth"),
                *flags,
            ]
        )
        == 0
    )
    return torch.load(folder / "back.pth", weights_only=True)


def assert_same_bits(one, two):
    assert one.keys() == two.keys()
    assert [n for n in one if one[n].dtype != two[n].dtype or not torch.equal(one[n], two[n])] == []


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "opt", "baichuan", "meta"])
def test_there_and_back_no_bit_is_lost(tmp_path, kind, dtype):
    state = (
        {"llama": llama, "opt": opt}.get(kind, lambda: llama(**MHA))().to(getattr(torch, dtype)).state_dict()
    )
    state = {"baichuan": packed, "meta": lambda state: meta(state, 4)}.get(kind, dict)(state)
    flags = []
    if kind == "meta":
        folder = save(state, tmp_path / "theirs", "params.json", file="consolidated.00.pth", n_heads=4)
        config = tmp_path / "config.yaml"
        config.write_text("model: {model_config: {text_config: {hidden_size: 32, num_heads: 4}}}")
        flags = ["--config", str(config)]
    else:
        folder = save(state, tmp_path / "theirs", **(SAID if kind == "llama" else {}))
    flags += ["--names", kind] if kind in ("baichuan", "meta") else []
    assert_same_bits(dict(state), there_and_back(folder, tmp_path, *flags))


def test_what_comes_back_loads_into_transformers(tmp_path):
    for theirs in (llama(), opt()):
        theirs.save_pretrained(tmp_path / "theirs")
        back = there_and_back(tmp_path / "theirs", tmp_path)
        other = type(theirs)(theirs.config)
        other.load_state_dict(back)
        assert_same_bits(dict(theirs.state_dict()), dict(other.state_dict()))
    # tied, so stored once
    assert back["lm_head.weight"].data_ptr() == back["model.decoder.embed_tokens.weight"].data_ptr()


def test_what_leaves_no_choice_or_is_no_whole_model_goes_nowhere(tmp_path):
    llama().save_pretrained(tmp_path / "theirs")
    to_mindspore(tmp_path / "theirs", tmp_path / "llama.ckpt")
    opt().save_pretrained(tmp_path / "opt")
    to_mindspore(tmp_path / "opt", tmp_path / "opt.ckpt")
    stored = Checkpoint(tmp_path / "llama.ckpt")
    whole = {name: (name, stored.types[name], stored[name]) for name in stored}
    write_checkpoint(
        tmp_path / "hole.ckpt", [entry for name, entry in whole.items() if name != "llm.layers.1.norm2.gamma"]
    )
    write_checkpoint(
        tmp_path / "more.ckpt", [*whole.values(), ("llm.lora.weight", "Float32", stored["llm.norm.gamma"])]
    )
    for name, flags, complaint in (
        (
            "opt.ckpt",
            {"names": "baichuan"},
            "can not be written under the names of 'baichuan': leave out --names",
        ),
        ("llama.ckpt", {"names": "opt_proj"}, "it takes transformers, baichuan, meta"),
        ("llama.ckpt", {"names": "meta"}, "depends on the number of heads"),
        ("hole.ckpt", {}, "first llm.layers.1.norm2.gamma: None in the file, (32,) expected"),
        ("more.ckpt", {}, "Llama of transformers has no name for llm.lora.weight"),
    ):
        with pytest.raises(CheckpointError, match=complaint.replace("(", r"\(").replace(")", r"\)")):
            to_torch(tmp_path / name, tmp_path / "y.pth", **flags)
    assert not list(tmp_path.glob("y.pth*"))


def test_matrices_are_narrowed_and_norms_are_not(tmp_path):
    llama().save_pretrained(tmp_path / "theirs")
    to_mindspore(tmp_path / "theirs", tmp_path / "x.ckpt", dtype="bfloat16")
    stored = Checkpoint(tmp_path / "x.ckpt")
    assert {name: kind for name, kind in stored.types.items() if kind != "BFloat16"}.keys() == {
        name for name in stored if "norm" in name
    }
    state = to_torch(tmp_path / "x.ckpt", tmp_path / "y.pth", "float16")
    assert (
        state["model.norm.weight"].dtype == torch.float32 and state["lm_head.weight"].dtype == torch.float16
    )
