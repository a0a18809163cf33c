"""Meta's consolidated.*.pth: parts joined along the right axis, rotary rows put where transformers has
them."""

import mindspore as ms
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from mindblip2.convert.tensor_transforms import half_split, interleave  # noqa: E402
from mindblip2.models.decoder import apply_rotary  # noqa: E402
from tests.convert.stage2 import llama, meta, printed, save  # noqa: E402

PARAMS = {
    "dim": 32,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 3,
    "norm_eps": 1e-5,
    "vocab_size": -1,
    "rope_theta": 10000.0,
}


@pytest.fixture(scope="module")
def theirs():
    return llama()


def cut(state, folder, count, words, params=PARAMS):
    """Parts as fairscale's layers hold them: columns of what maps from the width, rows of what maps to it."""
    for part in range(count):
        own = {}
        for name, value in state.items():
            axis = (
                1
                if name.endswith((".wo.weight", ".w2.weight"))
                else words
                if name.startswith("tok_emb")
                else 0
            )
            own[name] = value.clone() if value.ndim == 1 else value.chunk(count, axis)[part].clone()
        save(own, folder, "params.json", file=f"consolidated.{part:02d}.pth", **params)
    return folder


@pytest.mark.parametrize("count, words", [(1, 1), (2, 1), (2, 0)], ids=["one", "two", "two as Llama-3"])
def test_they_hold_what_transformers_file_holds(convert, theirs, tmp_path, count, words):
    theirs.save_pretrained(tmp_path / "theirs")
    wanted, other = convert(tmp_path / "theirs")
    wanted = {name: wanted[name] for name in wanted}
    state = meta(theirs.state_dict(), 4) | {"rope.freqs": torch.ones(4)}
    folder = cut(state, tmp_path / "meta", count, words)
    for way in (folder, folder / "consolidated.00.pth"):
        stored, text = convert(way)
        assert set(stored) == set(wanted)
        assert [name for name in wanted if not np.array_equal(stored[name], wanted[name])] == []
    assert printed(text) == {key: value for key, value in printed(other).items() if key != "pad_token_id"}
    assert "mapped:    6 x rows of a rotary pair put half a head apart, as transformers has them" in text
    assert "dropped:    1 x buffer: computed here (e.g. rope.freqs)" in text


def test_a_pair_is_turned_as_meta_turns_it():
    """Meta multiplies complex numbers of neighbours; the scores must be those of our rotation on the moved
    rows."""
    random = torch.Generator().manual_seed(0)
    x, query, key = (torch.randn(shape, generator=random) for shape in ((5, 16), (24, 16), (24, 16)))
    # 3 heads of 8 channels, 4 pairs
    angle = torch.arange(5)[:, None] * 10000.0 ** (-torch.arange(4) / 4)

    def scores(query, key, turn):
        q, k = (turn((x @ weight.T).reshape(5, 3, 8)) for weight in (query, key))
        return torch.einsum("qhk,shk->hqs", q, k)

    def as_meta(x):
        pairs = torch.view_as_complex(x.reshape(5, 3, 4, 2)) * torch.polar(torch.ones(5, 4), angle)[:, None]
        return torch.view_as_real(pairs).flatten(2)

    def as_ours(x):
        cos, sin = (f(angle).numpy()[None, None] for f in (torch.cos, torch.sin))
        cos, sin = (ms.Tensor(np.concatenate(halves, -1)) for halves in ((cos, cos), (-sin, sin)))
        return torch.from_numpy(
            apply_rotary(ms.Tensor(x.numpy().transpose(1, 0, 2)[None]), (cos, sin))
            .asnumpy()[0]
            .transpose(1, 0, 2)
        )

    ms.set_context(mode=ms.PYNATIVE_MODE)
    wanted = scores(query, key, as_meta)
    moved = half_split(query, 8), half_split(key, 8)
    torch.testing.assert_close(scores(*moved, as_ours), wanted)
    assert (scores(query, key, as_ours) - wanted).abs().max() > 1  # rows left where they were
    assert torch.equal(interleave(moved[0], 8), query) and not torch.equal(half_split(moved[0], 8), query)


