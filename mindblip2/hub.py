"""Names and files: which file belongs to a name, and strict loading of weights with a report of both sides."""
import fnmatch
import gc
import json
import logging
import types
import zlib
from collections import Counter
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.common.initializer import Normal, Zero, initializer

from mindblip2 import comm
from mindblip2 import config as configuration
from mindblip2.checkpoint import Checkpoint, CheckpointError, write_checkpoint
from mindblip2.config import Blip2Config, cache_folder
from mindblip2.device import runnable
from mindblip2.lock import exclusive
from mindblip2.mismatch import check_names, check_shapes
from mindblip2.pieces import found, opened
from mindblip2.sections import ConfigError, build
from mindblip2.split import is_split

logger = logging.getLogger("mindblip2")

LAVIS_URL = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2"


def find_weights(name):
    """The .ckpt of a preset: packaged with mindblip2 (the embedded demo) or put into the cache folder by the user."""
    places = [Path(__file__).resolve().parent / "assets" / f"{name}.ckpt", cache_folder() / f"{name}.ckpt"]
    for path in places:
        if path.is_file():
            return path
    files, more = _published(name)
    raise FileNotFoundError(
        f"no weights for {name!r}: looked for {' and '.join(map(str, places))}.  mindblip2 downloads nothing.  Get\n"
        + "".join(f"  {LAVIS_URL}/{file}\n" for file in files) + "and convert them once:\n"
        f"  python convert/convert_weight.py --torch_path {files[0]} --vit_path {files[1]} {more}--mindspore_path {places[-1]}")


def _published(name):
    """LAVIS's files for a preset, and what else the converter needs."""
    if "stage2" not in name:
        return ("blip2_pretrained.pth", "eva_vit_g.pth"), ""
    if "opt" in name:
        return ("blip2_pretrained_opt2.7b.pth", "eva_vit_g.pth"), "--llm_path FOLDER_OF_OPT_2.7B "
    return ("blip2_pretrained_vicuna7b.pth", "eva_vit_g.pth"), "--llm_path FOLDER_OF_THE_LANGUAGE_MODEL "


