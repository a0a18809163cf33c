"""``Trainer.export``: a model for inference as MINDIR files, one for each part, and ``mindir.json``, which
says what they take and give.

Shapes are fixed when a part is exported.  Of more than 1 GB MindSpore writes the weights beside the graph,
``<part>_variables/``.

B pictures or texts · C labels · P image tokens · Q queries · T text · L = Q + T · S = L + room
D width · E embed · V vocab · in the cache of a language model: N layers · J heads of keys and values · K head
width
"""

import errno
import re
import shutil
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindblip2 import device
from mindblip2.config.schema import ConfigError
from mindblip2.distributed import comm
from mindblip2.file_io import FileError, atomic_folder, read_json, sync_file, write_json
from mindblip2.models.layers import gather_vocabulary
from mindblip2.progress import progress
from mindblip2.trainer.plan import bytes_of

FORMAT = 1  # of mindir.json


class Part(NamedTuple):
    """A cell with its inputs, {name: Tensor} in order, and the axes of what it gives, {name: "B Q D"}."""

    cell: nn.Cell
    inputs: dict
    outputs: dict


def write(parts, folder, **about):
    """Write ``folder/<part>.mindir`` and ``mindir.json``; returns what that says.  Raises ConfigError on a
    mesh of several processes."""
    if comm.mesh.size > 1:
        raise ConfigError(
            "export works in one process: leave use_parallel out (a checkpoint does not depend on the mesh)"
        )
    said = {"format": FORMAT, "mindspore": ms.__version__, "device": device.target(), **about, "parts": {}}
    with atomic_folder(folder) as partial:
        for old in [partial / file for name in {*parts, *_exported(partial)} for file in files_of(name)]:
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        for name, part in progress(parts.items(), desc="export", unit="part"):
            part.cell.set_train(False)
            _export(part, partial / f"{name}.mindir")
            file = next(file for file in files_of(name) if (partial / file).is_file())
            said["parts"][name] = {
                "file": file,
                "outputs": part.outputs,
                "inputs": {
                    key: {"shape": list(one.shape), "dtype": str(one.dtype).lower()}
                    for key, one in part.inputs.items()
                },
            }
        write_json(partial / "mindir.json", said)
    return said


def files_of(part):
    """What ``mindspore.export`` may write for a part: one file, or from 1 GB on a graph and a folder of
    weights."""
    return f"{part}.mindir", f"{part}_graph.mindir", f"{part}_variables"


def _exported(folder):
    """The parts of an earlier export, perhaps of another task."""
    file = folder / "mindir.json"
    try:
        parts = read_json(file, dict).get("parts") if file.is_file() else {}
    except FileError:
        return ()
    return [name for name in parts if re.fullmatch(r"\w+", name)] if isinstance(parts, dict) else ()


def _export(part, path):
    """``mindspore.export``, whose files are written to the disk, and which says nothing else of a full one
    than that it failed."""
    try:
        ms.export(part.cell, *part.inputs.values(), file_name=str(path), file_format="MINDIR")
        for file in [
            *path.parent.glob(path.stem + "*.mindir"),
            *path.parent.glob(f"{path.stem}_variables/*"),
        ]:
            sync_file(file)
    except RuntimeError as error:
        needed = bytes_of(part.cell.get_parameters())
        if shutil.disk_usage(path.parent).free > needed:
            raise
        raise OSError(
            errno.ENOSPC, f"about {needed:,} bytes are needed for {path.name} ({error})", str(path)
        ) from error


# ------------------------------------------------------------------------------------------------ stage 1
def stage1(model, batch_size, length):
    """``see`` and ``read`` make features that are compared, ``match`` asks the ITM head; texts have
    ``length`` ids."""
    image, ids = pictures(model, batch_size), whole_numbers(batch_size, length)
    return {
        "see": Part(_See(model), {"image": image}, {"image_embeds": "B Q D", "image_embeds_proj": "B Q E"}),
        "read": Part(_Read(model), {"input_ids": ids}, {"text_embeds": "B T D", "text_embeds_proj": "B T E"}),
        "match": Part(_Match(model), {"image": image, "input_ids": ids}, {"itm_logits": "B 2"}),
    }


def classifier(model, batch, label_ids):
    """``classify``: pictures and label texts → probabilities."""
    return {
        "classify": Part(
            model, {"image": pictures(model, batch), "label_ids": label_ids}, {"probabilities": "B C"}
        )
    }


