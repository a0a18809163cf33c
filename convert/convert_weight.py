"""Weights of LAVIS, EVA, BERT, transformers and MindFormers to a mindblip2 .ckpt, and back to a LAVIS .pth.

    python convert/convert_weight.py --torch_path blip2_pretrained.pth --vit_path eva_vit_g.pth --mindspore_path out.ckpt
    python convert/convert_weight.py --check --torch_path blip2_pretrained.pth --vit_path eva_vit_g.pth
    python convert/convert_weight.py --to_torch --mindspore_path out.ckpt --torch_path back.pth
"""
import argparse
import os
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the repository is the import root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("GLOG_v", "3")

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from convert import plan  # noqa: E402
from convert.files import read  # noqa: E402
from convert.mindspore_files import from_numpy  # noqa: E402
from convert.names import BERT, EVA, LAVIS, foreign_name  # noqa: E402
from mindblip2.cells.blip2_qformer import Blip2Qformer  # noqa: E402
from mindblip2.checkpoint import Checkpoint, CheckpointError, write_checkpoint  # noqa: E402
from mindblip2.config import Blip2Config, load_config  # noqa: E402
from mindblip2.hub import no_init  # noqa: E402
from mindblip2.sections import ConfigError  # noqa: E402


def to_mindspore(torch_path, mindspore_path=None, vit_path=None, config=None, image_size=None, dtype=None):
    """Convert; without ``mindspore_path`` only plan.  Returns the rows of the coverage table.

    ``config``: preset name, YAML file or Blip2Config; None reads the dimensions off the files.  ``dtype``: None keeps
    every tensor's type.  Raises :class:`CheckpointError` before anything is written."""
    main = read(torch_path)
    kind = plan.detect(main, torch_path)
    if kind is EVA:
        raise CheckpointError(f"{torch_path} is the ViT alone: give it as --vit_path, and as --torch_path blip2_pretrained.pth "
                              "or the file of bert-base-uncased")
    vit = read(vit_path) if vit_path else None
    if vit is not None and plan.detect(vit, vit_path) is not EVA:
        raise CheckpointError(f"{vit_path} is no EVA ViT: --vit_path takes eva_vit_g.pth")
    if kind is BERT and vit is None:
        raise CheckpointError(f"{torch_path} is BERT: the start of stage 1 needs the ViT too, add --vit_path eva_vit_g.pth")
    if vit is not None and any(name.startswith(("visual_encoder.", "vision_model.encoder.")) for name in main):
        raise CheckpointError(f"{torch_path} holds a ViT of its own, which belongs to its other weights: leave out --vit_path")
    config = _config(config, image_size) or plan.read_config(main, vit, kind, image_size)
    rows = plan.make_plan(main, kind, vit, model_shapes(config), config)
    if mindspore_path:
        write_checkpoint(mindspore_path, _converted(rows, dtype))
    return rows


def to_torch(mindspore_path, torch_path, dtype=None):
    """A .ckpt as a LAVIS file ``{"model": state dict}``, tied weights under both names and ``position_ids`` made again.

    Raises :class:`CheckpointError` where the .ckpt is not a whole stage-1 model; nothing is written then."""
    stored = Checkpoint(mindspore_path)
    names = _lavis_names(stored)
    state = {}
    for ours, theirs in tqdm(names.items(), desc="to torch", unit="tensor", disable=None):
        array = stored[ours] if dtype else stored.view(ours)
        value = plan.cast(from_numpy(array, stored.types[ours]), dtype)
        state[theirs] = value.reshape(_lavis_shape(ours, value.shape))
    state["Qformer.cls.predictions.decoder.weight"] = state["Qformer.bert.embeddings.word_embeddings.weight"]
    state["Qformer.cls.predictions.decoder.bias"] = state["Qformer.cls.predictions.bias"]
    positions = state["Qformer.bert.embeddings.position_embeddings.weight"].shape[0]
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(positions)[None]
    _save({"model": state}, Path(torch_path))
    return state


