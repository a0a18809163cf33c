"""The torch twin: stage 1 of BLIP-2 in PyTorch, the reference that mindblip2's cells are compared with.

Its ``state_dict`` has exactly LAVIS's names, so it reads a LAVIS checkpoint without a table; it reproduces
what LAVIS itself computed on the tiny checkpoint (tests/parity/test_reference.py) and is then trusted at any
width, seed and dtype. In float64 it is the truth of the noise-floor method (mindblip2/parity/compare.py). It
has no dropout: parity is about eval mode.

    twin = load("blip2_pretrained_with_vit.pth", dtype=torch.float64)
    losses = twin(image, ids, image_id=None, negatives=(image_index, text_index))
    with capture(twin, ["Qformer.bert.encoder.layer.*"]) as seen:
        twin.read(ids)

    # B batch · Q queries · P patches + cls · W image width · T text · L = Q + T · D width · E embed · V
    vocabulary
"""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from mindblip2.convert.name_maps.blip2 import LAVIS, source_name
from mindblip2.parity import seeded_weights
from mindblip2.parity.reference import losses
from mindblip2.parity.reference.config import ReferenceConfig
from mindblip2.parity.reference.generate import Rules, beam, greedy
from mindblip2.parity.reference.qformer import QFormer, caption_bias, padding_bias
from mindblip2.parity.reference.vit import ViT

NO_DECAY = ("bias", "ln", "bn")  # parts of a name that LAVIS exempts from weight decay


class Losses(NamedTuple):
    """The four losses, and what they were made of."""

    loss: torch.Tensor
    loss_itc: torch.Tensor
    loss_itm: torch.Tensor
    loss_lm: torch.Tensor
    sim_i2t: torch.Tensor  # (B, B), over temp
    sim_t2i: torch.Tensor  # (B, B), over temp
    negatives: tuple[torch.Tensor, torch.Tensor]  # image index per text, text index per image
    itm_logits: torch.Tensor  # (3B, 2)
    lm_logits: torch.Tensor  # (B, T, V)


class Features(NamedTuple):
    """What LAVIS's ``extract_features`` gives; the projections are normalised."""

    image_embeds: torch.Tensor  # (B, Q, D)
    image_embeds_proj: torch.Tensor  # (B, Q, E)
    text_embeds: torch.Tensor  # (B, T, D)
    text_embeds_proj: torch.Tensor  # (B, T, E)
    multimodal_embeds: torch.Tensor  # (B, Q, D)


