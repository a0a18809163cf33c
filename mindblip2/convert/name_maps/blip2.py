"""One table of module paths per source: which module of ours is which module of theirs.

The leaf of a name follows from the type of our cell (``gamma`` is their ``weight``, …), so the tables hold
modules, not parameters.  ``{i}`` counts the layers, ``{c}`` the layers with cross-attention, whose index in
their list is ``{x}`` = c × freq. The same tables tell parity which activation is which, and docs how the
towers are built.
"""

from dataclasses import dataclass, field

# other leaves have the same name on both sides
LEAVES = {"gamma": "weight", "beta": "bias", "embedding_table": "weight"}

_VIT_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn": "attn",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
_BERT_SELF = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
}
_BERT_TEXT = {
    "text_ffn.up": "intermediate.dense",
    "text_ffn.down": "output.dense",
    "text_norm": "output.LayerNorm",
}
_BERT_QUERY = {
    "query_ffn.up": "intermediate_query.dense",
    "query_ffn.down": "output_query.dense",
    "query_norm": "output_query.LayerNorm",
}
_BERT_CROSS = {
    "cross_attention.query": "crossattention.self.query",
    "cross_attention.output": "crossattention.output.dense",
    "cross_norm": "crossattention.output.LayerNorm",
}


@dataclass(frozen=True, eq=False)  # compared by identity
class NameMap:
    """Where the parameters of one kind of file go.

    mark: how a name begins that tells a file of this kind.  modules: our module path → theirs; parameters:
    the same of single parameters whose leaf differs too.  copies: our module → (the module of ours whose
    weights it starts from, reason).  tied: their name → (the name that it shares a tensor with, reason).
    known: what a file may hold that has no place here, as (regular expression, reason).  makes: our prefixes
    that the file does not hold and that are made, with the reason.  llm: the section of the configuration for
    the language model that is in the file or that its bridge leads into.  interleaved: rotary pairs lie side
    by side, see ``fit.half_split``."""

    title: str
    mark: str
    modules: dict
    parameters: dict = field(default_factory=dict)
    copies: dict = field(default_factory=dict)
    tied: dict = field(default_factory=dict)
    known: tuple = ()
    makes: tuple = ()
    llm: type | None = None
    interleaved: bool = False
    leaves: dict = field(default_factory=lambda: LEAVES)


def add_prefixes(ours, theirs, table):
    """The rows of a table below two module paths."""
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in table.items()}


def _vit(root):
    return {
        "vit": root.rstrip("."),
        "vit.patch_embed.proj": f"{root}patch_embed.proj",
        **add_prefixes("vit.blocks.{i}", root + "blocks.{i}", _VIT_BLOCK),
    }


def _bert(layer, tables):
    rows = {}
    for table in tables:
        rows.update(add_prefixes("qformer.encoder.layers.{i}", layer + "{i}", table))
    return rows


def _cross(layer, table=_BERT_CROSS, own="crossattention.self"):
    return {
        **add_prefixes("qformer.encoder.layers.{x}", layer + "{x}", table),
        "qformer.memory.key.{c}": layer + "{x}." + own + ".key",
        "qformer.memory.value.{c}": layer + "{x}." + own + ".value",
    }


def _heads(vision="vision_proj", text="text_proj"):
    return {"vision_proj": vision, "text_proj": text, "itm_head": "itm_head"}


def _tied(root):
    predictions, words = root + "cls.predictions.", f"{root}bert.embeddings.word_embeddings.weight"
    return {
        predictions + "decoder.weight": (words, "tied: the word embedding, kept once"),
        predictions + "decoder.bias": (predictions + "bias", "tied: cls.predictions.bias, kept once"),
    }


_LAYER = "Qformer.bert.encoder.layer."
POSITION_IDS = (r"position_ids$", "buffer 0, 1, 2, …: computed here")
# what stage 1 and stage 2 have in common
LAVIS_SHARED_MODULES = {
    **_vit("visual_encoder."),
    "ln_vision": "ln_vision",
    "qformer": "",
    "qformer.embedding_norm": "Qformer.bert.embeddings.LayerNorm",
    **_bert(_LAYER, (_BERT_SELF, _BERT_QUERY)),
    **_cross(_LAYER),
}

LAVIS = NameMap(
    title="LAVIS stage 1",
    mark="Qformer.bert.",
    modules={
        **LAVIS_SHARED_MODULES,
        "": "",
        **_heads(),
        "qformer.embeddings.word": "Qformer.bert.embeddings.word_embeddings",
        "qformer.embeddings.position": "Qformer.bert.embeddings.position_embeddings",
        **_bert(_LAYER, (_BERT_TEXT,)),
        "qformer.lm_head": "Qformer.cls.predictions",
        "qformer.lm_head.transform": "Qformer.cls.predictions.transform.dense",
        "qformer.lm_head.norm": "Qformer.cls.predictions.transform.LayerNorm",
    },
    tied=_tied("Qformer."),
    known=(POSITION_IDS,),
)

EVA = NameMap(
    title="EVA ViT-g",
    mark="blocks.0.attn.qkv.",
    modules=_vit(""),
    known=(
        (r"^head\.", "classifier of the image tower: BLIP-2 has none"),
        (r"^fc_norm\.", "final norm: BLIP-2 has none"),
        (r"^norm\.", "final norm: BLIP-2 has none"),
        (r"^rope\.", "unused"),
        (r"attn\.relative_position_index$", "buffer: computed by EVA"),
        (r"^mask_token", "masked-image pre-training only"),
    ),
)

