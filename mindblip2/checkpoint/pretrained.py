"""Names and files: which file belongs to a name, and strict loading of weights with a report of both
sides."""

import contextlib
import fnmatch
import gc
import logging
import math
import types
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn
from mindspore.common.initializer import Normal, Zero, initializer

from mindblip2 import config as configuration
from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError, write_checkpoint
from mindblip2.checkpoint.load_errors import check_names, check_shapes
from mindblip2.checkpoint.sharded_checkpoint import open_checkpoint, shard_files
from mindblip2.compat.mindformers.keys import WEIGHT_ALIASES
from mindblip2.compat.mindformers.printing import print_support_list
from mindblip2.config import WEIGHTS, Blip2Config, cache_folder
from mindblip2.config.schema import ConfigError, build
from mindblip2.device import draws_values, runnable
from mindblip2.device import no_init as no_init
from mindblip2.distributed import comm
from mindblip2.distributed.sharding import is_split, whole_shape
from mindblip2.file_io import atomic_folder, read_json
from mindblip2.lock import exclusive

logger = logging.getLogger("mindblip2")

LAVIS_URL = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2"


MODEL_KEY = "model.model_config.checkpoint_name_or_path"
LANGUAGE_MODEL = "llm."
# begin of the names → its section
PARTS = {"vit.": "vision_config", "qformer.": "qformer_config", LANGUAGE_MODEL: "text_config"}


def named_file(name, key=MODEL_KEY):
    """The file (or folder) of weights that a configuration or an argument names: a path, or the name of a
    file that is packaged with mindblip2 or lies in the cache folder.  ``key`` is what named it.

    Raises FileNotFoundError that names the key, the places and the next step; nothing is downloaded."""
    path = Path(name)
    if path.is_file() or any(
        one.is_file() for pattern in ("*.ckpt", "*/*.ckpt") for one in path.glob(pattern)
    ):
        return path  # another folder of that name may hold a tokenizer
    if path.suffix in WEIGHTS or len(path.parts) > 1:
        raise FileNotFoundError(
            f"{key} = {str(name)!r}: no checkpoint at {path.absolute()}: give the path of a .ckpt, or remove "
            "the key; "
            "convert/convert_weight.py makes one from published weights"
        )
    return find_weights(str(name), key)


def find_weights(name, key=""):
    """The .ckpt of a name: packaged with mindblip2 (the embedded demo) or put into the cache folder by the
    user.  ``key``: the configuration key that named it, for the message.  Raises FileNotFoundError that says
    how to get it."""
    known = WEIGHT_ALIASES.get(name, name)
    places = [
        Path(__file__).resolve().parents[1] / "assets" / f"{known}.ckpt",
        cache_folder() / f"{known}.ckpt",
    ]
    for path in places:
        if path.is_file():
            return path
    raise FileNotFoundError(
        (f"{key} = {name!r}: " if key else "") + f"no weights for {name!r}: looked for "
        f"{' and '.join(map(str, places))}.  mindblip2 downloads nothing.  {_how_to_get(known, places[-1])}"
    )


def _how_to_get(name, path):
    """The next step of a user who has no weights of this name."""
    convert = "python convert/convert_weight.py --torch_path"
    # MindFormers' names of what a training of stage 1 starts from
    if name in ("vit_g_p16", "bert_base_uncased"):
        return (
            "ViT and BERT are converted into one file:\n"
            f"  {convert} FOLDER_OF_BERT_BASE_UNCASED --vit_path eva_vit_g.pth --mindspore_path start.ckpt\n"
            f"Give it as --load_checkpoint start.ckpt, or put it at {path}, or leave the key empty for "
            "random values"
        )
    if "stage2" not in name and name.startswith(("llama", "vicuna", "baichuan", "opt")):
        return (
            "Get the language model and convert it once:\n"
            f"  {convert} FOLDER_OF_THE_LANGUAGE_MODEL --mindspore_path {path}"
        )
    if "stage2" in name and ("llama" in name or "baichuan" in name):
        model = "Baichuan-7B" if "baichuan" in name else "Llama-7B"
        return (
            f"There is no published stage 2 for {model}: MindFormers' own file cannot be had any more, and "
            "LAVIS has none.  "
            "Train one (--run_mode train --config "
            f"{name.removeprefix('itt_')}) and give it as --load_checkpoint, or take a model whose weights "
            "are public: "
            "itt_blip2_stage2_vit_g_opt_2_7b, itt_blip2_stage2_vit_g_vicuna_7b"
        )
    files, more = _published(name)
    return (
        "Get\n" + "".join(f"  {LAVIS_URL}/{file}\n" for file in files) + "and convert them once:\n"
        f"  {convert} {files[0]} --vit_path {files[1]} {more}--mindspore_path {path}"
    )