def _lavis_names(stored):
    """Our name → LAVIS's, of a checkpoint that holds all that its own dimensions ask for and nothing else."""
    freq = _freq(stored)
    names = {name: foreign_name(LAVIS, name, freq) for name in stored}
    unknown = [name for name, theirs in names.items() if theirs is None]
    if unknown or "qformer.query_tokens" not in stored:
        raise CheckpointError(f"{stored.path} is no mindblip2 stage-1 checkpoint: "
                              + (f"LAVIS has no name for {unknown[0]}" if unknown else "it has no qformer.query_tokens"))
    shapes = {theirs: torch.empty(_lavis_shape(ours, stored.shapes[ours]), device="meta") for ours, theirs in names.items()}
    expected = model_shapes(plan.read_config(shapes, None, LAVIS))
    wrong = [name for name in expected | stored.shapes if expected.get(name) != stored.shapes.get(name)]
    if wrong:
        raise CheckpointError(f"{stored.path} is no whole stage-1 model: {len(wrong)} parameters are missing or do not fit, "
                              f"first {wrong[0]}: {stored.shapes.get(wrong[0])} in the file, {expected.get(wrong[0])} "
                              "expected")
    return names


def _lavis_shape(name, shape):
    if name != "vit.patch_embed.proj.weight":
        return shape
    side = round((shape[1] / 3) ** 0.5)
    return shape[0], 3, side, side


def _save(content, path):
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.save(content, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def model_shapes(config):
    """Name → shape of every parameter of the stage-1 model, without allocating them."""
    with no_init():
        return {name: tuple(p.shape) for name, p in Blip2Qformer(config).parameters_dict().items()}


def _converted(rows, dtype):
    wanted = [row for row in rows if row.ours]
    for row in tqdm(wanted, desc="to MindSpore", unit="tensor", disable=None):
        kind, array = plan.to_numpy(plan.cast(plan.tensor(row, rows), dtype))
        yield row.ours, kind, array


def _config(config, image_size):
    if config is None:
        return None
    config = config if isinstance(config, Blip2Config) else load_config(config).model.model_config
    return config.replace(vision_config={"image_size": image_size}) if image_size else config


def _freq(stored):
    """Cross-attention in every which layer, from the indices that have one."""
    crossing = sorted({int(n.split(".")[3]) for n in stored if ".cross_attention.query." in n})
    return crossing[1] if len(crossing) > 1 else 2


def main(arguments=None):
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_path", required=True, help="blip2_pretrained.pth, bert's file, a transformers folder, or a "
                                                                "MindFormers .ckpt")
    parser.add_argument("--vit_path", help="eva_vit_g.pth, where the first file holds no ViT")
    parser.add_argument("--mindspore_path", help="the .ckpt to write (or to read, with --to_torch)")
    parser.add_argument("--config", help="preset or YAML; default: the dimensions of the files")
    parser.add_argument("--image_size", type=int, help="interpolate the position embeddings to this picture size")
    parser.add_argument("--dtype", choices=sorted(plan.NARROW), help="type of the matrices; default: as in the files")
    parser.add_argument("--to_torch", action="store_true", help="from --mindspore_path to --torch_path")
    parser.add_argument("--check", action="store_true", help="only print the coverage table")
    options = parser.parse_args(arguments)
    if not options.mindspore_path and (options.to_torch or not options.check):
        parser.error("--mindspore_path is needed (or --check)")
    if options.to_torch and (options.check or options.vit_path or options.config or options.image_size):
        parser.error("--to_torch goes with --mindspore_path, --torch_path and --dtype only")
    try:
        if options.to_torch:
            state = to_torch(options.mindspore_path, options.torch_path, options.dtype)
            print(f"{options.torch_path}: {len(state)} tensors under LAVIS names")
            return 0
        target = None if options.check else options.mindspore_path
        rows = to_mindspore(options.torch_path, target, options.vit_path, options.config, options.image_size, options.dtype)
        print(plan.table(rows))
        if target:
            print(f"written: {target} ({Path(target).stat().st_size / 1e6:,.1f} MB)")
        return 0
    except (CheckpointError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
