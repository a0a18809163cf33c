"""The language models of stage 2, part by part and whole: Llama, its relatives, OPT.

A model is compared on three networks as stage 1 is (mindblip2/parity/model_triple.py). Padding has no
meaning, so what comes out there is left out: it is multiplied by the mask.

    # B batch · T positions · N new tokens · D width · V vocabulary
"""

from collections.abc import Iterator
from functools import cached_property

import mindspore as ms
import numpy as np
import torch
from mindspore import nn

from mindblip2.config import Blip2Config, LlamaConfig, OPTConfig
from mindblip2.convert.name_maps.blip2 import source_name
from mindblip2.convert.tensor_transforms import find_transform
from mindblip2.parity import seeded_weights
from mindblip2.parity.candidate.language_model import kept, new_cell
from mindblip2.parity.candidate.stage1 import ours_of
from mindblip2.parity.cases.conversion import conversion_case
from mindblip2.parity.model_triple import Case, ModelTriple
from mindblip2.parity.reference.language_model import LanguageTwin, language_twin
from mindblip2.parity.reference.outputs import run_theirs
from mindblip2.parity.suite import Suite

SMALL = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 96}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # so short that at a few positions each kind of pair is there
    "original_max_position_embeddings": 24,
}
MODELS = {  # name -> our configuration, and whether it has Baichuan's W_pack
    "llama": (LlamaConfig(**SMALL), False),
    "llama3": (
        LlamaConfig(**SMALL, n_kv_heads=2, rms_norm_eps=1e-5, rope_theta=5e5, rope_scaling=LLAMA3),
        False,
    ),
    "baichuan2_7b": (LlamaConfig(**SMALL, normalized_head=True), True),
    "baichuan_13b": (
        LlamaConfig(**SMALL | {"num_heads": 6, "hidden_size": 96}, position_embedding="alibi"),
        True,
    ),
    "opt": (OPTConfig(**SMALL, intermediate_size=160, max_position_embeddings=40), False),
}
KINK = 1e-5  # of the channels' size: ten times what float32 makes of them
# . a token, o padding
FULL, LEFT, RIGHT, HOLE = "............", "oooo........", "........oooo", "...oooo....."


def masks(*rows: str) -> np.ndarray:
    """(B, T) int64."""
    return np.array([[place == "." for place in row] for row in rows]).astype(np.int64)


def make_language_nets(name: str, seed: int = seeded_weights.SEED) -> ModelTriple:
    """The three networks of one of ``MODELS``, ours through the converter's table."""
    config, packed = MODELS[name]
    truth, torch32 = (language_twin(config, dtype, packed, seed) for dtype in (torch.float64, torch.float32))
    return ModelTriple(truth, torch32, filled(new_cell(config), torch32, config).set_train(False))


def filled(ours: nn.Cell, twin: LanguageTwin, config) -> nn.Cell:
    """Our cell with the twin's weights, all of them."""
    used = fill(ours, twin, config)
    left = {name for name, _ in twin.llm.named_parameters()} - used
    if left:
        raise ValueError(f"our model has no place for {sorted(left)}")
    return ours


def fill(ours: nn.Cell, twin: LanguageTwin, config, prefix: str = "") -> set[str]:
    """Give our parameters below ``prefix`` the twin's weights; returns their names there."""
    state, used = dict(twin.llm.named_parameters()), set()
    for parameter in ours.get_parameters():
        if parameter.name.startswith(prefix):
            theirs = source_name(twin.source, parameter.name)
            value = state[theirs].detach().float()
            _, change = find_transform(
                twin.source, parameter.name, theirs, tuple(value.shape), tuple(parameter.shape), config
            )
            parameter.set_data(ms.Tensor(np.ascontiguousarray((change(value) if change else value).numpy())))
            used.add(theirs)
    return used


