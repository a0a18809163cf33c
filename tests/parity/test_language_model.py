"""The language models against transformers by the noise floor: part by part, whole, with the cache; and what
each case catches."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402

from mindblip2.config import LlamaConfig  # noqa: E402
from mindblip2.models import llama  # noqa: E402
from mindblip2.parity.cases.language_model import LLAMA3, MODELS, LanguageSuite  # noqa: E402
from mindblip2.parity.compare import failing, noise_ratio, table  # noqa: E402
from mindblip2.parity.defects.language_model import LANGUAGE_MUTATIONS  # noqa: E402
from mindblip2.parity.defects.mutations import mutated  # noqa: E402
from mindblip2.parity.reference.baichuan import alibi_slopes  # noqa: E402
from mindblip2.parity.reference.language_model import llama_config  # noqa: E402

pytestmark = pytest.mark.usefixtures("pynative")


@pytest.fixture(scope="module")
def suites():
    """Name -> suite, each made when it is first asked for."""

    class Made(dict):
        def __missing__(self, name):
            return self.setdefault(name, LanguageSuite(name))

    return Made()


@pytest.mark.parametrize("name", MODELS)
def test_every_part_of_every_model_passes(suites, name):
    """Outputs, logits with and without cache, gradients by inputs and weights. A row in a hundred may deserve
    a look on some processor; none may fail."""
    rows = [row for found in suites[name].rows().values() for row in found]
    odd = [row for row in rows if row.verdict != "pass"]
    assert len(odd) <= len(rows) / 100 and all(row.verdict == "look" for row in odd), table(odd)
    assert 0.5 < np.median([row.ratio for row in rows]) < 2  # near 1, as for a port that rounds like torch
    # a zero is a copy, or a comparison with itself
    assert sum(row.ratio == 0 for row in rows) < 0.1 * len(rows)


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_of_every_parameter_is_compared(suites, name):
    suite = suites[name]
    compared = {weight for case in suite.cases if case.backward for weight in case.weights}
    # one in W_pack
    packed = [f".attention.{part}.weight" for part in ("query", "key", "value")] if MODELS[name][1] else []
    assert compared == {
        p.name for p in suite.nets.ours.get_parameters() if not p.name.endswith(tuple(packed) or "-")
    }
    assert {f"{name} logits", f"{name} hidden"} <= {
        case.name for case in suite.cases if case.differentiated == ["x"]
    }


@pytest.mark.parametrize("defect", LANGUAGE_MUTATIONS)
def test_a_defect_is_caught_and_located(suites, defect):
    name, mutation = LANGUAGE_MUTATIONS[defect]
    caught, spared = mutated(suites[name], mutation)
    assert set(caught) - failing(caught) == set(), "missed"
    assert failing(spared) == set(), "blamed without reason"


def test_no_case_is_without_a_defect_that_it_catches(suites):
    """Of Llama and of OPT; the relatives have the cases of Llama."""
    for name in ("llama", "opt"):
        patterns = ", ".join(
            mutation.caught for model, mutation in LANGUAGE_MUTATIONS.values() if model == name
        )
        assert set(suites[name].names) - set(suites[name].matching(patterns)) == set()
    assert {model for model, _ in LANGUAGE_MUTATIONS.values()} == set(MODELS)


# ---------------------------------------------------------------------------------------------------- the ref
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_the_truth_is_computed_in_float64(suites, name):
    """transformers casts to float32 within a float64 model; the twin's truth does not, so it is as near to
    NumPy's as float64 is."""
    truth = suites[name].nets.truth
    x = np.random.default_rng(0).normal(size=(3, 64))
    norm = truth.part("norm")
    weight = norm.weight.detach().numpy()
    if name == "llama":
        expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight
    else:
        expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + 1e-5
        ) * weight + norm.bias.detach().numpy()
    with torch.no_grad():
        exact, usual = truth.norm("norm", torch.from_numpy(x)).numpy(), norm(torch.from_numpy(x)).numpy()
    assert np.abs(exact - expected).max() < 1e-14
    assert name == "opt" or np.abs(usual - expected).max() > 1e-9  # the comparison can fail


