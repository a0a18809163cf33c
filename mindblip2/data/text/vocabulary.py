"""The two kinds of vocabulary of language models: sentencepiece models and what the ``tokenizers`` library
reads.

Both turn text into ids without special tokens around it, and ids into text.  Added tokens are found in the
text first and never cut.
"""

import contextlib
import re

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mindblip2.data.images.file_signatures import HEAD, looks_like
from mindblip2.data.text.tokenizer_files import ADVICE, MAX_BYTES, MAX_ID, read_bytes
from mindblip2.file_io import FileError, read_json, read_text

# what every vocabulary is tried with, so that damage is found where the file is known
SAMPLE = "A photo of 2 cats, 猫 é"
SPACE = "▁"
# A field after the end of a protobuf message overrides the same field in it: normalizer_spec {
# add_dummy_prefix: false }.
NO_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieces:
    """A ``.model`` file of sentencepiece (Llama, Vicuna, Baichuan), byte fallback included.

    ``legacy``: each piece of text between added tokens gets a space in front, as the tokenizers of Llama 1,
    Vicuna and MindFormers do; otherwise only the begin of the whole text does (``"legacy": false`` in
    tokenizer_config.json, Llama 2).

    Raises ImportError where sentencepiece is not installed, ValueError for a file that is no such model."""

    def __init__(self, path, legacy=True):
        try:
            from sentencepiece import (
                SentencePieceProcessor,  # an extra: BERT, GPT-2 and tokenizer.json do without
            )
        except ImportError:
            raise ImportError(
                f"{path.name} is a sentencepiece model, and the package sentencepiece is not installed: pip "
                "install "
                "'mindblip2[llm]' or pip install sentencepiece, or give the tokenizer.json of the same model"
            ) from None
        model = read_bytes(path)
        with reading(path, f"a sentencepiece model ({len(model)} bytes, {looks_like(model[:HEAD])})"):
            self.pieces = SentencePieceProcessor(model_proto=model)
            self.later = self.pieces if legacy else SentencePieceProcessor(model_proto=model + NO_PREFIX)
            self.pieces.decode(self.pieces.encode(SAMPLE))
        self.added, self.names = {}, {}  # token → id, id → token
        self.special = {
            i for i in range(len(self.pieces)) if self.pieces.is_control(i) or self.pieces.is_unknown(i)
        }
        self.around = [], []  # nothing is said in the file about ids around a text
        self.split = None

    def __len__(self):
        return max([len(self.pieces), *(one + 1 for one in self.names)])

    def id_of(self, token):
        if token in self.added:
            return self.added[token]
        one = self.pieces.piece_to_id(token)
        return one if self.pieces.id_to_piece(one) == token else None

    def token_of(self, one):
        if one in self.names:
            return self.names[one]
        return self.pieces.id_to_piece(one) if 0 <= one < len(self.pieces) else None

    def add(self, token, special, one=None):
        """Make ``token`` one that is never cut; one that is not in the vocabulary gets the next id, or the id
        ``one``."""
        if one is None:
            one = self.id_of(token)
        one = len(self) if one is None else one
        self.added[token], self.names[one] = one, token
        self.special |= {one} if special else set()
        longest_first = sorted(self.added, key=len, reverse=True)
        self.split = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def encode(self, text):
        ids = []
        for number, part in enumerate(self.split.split(text) if self.split else [text]):
            if part in self.added:
                ids.append(self.added[part])
            elif part:
                ids += (self.later if number else self.pieces).encode(part)
        return ids

    def decode(self, ids):
        text, run = "", []
        for one in [*ids, None]:
            if one is not None and one not in self.names and one not in self.special:
                run.append(one)
                continue
            # sentencepiece drops the space in front of what it decodes; only the first was put there by it
            if run:
                text += (
                    " " if text and self.token_of(run[0]).startswith(SPACE) else ""
                ) + self.pieces.decode(run)
                run = []
            text += "" if one is None else self.token_of(one)
        return text


class HuggingFace:
    """A ``tokenizer.json``, or GPT-2's ``vocab.json`` with ``merges.txt`` beside it (OPT).

    Raises FileNotFoundError without the merges, ValueError for a file that is neither."""

    def __init__(self, path):
        if _is_plain_vocabulary(path):
            self.library = _byte_level(path)
        else:
            with reading(path, "a tokenizer.json that the tokenizers library can read"):
                self.library = Tokenizer.from_file(str(path))
        with reading(path, "a usable tokenizer"):
            self.library.no_padding()
            self.library.no_truncation()
            self.special = {
                one for one, token in self.library.get_added_tokens_decoder().items() if token.special
            }
            self.around = self._around()
            self.decode(self.encode(SAMPLE))
            if not 0 < len(self) <= MAX_ID:
                raise ValueError(f"its ids go up to {len(self) - 1}")

    def __len__(self):
        return max(self.library.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def id_of(self, token):
        return self.library.token_to_id(token)

    def token_of(self, one):
        return self.library.id_to_token(one) if one >= 0 else None

    def add(self, token, special, one=None):
        """As that of :class:`SentencePieces`, where the id is always the next."""
        if token not in {known.content for known in self.library.get_added_tokens_decoder().values()}:
            added = AddedToken(token, special=special, normalized=not special)
            (self.library.add_special_tokens if special else self.library.add_tokens)([added])
        self.special |= {self.id_of(token)} if special else set()

    def encode(self, text):
        # One call per text: encode_batch starts threads, which the worker processes of a data loader do not
        # survive.
        return self.library.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return self.library.decode(ids, skip_special_tokens=False)

    def _around(self):
        """The ids that the file itself puts before and after a text."""
        bare, whole = self.encode("a"), self.library.encode("a").ids
        start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        return whole[:start], whole[start + len(bare) :]


@contextlib.contextmanager
def reading(path, what):
    """Errors of a library that reads ``path`` become a FileError that names it and ``what`` it should be.

    The libraries are written in Rust and C++: their errors have no particular type, and a panic is a
    BaseException."""
    try:
        yield
    except FileError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise FileError(f"{path} is not {what}: {' '.join(str(error).split())[:200]}; {ADVICE}") from None


def _is_plain_vocabulary(path):
    """Whether a JSON file maps words to ids, and nothing else."""
    content = read_json(
        path, None, "a JSON file (tokenizer.json, or vocab.json with merges.txt beside it)", ADVICE, MAX_BYTES
    )
    return (
        isinstance(content, dict) and bool(content) and all(isinstance(one, int) for one in content.values())
    )


def _byte_level(path):
    merges = path.with_name("merges.txt")
    if not merges.is_file():
        raise FileNotFoundError(
            f"{path.name} needs {merges} beside it: download both from the page of the language model"
        )
    read_text(merges, "a list of merges", ADVICE, MAX_BYTES)
    with reading(merges, f"the list of merges of {path.name}"):
        library = Tokenizer(models.BPE.from_file(str(path), str(merges)))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library
