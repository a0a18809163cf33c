"""BERT's WordPiece tokenizer with LAVIS's [DEC] token, through the ``tokenizers`` library; and which
tokenizer a configuration means."""

import difflib
import io
from collections import Counter
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from mindblip2.config import TokenizerConfig, cache_folder
from mindblip2.data.text.encoding import checked_length, encoding, joined, listed, texts_of
from mindblip2.data.text.language_tokenizer import KIND_NAMES, LanguageTokenizer
from mindblip2.data.text.tokenizer_files import ASSETS, MAX_BYTES, SPECIAL
from mindblip2.file_io import FileError, read_text, write_text

VOCAB_FILE = ASSETS / "bert_base_uncased_vocab.txt"
PAD, UNK, CLS, SEP, MASK, DEC = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"
REQUIRED = (PAD, UNK, CLS, SEP)  # [MASK] is BERT's; BLIP-2 never uses it
LONGEST_WORD = 100  # characters; BERT's limit, longer words become [UNK]


def load_tokenizer(config):
    """The tokenizer that a ``tokenizer:`` section (``TokenizerConfig``) describes: :class:`BertTokenizer` for
    stage 1, or a :class:`LanguageTokenizer`.

    It comes from ``vocab_file``, else from ``checkpoint_name_or_path``: a file or folder, or the name of one
    in the cache folder.  BERT's default is the packaged vocabulary; a language model's tokenizer never comes
    from another model.  ``add_special_tokens: false`` means neither bos nor eos, unless ``add_bos_token`` or
    ``add_eos_token`` is said.

    Raises ValueError for an unknown type, FileNotFoundError that names the key where a file is not there, and
    as the two classes."""
    try:
        return _loaded(config)
    except FileNotFoundError as error:
        if config.vocab_file or not config.checkpoint_name_or_path:
            raise
        raise FileNotFoundError(
            f"processor.tokenizer.checkpoint_name_or_path = {config.checkpoint_name_or_path!r}: {error}"
        ) from None


def _loaded(config):
    if config.type == "BertTokenizer":
        return BertTokenizer(
            config.vocab_file or _bert_vocabulary(config.checkpoint_name_or_path), config.max_length
        )
    if config.type not in KIND_NAMES:
        near = difflib.get_close_matches(config.type, ("BertTokenizer", *KIND_NAMES), 1, 0.5)
        raise ValueError(
            f"tokenizer.type = {config.type!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + f"  Known: BertTokenizer, {', '.join(KIND_NAMES)}"
        )
    silent = None if config.add_special_tokens else False
    return LanguageTokenizer(
        config.vocab_file or config.checkpoint_name_or_path,
        config.type,
        config.max_length,
        bos_token=config.bos_token,
        eos_token=config.eos_token,
        unk_token=config.unk_token,
        pad_token=config.pad_token,
        add_bos_token=silent if config.add_bos_token is None else config.add_bos_token,
        add_eos_token=silent if config.add_eos_token is None else config.add_eos_token,
        added_tokens=config.added_tokens,
    )


def _bert_vocabulary(name):
    """The file that ``checkpoint_name_or_path`` means, None for the packaged one, which MindFormers calls
    bert_base_uncased."""
    if name in ("", "bert_base_uncased", "bert-base-uncased"):
        return None
    for path in (Path(name), cache_folder() / name):
        if path.exists():
            return path / "vocab.txt" if path.is_dir() else path
    raise FileNotFoundError(
        f"no tokenizer {Path(name).absolute()} or {cache_folder() / name}: give a vocab.txt, or the folder "
        "that holds "
        "it; or remove the key for the packaged vocabulary of bert-base-uncased"
    )