def _published(name):
    """LAVIS's files for a preset, and what else the converter needs."""
    if "stage2" not in name:
        return ("blip2_pretrained.pth", "eva_vit_g.pth"), ""
    if "opt" in name:
        return ("blip2_pretrained_opt2.7b.pth", "eva_vit_g.pth"), "--llm_path FOLDER_OF_OPT_2.7B "
    return ("blip2_pretrained_vicuna7b.pth", "eva_vit_g.pth"), "--llm_path FOLDER_OF_VICUNA_7B_V1.1 "


class Pretrained(nn.Cell):
    """A cell with a configuration, made from a preset's name and loaded strictly.

    Its constructor, its call and its public methods may be called from any thread: see ``mindblip2.lock``.

    ``presets``: patterns of the names that are meant for it; ``task``: what the Trainer does with it.
    ``new_parts`` and ``unused_parts``: patterns of the parameters that it has and the stage before has not,
    and the other way round; see ``load_start``."""

    presets: tuple[str, ...] = ("*",)
    task = "contrastive_language_image_pretrain"
    new_parts: tuple[str, ...] = ()
    unused_parts: tuple[str, ...] = ()
    # whether the constructor takes a file of the stage before, as ``load_start`` does
    begins_training = False

    __call__ = exclusive(nn.Cell.__call__)

    def __init_subclass__(cls, **options):
        """Every public method that a model defines takes the lock; ``construct`` does by the call that runs
        it."""
        super().__init_subclass__(**options)
        for name, method in list(vars(cls).items()):
            if (
                isinstance(method, types.FunctionType)
                and name != "construct"
                and (name == "__init__" or not name.startswith("_"))
            ):
                setattr(cls, name, exclusive(method))

    @exclusive
    def __init__(self, config):
        super().__init__()
        self.config = runnable(build(Blip2Config, config) if isinstance(config, dict) else config)

    @classmethod
    @exclusive
    def from_pretrained(cls, name_or_path, checkpoint=None):
        """The model of a preset, a YAML file or a folder of ``save_pretrained`` with its weights:
        ``checkpoint``, else the folder's own, else the configuration's ``checkpoint_name_or_path``, else the
        file found by name.  Raises FileNotFoundError that says how to get them."""
        config = configuration.load_config(name_or_path).model.model_config
        own = Path(name_or_path) / "model.ckpt"
        path = (
            named_file(checkpoint, "checkpoint")
            if checkpoint
            else own
            if own.is_file()
            else named_file(config.checkpoint_name_or_path)
            if config.checkpoint_name_or_path
            else find_weights(Path(name_or_path).stem)
        )
        gc.collect()  # models that are gone, but for cycles with their graphs, make room for this one
        with no_init():
            model = cls(config)
        return model.load_checkpoint(path).set_train(False)

    @classmethod
    def show_support_list(cls):
        """Print and return the names of the presets that are meant for this class."""
        return print_support_list(cls.__name__, cls.preset_names())

    @classmethod
    def preset_names(cls):
        """The presets that are meant for this class."""
        return _matching(configuration.presets(), cls.presets)

    def building(self):
        """The context in which a constructor makes its parts: without values where the configuration names
        the model's file, which ``load_named`` loads then."""
        return no_init() if self.config.checkpoint_name_or_path else contextlib.nullcontext()

    def load_named(self):
        """Load the weights that the configuration names; constructors end with it.  Nothing happens within
        ``no_init``, and where nothing is named the values stay random.

        ``checkpoint_name_or_path`` is the file of the model; parts that it does not hold come from the files
        that ``vision_config``, ``qformer_config`` and ``text_config`` name.  Without a file of the model
        these parts alone are loaded, and a warning says that the others have random values.  Raises
        FileNotFoundError that names the key where a file is not there, and as ``load_checkpoint``."""
        if not draws_values():
            return
        name = self.config.checkpoint_name_or_path
        if not name:
            self._load_parts()
        elif self.begins_training:
            for line in self.load_start(named_file(name)):
                logger.log(logging.WARNING if line.startswith("new,") else logging.INFO, "%s", line)
        else:
            self.load_checkpoint(named_file(name))

    def _load_parts(self):
        """Load the parts that have a file of their own; a warning says what has random values besides
        them."""
        parameters, files = self.parameters_dict(), {}
        for begin in _named_parts(self):
            names = [name for name in parameters if name.startswith(begin)]
            files.update(_part(self, begin, names) if names else {})
        if files:
            check_shapes(files, {name: parameters[name] for name in files})
            self._load(files, " and ".join(sorted({str(file.path) for file in files.values()})))
            logger.warning(
                "%s is empty, so only %s are loaded; with random values: %s",
                MODEL_KEY,
                _parts(files),
                _parts(name for name in parameters if name not in files),
            )

    @exclusive
    def save_pretrained(self, folder, processor=None):
        """Write ``config.yaml``, ``model.ckpt`` and the processor's files into a folder that
        ``from_pretrained``, ``pipeline`` and ``Trainer`` take for a name.

        ``processor``: None for the one that lies there already, else that of the preset or file that the
        configuration was read from. Where that is not to be had, a warning says so, and
        ``Blip2Processor.save_pretrained`` can add one."""
        own = {
            section: {"checkpoint_name_or_path": ""}
            for section in PARTS.values()
            if getattr(self.config, section) is not None
        }
        # which holds all parts
        config = self.config.replace(checkpoint_name_or_path="model.ckpt", **own)
        with (
            comm.fail_together(),
            atomic_folder(folder)
            if comm.is_main_process()
            else contextlib.nullcontext(Path(folder)) as partial,
        ):
            self.save_checkpoint(partial / "model.ckpt")
            if not comm.is_main_process():
                return
            configuration.save_sections(
                partial,
                trainer={"type": self.task},
                model={"model_config": config.to_dict(), "arch": {"type": type(self).__name__}},
            )
            if processor is None and "processor" not in configuration.saved_sections(partial):
                processor = _processor_of(self.config, folder)
            if processor is not None:
                processor.save_pretrained(partial)

    @exclusive
    def save_checkpoint(self, path):
        """Write all parameters to one .ckpt file, whole ones: on a mesh all processes call this, and the
        first one writes."""
        parameters = self.parameters_dict()
        save_unsharded(
            path,
            ((name, str(p.dtype), unshard(p)) for name, p in parameters.items()),
            unsharded_bytes(parameters.values()),
        )

    def freeze(self, *patterns):
        """Parameters whose name matches one of ``patterns`` (as file names: "vit.*") are not trained, and
        cells that hold no others stay in evaluation mode.  Raises ConfigError for a pattern that matches
        nothing."""
        names = self.parameters_dict()
        for pattern in patterns:
            found = fnmatch.filter(names, pattern)
            if not found:
                raise ConfigError(
                    f"nothing to freeze: no parameter matches {pattern!r}; names look like "
                    f"{', '.join(list(names)[:3])}"
                )
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
        """Load every parameter from a .ckpt file, a training run's checkpoint folder, or a folder of shards
        (``mindblip2.checkpoint.sharded_checkpoint``) of any mesh.  Raises :class:`CheckpointError` where a
        name is missing or too much, or a shape differs; nothing is changed then. float16 and bfloat16 files
        are widened to the parameters' type.

        A training run saves what it trains, and the name and fingerprint of the file that holds the rest;
        ``frozen_path`` says where that file is now, if it has moved."""
        path, parameters = _model_file(path), self.parameters_dict()
        stored = open_checkpoint(path, parameters)
        files = self._sources(stored, frozen_path, parameters)
        self._load(files, path)
        self._say_unread(files, stored.path)
        return self

    @exclusive
    def load_start(self, path):
        """Load what a training starts from: a file of this model, or one of the stage before, of which
        ``unused_parts`` are left out while ``new_parts`` get random values.  Returns lines that say what was
        taken from where.  Raises as ``load_checkpoint``."""
        parameters = self.parameters_dict()
        stored = open_checkpoint(_model_file(path), parameters)
        new, unused = _matching(parameters, self.new_parts), _matching(stored, self.unused_parts)
        if not unused or any(name in stored for name in new):
            self.load_checkpoint(path)
            return [f"started from {path}: {_parts(parameters)}"]
        wanted = {name: p for name, p in parameters.items() if name not in new}
        files = self._sources(stored, None, wanted, unused)
        self._load(files, stored.path)
        self._say_unread(files, stored.path)
        for name in new:  # none of them is ever split
            p = parameters[name]
            p.set_data(initializer(Normal(0.02) if p.ndim > 1 else Zero(), p.shape, p.dtype).init_data())
        lines = [
            f"started from {path}: {_parts(name for name in wanted if files[name] is stored)}; left out: "
            f"{_parts(unused)}"
        ]
        for other in {id(file): file for file in files.values() if file is not stored}.values():
            lines.append(f"from {other.path}: {_parts(name for name in wanted if files[name] is other)}")
        return [*lines, f"new, with random values: {_parts(new)}"]

    def _sources(self, stored, frozen_path, parameters, unused=()):
        """Name → the Checkpoint that holds it, for all of ``parameters``; ``unused``: names in ``stored``
        that may be left over."""
        missing = [name for name in parameters if name not in stored]
        others = _frozen(self, stored, missing, frozen_path) or _elsewhere(self, stored, missing)
        check_names([name for name in stored if name not in unused] + list(others), parameters, stored.path)
        files = {name: others.get(name, stored) for name in parameters}
        check_shapes(files, parameters)
        return files

    def _load(self, files, path):
        parameters = self.parameters_dict()
        for name, file in files.items():
            parameters[name].set_data(
                Tensor.from_numpy(local_shard(parameters[name], file.float32(name))).astype(
                    parameters[name].dtype
                )
            )
        logger.info("%s: %d of %d parameters", path, len(files), len(parameters))

    def _say_unread(self, files, path):
        """Name the parts whose own files are not read, because ``path`` holds these parts itself."""
        for begin, (key, name) in _named_parts(self).items():
            own = [file for parameter, file in files.items() if parameter.startswith(begin)]
            if own and all(str(file.path) == str(path) for file in own):
                logger.warning("%s = %r is not read: %s holds this part itself", key, name, path)