class Pretrained(nn.Cell):
    """A cell with a configuration, made from a preset's name and loaded strictly.

    Its constructor, its call and its public methods may be called from any thread: see ``mindblip2.lock``.

    ``presets``: patterns of the names that are meant for it; ``task``: what the Trainer does with it.  ``new_parts`` and
    ``unused_parts``: patterns of the parameters that it has and the stage before has not, and the other way round; see
    ``load_start``."""

    presets, task, new_parts, unused_parts = ("*",), "contrastive_language_image_pretrain", (), ()

    __call__ = exclusive(nn.Cell.__call__)

    def __init_subclass__(cls, **options):
        """Every public method that a model defines takes the lock; ``construct`` does by the call that runs it."""
        super().__init_subclass__(**options)
        for name, method in list(vars(cls).items()):
            if isinstance(method, types.FunctionType) and name != "construct" and (name == "__init__" or not name.startswith("_")):
                setattr(cls, name, exclusive(method))

    @exclusive
    def __init__(self, config):
        super().__init__()
        self.config = runnable(build(Blip2Config, config) if isinstance(config, dict) else config)

    @classmethod
    @exclusive
    def from_pretrained(cls, name_or_path, checkpoint=None):
        """The model of a preset, a YAML file or a folder of ``save_pretrained`` with its weights: ``checkpoint``, else the
        folder's own, else the configuration's ``checkpoint_name_or_path``, else the file found by name.  Raises
        FileNotFoundError that says how to get them."""
        config = configuration.load_config(name_or_path).model.model_config
        own = Path(name_or_path) / "model.ckpt"
        wanted = checkpoint or (own if own.is_file() else config.checkpoint_name_or_path or Path(name_or_path).stem)
        path = wanted if Path(wanted).suffix == ".ckpt" or Path(wanted).is_dir() else find_weights(wanted)
        gc.collect()    # models that are gone, but for cycles with their graphs, make room for this one
        with no_init():
            model = cls(config)
        return model.load_checkpoint(path).set_train(False)

    @classmethod
    def show_support_list(cls):
        """Print and return the names of the presets that are meant for this class."""
        return configuration.print_support_list(cls.__name__, cls.preset_names())

    @classmethod
    def preset_names(cls):
        """The presets that are meant for this class."""
        return _matching(configuration.presets(), cls.presets)

    def elsewhere(self):
        """{begin of names: path of the .ckpt that holds those parameters where the model's own file does not}."""
        return {}

    @exclusive
    def save_pretrained(self, folder, processor=None):
        """Write ``config.yaml``, ``model.ckpt`` and the processor's files into a folder that ``from_pretrained``, ``pipeline`` and
        ``Trainer`` take for a name.

        ``processor``: None for the one that lies there already, else that of the preset or file that the configuration was read from.
        Where that is not to be had, a warning says so, and ``Blip2Processor.save_pretrained`` can add one."""
        config = self.config.replace(checkpoint_name_or_path="model.ckpt")
        path = configuration.save_sections(folder, trainer={"type": self.task}, model={
            "model_config": config.to_dict(), "arch": {"type": type(self).__name__}})
        self.save_checkpoint(path.with_name("model.ckpt"))
        if processor is None and "processor" not in configuration.saved_sections(folder):
            processor = _processor_of(self.config, path.parent)
        if processor is not None:
            processor.save_pretrained(folder)

    @exclusive
    def save_checkpoint(self, path):
        """Write all parameters to one .ckpt file, whole ones: on a mesh all processes call this, and the first one writes."""
        save_whole(path, ((name, str(p.dtype), whole(p)) for name, p in self.parameters_dict().items()))

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

    @exclusive
    def set_train(self, mode=True):
        """As ``Cell.set_train``, but what is frozen stays in evaluation mode."""
        super().set_train(mode)
        for _, cell in self.cells_and_names():
            parameters = list(cell.get_parameters())
            if mode and parameters and not any(p.requires_grad for p in parameters):
                cell.set_train(False)
        return self

    @exclusive
    def load_checkpoint(self, path, frozen_path=None):
        """Load every parameter from a .ckpt file, a training run's checkpoint folder, or a folder of pieces (``mindblip2.pieces``) of
        any mesh.  Raises :class:`CheckpointError` where a name is missing or too much, or a shape differs; nothing is changed then.
        float16 and bfloat16 files are widened to the parameters' type.

        A training run saves what it trains, and the name and fingerprint of the file that holds the rest; ``frozen_path`` says
        where that file is now, if it has moved."""
        path, parameters = _model_file(path), self.parameters_dict()
        self._load(self._sources(opened(path, parameters), frozen_path, parameters), path)
        return self

    @exclusive
    def load_start(self, path):
        """Load what a training starts from: a file of this model, or one of the stage before, of which ``unused_parts`` are left out
        while ``new_parts`` get random values.  Returns lines that say what was taken from where.  Raises as ``load_checkpoint``."""
        parameters = self.parameters_dict()
        stored = opened(_model_file(path), parameters)
        new, unused = _matching(parameters, self.new_parts), _matching(stored, self.unused_parts)
        if not unused or any(name in stored for name in new):
            self.load_checkpoint(path)
            return [f"started from {path}: {_parts(parameters)}"]
        wanted = {name: p for name, p in parameters.items() if name not in new}
        files = self._sources(stored, None, wanted, unused)
        self._load(files, stored.path)
        for name in new:        # none of them is ever split
            p = parameters[name]
            p.set_data(initializer(Normal(0.02) if p.ndim > 1 else Zero(), p.shape, p.dtype).init_data())
        lines = [f"started from {path}: {_parts(name for name in wanted if files[name] is stored)}; left out: {_parts(unused)}"]
        for other in {id(file): file for file in files.values() if file is not stored}.values():
            lines.append(f"from {other.path}: {_parts(name for name in wanted if files[name] is other)}")
        return [*lines, f"new, with random values: {_parts(new)}"]

    def _sources(self, stored, frozen_path, parameters, unused=()):
        """Name → the Checkpoint that holds it, for all of ``parameters``; ``unused``: names in ``stored`` that may be left over."""
        missing = [name for name in parameters if name not in stored]
        others = _frozen(self, stored, missing, frozen_path) or _elsewhere(self, stored, missing)
        check_names([name for name in stored if name not in unused] + list(others), parameters, stored.path)
        files = {name: others.get(name, stored) for name in parameters}
        check_shapes(files, parameters)
        return files

    def _load(self, files, path):
        parameters = self.parameters_dict()
        for name, file in files.items():
            parameters[name].set_data(Tensor.from_numpy(own_piece(parameters[name], file.float32(name))).astype(parameters[name].dtype))
        logger.info("%s: %d of %d parameters", path, len(files), len(parameters))


def _processor_of(config, folder):
    """The processor of the preset or file that a configuration was read from, or None, and a warning that ``folder`` has none."""
    from mindblip2.data.processor import Blip2Processor  # a model that is saved takes it along; otherwise nothing here sees data
    why = "its configuration was made in Python"
    try:
        if config.preset:
            return Blip2Processor.from_pretrained(config.preset)
    except (OSError, ValueError, ImportError) as error:
        why = str(error)
    logger.warning("%s holds a model without its processor (%s): add it by Blip2Processor.save_pretrained", folder, why)
    return None


