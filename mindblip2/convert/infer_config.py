"""The dimensions of a model as the shapes in its files tell them, read through the same table of names as the
weights."""

import json
import math

from mindblip2.checkpoint.ckpt import CheckpointError
from mindblip2.config import Blip2Config, LlamaConfig, OPTConfig, ViTConfig
from mindblip2.config.schema import ConfigError
from mindblip2.convert.detect import is_bridge
from mindblip2.convert.hf_config import HfFolderConfig
from mindblip2.convert.name_maps.blip2 import BERT, EVA, source_name
from mindblip2.convert.readers.lazy_state_dict import shape_of

# Heads are in no shape.  Of published models the width tells them.
HEADS = {
    LlamaConfig: {4096: 32, 5120: 40, 6656: 52, 8192: 64},
    OPTConfig: {768: 12, 2048: 32, 2560: 32, 4096: 32, 5120: 40, 7168: 56, 9216: 72, 12288: 96},
}
ALIBI_WIDTH = {4096: "rope", 5120: "alibi"}  # Baichuan-7B and -13B
BAICHUAN2 = 125696  # words; Baichuan-1 has 64000
MOST_LAYERS = 200
# rows by which a vocabulary grows where tokens are added, or it is padded
MAX_ADDED_ROWS = 64


def infer_model_config(main, vit, kind, image_size=None, text_config=None, said=None):
    """The Blip2Config of stage 1, or with ``text_config`` of stage 2, from the shapes and what the
    config.json beside them has ``said``. Heads and epsilons are in no shape; without a config.json heads are
    those of the published widths."""
    said = said or HfFolderConfig({})
    try:
        return _read_config(main, vit, kind, image_size, text_config, said)
    except ConfigError as error:
        if said.path:
            raise CheckpointError(f"{said.path}: {error}") from None
        raise
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(
            f"the files hold no {error.args[0]}, without which they are no BLIP-2"
        ) from None
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"no dimensions can be read off the files ({error}): give --config") from None


def _read_config(main, vit, kind, image_size, text_config, said):
    vision = _read_vision(ShapeReader(main, kind) if vit is None else ShapeReader(vit, EVA))
    qformer = _read_qformer(ShapeReader(main, kind), not is_bridge(kind))
    for name, section in (("vision_config", vision), ("qformer_config", qformer)):
        for key, value in said.sections.get(name, {}).items():
            if key == "cross_attention_freq" and min(value, section[key]) >= section["num_hidden_layers"]:
                continue  # only the first layer crosses, either way
            if key in section and key != "num_attention_heads" and section[key] != value:
                raise CheckpointError(
                    f"{said.path} says {name}.{key} = {value}, but the shapes of the weights say "
                    f"{section[key]}: it "
                    "belongs to another model; get both again"
                )
            section[key] = value
    if image_size:
        vision["image_size"] = image_size
    most = qformer.get("max_position_embeddings", Blip2Config.max_txt_len)
    return Blip2Config(
        max_txt_len=min(Blip2Config.max_txt_len, most),
        vision_config=vision,
        text_config=text_config,
        qformer_config={**qformer, "encoder_width": vision["hidden_size"]},
        **said.sections.get("", {}),
    )


def config_as_yaml(section):
    """A section in the numbers that differ from its defaults, as one line of YAML: "{type: OPTConfig, …}"."""
    default = type(section)()
    said = {
        key: value
        for key, value in section.to_dict().items()
        if value != getattr(default, key) or key == "type"
    }
    return _yaml_mapping(said)


def _yaml_mapping(values):
    return "{" + ", ".join(f"{key}: {yaml_value(value)}" for key, value in values.items()) + "}"


