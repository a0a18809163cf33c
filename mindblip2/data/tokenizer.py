"""BERT's WordPiece tokenizer with LAVIS's [DEC] token, through the ``tokenizers`` library."""
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from mindblip2.data.captions import text_of

ASSETS = Path(__file__).resolve().parents[1] / "assets"
VOCAB_FILE = ASSETS / "bert_base_uncased_vocab.txt"
PAD, UNK, CLS, SEP, MASK, DEC = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"
REQUIRED = (PAD, UNK, CLS, SEP)     # [MASK] is BERT's; BLIP-2 never uses it
LONGEST_WORD = 100                  # characters; BERT's limit, longer words become [UNK]
# Undoing the splits at punctuation, in the order of transformers' clean_up_tokenization, which made LAVIS's captions.
JOINS = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
         (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))


class BertTokenizer:
    """Text to ids ``[CLS] x [SEP]`` and back: lower case, no accents, WordPiece.

    ``vocab_file``: one word per line, its line number is its id; None or "" takes the bert-base-uncased vocabulary
    shipped with mindblip2, and the bare name of another shipped file is found too.  [DEC], the token that starts
    captions in the Q-Former, gets the id after the last line
    unless the file holds it.  As in LAVIS, ``vocab_size`` counts the lines (30522) and ``len(tokenizer)`` also [DEC]
    (30523): ``len`` is the model's ``qformer_config.vocab_size``.  ``max_length`` is in tokens, [CLS] and [SEP]
    included.

    Raises FileNotFoundError, or ValueError for a file that lacks a special token or repeats a word.
    """

    def __init__(self, vocab_file=None, max_length=32):
        self.vocab_file = Path(vocab_file or VOCAB_FILE)
        if not self.vocab_file.is_file() and (ASSETS / self.vocab_file).is_file():
            self.vocab_file = ASSETS / self.vocab_file
        self.max_length = _checked_length(max_length)
        self.words = read_vocab(self.vocab_file)
        self._tokenizer = _wordpiece(self.words)
        self.all_special_ids = frozenset(map(self.convert_tokens_to_ids, _specials(self.words)))

    def __call__(self, text, max_length=None, padding="max_length", truncation=True, return_tensors=None):
        """``{"input_ids", "attention_mask"}`` of a string or a list of strings.

        ``padding``: "max_length", "longest" (or True), or False.  ``truncation``: text is cut so that [SEP] is the
        last of ``max_length`` tokens.  Both are on by default, unlike transformers': LAVIS forgot them in places
        (D-41, D-42).
        ``return_tensors``: None gives lists, 1-D for a string and 2-D for a list; "np" int32 arrays and
        "ms" int32 Tensors (B, T), also for a single string.

        Raises TypeError for text that is not a string; ValueError for an empty list, an unknown option, or rows of
        unequal length where an array is asked for.
        """
        length = _checked_length(self.max_length if max_length is None else max_length)
        rows = [self._encode(one, length if truncation else None) for one in _texts(text)]
        ids, mask = _pad(rows, _padded_length(rows, padding, length), self.pad_token_id)
        encoding = {"input_ids": ids, "attention_mask": mask}
        if return_tensors is not None:
            return {key: _tensor(rows, return_tensors) for key, rows in encoding.items()}
        single = np.ndim(text) == 0     # a string, or a string array without axes
        return {key: rows[0] for key, rows in encoding.items()} if single else encoding

    def decode(self, ids, skip_special_tokens=True):
        """One row of ids (list, array or Tensor) to text.  Raises ValueError for an id outside the vocabulary."""
        kept = [one for one in _listed(ids) if not (skip_special_tokens and one in self.all_special_ids)]
        text = " ".join(self.convert_ids_to_tokens(kept)).replace(" ##", "").strip()
        for split, joined in JOINS:
            text = text.replace(split, joined)
        return text

    def batch_decode(self, ids, skip_special_tokens=True):
        """Rows of ids, (B, T) or a list of rows, to a list of texts."""
        return [self.decode(row, skip_special_tokens) for row in _listed(ids)]

    def convert_ids_to_tokens(self, ids):
        """One row of ids to the words of the vocabulary, "##" included."""
        tokens = [self._tokenizer.id_to_token(one) if one >= 0 else None for one in map(int, _listed(ids))]
        if None in tokens:
            raise ValueError(f"id {_listed(ids)[tokens.index(None)]} lies outside the vocabulary of {len(self)} "
                             f"({self.vocab_file}); was the text made with another vocabulary?")
        return tokens

    def convert_tokens_to_ids(self, token):
        """The id of one word of the vocabulary; None for a word that is not in it."""
        return self._tokenizer.token_to_id(token)

    def save(self, folder):
        """Write ``vocab.txt`` into ``folder`` (made if missing), as read, without the added [DEC]; returns its path."""
        path = Path(folder) / "vocab.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{word}\n" for word in self.words), encoding="utf-8", newline="\n")
        return path

    def __len__(self):
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def __repr__(self):
        return f"BertTokenizer(vocab_file={str(self.vocab_file)!r}, max_length={self.max_length}, len={len(self)})"

    vocab_size = property(lambda self: len(self.words), doc="Lines of the vocabulary file, as in LAVIS.")
    pad_token_id = property(lambda self: self.convert_tokens_to_ids(PAD), doc="0 in bert-base-uncased.")
    unk_token_id = property(lambda self: self.convert_tokens_to_ids(UNK), doc="100 in bert-base-uncased.")
    cls_token_id = property(lambda self: self.convert_tokens_to_ids(CLS), doc="101 in bert-base-uncased.")
    sep_token_id = property(lambda self: self.convert_tokens_to_ids(SEP), doc="102; ends captions (LAVIS has no EOS).")
    mask_token_id = property(lambda self: self.convert_tokens_to_ids(MASK), doc="103; None if the file has none.")
    bos_token_id = property(lambda self: self.convert_tokens_to_ids(DEC), doc="[DEC], 30522 with bert-base-uncased.")

    def _encode(self, text, length):
        # Lone halves of UTF-16 pairs occur in scraped JSON; BERT's cleaning drops them, the library cannot take them.
        text = text.encode("utf-8", "ignore").decode("utf-8")
        # One call per text: encode_batch starts threads, which the worker processes of a data loader do not survive.
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        room = len(ids) if length is None else length - 2
        return [self.cls_token_id, *ids[:room], self.sep_token_id]