class ReferenceModel(nn.Module):
    """Stage 1: the four verbs ``see``, ``read``, ``match``, ``caption``, and the losses on top of them."""

    def __init__(self, config: ReferenceConfig):
        super().__init__()
        self.config = config
        self.query_tokens = nn.Parameter(torch.zeros(1, config.queries, config.width))
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.visual_encoder = ViT(config) if config.vit_depth else None
        self.ln_vision = nn.LayerNorm(config.vit_width, eps=config.ln_vision_eps)
        self.Qformer = QFormer(config)
        self.vision_proj = nn.Linear(config.width, config.embed)
        self.text_proj = nn.Linear(config.width, config.embed)
        self.itm_head = nn.Linear(config.width, 2)

    def parameter_of(self, ours: str) -> nn.Parameter:
        """The parameter that is called ``ours`` in mindblip2."""
        return self.get_parameter(source_name(LAVIS, ours, self.config.cross_attention_freq))

    def vit(self, image_B3SS: torch.Tensor) -> torch.Tensor:
        """Image (B, 3, S, S) -> raw ViT output (B, P, W)."""
        if self.visual_encoder is None:
            raise ValueError(
                "this twin has no ViT, because its checkpoint holds no visual_encoder.*: merge those "
                "keys into the state dict before load()"
            )
        return self.visual_encoder(image_B3SS)

    def embed_image(self, image_B3SS: torch.Tensor) -> torch.Tensor:
        """Image (B, 3, S, S) -> what the Q-Former looks at (B, P, W): the ViT's output through
        ``ln_vision``."""
        return self.ln_vision(self.vit(image_B3SS))

    def see(self, image_BPW: torch.Tensor):
        """Queries look at the image -> (B, Q, D) and the keys and values that captions are written from."""
        return self.Qformer.bert(query_BQD=self.query(len(image_BPW)), image_BPW=image_BPW)

    def read(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None = None) -> torch.Tensor:
        """Text alone, both directions, pads masked -> (B, T, D)."""
        bias = padding_bias(not_pad(ids_BT, mask_BT, self.config.pad), self.query_tokens.dtype)
        return self.Qformer.bert(ids_BT, bias=bias)[0]

    def match(self, ids_BT, image_BPW, mask_BT=None) -> torch.Tensor:
        """Queries and text see each other, queries see the image -> (B, Q + T, D)."""
        mask_BL = F.pad(not_pad(ids_BT, mask_BT, self.config.pad), (self.config.queries, 0), value=1)
        bias = padding_bias(mask_BL, image_BPW.dtype)
        return self.Qformer.bert(ids_BT, self.query(len(ids_BT)), bias, image_BPW)[0]

    def caption(self, ids_BT, cache, mask_BT=None):
        """Text sees what is cached (the queries, earlier text) and its own past -> (B, T, D) and the grown
        cache."""
        cached = cache[0][0].shape[2]
        bias = caption_bias(not_pad(ids_BT, mask_BT, self.config.pad), cached, self.query_tokens.dtype)
        return self.Qformer.bert(ids_BT, bias=bias, cache=cache, start=cached - self.config.queries)

    def query(self, batch: int) -> torch.Tensor:
        """The learned queries for a batch, (B, Q, D)."""
        return self.query_tokens.expand(batch, -1, -1)

    def image_feats(self, query_BQD: torch.Tensor) -> torch.Tensor:
        """-> (B, Q, E) of length one."""
        return F.normalize(losses.wide(self.vision_proj(query_BQD)), dim=-1)

    def text_feats(self, text_BTD: torch.Tensor) -> torch.Tensor:
        """-> (…, E) of length one; the contrastive loss takes that of the first token, [CLS]."""
        return F.normalize(losses.wide(self.text_proj(text_BTD)), dim=-1)

    def itm_logits(self, ids_BT, image_BPW, mask_BT=None) -> torch.Tensor:
        """Pairwise (B, 2), class 1 = they match: mean over queries."""
        return self.itm_head(self.match(ids_BT, image_BPW, mask_BT)[:, : self.config.queries]).mean(dim=1)

    def started(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """The ids with [DEC] in the place of [CLS]: what tells the Q-Former to write."""
        return torch.cat([torch.full_like(ids_BT[:, :1], self.config.bos), ids_BT[:, 1:]], dim=1)

    def forward(
        self, image, ids, image_id=None, negatives=None, gather_with_grad: bool | None = None
    ) -> Losses:
        """Image (B, 3, S, S), ids (B, T), image_id (B,), negatives ((B,), (B,)) -> Losses."""
        gather_with_grad = self.config.gather_with_grad if gather_with_grad is None else gather_with_grad
        image_BPW = self.embed_image(image)
        query_BQD, memory = self.see(image_BPW)
        image_BQE, text_BE = self.image_feats(query_BQD), self.text_feats(self.read(ids)[:, 0])
        sims = losses.similarities(image_BQE, text_BE, self.temp, gather_with_grad)
        negatives = losses.hard_negatives(*sims, image_id) if negatives is None else negatives
        itm_logits = self.triple_logits(image_BPW, ids, negatives)
        lm_logits = self.Qformer.logits(self.caption(self.started(ids), memory)[0])
        itc = losses.itc(*sims, image_id, self.config.smoothing)
        itm = losses.itm(losses.wide(itm_logits))
        labels = ids.masked_fill(ids == self.config.pad, losses.IGNORED)
        lm = losses.lm(losses.wide(lm_logits), labels, self.config.smoothing)
        return Losses(itc + itm + lm, itc, itm, lm, *sims, negatives, itm_logits, lm_logits)

    def triple_logits(self, image_BPW, ids, negatives) -> torch.Tensor:
        """(3B, 2): true pairs, then a false image for each text, then a false text for each image."""
        image_idx, text_idx = negatives
        return self.itm_logits(
            torch.cat([ids, ids, ids[text_idx]]), torch.cat([image_BPW, image_BPW[image_idx], image_BPW])
        )

    def extract_features(self, image: torch.Tensor, ids: torch.Tensor) -> Features:
        """The three modes of LAVIS's ``extract_features`` at once."""
        image_BPW = self.embed_image(image)
        query_BQD, text_BTD = self.see(image_BPW)[0], self.read(ids)
        return Features(
            query_BQD,
            self.image_feats(query_BQD),
            text_BTD,
            self.text_feats(text_BTD),
            self.match(ids, image_BPW)[:, : self.config.queries],
        )

    @torch.no_grad()
    def retrieval(self, image: torch.Tensor, ids: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(images, texts) and (texts, images) scores: cosine + ITM logit for each row's k best, -100
        elsewhere."""
        image_BPW = self.embed_image(image)
        image_BQE = self.image_feats(self.see(image_BPW)[0])
        sim_i2t, _ = losses.similarities(image_BQE, self.text_feats(self.read(ids)[:, 0]), temp=1)
        itm = torch.stack([self.itm_logits(ids, one.expand(len(ids), -1, -1))[:, 1] for one in image_BPW])
        return best_only(sim_i2t, itm, k), best_only(sim_i2t.T, itm.T, k)

    @torch.no_grad()
    def generate(self, image, num_beams: int = 3, rules: Rules | None = None):
        """Captions as ids (B, T), [DEC] first, and their scores (B,) (None with one beam)."""
        rules = rules or Rules()
        _, memory = self.see(self.embed_image(image))
        memory = [tuple(x.repeat_interleave(num_beams, dim=0) for x in pair) for pair in memory]
        ids = torch.full((len(image) * num_beams, 1), self.config.bos)
        if num_beams == 1:
            return greedy(self.step, ids, memory, rules), None
        return beam(self.step, ids, memory, rules, num_beams)

    def step(self, ids_NT: torch.Tensor, cache):
        """Scores for the next word (N, V) and the grown cache. Every id counts as visible, a generated [PAD]
        too."""
        hidden_NTD, cache = self.caption(ids_NT, cache, torch.ones_like(ids_NT))
        return losses.wide(self.Qformer.logits(hidden_NTD[:, -1])), cache

    def freeze_vit(self) -> "ReferenceModel":
        """Stop the ViT's gradients, as stage 1 does (``ln_vision`` trains)."""
        if self.visual_encoder is not None:
            self.visual_encoder.requires_grad_(False)
        return self


def not_pad(ids_BT: torch.Tensor, mask_BT: torch.Tensor | None, pad: int) -> torch.Tensor:
    """The text mask (B, T), 1 = visible: given, or all that is not ``pad``."""
    return (ids_BT != pad).long() if mask_BT is None else mask_BT


def best_only(sim: torch.Tensor, itm: torch.Tensor, k: int) -> torch.Tensor:
    """sim + itm where sim is among its row's k best, -100 elsewhere."""
    best = sim.topk(k, dim=1).indices
    return torch.full_like(sim, -100.0).scatter(1, best, (sim + itm).gather(1, best))


def decay_groups(twin: nn.Module, decay: float = 0.05) -> list[dict]:
    """LAVIS 1.0.2's parameter groups for AdamW: no decay for vectors, scalars and names with bias, ln or
    bn."""
    free = {
        name: value.ndim < 2 or any(part in name for part in NO_DECAY)
        for name, value in twin.named_parameters()
        if value.requires_grad
    }
    pick = {False: [], True: []}
    for name, exempt in free.items():
        pick[exempt].append(twin.get_parameter(name))
    return [{"params": pick[False], "weight_decay": decay}, {"params": pick[True], "weight_decay": 0.0}]


def read_state_dict(source: str | Path | Mapping) -> dict[str, torch.Tensor]:
    """A file or mapping, bare or as ``{"model": …}`` -> tensors by LAVIS name, both names of each tied pair
    present."""
    if isinstance(source, str | Path):
        source = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    state = dict(source.get("model", source))
    for name, owner in seeded_weights.TIED.items():
        if name not in state and owner not in state:
            continue
        first, second = state.setdefault(owner, state.get(name)), state.setdefault(name, state.get(owner))
        if first is not second and not torch.equal(first, second):
            raise ValueError(f"{owner} and {name} are one tensor in LAVIS but differ in this checkpoint")
    return state


def load(
    source: str | Path | Mapping,
    config: ReferenceConfig | None = None,
    dtype: torch.dtype = torch.float32,
    **heads: int,
) -> ReferenceModel:
    """A frozen-ViT twin in eval mode from a LAVIS checkpoint; every key must be known and every parameter
    present.

    All weights are cast to ``dtype``: a checkpoint with a float16 ViT computes as LAVIS does on a CPU, with
    rounded weights and wide arithmetic. ``heads``: ``vit_heads=`` and ``heads=`` of
    ReferenceConfig.from_state_dict. A file is mapped, not read (training leaves it as it is); a mapping's tensors
    are copied.
    """
    state = read_state_dict(source)
    copy = isinstance(source, Mapping)
    with torch.device("meta"):  # no memory and no time for an initialisation that the checkpoint replaces
        twin = ReferenceModel(config or ReferenceConfig.from_state_dict(state, **heads))
    wanted = {
        name: value.to(dtype if value.is_floating_point() else value.dtype, copy=copy)
        for name, value in state.items()
    }
    twin.load_state_dict(wanted, strict=True, assign=True)
    twin.Qformer.tie()
    return twin.freeze_vit().eval()


def part(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """What lies under ``prefix``, without it: the weights of one block, to stream a checkpoint block by
    block."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def seeded_state_dict(
    config: ReferenceConfig, seed: int = seeded_weights.SEED, sep_bias: float = 0.0
) -> dict[str, torch.Tensor]:
    """A reproducible random checkpoint of any size, under LAVIS's names
    (mindblip2/parity/seeded_weights.py)."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in ReferenceModel(config).state_dict().items()}
    return {
        name: torch.from_numpy(value)
        for name, value in seeded_weights.weights(shapes, seed, sep_bias).items()
    }


@contextmanager
def capture(
    module: nn.Module, names: Iterable[str], inputs: bool = False
) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Record what the submodules called ``names`` (patterns as in a shell) return, or their first input: one
    per call.

    Of a module that returns several things the first is kept, which is the activation.
    """
    names = list(names)
    chosen = {
        name: sub for name, sub in module.named_modules() if any(fnmatch.fnmatchcase(name, n) for n in names)
    }
    if not chosen:
        known = [name for name, _ in module.named_modules() if name]
        raise ValueError(f"no submodule is called {names}; expected patterns of names such as {known[:5]}")
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in chosen}

    def hook(name):
        def keep(_, args, output):
            value = args if inputs else output
            seen[name].append((value[0] if isinstance(value, tuple) else value).detach())

        return keep

    handles = [sub.register_forward_hook(hook(name)) for name, sub in chosen.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
