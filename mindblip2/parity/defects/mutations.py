"""Which case catches which defect: the mutation table.

``caught`` are the cases that must fail with the defect, ``spared`` some that must pass (a comparison that
fails everywhere locates nothing); patterns as in a shell, separated by commas. A case that no row names is a
hole: tests/parity/ test_defects.py looks for those.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from mindspore import nn

from mindblip2.parity.compare import Row, failing
from mindblip2.parity.defects import preprocessing, stage1


@dataclass(frozen=True)
class Mutation:
    """A defect (mindblip2/parity/defects/stage1.py) and the cases that tell."""

    patches: Callable
    caught: str
    spared: str


LAYER = "qformer.encoder.layers.*"
MUTATIONS = {
    "tanh GELU": Mutation(
        stage1.tanh_gelu,
        "vit.blocks.?, vit.blocks.?.mlp, see.layers.*, read.layers.*, match.layers.*, caption.layers.*, "
        "lm_head, chained vit.blocks.0.mlp",
        "vit.blocks.?.attn, vit.blocks.?.norm?, memory, chained vit.blocks.0.attn",
    ),
    "products in half precision": Mutation(
        stage1.half_precision,
        "chained *, vit.patch_embed, vit.blocks.?.attn.proj, vit.blocks.?.mlp.*, qformer.memory.*, memory, "
        f"{LAYER}.query, {LAYER}.key, {LAYER}.value, {LAYER}.output, {LAYER}.up, {LAYER}.down, "
        "qformer.lm_head.transform, "
        "vision_proj, text_proj, itm_head",
        "ln_vision, embed.*, lm, itm, negatives*",
    ),
    "attention scores not scaled": Mutation(
        stage1.unscaled_attention,
        "vit.blocks.?.attn, see.layers.*, read.layers.*",
        "vit.blocks.?.mlp, memory, lm_head",
    ),
    "fused GELU of a shorter series": Mutation(stage1.fused_series_short, "fused.gelu", "fused.layer_norm"),
    "fused norm with eps 1e-5": Mutation(stage1.fused_eps, "fused.layer_norm", "fused.gelu"),
    "ViT eps 1e-5": Mutation(
        stage1.vit_eps, "vit.blocks.?.norm?, vit.blocks.?", "vit.blocks.?.attn, ln_vision, read"
    ),
    "ln_vision eps 1e-6": Mutation(stage1.ln_vision_eps, "ln_vision", "vit.blocks.?.norm?, embed.*"),
    "patch kernel with colours last": Mutation(
        stage1.patch_transposed, "vit.patch_embed", "vit.blocks.?, ln_vision"
    ),
    "ViT positions off by one": Mutation(
        stage1.vit_positions,
        "vit, chained vit.embed, chained vit.blocks.0",
        "chained vit.patch_embed, vit.blocks.?",
    ),
    "bias [q, v, 0] for [q, 0, v]": Mutation(
        stage1.lost_zero, "vit.blocks.?.attn, vit.blocks.?", "vit.blocks.?.norm?, vit.blocks.?.mlp"
    ),
    "ViT feed-forward transposed": Mutation(
        stage1.feed_forward_transposed,
        "vit.blocks.?.mlp, vit.blocks.?",
        "vit.blocks.?.norm?, vit.blocks.?.attn",
    ),
    "heads of q permuted": Mutation(
        stage1.permuted_heads,
        f"vit.blocks.?.attn, read.layers.*, {LAYER}.attention.query",
        f"vit.blocks.?.mlp, {LAYER}.attention.key",
    ),
    "Q-Former eps 1e-5": Mutation(
        stage1.qformer_eps,
        f"{LAYER}.attention_norm, {LAYER}.cross_norm, {LAYER}.query_norm, {LAYER}.text_norm, "
        "qformer.lm_head.norm, embed.*",
        f"ln_vision, {LAYER}.attention.query",
    ),
    "pads visible": Mutation(
        stage1.pads_visible,
        "read, match, read.layers.*, match.layers.*, itm_logits",
        "see, see.layers.*, embed.text",
    ),
    "mask without its factor": Mutation(
        stage1.mask_without_factor,
        "read, match, read.layers.*, match.layers.*, itm_logits",
        "see, see.layers.*, embed.text, caption",
    ),
    "captions see the future": Mutation(
        stage1.future_visible, "caption, caption.layers.*", "read.layers.*, match.layers.*, lm_head"
    ),
    "captions do not see the queries": Mutation(
        stage1.queries_hidden, "caption, caption.layers.*", "see, read, match"
    ),
    "text positions off by one": Mutation(
        stage1.text_positions,
        "embed.text, read, match, caption, next_token",
        "embed.queries, see, read.layers.*",
    ),
    "every new word at position 0": Mutation(stage1.positions_restart, "next_token", "embed.text, caption"),
    "queries without their norm": Mutation(
        stage1.query_norm_skipped, "see, match, itm_logits", "embed.queries, read, see.layers.*"
    ),
    "text and query feed-forward exchanged": Mutation(
        stage1.feed_forwards_exchanged,
        f"see.layers.*, read.layers.*, {LAYER}.text_ffn.*, {LAYER}.query_ffn.*",
        f"{LAYER}.attention.output, memory",
    ),
    "memories exchanged": Mutation(
        stage1.memories_exchanged,
        "memory, qformer.memory.key.*, see.layers.0, match.layers.0, see",
        "qformer.memory.value.*, see.layers.1, read",
    ),
    "a cross-attention lost": Mutation(
        stage1.lost_cross_attention,
        "see.layers.0, match.layers.0, see",
        "read.layers.0, see.layers.1, memory",
    ),
    "caption cache detached": Mutation(stage1.cache_detached, "caption", "see, caption.layers.*"),
    "LM head not tied": Mutation(stage1.untied_head, "lm_head", "embed.text, next_token"),
    "captions start with [CLS]": Mutation(
        stage1.captions_from_cls, "chained qformer.lm_head", "caption, chained itm_head"
    ),
    "image and text negatives exchanged": Mutation(
        stage1.negatives_exchanged, "chained itm_head", "itm_logits, chained qformer.lm_head"
    ),
    "ITM from one query": Mutation(stage1.one_query_matches, "itm_logits", "match, itm, itm_head"),
    "ln_vision frozen too": Mutation(stage1.ln_vision_frozen, "stage1", "ln_vision, memory"),
    "gradient through the ITC gather": Mutation(
        stage1.gather_learns, "itc, itc.image_id, stage1", "itc.gather_with_grad, itm"
    ),
    "no gradient through the ITC gather": Mutation(
        stage1.gather_never_learns, "itc.gather_with_grad", "itc, itc.image_id"
    ),
    "no label smoothing": Mutation(stage1.no_smoothing, "itc, itc.image_id, lm", "itm, negatives"),
    "image ids ignored": Mutation(stage1.ids_ignored, "itc.image_id, negatives.image_id", "itc, negatives"),
    "negatives may be the sample itself": Mutation(
        stage1.own_pair_drawn, "negatives, negatives.image_id", "itc.image_id, itm"
    ),
    "features in half precision": Mutation(
        stage1.half_features, "itc, itc.image_id, stage1.losses", "image_feats, text_feats, lm"
    ),
    "classes from the first query": Mutation(stage1.first_query_classifies, "classifier", "itc, image_feats"),
    "mean over queries": Mutation(stage1.mean_over_queries, "itc, classifier", "image_feats, lm"),
    "features not normalised": Mutation(
        stage1.not_normalised, "image_feats, text_feats, itc, classifier", "vision_proj, text_proj"
    ),
    "temperature multiplies": Mutation(
        stage1.temp_multiplies, "itc, itc.gather_with_grad, stage1.losses", "classifier, lm"
    ),
    "ITM classes exchanged": Mutation(stage1.itm_classes_exchanged, "itm", "itm_logits, lm"),
    "smoothing over pads": Mutation(stage1.smoothing_over_pads, "lm", "lm_head, itc"),
    "LM without shift": Mutation(stage1.not_shifted, "lm", "lm_head, itc"),
    "pads are words": Mutation(stage1.pads_predicted, "lm", "lm_head, read"),
    "no weight decay": Mutation(preprocessing.no_decay, "adamw", "schedule, lm"),
    "rates one step late": Mutation(preprocessing.warm_up_late, "schedule", "adamw, picture"),
    "pictures not antialiased": Mutation(preprocessing.not_antialiased, "picture", "tokens, vit.patch_embed"),
    "texts truncated early": Mutation(preprocessing.truncated_early, "tokens", "picture, embed.text"),
    "norms exchanged on the way back": Mutation(
        preprocessing.norms_exchanged_on_the_way_back, "conversion", "vit.blocks.?, ln_vision"
    ),
}


@contextmanager
def defective(model: nn.Cell, mutation: str | Mutation) -> Iterator[None]:
    """The model with a defect, of the table or another, while this lasts."""
    mutation = MUTATIONS[mutation] if isinstance(mutation, str) else mutation
    with ExitStack() as stack:
        for patch in mutation.patches(model):
            stack.enter_context(patch)
        yield


def mutated(suite, mutation: str | Mutation) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """The rows of the cases that must catch a defect, and of those that must not."""
    mutation = MUTATIONS[mutation] if isinstance(mutation, str) else mutation
    caught, spared = (suite.matching(patterns) for patterns in (mutation.caught, mutation.spared))
    with defective(suite.nets.ours, mutation):
        rows = suite.rows([*caught, *spared])
    return {name: rows[name] for name in caught}, {name: rows[name] for name in spared}


def verdict_of(suite, mutation: str | Mutation) -> tuple[str, float]:
    """Whether a defect was caught and located, and the ratio of the weakest catch."""
    caught, spared = mutated(suite, mutation)
    right = failing(caught) == set(caught) and not failing(spared)
    return "caught" if right else "MISSED", min(max(row.ratio for row in rows) for rows in caught.values())