def own_piece(parameter, array):
    """Of the array of a whole parameter what this card holds."""
    if not is_split(parameter, comm.mesh.model):
        return array
    return np.ascontiguousarray(parameter.division.cut(array, comm.mesh.model, comm.mesh.model_rank))


def whole(parameter, array=None):
    """The array of a whole parameter, or of something of its shape, on every card of the model group."""
    array = parameter.asnumpy() if array is None else array
    return parameter.division.join(comm.pieces(array)) if is_split(parameter, comm.mesh.model) else array


def save_whole(path, tensors):
    """``write_checkpoint`` by the first process.  Making the tensors takes all processes, one tensor after the other."""
    if comm.first():
        write_checkpoint(path, tensors)
    else:
        for _ in tensors:
            pass
    comm.barrier()


def no_init():
    """Context in which parameters are made without drawing random values, for a model that is loaded at once."""
    return ms.nn.utils.no_init_parameters()


def fingerprint(names, read):
    """A number that differs when any of the arrays ``read(name)`` or the names does: crc32 over both."""
    crc = 0
    for name in sorted(names):
        crc = zlib.crc32(read(name).reshape(-1).view(np.uint8), zlib.crc32(name.encode(), crc))
    return crc


def _crc(files, names):
    return fingerprint(names, lambda name: files[name].float32(name))


def frozen_record(path):
    """``{"path", "crc32"}`` of the file that holds what a training run's checkpoint does not, or None."""
    record = (Path(path) if Path(path).is_dir() else Path(path).parent) / "state.json"
    return json.loads(record.read_text(encoding="utf-8")).get("frozen") if record.is_file() else None


def holders(model, path, names):
    """Name → Checkpoint for ``names``, of the .ckpt ``path`` or of the files that the model has ``elsewhere``."""
    stored = Checkpoint(_model_file(path))
    others = _elsewhere(model, stored, [name for name in names if name not in stored])
    return {name: others.get(name, stored) for name in names if name in stored or name in others}


def _model_file(path):
    path = Path(path)
    if not path.is_dir() or len(found(path)) > 1:
        return path
    inside = sorted(one.name for one in path.glob("step_*"))
    if inside:
        raise CheckpointError(f"{path.absolute()} holds the checkpoints of a run, the newest {inside[-1]}: give one of them")
    return path / "model.ckpt"


def _elsewhere(model, stored, missing):
    """Name → Checkpoint for what is ``missing`` in the model's own file and has a file of its own."""
    found = {}
    for begin, path in model.elsewhere().items():
        names = [name for name in missing if name.startswith(begin)]
        if not names or any(name.startswith(begin) for name in stored):
            continue
        if not path:
            raise CheckpointError(f"{stored.path} holds no language model: convert it together with one (convert_weight.py --llm_path), "
                                  "or set model.model_config.text_config.checkpoint_name_or_path to the .ckpt of the language model")
        path = Path(path) if Path(path).suffix or Path(path).exists() else cache_folder() / f"{path}.ckpt"      # a name
        if not path.is_file():
            raise CheckpointError(f"no language model at {path.absolute()} (model.model_config.text_config.checkpoint_name_or_path): "
                                  "convert it with\n  python convert/convert_weight.py --torch_path FOLDER --mindspore_path "
                                  f"{path}")
        other = Checkpoint(path)
        check_names([name for name in other if name.startswith(begin)], names, other.path)
        found.update(dict.fromkeys(names, other))
    return found


def _frozen(model, stored, missing, frozen_path):
    """Name → Checkpoint for what a training run's checkpoint leaves to the files that it started from; else empty."""
    known = frozen_record(stored.path)
    if not known or not missing:
        return {}
    path = Path(frozen_path or known["path"])
    path = Path((frozen_record(path) or {"path": path})["path"])    # a checkpoint of another run names the file in its turn
    if not path.is_file():
        raise CheckpointError(f"{stored.path} holds what was trained; the rest is in {path}, which is not there: give the file as "
                              "frozen_path (--load_checkpoint when resuming)")
    files = holders(model, path, missing)
    absent = [name for name in missing if name not in files]
    own = [name for name in missing if not name.startswith(tuple(model.elsewhere()))]      # all that a run of stage 1 knew of
    if absent or all(_crc(files, names) != known["crc32"] for names in ((missing, own) if own != missing else (missing,))):
        raise CheckpointError(f"{path} is not the file that {stored.path} was trained on: "
                              + (f"it has no {absent[0]}" if absent else "its weights differ") + f"; that was {known['path']}")
    return files


def _matching(names, patterns):
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def _parts(names):
    """"vit 3, qformer 12": how many parameters of each part."""
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{part} {count}" for part, count in counts.items())
