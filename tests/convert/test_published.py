"""Every name and shape of the published stage-2 files has its counterpart, in full size, on shapes alone."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mindblip2.config import Blip2Config, LlamaConfig, OPTConfig  # noqa: E402
from mindblip2.convert import plan  # noqa: E402
from mindblip2.convert.detect import detect  # noqa: E402
from mindblip2.convert.infer_config import infer_model_config, infer_text_config  # noqa: E402
from mindblip2.convert.name_maps.language_models import LAVIS_LLM, LAVIS_OPT  # noqa: E402
from mindblip2.convert.parameter_shapes import llm_shapes, stage_2_shapes  # noqa: E402
from mindblip2.parity.reference.config import ReferenceConfig  # noqa: E402
from mindblip2.parity.reference.model import ReferenceModel  # noqa: E402
from tests.convert.stage2 import meta, packed  # noqa: E402

FEW = 2  # layers, where the published number adds nothing but time
TEXT_HALF = (".intermediate.", ".output.dense", ".output.LayerNorm")


def on_meta(make):
    with torch.device("meta"):
        return dict(make().state_dict())


def llama(layers=FEW, **sizes):
    return on_meta(
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=layers, **sizes))
    )


def opt(width, layers=FEW):
    sizes = {
        "hidden_size": width,
        "ffn_dim": 4 * width,
        "word_embed_proj_dim": width,
        "num_hidden_layers": layers,
    }
    state = on_meta(
        lambda: transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, num_attention_heads=32))
    )
    # tied: numbers would be compared
    return {name: value for name, value in state.items() if name != "lm_head.weight"}


WIDE = {"hidden_size": 5120, "num_attention_heads": 40}
MODELS = {  # published name → (state dict, section that is read off its shapes)
    "vicuna-7b-v1.1": (lambda: llama(32), LlamaConfig()),
    "llama-7b of Meta": (lambda: meta(llama(), 32), LlamaConfig(num_layers=FEW)),
    "vicuna-13b": (
        lambda: llama(**WIDE, intermediate_size=13824),
        LlamaConfig(num_layers=FEW, hidden_size=5120, num_heads=40),
    ),
    "llama-3-8b": (
        lambda: llama(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8),
        LlamaConfig(num_layers=FEW, vocab_size=128256, intermediate_size=14336, n_kv_heads=8),
    ),
    "Baichuan-7B": (lambda: packed(llama(vocab_size=64000)), LlamaConfig(num_layers=FEW, vocab_size=64000)),
    "Baichuan-13B": (
        lambda: packed(llama(vocab_size=64000, **WIDE, intermediate_size=13696)),
        LlamaConfig(
            num_layers=FEW,
            vocab_size=64000,
            hidden_size=5120,
            num_heads=40,
            intermediate_size=13696,
            position_embedding="alibi",
        ),
    ),
    "Baichuan2-7B": (
        lambda: packed(llama(vocab_size=125696)),
        LlamaConfig(num_layers=FEW, vocab_size=125696, normalized_head=True),
    ),
    "opt-2.7b": (lambda: opt(2560, 32), OPTConfig()),
    "opt-6.7b": (
        lambda: {name.removeprefix("model."): value for name, value in opt(4096).items()},
        OPTConfig(num_layers=FEW, hidden_size=4096, intermediate_size=16384),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_language_models_are_read_whole(name):
    state, section = MODELS[name][0](), MODELS[name][1]
    kind = detect(state, name)
    found, _ = infer_text_config(state, kind, {})
    assert found == section
    rows = plan.make_plan(state, kind, None, llm_shapes(found), Blip2Config(text_config=found))
    assert {row.action for row in rows} == {"mapped"} and {row.theirs for row in rows} == set(state)


@pytest.mark.parametrize(
    "projection, kind, section",
    [("opt_proj", LAVIS_OPT, OPTConfig()), ("llm_proj", LAVIS_LLM, LlamaConfig())],
)
def test_lavis_stage_2_has_260_tensors(projection, kind, section):
    stage_1 = on_meta(lambda: ReferenceModel(ReferenceConfig()))
    state = {
        name: value
        for name, value in stage_1.items()
        if name.startswith(
            (
                "Qformer.bert.encoder.",
                "query_tokens",
                "ln_vision.",
                "Qformer.bert.embeddings.LayerNorm",
                "Qformer.bert.embeddings.position_ids",
            )
        )
        and not (any(part in name for part in TEXT_HALF) and "attention" not in name)
    }
    width = section.hidden_size
    with torch.device("meta"):
        state |= {f"{projection}.weight": torch.empty(width, 768), f"{projection}.bias": torch.empty(width)}
    vit = {
        name.removeprefix("visual_encoder."): value
        for name, value in stage_1.items()
        if name.startswith("visual_encoder.")
    }
    assert len(state) == 260 and detect(state, "x.pth") is kind
    config = infer_model_config(state, vit, kind, None, section)
    assert config == Blip2Config(text_config=section)
    shapes = stage_2_shapes(config, llm=False)
    rows = plan.make_plan(state, kind, vit, shapes, config)
    assert sum(row.action == "mapped" for row in rows) == len(shapes) == 259 + 511
    assert [row.theirs for row in rows if row.action == "dropped"] == ["Qformer.bert.embeddings.position_ids"]