def test_the_softmax_of_the_truth_is_computed_in_float64(suites):
    truth = suites["opt"].nets.truth
    x, mask = (
        torch.randn(1, 6, 64, dtype=torch.float64, generator=torch.manual_seed(0)),
        torch.ones(1, 6, dtype=torch.long),
    )
    with torch.no_grad():
        exact = truth.attention(0, x, mask)
        usual = truth.stack.layers[0].self_attn(hidden_states=x, **truth.told(x, mask))[0]
        attention = truth.stack.layers[0].self_attn
        query, key, value = (
            part(x).unflatten(-1, (4, -1)).transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        scores = query @ key.transpose(2, 3) / 4 + torch.full((6, 6), -torch.inf).triu(1)
        expected = attention.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
    assert (exact - expected).abs().max() < 1e-14 < 1e-9 < (usual - expected).abs().max()


# ---------------------------------------------------------------------------------------------------- constan
@pytest.mark.parametrize(
    "width, changes",
    [
        (128, {}),
        (128, {"rope_theta": 5e5}),
        (80, {}),
        (16, {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
        (
            128,
            {
                "rope_theta": 5e5,
                "rope_scaling": {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 8192},
            },
        ),
        (
            64,
            {
                "rope_theta": 5e5,
                "rope_scaling": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192},
            },
        ),
    ],
    ids=str,
)
def test_frequencies_are_those_of_transformers_to_the_last_bits(width, changes):
    ours = LlamaConfig(hidden_size=2 * width, num_heads=2, num_layers=1, **changes)
    theirs = llama_config(ours)
    make = ROPE_INIT_FUNCTIONS.get(
        theirs.rope_parameters["rope_type"],
        transformers.models.llama.modeling_llama.LlamaRotaryEmbedding.compute_default_rope_parameters,
    )
    expected, found = make(theirs)[0].numpy(), llama.frequencies(width, ours.rope_theta, ours.rope_scaling)
    assert found.dtype == expected.dtype == np.float32
    assert np.abs(found / expected - 1).max() < 4e-7
    wrong = llama.frequencies(width, ours.rope_theta * (1 + 1e-5), ours.rope_scaling)
    assert np.abs(wrong / expected - 1).max() > 4e-7  # the comparison can fail


def test_alibi_slopes_are_those_of_the_paper_s_code():
    for heads in (1, 2, 3, 6, 8, 12, 32, 40, 64):
        assert np.allclose(llama.slopes(heads), alibi_slopes(heads), rtol=1e-7)
    assert not np.allclose(llama.slopes(40)[-8:], llama.slopes(64)[-8:])


def test_a_long_text_keeps_its_positions(suites):
    """At position 2000 angles are large: float32 has them to 1e-4, for torch as for us."""
    suite = suites["llama3"]
    x = np.random.default_rng(1).normal(size=(1, 8, 4, 16)).astype(np.float32)
    place = np.arange(1992, 2000)[None]
    from mindspore import Tensor

    from mindblip2.models.decoder import apply_rotary

    found = apply_rotary(
        Tensor(x.swapaxes(1, 2)), suite.nets.ours.llm.rope_cache(Tensor(place.astype(np.int32)))
    ).asnumpy()
    sides = []
    for twin in (suite.nets.torch32, suite.nets.truth):
        with torch.no_grad(), twin.exact():
            query = torch.from_numpy(x.swapaxes(1, 2)).to(twin.dtype)
            cos, sin = twin.stack.rotary_emb(query, torch.from_numpy(place))
            sides.append(
                transformers.models.llama.modeling_llama.apply_rotary_pos_emb(query, query, cos, sin)[
                    0
                ].numpy()
            )
    assert noise_ratio(found, *sides) < 4
