"""Names and files: which file belongs to a name, and strict loading of weights with a report of both sides."""
import fnmatch
import json
import logging
import os
import zlib
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindblip2 import config as configuration
from mindblip2.checkpoint import Checkpoint, CheckpointError, write_checkpoint
from mindblip2.config import Blip2Config
from mindblip2.device import runnable
from mindblip2.sections import ConfigError, build

logger = logging.getLogger("mindblip2")

LAVIS_URL = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2"


def cache_folder():
    """Where weights are looked for by name: ``$MINDBLIP2_CACHE`` or ``~/.cache/mindblip2``.  Nothing is ever fetched."""
    return Path(os.environ.get("MINDBLIP2_CACHE", Path.home() / ".cache" / "mindblip2"))


def find_weights(name):
    """The .ckpt of a preset: packaged with mindblip2 (the embedded demo) or put into the cache folder by the user."""
    places = [Path(__file__).resolve().parent / "assets" / f"{name}.ckpt", cache_folder() / f"{name}.ckpt"]
    for path in places:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no weights for {name!r}: looked for {' and '.join(map(str, places))}.  mindblip2 downloads nothing.  Get\n"
        f"  {LAVIS_URL}/blip2_pretrained.pth\n  {LAVIS_URL}/eva_vit_g.pth\nand convert them once:\n"
        f"  python convert/convert_weight.py --torch_path blip2_pretrained.pth --vit_path eva_vit_g.pth "
        f"--mindspore_path {places[-1]}")


class Pretrained(nn.Cell):
    """A cell with a configuration, made from a preset's name and loaded strictly."""

    def __init__(self, config):
        super().__init__()
        self.config = runnable(build(Blip2Config, config) if isinstance(config, dict) else config)

    @classmethod
    def from_pretrained(cls, name_or_path, checkpoint=None):
        """The model of a preset, a YAML file or a folder of ``save_pretrained`` with its weights: ``checkpoint``, else the
        folder's own, else the configuration's ``checkpoint_name_or_path``, else the file found by name.  Raises
        FileNotFoundError that says how to get them."""
        config = configuration.load_config(name_or_path).model.model_config
        own = Path(name_or_path) / "model.ckpt"
        wanted = checkpoint or (own if own.is_file() else config.checkpoint_name_or_path or Path(name_or_path).stem)
        path = wanted if Path(wanted).suffix == ".ckpt" or Path(wanted).is_dir() else find_weights(wanted)
        with no_init():
            model = cls(config)
        model.load_checkpoint(path)
        return model.set_train(False)

    @classmethod
    def show_support_list(cls):
        """Print and return the names that ``from_pretrained`` takes."""
        return configuration.print_support_list(cls.__name__, configuration.presets())

    def save_pretrained(self, folder):
        """Write ``config.yaml`` and ``model.ckpt`` into a folder."""
        self.config.save_pretrained(folder)
        self.save_checkpoint(Path(folder) / "model.ckpt")

    def save_checkpoint(self, path):
        """Write all parameters to one .ckpt file."""
        write_checkpoint(path, ((name, str(p.dtype), p.asnumpy()) for name, p in self.parameters_dict().items()))

    def freeze(self, *patterns):
        """Parameters whose name matches one of ``patterns`` (as file names: "vit.*") are not trained, and cells that hold no
        others stay in evaluation mode.  Raises ConfigError for a pattern that matches nothing."""
        names = self.parameters_dict()
        for pattern in patterns:
            found = fnmatch.filter(names, pattern)
            if not found:
                raise ConfigError(f"nothing to freeze: no parameter matches {pattern!r}; names look like {', '.join(list(names)[:3])}")
            for name in found:
                names[name].requires_grad = False

    def set_train(self, mode=True):
        """As ``Cell.set_train``, but what is frozen stays in evaluation mode."""
        super().set_train(mode)
        for _, cell in self.cells_and_names():
            parameters = list(cell.get_parameters())
            if mode and parameters and not any(p.requires_grad for p in parameters):
                cell.set_train(False)
        return self

    def load_checkpoint(self, path, frozen_path=None):
        """Load every parameter from a .ckpt file, or from a training run's checkpoint folder.  Raises :class:`CheckpointError`
        where a name is missing or too much, or a shape differs; nothing is changed then.  float16 and bfloat16 files are widened
        to the parameters' type.

        A training run saves what it trains, and the name and fingerprint of the file that holds the rest; ``frozen_path`` says
        where that file is now, if it has moved."""
        path = Path(path)
        if path.is_dir():
            inside = sorted(one.name for one in path.glob("step_*"))
            if inside:
                raise CheckpointError(f"{path.absolute()} holds the checkpoints of a run, the newest {inside[-1]}: give one of them")
            path = path / "model.ckpt"
        stored, parameters = Checkpoint(path), self.parameters_dict()
        frozen = _frozen(stored, parameters, frozen_path)
        _check_names({**stored.shapes, **frozen}, parameters, path)
        _check_shapes({**stored.shapes, **{name: base.shapes[name] for name, base in frozen.items()}}, parameters, path)
        for name, parameter in parameters.items():
            parameter.set_data(Tensor.from_numpy(frozen.get(name, stored).float32(name)).astype(parameter.dtype))
        logger.info("%s: %d parameters, all that the model has", path, len(parameters))
        return self