def parts(count, tmp_path):
    """The folder of so many equal parts, and a function that takes some away."""
    folder = cut(meta(llama(vocab_size=88).state_dict(), 4), tmp_path / "meta", count, 1)
    return folder, lambda *numbers: [
        (folder / f"consolidated.{number:02d}.pth").unlink() for number in numbers
    ]


def test_a_part_that_is_missing_is_named(convert, tmp_path):
    folder, lose = parts(4, tmp_path)
    assert len(convert(folder)[0]) == 3 * 9 + 3  # the control: nothing is missing
    lose(1)
    error = convert(folder, expect=1)
    assert (
        f"consolidated.03.pth needs the shard consolidated.01.pth, which is not in {folder}: get what is "
        "missing" in error
    )
    lose(0)
    assert (
        "consolidated.03.pth needs the shards consolidated.00.pth, consolidated.01.pth, which are not in"
        in convert(folder, expect=1)
    )


@pytest.mark.parametrize("way", ["", "consolidated.00.pth"], ids=["folder", "file"])
def test_the_last_parts_that_are_missing_are_named(convert, tmp_path, way):
    """No file says how many there are, but the width does: 8 of 32 columns are in each."""
    folder, lose = parts(4, tmp_path)
    lose(3)
    error = convert(folder / way, expect=1)
    assert (
        f"{folder} holds 3 of Meta's parts with 8 columns of layers.0.attention.wo.weight each, but the "
        "model is 32 wide" in error
    )
    assert "it needs the shard consolidated.03.pth, which is not in" in error
    lose(1, 2)
    assert (
        "it needs the shards consolidated.01.pth, consolidated.02.pth, consolidated.03.pth, which are not in"
        in convert(folder / way, expect=1)
    )


def test_a_part_too_many_is_said(convert, tmp_path):
    folder, _ = parts(2, tmp_path)
    (folder / "consolidated.02.pth").write_bytes((folder / "consolidated.01.pth").read_bytes())
    assert "it needs 2 such parts, no more; take the files of other models out of the folder" in convert(
        folder, expect=1
    )


@pytest.mark.parametrize(
    "layers, count, other", [(2, 2, "layers.2.attention.wk.weight"), (3, 4, "layers.0.attention.wk.weight")]
)
def test_parts_of_two_models_are_not_joined(convert, tmp_path, layers, count, other):
    """Another model, or the same in more parts."""
    folder, _ = parts(2, tmp_path)
    strange = cut(
        meta(llama(num_hidden_layers=layers, vocab_size=88).state_dict(), 4), tmp_path / "strange", count, 1
    )
    (strange / "consolidated.01.pth").replace(folder / "consolidated.01.pth")
    error = convert(folder, expect=1)
    assert (
        "consolidated.01.pth and consolidated.00.pth in" in error
        and f"are parts of different models: {other} is in one" in error
    )


def test_the_order_depends_on_the_heads_so_they_must_be_known(convert, theirs, tmp_path):
    folder = cut(meta(theirs.state_dict(), 4), tmp_path / "meta", 1, 1)
    wanted, _ = convert(folder)
    wanted = wanted["llm.layers.1.attention.key.weight"]
    (folder / "params.json").unlink()
    error = convert(folder, expect=1)
    assert (
        "put the params.json of the model beside the file, or give --config with text_config.num_heads"
        in error
    )
    config = tmp_path / "config.yaml"
    sizes = (
        "vocab_size: 90, hidden_size: 32, num_layers: 3, num_heads: %d, n_kv_heads: %d, intermediate_size: 48"
    )
    for heads, same in ((4, True), (8, False)):
        config.write_text("model: {model_config: {text_config: {" + sizes % (heads, heads // 2) + "}}}")
        stored, _ = convert(folder, "--config", config)
        assert np.array_equal(stored["llm.layers.1.attention.key.weight"], wanted) == same


def test_scaled_rope_without_its_factors_is_said(convert, theirs, tmp_path):
    folder = cut(meta(theirs.state_dict(), 4), tmp_path / "meta", 1, 1, PARAMS | {"use_scaled_rope": True})
    assert (
        "note:    params.json says use_scaled_rope, whose factors are in no file of Meta"
        in convert(folder)[1]
    )
