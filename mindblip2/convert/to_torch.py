"""The other direction: a .ckpt of ours as a torch file."""

import torch

from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError, check_values
from mindblip2.config import LlamaConfig, OPTConfig, QFormerConfig
from mindblip2.convert.infer_config import infer_model_config, infer_text_config, text_config_of_width
from mindblip2.convert.name_maps.blip2 import LAVIS, source_name
from mindblip2.convert.name_maps.language_models import (
    BAICHUAN,
    LAVIS_LLM,
    LAVIS_OPT,
    LLAMA,
    META,
    OPT,
    combine_name_maps,
    llama_name_map,
    opt_name_map,
)
from mindblip2.convert.parameter_shapes import llm_shapes, stage_1_shapes, stage_2_shapes
from mindblip2.convert.plan import cast
from mindblip2.convert.readers.mindspore_ckpt import from_numpy
from mindblip2.convert.tensor_transforms import ROTARY, interleave
from mindblip2.file_io import atomic_file
from mindblip2.progress import progress

OPT_ONLY = 2560  # wide: no Llama that has a bridge is
NAME_MAPS = {
    "transformers": LLAMA,
    "baichuan": BAICHUAN,
    "meta": META,
    "opt_proj": LAVIS_OPT,
    "llm_proj": LAVIS_LLM,
}


def to_torch(mindspore_path, torch_path, dtype=None, names=None, config=None):
    """A .ckpt as a torch file: stage 1 and 2 as LAVIS's ``{"model": state dict}``, a language model as the
    bare state dict of transformers.  Tied weights are there under both names, and ``position_ids`` is made
    again.

    ``names``: a key of ``NAMES`` where the content leaves a choice: Baichuan's W_pack or Meta's order for a
    language model, which projection of LAVIS's for a bridge without one.  ``config``: a LlamaConfig with the
    heads, for Meta's order. Raises :class:`CheckpointError` where the .ckpt is not a whole model; nothing is
    written then."""
    stored = Checkpoint(mindspore_path)
    source = _source(stored, names)
    groups = _groups(stored, source)
    text_config = _check_whole(stored, source, groups, {"num_heads": config.num_heads} if config else {})
    state = {}
    for theirs, group in progress(groups.items(), desc="to torch", unit="tensor"):
        values = [
            from_numpy(
                _checked(stored, ours, stored[ours] if dtype else stored.view(ours)), stored.types[ours]
            )
            for ours in group
        ]
        value = torch.cat(values) if values[1:] else values[0]
        if source.interleaved and group[0].endswith(ROTARY):
            value = interleave(value, text_config.hidden_size // text_config.num_heads)
        value = cast(value, dtype, theirs)
        state[theirs] = value.reshape(_foreign_shape(group, stored))
    needed = sum(value.nbytes for value in state.values())
    state |= {name: state[owner] for name, (owner, _) in source.tied.items()}
    if "qformer.query_tokens" in stored:
        positions = stored.shapes.get(
            "qformer.embeddings.position.embedding_table", (QFormerConfig().max_position_embeddings,)
        )
        state["Qformer.bert.embeddings.position_ids"] = torch.arange(positions[0])[None]
    with atomic_file(torch_path, "wb", needed) as file:
        torch.save({"model": state} if "qformer.query_tokens" in stored else state, file)
    return state


def _source(stored, names):
    """Under whose names a checkpoint is written."""
    kind, bridge = (
        OPTConfig if "llm.position.embedding_table" in stored else LlamaConfig,
        "llm_proj.weight" in stored,
    )
    llm = "llm.word.embedding_table" in stored
    allowed = (
        ()
        if llm and bridge
        else ("opt_proj", "llm_proj")
        if bridge
        else ("transformers", "baichuan", "meta")
        if llm
        else ()
    )
    if names and (names not in allowed or kind is OPTConfig and names != "transformers"):
        raise CheckpointError(
            f"{stored.path} can not be written under the names of {names!r}"
            + (
                f": it takes {', '.join(allowed)}"
                if allowed and kind is LlamaConfig
                else ": leave out --names"
            )
        )
    if bridge and llm:
        return (
            combine_name_maps(LAVIS_OPT, opt_name_map("opt_model."))
            if kind is OPTConfig
            else combine_name_maps(LAVIS_LLM, llama_name_map("llm_model."))
        )
    if bridge and not names and stored.shapes["llm_proj.weight"][0] != OPT_ONLY:
        raise CheckpointError(
            f"{stored.path} holds a bridge without its language model, which may be an OPT or a Llama: add "
            "--names opt_proj or --names llm_proj, as LAVIS calls it"
        )
    if bridge:
        return NAME_MAPS[names or "opt_proj"]
    return (OPT if kind is OPTConfig else NAME_MAPS[names or "transformers"]) if llm else LAVIS


def _groups(stored, source):
    """Their name → the parameters of ours that it holds below each other: one, or three in W_pack."""
    freq, groups = _freq(stored), {}
    for name in stored:
        groups.setdefault(source_name(source, name, freq), []).append(name)
    unknown = groups.pop(None, [])
    if unknown or not {"qformer.query_tokens", "llm.word.embedding_table"} & set(stored):
        raise CheckpointError(
            f"{stored.path} is no mindblip2 checkpoint of stage 1, stage 2 or a language model: "
            + (
                f"{source.title} has no name for {unknown[0]}"
                if unknown
                else "it has no qformer.query_tokens"
            )
        )
    order = ("query", "key", "value")
    return {
        theirs: sorted(group, key=lambda name: order.index(name.split(".")[-2])) if group[1:] else group
        for theirs, group in groups.items()
    }


def _check_whole(stored, source, groups, said):
    """The checkpoint must hold all that its own dimensions ask for, and nothing else.  Returns its language
    model's section."""
    shapes = {
        theirs: torch.empty(_foreign_shape(group, stored), device="meta") for theirs, group in groups.items()
    }
    text_config = None
    if "llm.word.embedding_table" in stored:
        text_config, _ = infer_text_config(shapes, source, said)
    elif "llm_proj.weight" in stored:
        text_config = text_config_of_width(stored.shapes["llm_proj.weight"][0], source.llm)
    if "qformer.query_tokens" not in stored:
        expected = llm_shapes(text_config)
    elif text_config is None:
        expected = stage_1_shapes(infer_model_config(shapes, None, source))
    else:
        expected = stage_2_shapes(
            infer_model_config(shapes, None, source, text_config=text_config),
            "llm.word.embedding_table" in stored,
        )
    wrong = [name for name in expected | stored.shapes if expected.get(name) != stored.shapes.get(name)]
    if wrong:
        raise CheckpointError(
            f"{stored.path} is no whole model: {len(wrong)} parameters are missing or do not fit, first "
            f"{wrong[0]}: {stored.shapes.get(wrong[0])} in the file, {expected.get(wrong[0])} expected"
        )
    return text_config


def _foreign_shape(group, stored):
    rows, *rest = stored.shapes[group[0]] or (None,)
    if group == ["vit.patch_embed.proj.weight"]:
        side = round((rest[0] / 3) ** 0.5)
        return rows, 3, side, side
    return (
        stored.shapes[group[0]] if not group[1:] else (sum(stored.shapes[name][0] for name in group), *rest)
    )


def _freq(stored):
    """Cross-attention in every which layer, from the indices that have one."""
    crossing = sorted({int(n.split(".")[3]) for n in stored if ".cross_attention.query." in n})
    return crossing[1] if len(crossing) > 1 else 2


def _checked(stored, name, array):
    check_values(stored.path, name, array, stored.types[name], name == "temp")
    return array
