"""Where a language model's tokenizer lies, and what the files beside it say about special tokens."""
import json
from pathlib import Path

from mindblip2.config import cache_folder
from mindblip2.file_io import atomic_folder, write_bytes

ASSETS = Path(__file__).resolve().parents[1] / "assets"
BESIDE = ("special_tokens_map.json", "tokenizer_config.json", "added_tokens.json")     # what is read with a vocabulary
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def find(vocab_file, kind, names, models):
    """The path of a vocabulary: of a file, of one of ``names`` in a folder, or of a file shipped with mindblip2 or put into the cache
    folder.

    ``kind`` and ``models`` are for the messages.  Raises ValueError where none is named, FileNotFoundError where it is not there."""
    get = f"download {' or '.join(names)} of the language model ({models}) and give its path, or that of the folder it lies in"
    if not vocab_file:
        raise ValueError(f"{kind} needs the tokenizer of the language model, and vocab_file is empty: {get}, as "
                         "processor.tokenizer.vocab_file.  Another model's tokenizer does not fit")
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
        raise FileNotFoundError(f"no tokenizer file {path}: {get}" + ("" if path.is_absolute() else f"; or put it at {own}"))
    return path


def beside(path):
    """What the files next to a vocabulary say: ``(settings, added)``.

    ``settings``: tokenizer_config.json over special_tokens_map.json, tokens as plain strings; ``added``: token → (id, special)."""
    told = {**_read(path.with_name("special_tokens_map.json")), **_read(path.with_name("tokenizer_config.json"))}
    settings = {key: _plain(value) if key in SPECIAL else value for key, value in told.items()}
    added = {token: (number, False) for token, number in _read(path.with_name("added_tokens.json")).items()}
    for number, token in settings.pop("added_tokens_decoder", {}).items():
        added[_plain(token)] = int(number), bool(token.get("special"))
    return settings, added


def copy(path, folder):
    """Copy a vocabulary, and what is read with it, into a folder; returns its new path.

    Raises FileExistsError where the folder holds a file of another tokenizer that would be read with it."""
    folder = Path(folder)
    if path.parent.resolve() == folder.resolve():
        return path
    for name in BESIDE:
        if (folder / name).exists() and not path.with_name(name).is_file():
            raise FileExistsError(f"the folder holds {name}, which is not of the tokenizer {path}, but would be read with it: save into "
                                  "another folder")
    with atomic_folder(folder) as partial:
        for source in (path, *map(path.with_name, (*BESIDE, "merges.txt"))):
            if source.is_file():
                write_bytes(partial / source.name, source.read_bytes())
    return folder / path.name


def _read(path):
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None


def _plain(token):
    return token["content"] if isinstance(token, dict) else token