def save_tokenizer(tokenizer, folder):
    """Write the files of a tokenizer into a folder; returns the ``TokenizerConfig`` with which
    ``load_tokenizer`` makes it again, whose ``vocab_file`` is a name in that folder.  Raises TypeError for a
    tokenizer of another kind."""
    if not isinstance(tokenizer, BertTokenizer | LanguageTokenizer):
        raise TypeError(
            f"a {type(tokenizer).__name__} cannot be saved: expected a tokenizer of mindblip2; save it by "
            "its own means"
        )
    said = {"vocab_file": tokenizer.save(folder).name, "max_length": tokenizer.max_length}
    if isinstance(tokenizer, BertTokenizer):
        return TokenizerConfig(type="BertTokenizer", **said)
    tokens = {name: getattr(tokenizer, name) or "" for name in SPECIAL}
    return TokenizerConfig(
        type=tokenizer.kind,
        add_bos_token=tokenizer.add_bos_token,
        add_eos_token=tokenizer.add_eos_token,
        added_tokens=tokenizer.added_tokens,
        **tokens,
        **said,
    )


class BertTokenizer:
    """Text to ids ``[CLS] x [SEP]`` and back: lower case, no accents, WordPiece.

    ``vocab_file``: one word per line, its line number is its id; None or "" takes the bert-base-uncased
    vocabulary shipped with mindblip2, and the bare name of another shipped file is found too.  [DEC], the
    token that starts captions in the Q-Former, gets the id after the last line
    unless the file holds it.  As in LAVIS, ``vocab_size`` counts the lines (30522) and ``len(tokenizer)``
    also [DEC] (30523): ``len`` is the model's ``qformer_config.vocab_size``.  ``max_length`` is in tokens,
    [CLS] and [SEP] included.

    Raises FileNotFoundError, or ValueError for a file that lacks a special token or repeats a word.
    """

    def __init__(self, vocab_file=None, max_length=32):
        self.vocab_file = Path(vocab_file or VOCAB_FILE)
        if not self.vocab_file.is_file() and (ASSETS / self.vocab_file).is_file():
            self.vocab_file = ASSETS / self.vocab_file
        self.max_length = checked_length(max_length, 2, "[CLS] and [SEP]")
        self.words = read_vocab(self.vocab_file)
        self._tokenizer = _wordpiece(self.words)
        self.all_special_ids = frozenset(map(self.convert_tokens_to_ids, _specials(self.words)))

    def __call__(self, text, max_length=None, padding="max_length", truncation=True, return_tensors=None):
        """``{"input_ids", "attention_mask"}`` of a string or a list of strings.

        ``padding``: "max_length", "longest" (or True), or False.  ``truncation``: text is cut so that [SEP]
        is the last of ``max_length`` tokens.  Both are on by default, unlike transformers': LAVIS forgot them
        in places. ``return_tensors``: None gives lists, 1-D for a string and 2-D for a list; "np" int32
        arrays and "ms" int32 Tensors (B, T), also for a single string.

        Raises TypeError for text that is not a string; ValueError for an empty list, an unknown option, or
        rows of unequal length where an array is asked for.
        """
        length = checked_length(self.max_length if max_length is None else max_length, 2, "[CLS] and [SEP]")
        rows = [self._encode(one, length if truncation else None) for one in texts_of(text)]
        single = np.ndim(text) == 0  # a string, or a string array without axes
        return encoding(rows, single, padding, length, self.pad_token_id, return_tensors=return_tensors)

    def decode(self, ids, skip_special_tokens=True):
        """One row of ids (list, array or Tensor) to text.  Raises ValueError for an id outside the
        vocabulary."""
        kept = [one for one in listed(ids) if not (skip_special_tokens and one in self.all_special_ids)]
        return joined(" ".join(self.convert_ids_to_tokens(kept)).replace(" ##", "").strip())

    def batch_decode(self, ids, skip_special_tokens=True):
        """Rows of ids, (B, T) or a list of rows, to a list of texts."""
        return [self.decode(row, skip_special_tokens) for row in listed(ids)]

    def convert_ids_to_tokens(self, ids):
        """One row of ids to the words of the vocabulary, "##" included."""
        tokens = [self._tokenizer.id_to_token(one) if one >= 0 else None for one in map(int, listed(ids))]
        if None in tokens:
            raise ValueError(
                f"id {listed(ids)[tokens.index(None)]} lies outside the vocabulary of {len(self)} "
                f"({self.vocab_file}); was the text made with another vocabulary?"
            )
        return tokens

    def convert_tokens_to_ids(self, token):
        """The id of one word of the vocabulary; None for a word that is not in it."""
        return self._tokenizer.token_to_id(token)

    def save(self, folder):
        """Write ``vocab.txt`` into ``folder`` (made if missing), as read, without the added [DEC]; returns
        its path."""
        path = Path(folder) / "vocab.txt"
        write_text(path, "".join(f"{word}\n" for word in self.words))
        return path

    def __len__(self):
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def __repr__(self):
        return (
            f"BertTokenizer(vocab_file={str(self.vocab_file)!r}, max_length={self.max_length}, "
            f"len={len(self)})"
        )

    vocab_size = property(lambda self: len(self.words), doc="Lines of the vocabulary file, as in LAVIS.")
    pad_token_id = property(lambda self: self.convert_tokens_to_ids(PAD), doc="0 in bert-base-uncased.")
    unk_token_id = property(lambda self: self.convert_tokens_to_ids(UNK), doc="100 in bert-base-uncased.")
    unknown_id = unk_token_id  # what stands for a word that cannot be written in the vocabulary
    cls_token_id = property(lambda self: self.convert_tokens_to_ids(CLS), doc="101 in bert-base-uncased.")
    sep_token_id = property(
        lambda self: self.convert_tokens_to_ids(SEP), doc="102; ends captions (LAVIS has no EOS)."
    )
    mask_token_id = property(
        lambda self: self.convert_tokens_to_ids(MASK), doc="103; None if the file has none."
    )
    bos_token_id = property(
        lambda self: self.convert_tokens_to_ids(DEC), doc="[DEC], 30522 with bert-base-uncased."
    )

    def _encode(self, text, length):
        # One call per text: encode_batch starts threads, which the worker processes of a data loader do not
        # survive.
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        room = len(ids) if length is None else length - 2
        return [self.cls_token_id, *ids[:room], self.sep_token_id]


