"""Finding, reading and saving configurations: presets, YAML files, folders of ``save_pretrained``."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mindblip2.compat.mindformers import keys as mindformers
from mindblip2.config.key_usage import without_effect
from mindblip2.config.language_model import GENERATION_ALIASES
from mindblip2.config.run import RunConfig
from mindblip2.config.schema import ConfigError, build, warn_ignored
from mindblip2.file_io import FileError, read_json, read_yaml, write_text

WEIGHTS = (".ckpt", ".pth", ".pt", ".bin", ".safetensors")
# Keys that name a file or folder; a relative one is first looked for in the folder of the YAML file.
FILE_KEYS = (
    "processor.tokenizer.vocab_file",
    "train_dataset.tokenizer.vocab_file",
    "eval_dataset.tokenizer.vocab_file",
    "processor.tokenizer.checkpoint_name_or_path",
    "model.model_config.checkpoint_name_or_path",
    *(
        f"model.model_config.{part}.checkpoint_name_or_path"
        for part in ("vision_config", "qformer_config", "text_config")
    ),
)


def cache_folder() -> Path:
    """Where weights and tokenizers are looked for by name: ``$MINDBLIP2_CACHE`` or ``~/.cache/mindblip2``.
    Nothing is ever fetched."""
    return Path(os.environ.get("MINDBLIP2_CACHE", Path.home() / ".cache" / "mindblip2"))


def presets() -> list[str]:
    """Names of the packaged configurations: the files of ``configs/``."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def load_config(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """A :class:`RunConfig` from a preset's name, a YAML file or a folder of ``save_pretrained``;
    ``overrides`` maps ``a.b.c`` to a value.

    Weights and tokenizers that the file names are taken from its own folder where they exist there.

    Raises :class:`ConfigError` where the file is missing, is not YAML, or holds an unknown key or unusable
    value."""
    path = _find_config(name_or_path)
    try:
        raw = read_yaml(path) or {}
    except FileError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, but holds a {type(raw).__name__}")
    for dotted in FILE_KEYS:
        _resolve_next_to(path, raw, dotted)
    _drop_aliases(raw, overrides or {})
    for dotted, value in (overrides or {}).items():
        _override(raw, dotted, value)
    ignored: list[str] = []
    try:
        config = build(RunConfig, raw, "", ignored)
    except ConfigError as error:
        raise ConfigError(f"{path}{' with the overridden values' if overrides else ''}: {error}") from None
    warn_ignored([*ignored, *without_effect(config)], path.name)
    config.model.model_config.set_preset(str(path))
    return config


def save_sections(folder: str | Path, **sections: Any) -> Path:
    """Write sections into ``folder/config.yaml``, replacing those of the same name; others are kept.
    Returns its path."""
    path = Path(folder) / "config.yaml"
    all_sections = {**saved_sections(folder), **sections}
    write_text(path, yaml.safe_dump(all_sections, sort_keys=False, allow_unicode=True))
    return path


def saved_sections(folder: str | Path) -> dict[str, Any]:
    """The sections of ``folder/config.yaml``, as a dict; empty without that file."""
    path = Path(folder) / "config.yaml"
    return (read_yaml(path) or {}) if path.is_file() else {}


def config_folder() -> Path:
    """The folder of the presets: inside the package in an installed wheel, else in the checkout."""
    here = Path(__file__).resolve().parents[1]
    packaged = here / "configs"
    return packaged if packaged.is_dir() else here.parent / "configs"


def _find_config(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        if path.suffix in WEIGHTS:
            raise ConfigError(
                f"{path} holds weights, expected a configuration: give it as checkpoint "
                "(--load_checkpoint), and as model "
                "(--config) the preset or YAML file that belongs to it; files of torch are converted "
                "before, see "
                "convert/README.md"
            )
        return path
    if path.is_dir() and (path / "config.yaml").is_file():
        return path / "config.yaml"
    name = mindformers.PRESET_ALIASES.get(path.stem, path.stem)
    packaged = config_folder() / f"{name}.yaml"
    if packaged.is_file() and path.suffix in ("", ".yaml", ".yml"):
        return packaged
    _reject_hugging_face(name_or_path)
    near = difflib.get_close_matches(name, presets(), 1, 0.4)
    raise ConfigError(
        f"no configuration {str(name_or_path)!r}: it is neither a file ({path.absolute()}) nor a preset"
        + (f"; did you mean {near[0]!r}?" if near else "")
        + f"  Presets: {', '.join(presets())}"
    )


# What the language model of a BLIP-2 of Hugging Face is called there, "" for a model of stage 1 → its preset
# here, and its tokenizer.
HUGGING_FACE = {
    "": ("blip2_stage1_classification", ""),
    "opt": ("itt_blip2_stage2_vit_g_opt_2_7b", "opt_2_7b"),
    "llama": ("itt_blip2_stage2_vit_g_vicuna_7b", "vicuna_7b"),
}


def _reject_hugging_face(name_or_path: str | Path) -> None:
    """Raises ConfigError with the command that converts it, if this is a model of Hugging Face: a folder with
    a config.json, or a name such as "Salesforce/blip2-opt-2.7b"."""
    name = str(name_or_path)
    is_folder = (Path(name) / "config.json").is_file()
    if is_folder:
        kind, language = _describe_hugging_face(Path(name) / "config.json")
    elif re.fullmatch(r"[\w.-]+/[\w.-]*blip[\w.-]*", name, re.IGNORECASE) and not name.endswith(
        (".yaml", ".yml")
    ):
        kind = (
            "instructblip"
            if "instruct" in name.lower()
            else "blip-2"
            if "blip2" in name.lower().replace("blip-2", "blip2")
            else "blip"
        )
        language = next(
            (model for mark, model in (("t5", "t5"), ("itm", ""), ("vicuna", "llama")) if mark in name), "opt"
        )
    else:
        return
    if not kind.startswith(("blip-2", "blip_2")) or language not in HUGGING_FACE:
        raise ConfigError(
            f"{name} is a model of Hugging Face of type {kind!r}"
            + f" with {language}" * bool(language)
            + ", which "
            "mindblip2 does not have: there are BLIP-2's stage 1, and its stage 2 with OPT, Llama, Vicuna "
            "and Baichuan"
            + (
                "; a language model alone is a --torch_path or --llm_path of convert/convert_weight.py"
                if kind in HUGGING_FACE
                else ""
            )
        )
    preset, tokenizer = HUGGING_FACE[language]
    get = (
        ""
        if is_folder
        else f"mindblip2 downloads nothing: get it (huggingface-cli download {name} --local-dir FOLDER) and "
    )
    source = name if is_folder else "FOLDER"
    raise ConfigError(
        f"{name} is a BLIP-2 of Hugging Face, expected a preset, a YAML file or a folder of "
        f"save_pretrained: {get}convert it once,\n"
        f"  python convert/convert_weight.py --torch_path {source} --mindspore_path model.ckpt"
        + " --image_size 224"
        * ("coco" in name)
        + f"\nand give model='{preset}' with checkpoint='model.ckpt' (--config {preset} --load_checkpoint "
        "model.ckpt)"
        + (
            f"; its tokenizer is in the same folder: copy that to {cache_folder() / tokenizer}, or give it "
            "as "
            f"processor.tokenizer.vocab_file"
            if language
            else ""
        )
    )


def _describe_hugging_face(file: Path) -> tuple[str, str]:
    """(type, type of the language model) by a config.json of Hugging Face."""
    about = read_json(file, dict, "the config.json of a model")
    text, architectures = about.get("text_config"), about.get("architectures") or ()
    language = str(text.get("model_type", "opt")) if isinstance(text, dict) else "opt"
    kind = str(about.get("model_type"))
    if any("Retrieval" in str(one) for one in architectures) or not kind.startswith("blip"):
        language = ""
    return kind, language


def _resolve_next_to(path: Path, raw: dict[str, Any], dotted: str) -> None:
    """Make the file that ``raw`` names at ``dotted`` an absolute path, if it exists in the folder of the YAML
    file ``path``."""
    *parents, last = dotted.split(".")
    section: Any = raw
    for key in parents:
        section = section.get(key) if isinstance(section, dict) else None
    name = section.get(last) if isinstance(section, dict) else None
    if not isinstance(name, str) or not name:
        return
    # a name without a suffix is one in the cache, unless it is the folder of a tokenizer
    local = path.parent / name
    if (local.suffix and local.is_file()) or (last == "vocab_file" and local.is_dir()):
        section[last] = str(local.absolute())


def _drop_aliases(raw: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Remove arguments of generation that an override sets under another name: ``max_length`` is
    ``max_new_tokens``."""
    in_file = raw.get("generation")
    given = {
        GENERATION_ALIASES.get(name, name)
        for section, _, name in (dotted.partition(".") for dotted in overrides)
        if section == "generation"
    }
    if isinstance(in_file, dict) and given:
        raw["generation"] = {
            name: value for name, value in in_file.items() if GENERATION_ALIASES.get(name, name) not in given
        }


def _override(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for key in parents:
        below = {} if raw.get(key) is None else raw[key]
        if not isinstance(below, dict):
            raise ConfigError(
                f"--{dotted}: {key!r} is a value, not a section, so nothing can be set below it"
            )
        raw[key] = dict(below)  # a copy: a YAML anchor may have put the same section elsewhere too
        raw = raw[key]
    raw[last] = value
