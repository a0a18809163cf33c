"""The tiny stage 2 of LAVIS's runs: our model through the real converter, and what was computed."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from mindblip2.config import Blip2Config, LlamaConfig, OPTConfig
from mindblip2.convert.convert_weight import to_mindspore
from mindblip2.models.blip2_llm import Blip2ImageToTextGeneration

TINY = Path(__file__).resolve().parents[1] / "reference" / "tiny"
SIZES = {
    "vision_config": {
        "image_size": 112,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 279,
    },
    "qformer_config": {
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "encoder_width": 64,
        "query_length": 8,
    },
}
TEXT = {
    "opt": OPTConfig(
        vocab_size=320,
        hidden_size=64,
        num_layers=3,
        num_heads=4,
        intermediate_size=160,
        max_position_embeddings=128,
        eos_token_id=202,
    ),
    "llama": LlamaConfig(vocab_size=320, hidden_size=64, num_layers=3, num_heads=4, intermediate_size=172),
}


def config(case, **changes):
    return Blip2Config(**SIZES, text_config=TEXT[case], text_bos=True).replace(**changes)


def checkpoint(case, folder):
    """A .ckpt of LAVIS's Blip2OPT, or of the same queries behind a Llama."""
    whole = torch.load(TINY / "blip2opt_tiny.pth", weights_only=True)["model"]
    if case == "llama":
        whole = {name: value for name, value in whole.items() if not name.startswith("opt_")}
        whole |= torch.load(TINY / "llama_tiny.pth", weights_only=True)["model"]
    torch.save({"model": whole}, folder / f"{case}.pth")
    to_mindspore(folder / f"{case}.pth", folder / f"{case}.ckpt", config=config(case))
    return folder / f"{case}.ckpt"


def model(case, folder, cell=Blip2ImageToTextGeneration):
    return cell(config(case)).load_checkpoint(checkpoint(case, folder)).set_train(False)


def reference(case):
    """Arrays of the run as attributes' items: ``reference("opt")["prompt"].labels``; ``image`` besides."""
    with np.load(TINY / f"stage2_{case}.npz") as run, np.load(TINY / "inputs.npz") as inputs:
        found = {"image": inputs["image"]}
        for name in run.files:
            prefix, dot, rest = name.partition(".")
            if dot:
                vars(found.setdefault(prefix, SimpleNamespace()))[rest.replace(".", "_")] = run[name]
            else:
                found[name] = run[name]
    return found
