"""What does not fit between a .ckpt file and a model, in words: what got, what was expected, and the next
step."""

from mindblip2.checkpoint.ckpt import CheckpointError
from mindblip2.distributed.sharding import whole_shape


def check_names(stored, parameters, path):
    """Raises :class:`CheckpointError` unless the names ``stored`` in the file are those of ``parameters``."""
    missing = [name for name in parameters if name not in stored]
    extra = [name for name in stored if name not in parameters]
    if missing or extra:
        raise CheckpointError(
            f"{path} does not fit this model: {len(parameters) - len(missing)} of {len(parameters)} "
            "parameters are in it"
            + _some("missing", missing)
            + _some("unexpected", extra)
            + _advice(stored, parameters, missing)
        )


def check_shapes(files, parameters):
    """Raises :class:`CheckpointError` where the shape of a parameter is not that in its file; ``files``: name
    → Checkpoint."""
    wrong = [name for name, p in parameters.items() if files[name].shapes[name] != whole_shape(p)]
    if not wrong:
        return
    name = wrong[0]
    got, expected = files[name].shapes[name], whole_shape(parameters[name])
    advice = "use the --config that belongs to the file"
    if name == "vit.pos_embed":
        advice = (
            "the file is for another image size: convert it with --image_size, or set "
            "model.model_config.vision_config.image_size"
        )
    elif name.startswith("llm_proj."):
        advice = (
            f"this bridge leads into a language model of width {got[0]}, the configuration's has "
            f"{expected[0]}: take the preset, "
            "or the language model, that it was trained with"
        )
    elif name in ("llm.word.embedding_table", "llm.lm_head.weight") and got[1] == expected[1]:
        advice = (
            f"the language model's vocabulary has {got[0]} words: set "
            "model.model_config.text_config.vocab_size to that, and take "
            "its own tokenizer (LAVIS added tokens to Vicuna's)"
        )
    raise CheckpointError(
        f"{files[name].path}: {len(wrong)} parameters have another shape, first {name}: {got} in the file, "
        f"{expected} "
        f"expected; {advice}"
    )


def _some(what, names):
    shown = ", ".join(names[:4]) + (f", … ({len(names)} in all)" if len(names) > 4 else "")
    return f"\n  {what}: {shown}" if names else ""


def _advice(stored, parameters, missing):
    held = {part for name in stored for part in name.split(".")}
    stage2 = any(name.startswith("llm") for name in parameters)
    if "vit" not in held and missing and all(name.startswith("vit.") for name in missing):
        return "\n  It has no ViT: convert again with --vit_path eva_vit_g.pth"
    if stage2 and "itm_head" in held and "llm_proj" not in held:
        return (
            "\n  It is a stage-1 checkpoint: a training of stage 2 starts from it (run_mode train), but "
            "captions need a checkpoint "
            "of stage 2"
        )
    if not stage2 and (
        held & {"llm_proj", "opt_proj"} or ("query_tokens" in held and "text_ffn" not in held)
    ):
        return (
            "\n  It looks like a stage-2 checkpoint, or one made without the text half: convert "
            "blip2_pretrained.pth "
            "(stage 1)"
        )
    if len(missing) > len(stored):
        return (
            "\n  It is not a mindblip2 checkpoint of this stage: convert one with python "
            "convert/convert_weight.py"
            if stage2
            else "\n  It is not a mindblip2 stage-1 checkpoint: convert one with python convert/convert_weight.py"
        )
    return "\n  Use the --config that belongs to the file"