class LanguageSuite(Suite):
    """The cases of one language model; their names begin with its."""

    def __init__(self, name: str, nets: ModelTriple | None = None):
        self.name, self.nets = name, nets or make_language_nets(name)

    @cached_property
    def cases(self) -> list[Case]:
        return list(language_cases(self.name, self.nets))

    @cached_property
    def expected(self) -> dict[str, tuple[dict, dict]]:
        return {
            case.name: tuple(run_theirs(case, twin) for twin in (self.nets.torch32, self.nets.truth))
            for case in self.cases
        }

    @property
    def names(self) -> list[str]:
        return [case.name for case in self.cases]


def language_cases(name: str, nets: ModelTriple) -> Iterator[Case]:
    """All cases of a model: every part on the truth's input, then the whole, then with the cache."""
    truth, weights = nets.truth, [parameter.name for parameter in nets.ours.get_parameters()]
    # Baichuan's distances count columns, ours tokens
    mask_BT = masks(FULL, RIGHT, LEFT, LEFT if truth.alibi else HOLE)
    ids_BT = np.random.default_rng(3).integers(0, SMALL["vocab_size"], mask_BT.shape)
    inputs = recorded(truth, truth.embed(torch.from_numpy(ids_BT)), mask_BT)

    def below(path):
        return tuple(
            w
            for w in weights
            if w.startswith(f"llm.{path}.") and ("W_pack" not in source_name(truth.source, w))
        )

    yield Case(
        f"{name} embed",
        lambda twin, ids: twin.embed(ids),
        ours_of(f"{name} embed"),
        {"ids": ids_BT},
        below("word"),
        backward=True,
    )
    for i in range(len(truth.stack.layers)):
        yield from layer_cases(name, i, inputs, mask_BT, below)
    yield norm_case(name, "norm", inputs["norm"], below)
    yield Case(
        f"{name} head",
        lambda twin, x: twin.llm.lm_head(x),
        ours_of(f"{name} head"),
        {"x": inputs["head"]},
        below("word" if truth.opt else "lm_head"),
        backward=True,
    )
    whole = {"x": inputs["x"], "mask": mask_BT}
    yield Case(
        f"{name} hidden", their_hidden, ours_of(f"{name} hidden"), whole, below("position"), backward=True
    )
    yield Case(f"{name} logits", their_logits, ours_of(f"{name} logits"), whole, backward=True)
    prompts = {"x": inputs["x"], "mask": masks(FULL, "oo..........", LEFT, LEFT if truth.alibi else HOLE)}
    new = {"ids": np.random.default_rng(4).integers(0, SMALL["vocab_size"], (len(mask_BT), 5))}
    yield Case(f"{name} decode", their_decoding, ours_of(f"{name} decode"), prompts | new)
    orders = np.array([[0, 1, 2, 3], [2, 0, 3, 1], [0, 1, 2, 3], [1, 1, 0, 0], [3, 2, 1, 0]])
    yield Case(f"{name} beams", their_decoding, ours_of(f"{name} decode"), prompts | new | {"orders": orders})
    yield language_conversion(name, name)


def language_conversion(name: str, small: str) -> Case:
    """The files of one of ``MODELS`` there and back; ``name`` begins the case's."""
    config, packed = MODELS[small]
    twin = language_twin(config, torch.float32, packed)
    state = {key: value.detach() for key, value in twin.llm.named_parameters()}
    return conversion_case(
        f"{name} conversion", state, Blip2Config(text_config=config), "baichuan" if packed else None
    )


