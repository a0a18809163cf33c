"""Parity of a language model through a window of one layer, as at full width."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from mindblip2.checkpoint.ckpt import CheckpointError  # noqa: E402
from mindblip2.config import LlamaConfig, OPTConfig  # noqa: E402
from mindblip2.parity.__main__ import parser  # noqa: E402
from mindblip2.parity.compare import table  # noqa: E402
from mindblip2.parity.language_streaming import LanguageStream, Seeded  # noqa: E402
from mindblip2.parity.reference.language_model import LanguageTwin  # noqa: E402
from mindblip2.parity.run import run  # noqa: E402

pytestmark = pytest.mark.usefixtures("pynative")

SMALL = {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "vocab_size": 90}
CONFIGS = {
    "llama": (LlamaConfig(**SMALL, n_kv_heads=2), False),
    "baichuan": (LlamaConfig(**SMALL, normalized_head=True), True),
    "baichuan by its ALiBi": (LlamaConfig(**SMALL, position_embedding="alibi"), False),
    "opt": (OPTConfig(**SMALL, intermediate_size=48, max_position_embeddings=16), False),
}


def rows_of(stream):
    return {row.name: row for rows in stream for row in rows}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_passes_alone_and_in_the_chain(name):
    config, packed = CONFIGS[name]
    rows = rows_of(LanguageStream(config, Seeded(config, packed)))
    assert all(row.verdict == "pass" for row in rows.values()), table(rows.values())
    kind = "opt" if name == "opt" else "llama"
    for i in range(3):
        assert {f"{kind} layers.{i}", f"{kind} layers.{i} d x", f"chained {kind} layers.{i}"} <= set(rows)
    parts = {f"{kind} layers.{i}.{part}" for i in (0, 2) for part in ("norm1", "attention", "norm2", "ffn")}
    assert parts | {f"{kind} norm", f"{kind} head", f"{kind} head d x"} <= set(rows)
    # the middle of a deep model is compared layer by layer only
    assert f"{kind} layers.1.ffn" not in rows


def test_no_llama_stands_for_a_baichuan():
    """At first the seeded weights of Baichuan-13B were compared with a Llama, which turns where they bias."""
    with pytest.raises(ValueError, match="whose weights have a W_pack"):
        LanguageTwin(LlamaConfig(**SMALL, position_embedding="alibi"))
    assert any("W_pack" in name for name in Seeded(LlamaConfig(**SMALL, position_embedding="alibi")))


def test_a_layer_that_was_not_loaded_would_be_noticed(monkeypatch):
    config, packed = CONFIGS["llama"]
    stream = LanguageStream(config, Seeded(config, packed))
    # ours stays at layer 0
    monkeypatch.setattr("mindblip2.parity.language_streaming.fill", lambda *args: None)
    rows = rows_of(stream)
    assert rows["llama layers.0"].verdict == "pass" == rows["llama head"].verdict
    assert (
        rows["llama layers.1"].verdict
        == rows["chained llama layers.1"].verdict
        == rows["llama layers.2"].verdict
        == "fail"
    )


def test_fewer_layers_are_what_was_asked_for():
    config, packed = CONFIGS["llama"]
    rows = rows_of(LanguageStream(config, Seeded(config, packed), layers=1))
    assert "llama layers.0" in rows and "llama layers.1" not in rows and "llama head" in rows


def test_weights_of_another_model_are_an_error():
    config, packed = CONFIGS["llama"]
    fewer = Seeded(config.replace(num_layers=2), packed)
    with pytest.raises(
        CheckpointError, match="model.layers.2.self_attn.q_proj.weight is not among the weights.*3 layers"
    ):
        rows_of(LanguageStream(config, fewer))


def test_the_command_reads_a_folder_of_transformers(tmp_path):
    """Random weights, saved by transformers, and a configuration beside them."""
    import yaml
    from safetensors.torch import save_file

    config, packed = CONFIGS["llama"]
    save_file(dict(Seeded(config, packed).items()), tmp_path / "model.safetensors")
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({"model": {"model_config": {"text_config": config.to_dict()}}})
    )
    options = parser().parse_args(
        [
            "run",
            "--config",
            str(tmp_path / "run.yaml"),
            "--only",
            "language",
            "--llm_path",
            str(tmp_path),
            "--blocks",
            "2",
        ]
    )
    rows = {row.name: row for row in run(options)}
    assert (
        all(row.verdict == "pass" for row in rows.values())
        and "llama layers.1" in rows
        and "llama head" in rows
    )