def _processor_of(config, folder):
    """The processor of the preset or file that a configuration was read from, or None, and a warning that
    ``folder`` has none."""
    from mindblip2.data.processor import (
        Blip2Processor,  # a model that is saved takes it along; otherwise nothing here sees data
    )

    why = "its configuration was made in Python"
    try:
        if config.preset:
            return Blip2Processor.from_pretrained(config.preset)
    except (OSError, ValueError, ImportError) as error:
        why = str(error)
    logger.warning(
        "%s holds a model without its processor (%s): add it by Blip2Processor.save_pretrained", folder, why
    )
    return None


def local_shard(parameter, array):
    """Of the array of a whole parameter what this card holds."""
    if not is_split(parameter, comm.mesh.model):
        return array
    return np.ascontiguousarray(parameter.division.cut(array, comm.mesh.model, comm.mesh.model_rank))


def unshard(parameter, array=None):
    """The array of a whole parameter, or of something of its shape, on every card of the model group."""
    array = parameter.asnumpy() if array is None else array
    return (
        parameter.division.join(comm.gather_shards(array)) if is_split(parameter, comm.mesh.model) else array
    )


def unsharded_bytes(parameters):
    """The bytes of parameters, those that are split over a model group whole."""
    return sum(math.prod(whole_shape(p)) * p.itemsize for p in parameters)