def read_vocab(path):
    """The words of a vocabulary file in the order of their ids; raises as :class:`BertTokenizer`."""
    if not path.exists():
        raise FileNotFoundError(
            f"no vocabulary file {path}; give the path of a BERT vocab.txt, or leave vocab_file "
            "empty for the bert-base-uncased vocabulary shipped with mindblip2"
        )
    text = read_text(
        path, "a BERT vocabulary", "expected one word per line, in UTF-8; get it again", MAX_BYTES
    )
    # not splitlines(): Unicode line ends may be words
    words = [line.rstrip("\n") for line in io.StringIO(text, newline=None)]
    missing = [token for token in REQUIRED if token not in words]
    if missing:
        raise FileError(
            f"{path} is not a BERT vocabulary: {', '.join(missing)} missing among its {len(words)} lines; "
            f"expected one word per line, with {', '.join(REQUIRED)} among them"
        )
    if len(set(words)) < len(words):
        twice = Counter(words).most_common(1)[0][0]
        raise FileError(
            f"{path} holds {twice[:80]!r} twice: a word must have one id; remove one line and mind that the "
            "ids of the words below it change"
        )
    return words


def _specials(words):
    return [token for token in (PAD, UNK, CLS, SEP, MASK) if token in words] + [DEC]


def _wordpiece(words):
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=UNK, max_input_chars_per_word=LONGEST_WORD))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # recognised in raw text too; BlipCaption's lower case prevents it
    tokenizer.add_special_tokens(_specials(words))
    return tokenizer
