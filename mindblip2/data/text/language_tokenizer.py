"""The tokenizer of a language model, always made from that model's own files: Llama, Vicuna, Baichuan, OPT,
GPT-2."""

from dataclasses import dataclass

import numpy as np

from mindblip2.data.text import tokenizer_files
from mindblip2.data.text.encoding import SIDES, checked_length, encoding, joined, listed, texts_of
from mindblip2.data.text.vocabulary import HuggingFace, SentencePieces
from mindblip2.file_io import FileError

RARE = "\U00013000"  # an Egyptian hieroglyph
# a model's vocabulary may be larger than its tokenizer's by less than this: rounded up for the hardware
PADDED = 128


@dataclass(frozen=True)
class Kind:
    """What a type of tokenizer is when neither the configuration nor the files beside its vocabulary say it.

    Of several tokens the first that the vocabulary holds counts."""

    models: str  # examples, for messages
    files: tuple = ("tokenizer.model", "tokenizer.json")
    bos_token: tuple = ("<s>", "<|begin_of_text|>")
    eos_token: tuple = ("</s>", "<|end_of_text|>")
    unk_token: tuple = ("<unk>",)
    # MindFormers' Llama pads with <unk>, id 0
    pad_token: tuple = ("<unk>", "<pad>", "</s>", "<|end_of_text|>")
    add_bos_token: bool | None = None  # None: what the file itself puts in front
    add_eos_token: bool | None = None
    joins: bool = False  # decoding undoes splits at punctuation


KINDS = {
    "LlamaTokenizer": Kind("Llama, Vicuna", add_bos_token=True, add_eos_token=False),
    "BaichuanTokenizer": Kind(
        "Baichuan", files=("tokenizer.model",), add_bos_token=False, add_eos_token=False
    ),
    # OPT has GPT-2's tokenizer with </s> in front; LAVIS decodes it as the transformers of its time did, with
    # joins.
    "GPT2Tokenizer": Kind(
        "OPT, GPT-2",
        files=("tokenizer.json", "vocab.json"),
        bos_token=("</s>", "<|endoftext|>"),
        eos_token=("</s>", "<|endoftext|>"),
        unk_token=("</s>", "<|endoftext|>"),
        pad_token=("<pad>", "<|endoftext|>"),
        joins=True,
    ),
    "PreTrainedTokenizerFast": Kind("any with a tokenizer.json", files=("tokenizer.json", "tokenizer.model")),
}
SAME = {"LlamaTokenizerFast": "LlamaTokenizer", "GPT2TokenizerFast": "GPT2Tokenizer"}
KIND_NAMES = (*KINDS, *SAME)