def save_unsharded(path, tensors, needed=None):
    """``write_checkpoint`` by the main process.  Making the tensors takes all processes, one tensor after the
    other.  An error of the main process (a full disk) is raised when the others have come to their end, and
    they raise one too."""
    tensors = iter(tensors)
    with comm.fail_together():
        try:
            if comm.is_main_process():
                write_checkpoint(path, tensors, needed)
        finally:
            for _ in tensors if comm.mesh.size > 1 else ():
                pass


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
    if not record.is_file():
        return None
    return read_json(record, dict, "the state of a training", "take another checkpoint of the run").get(
        "frozen"
    )


def external_checkpoints(model, path, names):
    """Name → Checkpoint for ``names``, of the .ckpt ``path`` or of the files that the
    configuration names for parts."""
    stored = Checkpoint(_model_file(path))
    others = _elsewhere(model, stored, [name for name in names if name not in stored])
    return {name: others.get(name, stored) for name in names if name in stored or name in others}


def _model_file(path):
    path = Path(path)
    if not path.is_dir() or len(shard_files(path)) > 1:
        return path
    inside = sorted(one.name for one in path.glob("step_*"))
    if inside:
        raise CheckpointError(
            f"{path.absolute()} holds the checkpoints of a run, the newest {inside[-1]}: give one of them"
        )
    return path / "model.ckpt"