def read_vocab(path):
    """The words of a vocabulary file in the order of their ids; raises as :class:`BertTokenizer`."""
    if not path.is_file():
        raise FileNotFoundError(f"no vocabulary file {path}; give the path of a BERT vocab.txt, or leave vocab_file "
                                "empty for the bert-base-uncased vocabulary shipped with mindblip2")
    with open(path, encoding="utf-8-sig") as lines:     # not splitlines(): Unicode line ends may be words
        words = [line.rstrip("\n") for line in lines]
    missing = [token for token in REQUIRED if token not in words]
    if missing:
        raise ValueError(f"{path} is not a BERT vocabulary: {', '.join(missing)} missing among its {len(words)} lines; "
                         f"expected one word per line, with {', '.join(REQUIRED)} among them")
    if len(set(words)) < len(words):
        twice = next(word for i, word in enumerate(words) if word in words[:i])
        raise ValueError(f"{path} holds {twice!r} twice: a word must have one id; remove one line and mind that the "
                         "ids of the words below it change")
    return words


def _specials(words):
    return [token for token in (PAD, UNK, CLS, SEP, MASK) if token in words] + [DEC]


def _wordpiece(words):
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=UNK, max_input_chars_per_word=LONGEST_WORD))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(_specials(words))  # recognised in raw text too; BlipCaption's lower case prevents it
    return tokenizer


def _texts(text):
    if isinstance(text, np.ndarray):
        text = text.tolist()
    texts = list(text) if isinstance(text, (list, tuple)) else [text]
    if not texts:
        raise ValueError("no text: the list is empty; pass a string or a list of strings")
    return [text_of(one) for one in texts]


def _padded_length(rows, padding, length):
    if padding == "max_length":
        return length
    if padding in (True, "longest"):
        return max(map(len, rows))
    if padding in (False, None, "do_not_pad"):
        return 0
    raise ValueError(f"padding = {padding!r}: expected 'max_length', 'longest', True or False")


def _pad(rows, length, pad_id):
    ids = [row + [pad_id] * (length - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
    return ids, mask


def _tensor(rows, kind):
    if kind not in ("np", "ms"):
        raise ValueError(f"return_tensors = {kind!r}: expected None, 'np' or 'ms'")
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise ValueError(f"rows of {min(lengths)} to {max(lengths)} tokens make no array; use padding='longest', or "
                         "truncation=True with padding='max_length'")
    array = np.array(rows, np.int32)
    if kind == "np":
        return array
    from mindspore import Tensor  # here, because importing MindSpore takes seconds
    return Tensor(array)


def _checked_length(length):
    if not isinstance(length, (int, np.integer)) or length < 2:
        raise ValueError(f"max_length = {length!r}: expected a whole number of at least 2, for [CLS] and [SEP]")
    return int(length)


def _listed(ids):
    """Lists from a list, an array or a Tensor."""
    ids = ids.asnumpy() if hasattr(ids, "asnumpy") else ids
    return ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
