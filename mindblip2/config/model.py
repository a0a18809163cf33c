"""Sections of the configuration that describe a model: ViT, Q-Former, BLIP-2.

The sections of the language models are in ``language_model``.  Works without MindSpore: dtypes are strings.
"""

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from mindblip2.compat.mindformers.printing import print_support_list
from mindblip2.config.language_model import LlamaConfig, OPTConfig
from mindblip2.config.schema import (
    ConfigError,
    Count,
    Natural,
    NonNegative,
    Pixels,
    Positive,
    Rate,
    Section,
    TokenId,
    divides,
    one_of,
    section,
)

DTYPES = ("float32", "float16", "bfloat16")


@section
class ViTConfig(Section):
    """EVA-CLIP ViT-g/14 without its last block (LAVIS: "penultimate layer")."""

    image_size: Pixels = 224  # pixels, square
    patch_size: Count = 14
    num_channels: Count = 3
    hidden_size: Count = 1408
    num_hidden_layers: Count = 39  # the file eva_vit_g.pth has 40; BLIP-2 uses the output of the 39th
    num_attention_heads: Count = 16  # of 88
    intermediate_size: Count = 6144  # int(1408 * 4.3637)
    layer_norm_eps: Positive = 1e-6  # in the blocks; ln_vision after them has its own
    qkv_bias: bool = True  # on q and v; k has none
    drop_path_rate: Rate = 0.0
    # standard deviation of the weights before training; None: 1 / √inputs
    initializer_range: NonNegative | None = 0.02
    # the same of the position embeddings; a small ViT from scratch wants about 1
    position_range: NonNegative = 0.02
    checkpoint_name_or_path: str = ""

    def __post_init__(self) -> None:
        divides(self, "patch_size", "image_size", "choose an image size that is a multiple of the patch")
        divides(self, "num_attention_heads", "hidden_size", "each head needs a whole number of channels")

    @property
    def num_tokens(self) -> int:
        """Patches plus the class token: 257 at 224 px."""
        return (self.image_size // self.patch_size) ** 2 + 1


@section
class QFormerConfig(Section):
    """bert-base-uncased with cross-attention in every second layer and learnt queries (paper section 3.1)."""

    vocab_size: Count = 30523  # 30522 of BERT and [DEC]
    hidden_size: Count = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    intermediate_size: Count = 3072
    max_position_embeddings: Count = 512
    layer_norm_eps: Positive = 1e-12  # BERT's; the ViT uses 1e-6
    encoder_width: Count = 1408  # width of the image embeddings
    cross_attention_freq: Count = 2
    query_length: Count = 32
    head_embed_dim: Count = 256  # width of the ITC embeddings
    bos_token_id: TokenId = 30522  # [DEC], starts a caption
    pad_token_id: TokenId = 0
    sep_token_id: TokenId = 102  # [SEP], ends a caption
    hidden_dropout_prob: Rate = 0.1
    attention_probs_dropout_prob: Rate = 0.1
    initializer_range: NonNegative | None = 0.02  # as the ViT's
    checkpoint_name_or_path: str = ""

    def __post_init__(self) -> None:
        divides(self, "num_attention_heads", "hidden_size", "each head needs a whole number of channels")
        for name in ("pad_token_id", "sep_token_id"):
            if getattr(self, name) >= self.vocab_size:
                raise ConfigError(
                    f"qformer_config.{name} = {getattr(self, name)}: expected an id of the vocabulary, less "
                    "than "
                    f"vocab_size = {self.vocab_size}"
                )
        if self.bos_token_id >= self.vocab_size:
            raise ConfigError(
                f"qformer_config.bos_token_id = {self.bos_token_id} lies outside the vocabulary of "
                f"{self.vocab_size}; [DEC] is the last id, so vocab_size must be {self.bos_token_id + 1}"
            )


@section
class Blip2Config(Section):
    """Dimensions and numerics of one BLIP-2.  Nested sections may be given as dicts of the values that
    differ from the defaults.

    Raises :class:`ConfigError` on an unknown key (with the nearest name), a value of the wrong type, or sizes
    that do not fit together."""

    vision_config: ViTConfig = field(default_factory=ViTConfig)
    qformer_config: QFormerConfig = field(default_factory=QFormerConfig)
    text_config: LlamaConfig | OPTConfig | None = None  # its ``type`` says which; None: stage 1
    max_txt_len: Count = 32  # tokens of a caption, [CLS] and [SEP] included
    temperature: Positive = 0.07  # start value of the learnt ITC temperature, which divides
    label_smoothing: Rate = 0.1  # in ITC and LM, not in ITM
    ln_vision_eps: Positive = 1e-5  # LAVIS; transformers has 1e-6 here on the same weights
    gather_with_grad: bool = False  # LAVIS: no gradient through the gathered ITC features
    query_reduce: str = "max"  # zero-shot score over the queries; "first" is what MindFormers did
    freeze_vision: bool = True
    # more that is not trained: patterns of parameter names, "qformer.embeddings.*"
    frozen: tuple[str, ...] = ()
    freeze_text: bool = True
    # stage 2: the text before every caption; true (MindFormers): text_transforms.prompt is it
    prompt: bool | str = False
    # MindFormers: its tokens, counted by hand; the trainer counts them itself
    prompt_length: Natural = 0
    # stage 2: bos between queries and text; None: with OPT as LAVIS, not with Llama as MindFormers
    text_bos: bool | None = None
    dtype: str = "float32"  # of the parameters
    # of the products; norms, softmax, similarity, losses and temp stay in float32
    compute_dtype: str = "float32"
    layernorm_dtype: str = "float32"
    softmax_dtype: str = "float32"
    batch_size: Count = 8
    is_training: bool = True
    checkpoint_name_or_path: str = ""

    model_type = "blip2"
    # no field: the preset or file that the configuration was read from, which also has the matching processor
    preset = ""

    def replace(self, **changes: Any) -> "Blip2Config":
        """See :meth:`Section.replace`."""
        return super().replace(**changes).set_preset(self.preset)

    def set_preset(self, preset: str) -> "Blip2Config":
        """Store the name of the preset or file that this configuration was read from; returns self."""
        object.__setattr__(self, "preset", preset)
        return self

    def __post_init__(self) -> None:
        if self.qformer_config.encoder_width != self.vision_config.hidden_size:
            raise ConfigError(
                f"qformer_config.encoder_width = {self.qformer_config.encoder_width} but "
                f"vision_config.hidden_size = {self.vision_config.hidden_size}: the Q-Former reads the ViT's "
                "output, so give both the same width"
            )
        if self.max_txt_len > self.qformer_config.max_position_embeddings:
            raise ConfigError(
                f"max_txt_len = {self.max_txt_len} exceeds qformer_config.max_position_embeddings = "
                f"{self.qformer_config.max_position_embeddings}"
            )
        one_of(self, "query_reduce", ("max", "first"))
        one_of(self, "dtype", ("float32",))
        one_of(self, "compute_dtype", DTYPES)
        one_of(self, "layernorm_dtype", ("float32",))
        one_of(self, "softmax_dtype", ("float32",))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> "Blip2Config":
        """The model part of a preset (``blip2_stage1_vit_g``) or of a YAML file."""
        from mindblip2.config.loading import load_config  # it imports this module

        return load_config(name_or_path).model.model_config

    @classmethod
    def show_support_list(cls) -> Sequence[str]:
        """Print and return the names that ``from_pretrained`` takes."""
        from mindblip2.config.loading import presets

        return print_support_list(cls.__name__, presets())

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``folder/config.yaml``, which ``from_pretrained`` reads back; the sections of a
        processor in that file are kept."""
        from mindblip2.config.loading import save_sections

        return save_sections(folder, model={"model_config": self.to_dict()})

    @property
    def begins_with_bos(self) -> bool:
        """Whether what follows the queries of stage 2 begins with bos."""
        return isinstance(self.text_config, OPTConfig) if self.text_bos is None else self.text_bos

    # Attributes that the examples of MindFormers' model card print or use.
    model = property(lambda self: self)
    model_config = property(lambda self: self)
    img_size = property(lambda self: self.vision_config.image_size)
    num_query_token = property(lambda self: self.qformer_config.query_length)
    cross_attention_freq = property(lambda self: self.qformer_config.cross_attention_freq)
    drop_path_rate = property(lambda self: self.vision_config.drop_path_rate)
    use_grad_checkpoint = property(lambda self: False)
    vit_model = property(lambda self: "vit_g_p16")
    embed_dim = property(lambda self: self.qformer_config.head_embed_dim)
    vocab_size = property(lambda self: self.qformer_config.vocab_size)
