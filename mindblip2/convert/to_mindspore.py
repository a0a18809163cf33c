"""Foreign files to a .ckpt of ours: which of them belong together, and what is written."""

import math
from typing import NamedTuple

import numpy as np

from mindblip2.checkpoint.ckpt import CheckpointError, write_checkpoint
from mindblip2.config import Blip2Config, LlamaConfig, OPTConfig, ViTConfig, load_config
from mindblip2.config.schema import ConfigError
from mindblip2.convert import plan
from mindblip2.convert.detect import check_bridge, detect, has_vit, is_bridge, is_language_model
from mindblip2.convert.hf_config import HF_LAYER_NORM_EPS, IDS, HfFolderConfig, read_hf_config
from mindblip2.convert.infer_config import (
    ShapeReader,
    config_as_yaml,
    has_grouped_query_attention,
    infer_model_config,
    infer_text_config,
    text_config_of_width,
    yaml_value,
)
from mindblip2.convert.name_maps.blip2 import BERT, EVA, HF, source_name
from mindblip2.convert.name_maps.language_models import HF_BRIDGE, with_tied_head
from mindblip2.convert.parameter_shapes import llm_shapes, stage_1_shapes, stage_2_shapes
from mindblip2.convert.readers.files import read_state_dict
from mindblip2.convert.readers.mindspore_ckpt import ConvertedStateDict
from mindblip2.progress import progress

NEARLY_0 = 0.1
LAVIS_END = OPTConfig().eos_token_id
TEMP = (
    "temp is in no file of transformers, whose pipeline uses no temperature (1): "
    f"{Blip2Config().temperature}, LAVIS's start value, "
    "is put in, so probabilities of zero-shot classification differ from transformers' while their order is "
    "the same; temperature=1 "
    "in the call of the pipeline gives transformers'"
)


class Conversion(NamedTuple):
    """What is or would be written: the rows of the coverage table and what else there is to say."""

    rows: list
    remarks: list

    def table(self):
        return plan.coverage_table(self.rows, self.remarks)


def to_mindspore(
    torch_path,
    mindspore_path=None,
    vit_path=None,
    config=None,
    image_size=None,
    dtype=None,
    llm_path=None,
    llm_mindspore_path=None,
):
    """Convert; without ``mindspore_path`` only plan.  Returns a :class:`Conversion`.

    ``config``: preset name, YAML file or Blip2Config; None reads the dimensions off the files.  ``dtype``:
    None keeps every tensor's type.  ``llm_mindspore_path``: a .ckpt of its own for the language model of a
    stage-2 file.  Raises :class:`CheckpointError` before anything is written."""
    main = read_state_dict(torch_path)
    kind = detect(main, torch_path)
    said = HfFolderConfig({})
    if kind.mark in (HF.mark, HF_BRIDGE.mark, BERT.mark):
        said = read_hf_config(torch_path, kind.llm, kind is BERT)
        if said.path is None and kind is not BERT:
            said = HfFolderConfig({"": {"ln_vision_eps": HF_LAYER_NORM_EPS}})
    vit, llm = _vit(vit_path, main, kind, torch_path), _llm(llm_path, main, kind, torch_path)
    config = _config(config, image_size)
    if image_size and is_language_model(kind):
        raise CheckpointError(f"--image_size is for files with a ViT; {torch_path} is a language model alone")
    if is_language_model(kind):
        done = _plan_llm(main, kind, torch_path, config)
    elif is_bridge(kind):
        done = _plan_stage_2(main, kind, vit, llm, (torch_path, llm_path), config, image_size, said)
    else:
        remarks = _compared(config, said) if config else []
        if config is None:
            config = infer_model_config(main, vit, kind, image_size, None, said)
            remarks = _numbers(config, said)
        rows = plan.make_plan(main, kind, vit, stage_1_shapes(config), config)
        if any(row.action == "made" and row.ours == "temp" for row in rows) and kind is HF:
            remarks.append(TEMP)
        done = Conversion(rows, remarks)
    done.remarks[:0] = [
        remark for state in (main, vit, llm and llm[0]) for remark in getattr(state, "remarks", ())
    ]
    if llm_mindspore_path and (
        is_language_model(kind) or not any(row.ours.startswith("llm.") for row in done.rows)
    ):
        raise CheckpointError(
            "--llm_mindspore_path is for the language model of a stage-2 file, and there is none "
            "here: give --llm_path, or leave it out"
        )
    if mindspore_path:
        _write(done.rows, mindspore_path, llm_mindspore_path, dtype)
    return done


def _write(rows, path, llm_path, dtype):
    """One file, or with ``llm_path`` two."""
    if llm_path:
        own = [row for row in rows if row.ours.startswith("llm.")]
        write_checkpoint(llm_path, _converted(own, dtype), _bytes(own, dtype))
        rows = [row for row in rows if not row.ours.startswith("llm.")]
    write_checkpoint(path, _converted(rows, dtype), _bytes(rows, dtype))