class ShapeReader:
    """Shapes of a file by our names, whatever the names in it are."""

    def __init__(self, state, source):
        self.state, self.source = state, source

    def __call__(self, name):
        """Shape of what is our parameter ``name``; KeyError with its name in the file where it is not
        there."""
        theirs = source_name(self.source, name, freq=1)
        if theirs not in self.state:
            raise KeyError(theirs or name)
        return shape_of(self.state, theirs)

    def has(self, name):
        theirs = source_name(self.source, name, freq=1)
        return theirs is not None and theirs in self.state

    def count(self, pattern):
        """How many there are of ``pattern`` with an ``{i}``, counted from 0; one that is missing in between
        counts."""
        return 1 + max((i for i in range(MOST_LAYERS) if self.has(pattern.format(i=i))), default=-1)


def _read_vision(shapes):
    depth = shapes.count("vit.blocks.{i}.attn.qkv.weight")
    if depth == 0:
        raise CheckpointError(
            "the file holds no ViT (LAVIS does not save what is frozen): add --vit_path eva_vit_g.pth"
        )
    width, _, _, patch = shapes("vit.patch_embed.proj.weight")
    side = round((shapes("vit.pos_embed")[1] - 1) ** 0.5)
    return {
        "image_size": side * patch,
        "patch_size": patch,
        "hidden_size": width,
        "intermediate_size": shapes("vit.blocks.0.mlp.up.weight")[0],
        "num_hidden_layers": _blocks_used(depth) if shapes.source is EVA else depth,
        "num_attention_heads": _heads(width, 88),
    }


def _read_qformer(shapes, text):
    layer = "qformer.encoder.layers.{i}."
    layers = shapes.count(layer + "attention.query.weight")
    width = shapes(f"{layer.format(i=0)}attention.query.weight")[0]
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": _heads(width, 64)}
    if text:
        vocab = shapes("qformer.embeddings.word.embedding_table")[0] + (shapes.source is BERT)  # [DEC]
        sizes |= {
            "vocab_size": vocab,
            "bos_token_id": vocab - 1,
            "intermediate_size": shapes(f"{layer.format(i=0)}text_ffn.up.weight")[0],
            "max_position_embeddings": shapes("qformer.embeddings.position.embedding_table")[0],
        }
    if shapes.source is BERT:  # it has no cross-attention, queries and heads yet: the defaults
        return sizes
    sizes |= (
        {"head_embed_dim": shapes("vision_proj.weight")[0]}
        if text
        else {"intermediate_size": shapes(f"{layer.format(i=0)}query_ffn.up.weight")[0]}
    )
    crossing = [i for i in range(layers) if shapes.has(f"{layer.format(i=i)}cross_attention.query.weight")]
    return {
        **sizes,
        "query_length": shapes("qformer.query_tokens")[1],
        # only the first: its period is the depth
        "cross_attention_freq": crossing[1] if len(crossing) > 1 else layers,
    }


def infer_text_config(state, kind, beside):
    """(LlamaConfig or OPTConfig of a language model, remarks), from its shapes and what stands ``beside``
    them (:mod:`mindblip2.convert.hf_config`).  The last remark is the section as YAML, as far as it is not
    the default."""
    try:
        return _read_text_config(ShapeReader(state, kind), dict(beside))
    except (CheckpointError, ConfigError):
        raise
    except KeyError as error:
        raise CheckpointError(
            f"the files hold no {error.args[0]}, without which they are no {kind.title}"
        ) from None
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"no dimensions of a {kind.title} can be read off the files ({error}): give --config"
        ) from None


def _read_text_config(shapes, beside):
    llm, remarks = shapes.source.llm, []
    vocab, width = shapes("llm.word.embedding_table")
    sizes = {"hidden_size": width, "num_layers": shapes.count("llm.layers.{i}.norm1.gamma")}
    heads = beside.get("num_heads") or HEADS[llm].get(width)
    if heads is None:
        remarks.append(
            "num_heads is in no shape, and no config.json is beside the file: give it in text_config"
        )
    build = _llama if llm is LlamaConfig else _opt
    config = build(shapes, {**beside, **sizes, **_heads_of_llm(shapes, width, heads)}, vocab)
    if config.vocab_size < vocab:
        remarks.append(
            f"vocab_size stays {config.vocab_size}: the {vocab - config.vocab_size} rows behind it are "
            "padding"
        )
    elif llm().vocab_size < vocab < llm().vocab_size + MAX_ADDED_ROWS:
        remarks.append(
            f"vocab_size is {vocab}, as in the file: {vocab - llm().vocab_size} tokens were added to "
            f"{llm().vocab_size}"
        )
    said = {
        key: value for key, value in config.to_dict().items() if value != getattr(llm(), key) or key == "type"
    }
    if heads is None:
        said = {key: value for key, value in said.items() if key not in ("num_heads", "n_kv_heads")}
    return config, [*remarks, f"text_config: {_yaml_mapping(said)}"]