_BERT_LAYER = "bert.encoder.layer."
BERT = NameMap(
    title="BERT",
    mark=_BERT_LAYER + "0.",
    modules={
        "qformer.embeddings.word": "bert.embeddings.word_embeddings",
        "qformer.embeddings.position": "bert.embeddings.position_embeddings",
        "qformer.embedding_norm": "bert.embeddings.LayerNorm",
        **_bert(_BERT_LAYER, (_BERT_SELF, _BERT_TEXT)),
        "qformer.lm_head": "cls.predictions",
        "qformer.lm_head.transform": "cls.predictions.transform.dense",
        "qformer.lm_head.norm": "cls.predictions.transform.LayerNorm",
    },
    copies={
        "qformer.encoder.layers.{i}." + ours: (
            "qformer.encoder.layers.{i}." + text,
            "query feed-forward starts as the text feed-forward's copy",
        )
        for ours, text in zip(_BERT_QUERY, _BERT_TEXT)
    },
    tied=_tied(""),
    known=(
        POSITION_IDS,
        (r"^bert\.pooler\.", "next-sentence head: the Q-Former has none"),
        (r"^cls\.seq_relationship\.", "next-sentence head: the Q-Former has none"),
        (r"^bert\.embeddings\.token_type_embeddings\.weight$", "the Q-Former has no segments"),
    ),
    makes=(
        ("qformer.query_tokens", "learnt queries: normal(0, 0.02)"),
        ("qformer.memory.", "cross-attention: normal(0, 0.02)"),
        ("qformer.encoder.layers.", "cross-attention: normal(0, 0.02)"),
        ("ln_vision.", "identity"),
        ("vision_proj.", "head: normal(0, 0.02)"),
        ("text_proj.", "head: normal(0, 0.02)"),
        ("itm_head.", "head: normal(0, 0.02)"),
        ("temp", "start value 0.07"),
    ),
)

_HF_LAYER = "qformer.encoder.layer."
_HF_SELF = {
    ours: theirs.replace("attention.self", "attention.attention") for ours, theirs in _BERT_SELF.items()
}
_HF_CROSS = {
    ours: theirs.replace("crossattention.self", "crossattention.attention")
    for ours, theirs in _BERT_CROSS.items()
}
_HF_BLOCK = "vision_model.encoder.layers.{i}"
HF_SHARED_MODULES = {
    "qformer": "",
    "ln_vision": "vision_model.post_layernorm",
    "vit.patch_embed.proj": "vision_model.embeddings.patch_embedding",
    **add_prefixes(
        "vit.blocks.{i}",
        _HF_BLOCK,
        {
            "norm1": "layer_norm1",
            "norm2": "layer_norm2",
            "attn.qkv": "self_attn.qkv",
            "attn.proj": "self_attn.projection",
            "mlp.up": "mlp.fc1",
            "mlp.down": "mlp.fc2",
        },
    ),
    "qformer.embedding_norm": "qformer.layernorm",
    **_bert(_HF_LAYER, (_HF_SELF, _BERT_QUERY)),
    **_cross(_HF_LAYER, _HF_CROSS, "crossattention.attention"),
}
HF_PARAMETERS = {
    "vit.cls_token": "vision_model.embeddings.class_embedding",
    "vit.pos_embed": "vision_model.embeddings.position_embedding",
    "vit.blocks.{i}.attn.q_bias": f"{_HF_BLOCK}.self_attn.qkv.bias",  # fused: see fit.part
    "vit.blocks.{i}.attn.v_bias": f"{_HF_BLOCK}.self_attn.qkv.bias",
}

HF = NameMap(
    title="transformers blip2-itm",
    mark=_HF_LAYER,
    modules={
        **HF_SHARED_MODULES,
        **_heads("vision_projection", "text_projection"),
        "qformer.embeddings.word": "embeddings.word_embeddings",
        "qformer.embeddings.position": "embeddings.position_embeddings",
        **_bert(_HF_LAYER, (_BERT_TEXT,)),
    },
    parameters=HF_PARAMETERS,
    known=(POSITION_IDS,),
    makes=(
        ("temp", "not in the file: start value 0.07"),
        (
            "qformer.lm_head.",
            "not in the file: captions of stage 1 need a trained head, so generate() is untrained",
        ),
    ),
)


def source_name(source, name, freq=2):
    """Their name of our parameter ``name``, or None where the source has no such module."""
    whole, numbers = _pattern(name, freq)
    if whole in source.parameters:
        return source.parameters[whole].format(**numbers)
    module, _, leaf = name.rpartition(".")
    pattern, numbers = _pattern(module, freq)
    theirs = source.modules.get(pattern)
    if theirs is None and "{i}" in pattern and numbers["i"] % freq == 0:
        theirs = source.modules.get(pattern.replace("{i}", "{x}"))
    if theirs is None:
        return None
    theirs = theirs.format(**numbers)
    leaf = source.leaves.get(leaf, leaf)
    return f"{theirs}.{leaf}" if theirs else leaf


def copy_source(source, name, freq=2):
    """(our parameter that ``name`` starts as a copy of, reason), or None."""
    module, _, leaf = name.rpartition(".")
    pattern, numbers = _pattern(module, freq)
    original, reason = source.copies.get(pattern, (None, ""))
    return None if original is None else (f"{original.format(**numbers)}.{leaf}", reason)


def _pattern(module, freq):
    """ "qformer.memory.key.3" → ("qformer.memory.key.{c}", {c: 3, x: 6}); a module has at most one number."""
    parts = module.split(".")
    for at, part in enumerate(parts):
        if part.isdigit():
            kind = "c" if parts[:at][-2:-1] == ["memory"] else "i"
            parts[at] = f"{{{kind}}}"
            number = int(part)
            return ".".join(parts), {kind: number, "x": number * freq if kind == "c" else number}
    return module, {}
