"""The language models of stage 2 in numbers: one section for Llama and its relatives, one for OPT.

``type`` says which; the names of the fields are MindFormers' where it has one.
"""

from mindblip2.config.schema import (
    ConfigError,
    Count,
    Factor,
    Natural,
    NonNegative,
    Positive,
    Section,
    TokenId,
    divides,
    one_of,
    positive,
    section,
)

# Other names of generation arguments, of LAVIS and MindFormers.  All lengths count generated tokens only.
GENERATION_ALIASES = {
    "max_length": "max_new_tokens",
    "min_length": "min_new_tokens",
    "num_captions": "num_return_sequences",
    "use_nucleus_sampling": "do_sample",
}
LLAMA3_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@section
class LlamaConfig(Section):
    """Llama, Vicuna and Baichuan.  The defaults are Llama-7B's.

    Baichuan-7B is a Llama; Baichuan-13B has ``position_embedding: alibi``, Baichuan2 ``normalized_head:
    true`` besides."""

    type: str = "LlamaConfig"
    seq_length: Count = 64  # MindFormers: queries and text together
    hidden_size: Count = 4096
    num_layers: Count = 32
    num_heads: Count = 32
    # heads of keys and values, each shared by as many query heads; None: num_heads
    n_kv_heads: Count | None = None
    # of the feed-forward; None: made of the next two, 11008 for a width of 4096
    intermediate_size: Count | None = None
    multiple_of: Count = 256
    ffn_dim_multiplier: Positive | None = None
    vocab_size: Count = 32000
    rms_norm_eps: Positive = 1e-6  # Llama-2's and Llama-3's: 1e-5
    rope_theta: Positive = 10000.0  # Llama-3's: 500000
    # Hugging Face's mapping: {"rope_type": "linear" or "llama3", "factor": …}
    rope_scaling: dict | None = None
    position_embedding: str = "rope"  # Baichuan-13B's: "alibi"
    normalized_head: bool = False  # Baichuan2: the rows of the head are divided by their length
    initializer_range: NonNegative | None = 0.02  # as the ViT's
    bos_token_id: TokenId = 1
    # or several ids, each of which ends a text; training learns the first
    eos_token_id: TokenId | tuple[TokenId, ...] = 2
    pad_token_id: TokenId = 0
    # transformers' placeholder of a query, where the model comes from there, see docs/generation.md
    image_token_id: TokenId | None = None
    repetition_penalty: Positive = 1.0
    max_decode_length: Count = 512
    top_k: Natural = 1  # this and the next two act with do_sample
    top_p: Factor = 1.0
    temperature: Positive = 1.0
    do_sample: bool = False
    checkpoint_name_or_path: str = ""

    def __post_init__(self):
        one_of(self, "type", ("LlamaConfig",))
        one_of(self, "position_embedding", ("rope", "alibi"))
        _check_ends(self)
        positive(self, "feed_forward_size")
        divides(self, "num_heads", "hidden_size", "each head needs a whole number of channels")
        if self.num_heads % self.kv_heads:
            raise ConfigError(
                f"LlamaConfig.n_kv_heads = {self.kv_heads} does not divide num_heads = {self.num_heads}: "
                "each head of "
                "keys and values serves as many query heads"
            )
        if self.position_embedding == "rope" and self.hidden_size // self.num_heads % 2:
            raise ConfigError(
                f"hidden_size = {self.hidden_size} over num_heads = {self.num_heads} gives heads of "
                f"{self.hidden_size // self.num_heads} channels: rotary positions turn pairs, so make it even"
            )
        _check_scaling(self.rope_scaling)

    end_token_ids = property(
        lambda self: _ends(self), doc="The ids that end a text, as a tuple; training learns the first."
    )

    @property
    def kv_heads(self):
        """Heads of keys and values."""
        return self.num_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def positions(self):
        """The most that queries, prompt and new tokens may be together.  MindFormers' files say 64 for
        training, where ``max_decode_length`` holds for generation."""
        return max(self.seq_length, self.max_decode_length)

    @property
    def feed_forward_size(self):
        """Width of the feed-forward: as given, or MindFormers' rule, which is Meta's up to the hundredth."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        wanted = 4 * self.hidden_size
        if self.ffn_dim_multiplier is not None:
            wanted = int((self.ffn_dim_multiplier + 0.01) * wanted)
        return -(-int(2 * wanted / 3) // self.multiple_of) * self.multiple_of


@section
class OPTConfig(Section):
    """OPT as LAVIS's Blip2OPT has it.  The defaults are OPT-2.7B's."""

    type: str = "OPTConfig"
    hidden_size: Count = 2560
    num_layers: Count = 32
    num_heads: Count = 32
    intermediate_size: Count = 10240
    vocab_size: Count = 50272  # 50265 words, padded; transformers' BLIP-2 pads to 50304
    # rows of a table that was learnt: no other key changes how far it reaches
    max_position_embeddings: Count = 2048
    layer_norm_eps: Positive = 1e-5
    word_embed_proj_dim: Count | None = None  # OPT-350m's 512; None: hidden_size
    do_layer_norm_before: bool = True  # OPT-350m's: false
    initializer_range: NonNegative | None = 0.02  # as the ViT's
    bos_token_id: TokenId = 2
    # "\n", as LAVIS ends a caption; OPT's own is 2.  Several: as LlamaConfig
    eos_token_id: TokenId | tuple[TokenId, ...] = 50118
    pad_token_id: TokenId = 1
    image_token_id: TokenId | None = None  # transformers' 50265; see LlamaConfig
    repetition_penalty: Positive = 1.0
    top_k: Natural = 1  # this and the next two act with do_sample
    top_p: Factor = 1.0
    temperature: Positive = 1.0
    do_sample: bool = False
    checkpoint_name_or_path: str = ""

    def __post_init__(self):
        one_of(self, "type", ("OPTConfig",))
        _check_ends(self)
        divides(self, "num_heads", "hidden_size", "each head needs a whole number of channels")
        if self.word_embed_proj_dim not in (None, self.hidden_size) or not self.do_layer_norm_before:
            raise ConfigError(
                f"OPTConfig: word_embed_proj_dim = {self.word_embed_proj_dim} with hidden_size = "
                f"{self.hidden_size}, "
                f"do_layer_norm_before = {self.do_layer_norm_before}: this is OPT-350m, the one OPT with "
                "projected words "
                "and norms behind its layers; BLIP-2 has no bridge to it.  Take opt-2.7b or opt-6.7b"
            )

    # for queries, prompt and new tokens together
    positions = property(lambda self: self.max_position_embeddings)
    kv_heads = property(lambda self: self.num_heads)
    feed_forward_size = property(lambda self: self.intermediate_size)
    end_token_ids = property(lambda self: _ends(self), doc="As LlamaConfig's.")


def _ends(config):
    return config.eos_token_id if isinstance(config.eos_token_id, tuple) else (config.eos_token_id,)


def _check_ends(config):
    """One id or several different ones; a list of one is that one."""
    ends = _ends(config)
    if not ends or len(set(ends)) < len(ends):
        raise ConfigError(
            f"{type(config).__name__}.eos_token_id = {config.eos_token_id!r}: expected a token id, or "
            "several "
            "different ones"
        )
    if len(ends) == 1:
        object.__setattr__(config, "eos_token_id", ends[0])


def _check_scaling(scaling):
    """Only what is computed here: linear and Llama-3's."""
    if scaling is None:
        return
    kind = scaling.get("rope_type", scaling.get("type"))
    needed = {"linear": LLAMA3_SCALING[:1], "llama3": LLAMA3_SCALING}.get(kind)
    if needed is None:
        raise ConfigError(
            f"LlamaConfig.rope_scaling = {scaling}: rope_type {kind!r} is not computed here; expected "
            "'linear' or "
            "'llama3', or null for none"
        )
    wrong = [
        key
        for key in needed
        if isinstance(scaling.get(key), bool)
        or not isinstance(scaling.get(key), int | float)
        or scaling[key] <= 0
    ]
    if wrong:
        raise ConfigError(
            f"LlamaConfig.rope_scaling = {scaling}: {kind} needs a number above 0 for {', '.join(wrong)}"
        )
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ConfigError(
            f"LlamaConfig.rope_scaling = {scaling}: high_freq_factor must be above low_freq_factor"
        )