def text_config_of_width(width, llm):
    """The section of a language model of which only the width is known, from the bridge into it."""
    return (llm or LlamaConfig)(hidden_size=width, num_heads=1, num_layers=1)


def yaml_value(value):
    """A value as YAML; 1e-05 would be text there."""
    text = json.dumps(value)
    return (
        text.replace("e-", ".0e-") if isinstance(value, float) and "e" in text and "." not in text else text
    )


def has_grouped_query_attention(state, kind):
    """Whether there are fewer heads of keys than of queries."""
    shapes = ShapeReader(state, kind)
    return not is_packed(kind) and shapes("llm.layers.0.attention.query.weight") != shapes(
        "llm.layers.0.attention.key.weight"
    )


def _heads_of_llm(shapes, width, heads):
    """num_heads and n_kv_heads: as known, else heads as wide as the shapes allow, which fit them as well."""
    if is_packed(shapes.source):
        rows = keys = width
    else:
        rows, keys = (shapes(f"llm.layers.0.attention.{part}.weight")[0] for part in ("query", "key"))
    if rows != width:
        raise CheckpointError(
            f"the queries of this language model are {rows} wide, its embeddings {width}: heads of another "
            "width "
            "(head_dim) are not built here"
        )
    if heads is None and shapes.source.interleaved:
        raise CheckpointError(
            "Meta's queries and keys are in an order that depends on the number of heads, which is in no "
            "shape: put the params.json of the model beside the file, or give --config with "
            "text_config.num_heads"
        )
    heads = heads or rows // math.gcd(rows, keys)
    if heads < 1 or width % heads or keys % (width // heads):
        raise CheckpointError(
            f"{heads} heads (of the file beside the weights) do not fit queries of {rows} and keys of {keys} "
            "rows: it belongs to another model"
        )
    if shapes.source.llm is OPTConfig:
        return {"num_heads": heads}
    kv_heads = keys // (width // heads)
    return {"num_heads": heads, "n_kv_heads": kv_heads if kv_heads != heads else None}


def _llama(shapes, sizes, vocab):
    sizes = {**sizes, "vocab_size": vocab}
    if is_packed(shapes.source):
        found = ALIBI_WIDTH.get(sizes["hidden_size"], sizes.get("position_embedding", "rope"))
        sizes |= {"position_embedding": found, "normalized_head": vocab >= BAICHUAN2}
    config, hidden = LlamaConfig(**sizes), shapes("llm.layers.0.ffn.gate.weight")[0]
    return config if config.feed_forward_size == hidden else config.replace(intermediate_size=hidden)


def _opt(shapes, sizes, vocab):
    known = OPTConfig().vocab_size
    return OPTConfig(
        **sizes,
        vocab_size=known if known < vocab < known + MAX_ADDED_ROWS else vocab,
        intermediate_size=shapes("llm.layers.0.ffn.up.weight")[0],
        max_position_embeddings=shapes("llm.position.embedding_table")[0] - 2,
    )


def is_packed(source):
    """Baichuan: query, key and value are one matrix."""
    return source.modules.get("llm.layers.{i}.attention.query", "").endswith("W_pack")


def _heads(width, head):
    return width // head if width % head == 0 else 1


def _blocks_used(depth):
    """Of EVA's own file the last block is unused.  A ViT of as many blocks as BLIP-2 has was saved by LAVIS:
    all are."""
    return depth if depth == ViTConfig().num_hidden_layers else depth - 1