def _named_parts(model):
    """{begin of names: (key, name or path)} of the parts for which the configuration names a file of their
    own."""
    found = {}
    for begin, section in PARTS.items():
        name = getattr(getattr(model.config, section), "checkpoint_name_or_path", "")
        if name:
            found[begin] = f"model.model_config.{section}.checkpoint_name_or_path", name
    return found


def _part(model, begin, names):
    """Name → Checkpoint for the parameters ``names`` of one part, from the file that the configuration names
    for it: one of this part alone, or of a whole model, of which it is taken."""
    key, name = _named_parts(model)[begin]
    stored = Checkpoint(_model_file(named_file(name, key)))
    unused = _matching(stored, model.unused_parts)
    check_names(
        [one for one in stored if one.startswith(begin) and one not in unused],
        names,
        f"{stored.path} ({key})",
    )
    return dict.fromkeys(names, stored)


def _elsewhere(model, stored, missing):
    """Name → Checkpoint for what is ``missing`` in the model's own file and has a file of its own."""
    found, named = {}, _named_parts(model)
    for begin in PARTS:
        names = [name for name in missing if name.startswith(begin)]
        if not names or any(name.startswith(begin) for name in stored):
            continue
        if begin in named:
            found.update(_part(model, begin, names))
        elif begin == LANGUAGE_MODEL:
            raise CheckpointError(
                f"{stored.path} holds no language model: convert it together with one (convert_weight.py "
                "--llm_path), "
                "or set model.model_config.text_config.checkpoint_name_or_path to the .ckpt of the language "
                "model"
            )
    return found


def _frozen(model, stored, missing, frozen_path):
    """Name → Checkpoint for what a training run's checkpoint leaves to the files that it started from; else
    empty."""
    known = frozen_record(stored.path)
    if not known or not missing:
        return {}
    path = Path(frozen_path or known["path"])
    # a checkpoint of another run names the file in its turn
    path = Path((frozen_record(path) or {"path": path})["path"])
    if not path.is_file():
        raise CheckpointError(
            f"{stored.path} holds what was trained; the rest is in {path}, which is not there: give the file "
            "as "
            "frozen_path (--load_checkpoint when resuming)"
        )
    files = external_checkpoints(model, path, missing)
    absent = [name for name in missing if name not in files]
    # all that a run of stage 1 knew of
    own = [name for name in missing if not name.startswith(LANGUAGE_MODEL)]
    if absent or all(
        _crc(files, names) != known["crc32"] for names in ((missing, own) if own != missing else (missing,))
    ):
        raise CheckpointError(
            f"{path} is not the file that {stored.path} was trained on: "
            + (f"it has no {absent[0]}" if absent else "its weights differ")
            + f"; that was {known['path']}"
        )
    return files


def _matching(names, patterns):
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def _parts(names):
    """ "vit 3, qformer 12": how many parameters of each part."""
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{part} {count}" for part, count in counts.items())