class LanguageTokenizer:
    """Text to ids of a language model, ``bos x eos`` as far as the model wants them, and back.

    ``vocab_file``: a sentencepiece ``.model``, a ``tokenizer.json``, a ``vocab.json`` with ``merges.txt``
    beside it, the folder of one, or the bare name of a file shipped with mindblip2.  ``kind``: a name of
    ``KIND_NAMES``.  ``max_length`` is in tokens, bos and eos included.  ``added_tokens`` are appended to the
    vocabulary, special ones, as LAVIS appends "[PAD]" to Vicuna's.

    What is None is taken from ``tokenizer_config.json`` and ``special_tokens_map.json`` beside the file, else
    from the kind.  A ``pad_token`` that is not in the vocabulary is the unknown token (so MindFormers'
    "<pad>" is id 0 of a Llama).

    Raises FileNotFoundError or ValueError with the file to get; ValueError for a file of another format and a
    special token that the vocabulary lacks; ImportError for a sentencepiece model without sentencepiece."""

    def __init__(
        self,
        vocab_file,
        kind="LlamaTokenizer",
        max_length=32,
        *,
        bos_token=None,
        eos_token=None,
        unk_token=None,
        pad_token=None,
        add_bos_token=None,
        add_eos_token=None,
        added_tokens=(),
    ):
        plan = KINDS[SAME.get(kind, kind)]
        self.kind, self.max_length, self.added_tokens = (
            kind,
            checked_length(max_length, 1, "one token"),
            tuple(added_tokens),
        )
        self.vocab_file = tokenizer_files.find(vocab_file, kind, plan.files, plan.models)
        settings, added = tokenizer_files.beside(self.vocab_file)
        self._vocabulary = (
            HuggingFace(self.vocab_file)
            if self.vocab_file.suffix == ".json"
            else SentencePieces(self.vocab_file, settings.get("legacy", True))
        )
        for token, (number, special) in sorted(added.items(), key=lambda item: item[1]):
            self._vocabulary.add(token, special, number)
            if self._vocabulary.id_of(token) != number:
                raise FileError(
                    f"the added token {token!r} has id {number} in the files beside {self.vocab_file}, but "
                    f"{self._vocabulary.id_of(token)} in the vocabulary: are the files of one model?  Get "
                    "all of them again"
                )
        if not all(isinstance(token, str) and token for token in added_tokens):
            raise ValueError(f"added_tokens = {list(added_tokens)}: expected texts")
        for token in added_tokens:
            self._vocabulary.add(token, True)
        said = dict(zip(tokenizer_files.SPECIAL, (bos_token, eos_token, unk_token, pad_token)))
        for name in tokenizer_files.SPECIAL:
            self._name(name, said[name] or settings.get(name), getattr(plan, name))
        before, after = self._vocabulary.around
        # its vocab.json alone does not say it
        opt = plan is KINDS["GPT2Tokenizer"] and self.bos_token == "</s>"
        self.add_bos_token = _first(
            add_bos_token, settings.get("add_bos_token"), plan.add_bos_token, bool(before) or opt
        )
        self.add_eos_token = _first(
            add_eos_token, settings.get("add_eos_token"), plan.add_eos_token, bool(after)
        )
        self._joins = settings.get("clean_up_tokenization_spaces", plan.joins)
        # A vocabulary of bytes can write everything: what no text of today holds shows whether there is an
        # unknown token in use.
        self.unknown_id = self.unk_token_id if self.unk_token_id in self._vocabulary.encode(RARE) else None

    def _name(self, name, told, usual):
        """Settle one special token: ``self.eos_token`` and ``self.eos_token_id``."""
        token = told or next((one for one in usual if self._vocabulary.id_of(one) is not None), None)
        if token and self._vocabulary.id_of(token) is None:
            if name != "pad_token" or self.unk_token is None:
                raise ValueError(
                    f"{name} = {token!r} is not in the vocabulary of {len(self)} ({self.vocab_file}): give a "
                    "token of the "
                    "model's own tokenizer, or name it in added_tokens if the model's vocabulary was "
                    "extended by it"
                )
            token = self.unk_token
        if token:
            self._vocabulary.add(token, True)
        setattr(self, name, token)
        setattr(self, f"{name}_id", None if token is None else self._vocabulary.id_of(token))

    def __call__(
        self,
        text,
        max_length=None,
        padding="longest",
        truncation=True,
        return_tensors=None,
        add_special_tokens=True,
        padding_side="right",
        truncation_side="right",
    ):
        """``{"input_ids", "attention_mask"}`` of a string or a list of strings.

        ``padding``: "longest" (or True), "max_length", or False; on the ``padding_side`` "right", or "left"
        for prompts that go on. ``truncation``: text loses its end, or with ``truncation_side="left"`` its
        begin, so that at most ``max_length`` tokens are left; bos and eos stay.
        ``add_special_tokens=False``: neither bos nor eos. ``return_tensors``: None gives lists, 1-D for a
        string and 2-D for a list; "np" int32 arrays and "ms" int32 Tensors (B, T).

        Raises TypeError for text that is not a string; ValueError for an empty list, an unknown option,
        padding without a token for it, or rows of unequal length where an array is asked for."""
        length = checked_length(self.max_length if max_length is None else max_length, 1, "one token")
        if truncation_side not in SIDES:
            raise ValueError(f"truncation_side = {truncation_side!r}: expected 'left' or 'right'")
        rows = [
            self._row(one, length if truncation else None, add_special_tokens, truncation_side)
            for one in texts_of(text)
        ]
        if (
            padding
            and self.pad_token_id is None
            and len({*map(len, rows), *([length] if padding == "max_length" else [])}) > 1
        ):
            raise ValueError(
                f"the vocabulary {self.vocab_file} has no token for padding: name one as pad_token"
            )
        return encoding(
            rows, np.ndim(text) == 0, padding, length, self.pad_token_id, padding_side, return_tensors
        )

    def _row(self, text, length, around, side):
        before = [self.bos_token_id] if around and self.add_bos_token else []
        after = [self.eos_token_id] if around and self.add_eos_token else []
        ids = self._vocabulary.encode(text)
        if length is not None and len(ids) > (room := max(length - len(before) - len(after), 0)):
            ids = ids[:room] if side == "right" else ids[len(ids) - room :]
        return [*before, *ids, *after]

    def encode(self, text, add_special_tokens=True):
        """All the ids of one string, as a list."""
        return self._row(*texts_of(text), None, add_special_tokens, "right")

    def decode(self, ids, skip_special_tokens=True):
        """One row of ids (list, array or Tensor) to text.  Raises ValueError for an id outside the
        vocabulary."""
        ids = [int(one) for one in listed(ids)]
        self.convert_ids_to_tokens(ids)
        kept = [one for one in ids if not (skip_special_tokens and one in self._vocabulary.special)]
        text = self._vocabulary.decode(kept)
        return joined(text) if self._joins else text

    def batch_decode(self, ids, skip_special_tokens=True):
        """Rows of ids, (B, T) or a list of rows, to a list of texts."""
        return [self.decode(row, skip_special_tokens) for row in listed(ids)]

    def convert_ids_to_tokens(self, ids):
        """One row of ids to tokens as the vocabulary writes them."""
        ids = [int(one) for one in listed(ids)]
        tokens = [self._vocabulary.token_of(one) for one in ids]
        if None in tokens:
            raise ValueError(
                f"id {ids[tokens.index(None)]} lies outside the vocabulary of {len(self)} "
                f"({self.vocab_file}); was the "
                "text made with another vocabulary?"
            )
        return tokens

    def convert_tokens_to_ids(self, token):
        """The id of one token of the vocabulary; None for one that is not in it."""
        return self._vocabulary.id_of(token)

    def check_vocabulary(self, size, model="the language model"):
        """Raise ValueError unless a model with ``size`` rows of word embeddings can have this tokenizer."""
        if not len(self) <= size < len(self) + PADDED:
            raise ValueError(
                f"the tokenizer {self.vocab_file} has {len(self)} tokens, but {model} has a vocabulary of "
                f"{size}: they are "
                "not of the same model.  Give the tokenizer of the language model, or correct "
                "text_config.vocab_size "
                f"(the tokenizer's size, or rounded up by less than {PADDED})"
            )

    def save(self, folder):
        """Copy the vocabulary and the files that were read with it into ``folder`` (made if missing); returns
        the vocabulary's path. Raises FileExistsError where another tokenizer lies there."""
        return tokenizer_files.copy(self.vocab_file, folder)

    def __len__(self):
        return len(self._vocabulary)

    def __repr__(self):
        return f"LanguageTokenizer(vocab_file={str(self.vocab_file)!r}, kind={self.kind!r}, len={len(self)})"

    all_special_ids = property(
        lambda self: frozenset(self._vocabulary.special), doc="What decoding leaves out."
    )
    vocab_size = property(lambda self: len(self), doc="The largest id + 1.")


def _first(*values):
    return next(value for value in values if value is not None)