def _bytes(rows, dtype):
    """The size of what is written, for the message of a full disk; without ``dtype`` all tensors count as the
    first one that is read."""
    rows = [row for row in rows if row.ours]
    if dtype is None:
        first = next((row.state[row.theirs] for row in rows if row.state is not None), None)
        matrix = vector = 4 if first is None else first.element_size()
    else:
        matrix, vector = plan.DTYPES[dtype].itemsize, 4
    return sum(math.prod(row.shape) * (matrix if len(row.shape) == 2 else vector) for row in rows)


def _plan_llm(state, kind, path, config):
    kind, text_config, remarks = _text_config(state, kind, path, config)
    rows = plan.make_plan(state, kind, None, llm_shapes(text_config), Blip2Config(text_config=text_config))
    return Conversion(rows, remarks)


def _plan_stage_2(main, kind, vit, llm, paths, config, image_size, said):
    """``llm``: (file, its kind) or None; ``paths``: of the bridge and of the language model; ``said``: by the
    config.json of the bridge."""
    shapes, remarks, within = ShapeReader(main, kind), [], "llm.word" in kind.modules
    if not shapes.has("llm_proj.weight"):
        raise CheckpointError(
            f"{paths[0]} looks like {kind.title}, but holds no {source_name(kind, 'llm_proj.weight')}, the "
            "projection into the language model: take a whole file of stage 2"
        )
    width = shapes("llm_proj.weight")[0]
    if llm:
        kind_of_llm, text_config, remarks = _text_config(*llm, paths[1], config, kind)
        llm = llm[0], kind_of_llm
    elif within:
        kind, text_config, remarks = _text_config(main, kind, paths[0], config)
    elif config and config.text_config:
        text_config = config.text_config
    else:
        text_config = text_config_of_width(width, kind.llm)
    check_bridge(kind, width, text_config, paths[0], paths[1] or "the language model")
    if not (llm or within):
        remarks.append(
            f"the language model, {width} wide, is not in these files: join it with --llm_path, or convert "
            "it to a "
            ".ckpt of its own and name that as model.model_config.text_config.checkpoint_name_or_path"
        )
    if config is None:
        config = infer_model_config(main, vit, kind, image_size, text_config, said)
        remarks += _numbers(config, said)
    else:
        remarks += _compared(config, said)
        config = config.replace(text_config=text_config.to_dict())
    shapes = stage_2_shapes(config, bool(llm or within))
    return Conversion(plan.make_plan(main, kind, vit, shapes, config, llm), remarks)


def _numbers(config, said):
    """Remarks: the numbers of ViT, Q-Former and the model itself that a user's YAML must have, as they were
    read."""
    eps = f"ln_vision_eps: {yaml_value(config.ln_vision_eps)}" + (
        " (transformers'; LAVIS has 1e-05)"
        if "" in said.sections
        else " (LAVIS's; transformers has 1e-06 on the same weights)"
    )
    if not said.path:
        size = config.vision_config.image_size
        guessed = [
            "no config.json is beside the file: heads are guessed from the widths, epsilons are the "
            "published model's"
        ] * ("" in said.sections)
        return [*guessed, *[f"vision_config: {{image_size: {size}}}"] * (size != ViTConfig().image_size), eps]
    lines = [
        f"{name}: {config_as_yaml(getattr(config, name))}"
        for name in ("vision_config", "qformer_config")
        if name in said.sections
    ]
    return [f"read from {said.path}:", *lines, eps]


def _compared(config, said):
    """Remarks on ``--config`` against what the JSON file beside the weights has ``said``.  Raises
    :class:`CheckpointError` where the two contradict each other in a number that no shape tells."""
    remarks = []
    for name, fields in said.sections.items():
        section, prefix = (getattr(config, name), f"{name}.") if name else (config, "")
        for key, value in fields.items():
            got = getattr(section, key)
            if got == value or key == "image_size":  # position embeddings are interpolated
                continue
            # a choice: when to stop; to compute as LAVIS or as transformers
            if key in (*IDS, "image_token_id", "ln_vision_eps"):
                remarks.append(
                    f"{prefix}{key} is {got} in --config, {value} in {said.path or 'transformers'}: that of "
                    "--config holds"
                )
            else:
                raise CheckpointError(
                    f"{prefix}{key} is {got} in --config, expected {value} as in {said.path}: correct "
                    "--config, or "
                    "leave it out to read the numbers off the files"
                )
    return remarks