class _See(nn.Cell):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def construct(self, image):
        model = self.model
        query_BQD, _ = model.qformer.see(model.qformer.memory(model.ln_vision(model.vit(image))))
        return query_BQD, model._project(model.vision_proj, query_BQD)


class _Read(_See):
    def construct(self, input_ids):
        text_BTD = self.model.qformer.read(input_ids)
        return text_BTD, self.model._project(self.model.text_proj, text_BTD)


class _Match(_See):
    def construct(self, image, input_ids):
        model = self.model
        return model.match_logits(input_ids, model.qformer.memory(model.ln_vision(model.vit(image))))


# ------------------------------------------------------------------------------------------------ stage 2
def language(model, batch, prompt, new):
    """``see`` makes the queries' embeddings and ``embed`` those of a prompt of ``prompt`` ids; ``prefill``
    reads both, side by side with padding on the left, and ``decode`` goes on token by token, ``new`` times at
    most."""
    llm, text, dtype = model.llm, model.config.text_config, model.llm.dtype
    length = model.queries + prompt
    shape = (text.num_layers, 2, batch, text.kv_heads, length + new, text.hidden_size // text.num_heads)
    rows = {
        "mask": Tensor(np.ones((batch, length + new), np.float32)),
        "cache": Tensor(np.zeros(shape, np.float32), dtype),
    }
    state = {"logits": "B V", "mask": "B S", "cache": "N 2 B J S K"}
    return {
        "see": Part(_SeeForText(model), {"image": pictures(model, batch)}, {"query_embeds": "B Q D"}),
        "embed": Part(_Embed(llm), {"input_ids": whole_numbers(batch, prompt)}, {"text_embeds": "B T D"}),
        "prefill": Part(
            _Prefill(llm, new),
            {
                "embeds": Tensor(np.zeros((batch, length, text.hidden_size), np.float32), dtype),
                "mask": Tensor(np.ones((batch, length), np.float32)),
            },
            state,
        ),
        "decode": Part(
            _Decode(llm), {"token": whole_numbers(batch), "slot": Tensor(length, ms.int32), **rows}, state
        ),
    }


class _SeeForText(_See):
    def construct(self, image):
        return self.model.see(self.model.vit(image))


class _Embed(_See):
    def construct(self, input_ids):
        return self.model.embed(input_ids)


class _Prefill(_See):
    def __init__(self, llm, room):
        super().__init__(llm)
        self.room = room

    def construct(self, embeds, mask):
        llm, batch = self.model, embeds.shape[0]
        hidden_BLD, bias, turn = llm.begin(embeds, mask)
        caches = ()
        for layer in llm.layers:
            hidden_BLD, pair = layer(hidden_BLD, bias, turn)
            caches += (ops.stack(pair),)
        cache = ops.stack(caches)
        room = ops.zeros((*cache.shape[:4], self.room, cache.shape[5]), cache.dtype)
        mask_BS = ops.cat((mask, ops.zeros((batch, self.room), ms.float32)), 1)
        return _next_word(llm, hidden_BLD[:, -1]), mask_BS, ops.cat((cache, room), 4)


class _Decode(_See):
    def construct(self, token, slot, mask, cache):
        llm, caches = self.model, ()
        mask_BS, hidden_B1D, bias, turn = llm.begin_step(token, mask, slot)
        for i, layer in enumerate(llm.layers):
            hidden_B1D, pair = layer(hidden_B1D, bias, turn, (cache[i, 0], cache[i, 1]), slot)
            caches += (ops.stack(pair),)
        return _next_word(llm, hidden_B1D[:, 0]), mask_BS, ops.stack(caches)


def _next_word(llm, hidden_BD):
    return gather_vocabulary(llm.logits(llm.norm(hidden_BD), llm.head_scale()), llm.vocab)


# ------------------------------------------------------------------------------------------------ inputs
def pictures(model, batch):
    """Normalised pixels (B, 3, S, S) of nothing."""
    vision = model.config.vision_config
    return Tensor(np.zeros((batch, vision.num_channels, vision.image_size, vision.image_size), np.float32))


def whole_numbers(*shape):
    """int32 ids: ones, since a padding id would hide all of a text."""
    return Tensor(np.ones(shape, np.int32))