@torch.no_grad()
def recorded(
    truth: LanguageTwin, x_BTD: torch.Tensor, mask_BT: np.ndarray, layer: int | None = None
) -> dict[str, np.ndarray]:
    """The truth's input of every part, in float32, by our path; "x" goes into the model, "head" into the
    head. Or only of a ``layer``, into which x goes."""
    seen, mask = {}, torch.from_numpy(mask_BT)
    layers = range(len(truth.stack.layers)) if layer is None else [layer]
    parts = [f"layers.{i}.{part}" for i in layers for part in ("norm1", "norm2")] + (
        ["norm"] if layer is None else []
    )
    handles = [
        truth.part(path).register_forward_pre_hook(lambda _, args, path=path: seen.setdefault(path, args[0]))
        for path in parts
    ]
    if layer is None:
        *entered, last = truth.hidden(x_BTD, mask)
        seen |= {"x": x_BTD, "head": last} | {f"layers.{i}": x for i, x in enumerate(entered)}
    else:
        truth.layer(layer, x_BTD, mask)
        seen[f"layers.{layer}"] = x_BTD
    for handle in handles:
        handle.remove()
    for i in layers:
        for norm, part in (("norm1", "attention"), ("norm2", "ffn")):
            seen[f"layers.{i}.{part}"] = truth.norm(f"layers.{i}.{norm}", seen[f"layers.{i}.{norm}"])
    found = {path: value.reshape(*mask_BT.shape, -1).float().numpy() for path, value in seen.items()}
    for i in layers if truth.opt else ():
        found[f"layers.{i}.counted"] = (
            away_from_kinks(truth, i, seen[f"layers.{i}.ffn"]).reshape(mask_BT.shape) * mask_BT
        )
    return found


def away_from_kinks(truth: LanguageTwin, i: int, x: torch.Tensor) -> np.ndarray:
    """Tokens of which no channel of the feed-forward lies so near to 0 that rounding decides whether ReLU
    lets its gradient through: of the others a single channel may make any difference. 0 or 1 each."""
    hidden = truth.stack.layers[i].fc1(x).abs()
    return (hidden > KINK * hidden.square().mean().sqrt()).all(-1).numpy().astype(np.int64)


def layer_cases(name: str, i: int, inputs: dict, mask_BT: np.ndarray, below) -> Iterator[Case]:
    """One layer and its four parts."""
    at = f"layers.{i}"
    yield norm_case(name, f"{at}.norm1", inputs[f"{at}.norm1"], below)
    yield Case(
        f"{name} {at}.attention",
        lambda twin, x, mask: kept(twin.attention(i, x, mask), mask),
        ours_of(f"{name} {at}.attention"),
        {"x": inputs[f"{at}.attention"], "mask": mask_BT},
        below(f"{at}.attention"),
        backward=True,
    )
    yield norm_case(name, f"{at}.norm2", inputs[f"{at}.norm2"], below)
    counted = {"counted": inputs[f"{at}.counted"]} if f"{at}.counted" in inputs else {}
    yield Case(
        f"{name} {at}.ffn",
        lambda twin, x, counted=None: twin.ffn(i, x) if counted is None else kept(twin.ffn(i, x), counted),
        ours_of(f"{name} {at}.ffn"),
        {"x": inputs[f"{at}.ffn"]} | counted,
        below(f"{at}.ffn"),
        backward=True,
    )
    yield Case(
        f"{name} {at}",
        lambda twin, x, mask, counted=None: kept(
            twin.layer(i, x, mask), mask if counted is None else counted
        ),
        ours_of(f"{name} {at}"),
        {"x": inputs[at], "mask": mask_BT} | counted,
        backward=True,
    )


def norm_case(name: str, path: str, x_BTD: np.ndarray, below) -> Case:
    """A norm."""
    return Case(
        f"{name} {path}",
        lambda twin, x: twin.norm(path, x),
        ours_of(f"{name} {path}"),
        {"x": x_BTD},
        below(path),
        backward=True,
    )


def their_hidden(twin: LanguageTwin, x, mask):
    return tuple(kept(y, mask) for y in twin.hidden(x, mask))


def their_logits(twin: LanguageTwin, x, mask):
    return kept(twin.logits(x, mask), mask)


def their_decoding(twin: LanguageTwin, x, mask, ids, orders=None):
    return twin.decoded(x, mask, ids, orders)