def _text_config(state, kind, path, config, bridge=None):
    """(kind, section, remarks) of a language model: the section of ``config``, or what its shapes and the
    files beside it say. ``bridge``: the kind of the file that leads into it, where that is another."""
    ours = isinstance(state, ConvertedStateDict)
    # LAVIS's and our own files: in no folder
    alone = is_bridge(kind) and kind.mark != HF_BRIDGE.mark or ours
    said = HfFolderConfig({}) if alone else read_hf_config(path, kind.llm)
    fields, remarks = said.text(), list(said.remarks)
    if said.tied and kind.llm is LlamaConfig:
        kind = with_tied_head(kind)
    if _is_delta(state, kind):
        remarks.append(
            "the final norm is nearly 0: these look like delta weights, as of Vicuna v1.1, to which Llama's "
            "must be added "
            "before; take the whole model"
        )
    end = fields.get("eos_token_id")
    if (
        kind.llm is OPTConfig
        and not is_bridge(kind)
        and end is not None
        and LAVIS_END not in np.atleast_1d(end)
    ):
        known = f"captions of LAVIS's bridges end with {LAVIS_END} (a line end)"
        if bridge is not None:
            fields["eos_token_id"] = LAVIS_END
            remarks += (
                [f"{known}, so eos_token_id is that, not {end} as in {said.path}"] if config is None else []
            )
        elif config is None:
            remarks.append(
                f"eos_token_id is {end}, as in the file; {known}, set text_config.eos_token_id to that with "
                "such a bridge"
            )
    if config is None:
        try:
            text_config, more = infer_text_config(state, kind, fields)
        except ConfigError as error:
            raise CheckpointError(f"{said.path or path}: {error}") from None
        if kind.llm is LlamaConfig and said.path is None and not ours:
            remarks += _assumed(state, kind, path)
        return kind, text_config, [*remarks, *more]
    if not isinstance(config.text_config, kind.llm):
        raise CheckpointError(
            f"{path} is {kind.title}, but text_config of --config is {type(config.text_config).__name__}: "
            "give "
            f"the configuration of this model, text_config.type {kind.llm.__name__}"
        )
    return (
        kind,
        config.text_config,
        [*remarks, *_compared(config, HfFolderConfig({"text_config": fields}, path=said.path))],
    )


def _assumed(state, kind, path):
    """The remark on numbers of a Llama that are in no shape.  Models with grouped heads differ too much for
    one: Llama-2-70B, Llama-3 and Mistral, which is not built here, have the same names and shapes of the same
    kind."""
    if has_grouped_query_attention(state, kind):
        raise CheckpointError(
            f"{path} has fewer heads of keys than of queries, and no config.json or params.json is beside "
            "it: whether "
            "it is a Llama-2-70B, a Llama-3 or a Mistral (not built here), and its rope_theta and "
            "rms_norm_eps, no "
            "shape tells.  Put the config.json of the model beside the file, or give --config with its "
            "text_config"
        )
    return [
        f"rms_norm_eps {LlamaConfig().rms_norm_eps}, rope_theta {LlamaConfig().rope_theta:g} and the special "
        "ids are Llama-1's and "
        "Vicuna v1.1's: they are in no shape, and no config.json is beside the file"
    ]


def _is_delta(state, kind):
    """The final norm of a language model is about 1 or above; of the difference of two it is about 0."""
    name = source_name(kind, "llm.norm.gamma")
    return name in state and float(state[name].float().abs().mean()) < NEARLY_0


def _vit(path, main, kind, torch_path):
    """The file of the ViT, or None where it is in ``main`` or not needed."""
    if kind is EVA:
        raise CheckpointError(
            f"{torch_path} is the ViT alone: give it as --vit_path, and as --torch_path blip2_pretrained.pth "
            "or the file of bert-base-uncased"
        )
    vit = read_state_dict(path) if path else None
    if vit is not None and is_language_model(kind):
        raise CheckpointError(
            f"{torch_path} is a language model alone ({kind.title}): leave out --vit_path, or give it as "
            "--llm_path and a stage-2 file as --torch_path"
        )
    if vit is not None and detect(vit, path) is not EVA:
        raise CheckpointError(f"{path} is no EVA ViT: --vit_path takes eva_vit_g.pth")
    if kind is BERT and vit is None:
        raise CheckpointError(
            f"{torch_path} is BERT: the start of stage 1 needs the ViT too, add --vit_path eva_vit_g.pth"
        )
    if vit is not None and has_vit(main):
        raise CheckpointError(
            f"{torch_path} holds a ViT of its own, which belongs to its other weights: leave out --vit_path"
        )
    return vit


def _llm(path, main, kind, torch_path):
    """(file, kind) of the language model, or None."""
    if not path:
        return None
    if not is_bridge(kind):
        raise CheckpointError(
            f"{torch_path} is no file of stage 2 ({kind.title}): --llm_path goes with one, as "
            "blip2_pretrained_vicuna7b.pth; a language model alone is a --torch_path"
        )
    if "llm.word" in kind.modules:
        raise CheckpointError(f"{torch_path} holds a language model of its own: leave out --llm_path")
    llm = read_state_dict(path)
    found = detect(llm, path)
    if not is_language_model(found):
        raise CheckpointError(
            f"{path} is no language model ({found.title}): --llm_path takes the folder or file of a Llama, "
            "Vicuna, Baichuan or OPT"
        )
    return llm, found


def _converted(rows, dtype):
    wanted = plan.in_file_order(rows)
    for row in progress(wanted, desc="to MindSpore", unit="tensor"):
        kind, array = plan.to_numpy(plan.cast(plan.load_tensor(row), dtype, row.theirs or row.ours))
        yield row.ours, kind, array


def _config(config, image_size):
    if config is None:
        return None
    config = config if isinstance(config, Blip2Config) else load_config(config).model.model_config
    return config.replace(vision_config={"image_size": image_size}) if image_size else config
