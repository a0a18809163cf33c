"""Is mindblip2 equal to PyTorch on this machine, with these weights?

    python -m parity --config blip2_stage1_vit_g
    python -m parity --config blip2_stage1_vit_g --torch_path blip2_pretrained.pth --vit_path eva_vit_g.pth --ckpt out.ckpt
    python -m parity --config blip2_stage1_vit_g --blocks 2 --defect "tanh GELU"
    python -m parity --config itt_blip2_stage2_vit_g_llama_7b --only language --llm_path llama-7b-hf
    python -m parity --defects

Without --torch_path the weights are seeded random numbers. --defects runs every deliberate defect on a tiny network and
says which comparison catches it. The exit code is 0 only if every row passes, or every defect is caught.
"""

import argparse
import os
import sys
import time
from contextlib import nullcontext

os.environ.setdefault("GLOG_v", "3")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from convert.files import read  # noqa: E402
from mindblip2.checkpoint import CheckpointError  # noqa: E402
from mindblip2.config import Blip2Config, load_config  # noqa: E402
from mindblip2.sections import ConfigError  # noqa: E402
from parity import report, seeded_weights  # noqa: E402
from parity.chained import batch  # noqa: E402
from parity.llm_cases import MODELS, LanguageSuite  # noqa: E402
from parity.llm_defects import LANGUAGE_MUTATIONS  # noqa: E402
from parity.llm_stream import LanguageStream, Seeded  # noqa: E402
from parity.mutations import MUTATIONS, defective, verdict_of  # noqa: E402
from parity.nets import pynative  # noqa: E402
from parity.stream import Stream, Window  # noqa: E402
from parity.suite import Suite, failing, not_passing  # noqa: E402
from parity.weights import Weights, make_nets  # noqa: E402

MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])  # CLIP's
CLS, FIRST_WORD = 101, 1000  # BERT's ids
CAPTIONS = 8  # per picture
TINY = Blip2Config(vision_config=dict(image_size=56, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
                                      intermediate_size=279),
                   qformer_config=dict(hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96,
                                       encoder_width=64, query_length=8, head_embed_dim=32))


def pictures(count: int, size: int) -> np.ndarray:
    """``count`` pictures (B, 3, S, S), normalised: scikit-learn's two photographs if it is installed, and noise."""
    try:
        from sklearn.datasets import load_sample_images
        photographs = load_sample_images().images[:count]
    except ImportError:
        photographs = []
    found = []
    for photograph in photographs:
        pixels = torch.from_numpy(((photograph / 255 - MEAN) / STD).transpose(2, 0, 1)[None])
        found.append(torch.nn.functional.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)[0])
    noise = [seeded_weights.normal(5, f"picture {i}", (3, size, size)) for i in range(len(found), count)]
    return np.stack([*found, *noise]).astype(np.float32)


def captions(count: int, config: Blip2Config) -> np.ndarray:
    """Random words (N, B, T), [CLS] first, [SEP] last, padded."""
    qformer, rng = config.qformer_config, np.random.default_rng(6)
    words = rng.integers(FIRST_WORD, qformer.vocab_size - 1, (CAPTIONS, count, config.max_txt_len))
    words[..., 0] = CLS
    length = rng.integers(5, config.max_txt_len, (CAPTIONS, count, 1))
    place = np.arange(config.max_txt_len)
    return np.where(place < length, words, np.where(place == length, qformer.sep_token_id, qformer.pad_token_id))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m parity", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    what = found.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="preset or YAML file")
    what.add_argument("--defects", action="store_true", help="the mutation table, in a minute, without any file")
    found.add_argument("--torch_path", help="blip2_pretrained.pth; default: seeded random weights")
    found.add_argument("--vit_path", help="eva_vit_g.pth, where the first file holds no ViT")
    found.add_argument("--ckpt", help="the converted file: our side then computes from it, and the conversion is checked")
    found.add_argument("--llm_path", help="the language model: a file or folder of transformers'; default: seeded random weights")
    found.add_argument("--only", choices=("vision", "language"), help="one half of a stage-2 model; default: both")
    found.add_argument("--blocks", type=int, help="only so many ViT blocks and layers of the language model")
    found.add_argument("--batch", type=int, default=2, help="pictures; the contrastive loss needs two")
    found.add_argument("--seed", type=int, default=seeded_weights.SEED, help="of random weights")
    found.add_argument("--report", help="write this JSON, and a Markdown page beside it")
    found.add_argument("--defect", choices=sorted(MUTATIONS), metavar="NAME",
                       help="run with a deliberate defect, which must fail: " + "; ".join(MUTATIONS))
    return found


def run(options: argparse.Namespace) -> list:
    """All rows."""
    pynative()
    config, found = load_config(options.config).model.model_config, []
    if options.only == "language" and config.text_config is None:
        raise ConfigError(f"{options.config} has no text_config, so there is no language model to compare")
    if options.only != "language":
        weights = Weights(config, options.torch_path, options.vit_path, options.ckpt, options.seed)
        stream = Stream(Window(weights, config), pictures(options.batch, config.vision_config.image_size),
                        captions(options.batch, config), options.blocks)
        with defective(stream.nets.ours, options.defect) if options.defect else nullcontext():
            found = [row for rows in stream for row in rows]
        del stream, weights     # their memory is needed for the other half
    if options.only != "vision" and config.text_config is not None:
        state = read(options.llm_path) if options.llm_path else Seeded(config.text_config, seed=options.seed)
        found += [row for rows in LanguageStream(config.text_config, state, options.blocks) for row in rows]
    return found


def run_defects() -> int:
    """Print the mutation tables of stage 1 and of the language models; returns the exit code."""
    pynative()
    inputs = batch(pictures(4, TINY.vision_config.image_size), captions(4, TINY)[0])
    suites = {"": Suite(make_nets(Weights(TINY), TINY), inputs)} | {name: LanguageSuite(name) for name in MODELS}
    rows = {case: found for suite in suites.values() for case, found in suite.rows().items()}
    bad, looks = failing(rows), not_passing(rows) - failing(rows)
    named = f", to be looked at: {sorted(looks)}" if looks else ""
    print(f"already without a defect: {sorted(bad)}" if bad else f"without a defect {len(rows)} cases, none fails{named}")
    table = {name: ("", mutation) for name, mutation in MUTATIONS.items()} | LANGUAGE_MUTATIONS
    missed = 0
    for name, (suite, mutation) in table.items():
        verdict, weakest = verdict_of(suites[suite], mutation)
        print(f"{verdict}  {name:<40}weakest ratio {weakest:<10.3g}{mutation.caught}", flush=True)
        missed += verdict != "caught"
    return int(bool(bad) or missed > 0)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    options, start = parser().parse_args(arguments), time.monotonic()
    if options.defects:
        return run_defects()
    try:
        rows = run(options)
    except (CheckpointError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.terminal(rows))
    if options.report:
        facts = report.about(command_line(arguments), time.monotonic() - start,
                             weights=options.torch_path or f"seeded random numbers, seed {options.seed}")
        report.write(options.report, rows, facts)
    return 0 if report.all_pass(rows) else 1


def command_line(arguments: list[str] | None) -> str:
    """How the run was started."""
    return "python -m parity " + " ".join(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