def no_init():
    """Context in which parameters are made without drawing random values, for a model that is loaded at once."""
    return ms.nn.utils.no_init_parameters()


def fingerprint(names, read):
    """A number that differs when any of the arrays ``read(name)`` or the names does: crc32 over both."""
    crc = 0
    for name in sorted(names):
        crc = zlib.crc32(read(name).reshape(-1).view(np.uint8), zlib.crc32(name.encode(), crc))
    return crc


def frozen_record(path):
    """``{"path", "crc32"}`` of the file that holds what a training run's checkpoint does not, or None."""
    record = (Path(path) if Path(path).is_dir() else Path(path).parent) / "state.json"
    return json.loads(record.read_text(encoding="utf-8")).get("frozen") if record.is_file() else None


def _frozen(stored, parameters, frozen_path):
    """Name → Checkpoint for what a training run's checkpoint leaves to the file that it started from; else empty."""
    known = frozen_record(stored.path)
    missing = [name for name in parameters if name not in stored]
    if not known or not missing:
        return {}
    path = Path(frozen_path or known["path"])
    path = Path((frozen_record(path) or {"path": path})["path"])    # a checkpoint of another run names the file in its turn
    if not path.is_file():
        raise CheckpointError(f"{stored.path} holds what was trained; the rest is in {path}, which is not there: give the file as "
                              "frozen_path (--load_checkpoint when resuming)")
    base = Checkpoint(path)
    absent = [name for name in missing if name not in base]
    if absent or fingerprint(missing, base.float32) != known["crc32"]:
        raise CheckpointError(f"{path} is not the file that {stored.path} was trained on: "
                              + (f"it has no {absent[0]}" if absent else "its weights differ") + f"; that was {known['path']}")
    return dict.fromkeys(missing, base)


def _check_names(stored, parameters, path):
    missing = [name for name in parameters if name not in stored]
    extra = [name for name in stored if name not in parameters]
    if missing or extra:
        raise CheckpointError(
            f"{path} does not fit this model: {len(parameters) - len(missing)} of {len(parameters)} parameters are in it"
            + _some("missing", missing) + _some("unexpected", extra) + _advice(stored, missing))


def _check_shapes(shapes, parameters, path):
    wrong = [(n, shapes[n], tuple(p.shape)) for n, p in parameters.items() if shapes[n] != tuple(p.shape)]
    if not wrong:
        return
    name, got, expected = wrong[0]
    advice = "use the --config that belongs to the file"
    if name == "vit.pos_embed":
        advice = ("the file is for another image size: convert it with --image_size, or set "
                  "model.model_config.vision_config.image_size")
    raise CheckpointError(f"{path}: {len(wrong)} parameters have another shape, first {name}: {got} in the file, {expected} "
                          f"expected; {advice}")


def _some(what, names):
    shown = ", ".join(names[:4]) + (f", … ({len(names)} in all)" if len(names) > 4 else "")
    return f"\n  {what}: {shown}" if names else ""


def _advice(stored, missing):
    held = {part for name in stored for part in name.split(".")}
    if "vit" not in held and all(name.startswith("vit.") for name in missing):
        return "\n  It has no ViT: convert again with --vit_path eva_vit_g.pth"
    if held & {"llm_proj", "opt_proj"} or ("query_tokens" in held and "text_ffn" not in held):
        return ("\n  It looks like a stage-2 checkpoint, or one made without the text half: convert blip2_pretrained.pth "
                "(stage 1)")
    if len(missing) > len(stored):
        return "\n  It is not a mindblip2 stage-1 checkpoint: convert one with python convert/convert_weight.py"
    return "\n  Use the --config that belongs to the file"
