"""Weights of LAVIS, EVA, BERT, Llama, Baichuan, OPT, transformers and MindFormers to a mindblip2 .ckpt, and
back to a torch file.

    python convert/convert_weight.py --torch_path blip2_pretrained.pth --vit_path eva_vit_g.pth --mindspore_path out.ckpt
    python convert/convert_weight.py --check --torch_path blip2_pretrained.pth --vit_path eva_vit_g.pth
    python convert/convert_weight.py --to_torch --mindspore_path out.ckpt --torch_path back.pth
    python convert/convert_weight.py --torch_path blip2_pretrained_vicuna7b.pth --vit_path eva_vit_g.pth --llm_path vicuna-7b-v1.1 \
        --mindspore_path itt.ckpt
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")

from mindblip2.checkpoint.ckpt import CheckpointError  # noqa: E402
from mindblip2.config import load_config  # noqa: E402
from mindblip2.config.schema import ConfigError  # noqa: E402
from mindblip2.convert.plan import DTYPES  # noqa: E402
from mindblip2.convert.to_mindspore import to_mindspore  # noqa: E402
from mindblip2.convert.to_torch import NAME_MAPS, to_torch  # noqa: E402
from mindblip2.file_io import FileError  # noqa: E402


def main(arguments=None):
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--torch_path",
        required=True,
        help="blip2_pretrained.pth or another file of LAVIS, bert's file, the "
        "folder of a language model or of transformers' BLIP-2, or a "
        "MindFormers .ckpt",
    )
    parser.add_argument("--vit_path", help="eva_vit_g.pth, where the first file holds no ViT")
    parser.add_argument(
        "--llm_path",
        help="the language model to join with a stage-2 file: its folder, its file, or its .ckpt",
    )
    parser.add_argument("--mindspore_path", help="the .ckpt to write (or to read, with --to_torch)")
    parser.add_argument(
        "--llm_mindspore_path", help="a .ckpt of its own for the language model of a stage-2 file"
    )
    parser.add_argument("--config", help="preset or YAML; default: the dimensions of the files")
    parser.add_argument(
        "--image_size", type=int, help="interpolate the position embeddings to this picture size"
    )
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), help="type of the matrices; default: as in the files"
    )
    parser.add_argument("--to_torch", action="store_true", help="from --mindspore_path to --torch_path")
    parser.add_argument(
        "--names",
        choices=NAME_MAPS,
        help="with --to_torch, where the content leaves a choice: whose names the tensors get",
    )
    parser.add_argument("--check", action="store_true", help="only print the coverage table")
    options = parser.parse_args(arguments)
    if not options.mindspore_path and (options.to_torch or not options.check):
        parser.error("--mindspore_path is needed (or --check)")
    there = (
        options.check
        or options.vit_path
        or options.image_size
        or options.llm_path
        or options.llm_mindspore_path
    )
    if options.to_torch and (there or options.config and options.names != "meta"):
        parser.error(
            "--to_torch goes with --mindspore_path, --torch_path, --names and --dtype only, and with "
            "--config for "
            "--names meta"
        )
    if options.names and not options.to_torch:
        parser.error("--names goes with --to_torch")
    try:
        return _back(options) if options.to_torch else _there(options)
    except (CheckpointError, ConfigError, FileError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _there(options):
    targets = (
        (None, options.llm_mindspore_path)
        if options.check
        else (options.mindspore_path, options.llm_mindspore_path)
    )
    done = to_mindspore(
        options.torch_path,
        targets[0],
        options.vit_path,
        options.config,
        options.image_size,
        options.dtype,
        options.llm_path,
        targets[1],
    )
    print(done.table())
    for target in filter(None, targets if targets[0] else ()):
        print(f"written: {target} ({Path(target).stat().st_size / 1e6:,.1f} MB)")
    return 0


def _back(options):
    config = load_config(options.config).model.model_config.text_config if options.config else None
    state = to_torch(options.mindspore_path, options.torch_path, options.dtype, options.names, config)
    print(f"{options.torch_path}: {len(state)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
