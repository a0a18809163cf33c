"""Where a language model's tokenizer lies, and what the files beside it say about special tokens."""

from pathlib import Path

from mindblip2.config import cache_folder
from mindblip2.file_io import FileError, atomic_folder, read_json, regular_file, write_bytes

ASSETS = Path(__file__).resolve().parents[2] / "assets"
# what is read with a vocabulary
BESIDE = ("special_tokens_map.json", "tokenizer_config.json", "added_tokens.json")
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
# of tokenizer_config.json, as far as they are used
FLAGS = ("add_bos_token", "add_eos_token", "clean_up_tokenization_spaces", "legacy")
MAX_BYTES = 1 << 27  # of a tokenizer's file: the largest published ones have some 40 MB
MAX_ID = 1 << 24  # of an added token: published vocabularies have at most 300,000
ADVICE = "download it again from the page of the language model"


def find(vocab_file, kind, names, models):
    """The path of a vocabulary: of a file, of one of ``names`` in a folder, or of a file shipped with
    mindblip2 or put into the cache folder.

    ``kind`` and ``models`` are for the messages.  Raises ValueError where none is named, FileNotFoundError
    where it is not there."""
    get = (
        f"download {' or '.join(names)} of the language model ({models}) and give its path, or that of the "
        "folder it lies in"
    )
    if not vocab_file:
        raise ValueError(
            f"{kind} needs the tokenizer of the language model, and vocab_file is empty: {get}, as "
            "processor.tokenizer.vocab_file.  Another model's tokenizer does not fit"
        )
    path = Path(vocab_file)
    own = cache_folder() / path
    if not path.exists() and (ASSETS / path).is_file():
        return ASSETS / path
    path = own if own.exists() and not path.exists() else path
    if path.is_dir():
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"the folder {path} holds no {' and no '.join(names)}: {get}")
        return found[0]
    if not path.is_file():
        raise FileNotFoundError(
            f"no tokenizer file {path}: {get}" + ("" if path.is_absolute() else f"; or put it at {own}")
        )
    return path


def beside(path):
    """What the files next to a vocabulary say: ``(settings, added)``.

    ``settings``: tokenizer_config.json over special_tokens_map.json, tokens as plain strings; ``added``:
    token → (id, special). Raises FileError, naming file and key, for what is damaged."""
    settings, added = {}, {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = path.with_name(name)
        told = _read(file)
        for key in set(told) & {*SPECIAL, *FLAGS}:
            told[key] = _token(told[key], file, key) if key in SPECIAL else _flag(told[key], file, key)
        settings.update(told)
    file = path.with_name("added_tokens.json")
    for token, number in _read(file).items():
        if not token:
            raise FileError(f"{file}: an added token is empty; {ADVICE}")
        added[_whole(token, file)] = _number(number, file, token), False
    file, known = path.with_name("tokenizer_config.json"), settings.pop("added_tokens_decoder", {})
    if not isinstance(known, dict):
        raise FileError(
            f"{file}: added_tokens_decoder is a {type(known).__name__}, expected an object {{id: token}}; "
            f"{ADVICE}"
        )
    for number, token in known.items():
        text = _token(token, file, f"added_tokens_decoder[{number}]")
        if not text or not isinstance(token, dict):
            raise FileError(
                f'{file}: added_tokens_decoder[{number}] is not {{"content": text, "special": true or false}}; {ADVICE}'
            )
        added[text] = (
            _number(int(number) if number.isdecimal() else number, file, text),
            bool(token.get("special")),
        )
    return settings, added


def copy(path, folder):
    """Copy a vocabulary, and what is read with it, into a folder; returns its new path.

    Raises FileExistsError where the folder holds a file of another tokenizer that would be read with it."""
    folder = Path(folder)
    if path.parent.resolve() == folder.resolve():
        return path
    for name in BESIDE:
        if (folder / name).exists() and not path.with_name(name).is_file():
            raise FileExistsError(
                f"the folder holds {name}, which is not of the tokenizer {path}, but would be read with it: "
                "save into "
                "another folder"
            )
    with atomic_folder(folder) as partial:
        for source in (path, *map(path.with_name, (*BESIDE, "merges.txt"))):
            if source.is_file():
                write_bytes(partial / source.name, source.read_bytes())
    return folder / path.name


def read_bytes(path):
    """The bytes of a tokenizer's file.  Raises FileError for what is no file, or larger than any
    tokenizer."""
    return regular_file(path, MAX_BYTES, "is it the tokenizer of a language model?").read_bytes()


def _read(path):
    return read_json(path, dict, "a JSON file of a tokenizer", ADVICE, MAX_BYTES) if path.exists() else {}


def _token(value, file, key):
    """The text of a special token; None for null."""
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str) or text is None and isinstance(value, dict):
        raise FileError(
            f'{file}: {key} is a {type(value).__name__}, expected a text, or an object with its "content"; {ADVICE}'
        )
    return text and _whole(text, file)


def _whole(text, file):
    """``text``, unless it holds half of a UTF-16 pair, which JSON can write and no vocabulary can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FileError(f"{file}: {text[:40]!r} holds half of a UTF-16 pair; {ADVICE}") from None
    return text


def _flag(value, file, key):
    if not isinstance(value, (bool, type(None))):
        raise FileError(f"{file}: {key} is a {type(value).__name__}, expected true or false; {ADVICE}")
    return value


def _number(value, file, token):
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_ID:
        raise FileError(
            f"{file}: the id of {token[:40]!r} is {str(value)[:40]!r}, expected a whole number from 0; "
            f"{ADVICE}"
        )
    return value
