"""The table of deliberate defects for docs/parity_mutations.md, generated from
mindblip2/parity/defects/mutations.py and mindblip2/parity/defects/language_model.py."""

from mindblip2.file_io import write_json
from mindblip2.parity.compare import known
from mindblip2.parity.defects.language_model import LANGUAGE_MUTATIONS
from mindblip2.parity.defects.mutations import MUTATIONS

# differences of MindFormers 1.0 from LAVIS by their number in our list -> the defects that repeat them
FACTS = {
    "D-02 tanh GELU in the ViT": ("tanh GELU",),
    "D-03 tanh GELU in the Q-Former": ("tanh GELU",),
    "D-04 label smoothing over pads": ("smoothing over pads",),
    "D-05 features and temperature in half precision": ("features in half precision",),
    "D-06 ViT in half precision": ("products in half precision",),
    "D-07 a sample's own pair drawn as its negative": ("negatives may be the sample itself",),
    "D-08 captions of one picture are negatives of each other": ("image ids ignored",),
    "D-09 gradient through gathered features": ("gradient through the ITC gather",),
    "D-10 zero-shot classes from the first query": ("classes from the first query",),
    "D-11 the ViT's two MLP matrices exchanged": ("ViT feed-forward transposed",),
    "D-12 bias [q, v, 0] for [q, 0, v]": ("bias [q, v, 0] for [q, 0, v]",),
    "D-13 mask of 0 and 1 without its large factor": ("mask without its factor",),
    "D-14 LM head not tied": ("LM head not tied",),
    "D-15 pictures resized without antialiasing": ("pictures not antialiased",),
    "D-19 weights lose their decay": ("no weight decay",),
    "D-21 image counted as words; positions": ("padding is counted, Llama", "padding is counted, OPT"),
    "D-25 words at the wrong distance from their labels": ("LM without shift",),
    "D-32 attention scores scaled otherwise": ("attention scores not scaled",),
}
CELLS = {  # every public cell -> defects of it
    "GELU": ("tanh GELU",),
    "Linear": ("products in half precision",),
    "Normalise": ("ViT eps 1e-5",),
    "CpuNormalise": ("ViT eps 1e-5",),
    "LayerNorm": ("ViT eps 1e-5", "ln_vision eps 1e-6", "Q-Former eps 1e-5"),
    "FeedForward": ("tanh GELU", "GELU for ReLU"),
    "Embedding": ("words off by one, llama", "text positions off by one"),
    "PatchEmbed": ("patch kernel with colours last",),
    "ViTAttention": ("bias [q, v, 0] for [q, 0, v]", "heads of q permuted"),
    "ViTBlock": ("ViT feed-forward transposed", "ViT eps 1e-5"),
    "ViT": ("ViT positions off by one",),
    "SelfAttention": ("attention scores not scaled", "heads of q permuted"),
    "CrossAttention": ("a cross-attention lost",),
    "CrossAttentionKV": ("memories exchanged",),
    "QFormerLayer": ("text and query feed-forward exchanged", "Q-Former eps 1e-5"),
    "Encoder": ("pads visible", "caption cache detached"),
    "LMHead": ("LM head not tied",),
    "TextEmbedding": ("text positions off by one", "every new word at position 0"),
    "QFormer": ("queries without their norm", "captions do not see the queries"),
    "Blip2Qformer": (
        "captions start with [CLS]",
        "image and text negatives exchanged",
        "ITM from one query",
        "ln_vision frozen too",
    ),
    "Blip2Classifier": ("classes from the first query", "mean over queries"),
    "Attention": ("query heads of a group apart",),
    "Layer": ("eps 1e-4, llama", "eps 1e-4, opt"),
    "LanguageModel": ("no gradient to the input", "all of the buffer is visible"),
    "RMSNorm": ("a mean subtracted", "eps 1e-4, llama"),
    "SwiGLU": ("gate and up exchanged", "GELU for SiLU"),
    "Llama": ("Llama-3's scaling ignored", "head not normalised"),
    "OPT": ("OPT's positions without offset", "head not tied"),
}
WITHOUT = {  # public cells that no case here compares, and what does
    "Blip2Llm": "compared whole with LAVIS's stage-2 arrays in tests/models; its parts have rows here",
    "Blip2ImageToTextGeneration": "Blip2Llm with generation: compared with LAVIS's captions in tests/models",
    "SharedLayer": (
        "a layer with the weights of another: compared to the last bit with the layers themselves in "
        "tests/models"
    ),
    "Dropout": "does nothing outside training: tests/models",
    "DropPath": "does nothing outside training: tests/models",
}
NO_CASE = {  # why a difference has no row: what keeps it instead
    "D-16": "prompts: tests/data compares texts with LAVIS's",
    "D-17": "order of features over cards: tests/trainer (retrieval)",
    "D-18": "warm-up: tests/trainer (schedule) and tests/parity/test_training.py",
    "D-20": "loss scale: tests/trainer",
    "D-22": "arguments of generation: tests of the pipeline and of generate",
    "D-23": "lengths of generation: tests of generate",
    "D-24": "any batch size: tests of stage 2",
    "D-26": "the frozen ViT stays in eval mode: tests/models",
    "D-27": "groups of cards: tests of comm and of scaling",
    "D-28": "loading is strict: tests/checkpoint/test_pretrained.py",
    "D-29": "memory: benchmarks",
    "D-30": "names of presets: tests/checkpoint/test_pretrained.py",
    "D-31": "CIFAR-100's shards: tests/data",
}


def table() -> str:
    """Markdown: every defect with the cases that must fail and some that must not; then the differences of
    MindFormers."""
    lines = [
        "# What parity would notice",
        "",
        "Generated by `python -m parity mutations --markdown`. Each defect is applied to our side alone "
        "while a tiny network",
        "runs; the cases in the second column must fail, those in the third must pass. `python -m parity "
        "mutations` runs",
        "them all.",
        "",
        f"{len(MUTATIONS) + len(LANGUAGE_MUTATIONS)} defects.",
        "",
        "| defect | must fail | must pass |",
        "|---|---|---|",
    ]
    for name, mutation in (MUTATIONS | {name: one for name, (_, one) in LANGUAGE_MUTATIONS.items()}).items():
        lines.append(
            "| "
            + " | ".join(text.replace("|", "\\|") for text in (name, mutation.caught, mutation.spared))
            + " |"
        )
    lines += ["", "## By cell", "", "| cell | defects |", "|---|---|"]
    lines += [f"| {cell} | {', '.join(defects)} |" for cell, defects in CELLS.items()]
    lines += ["", *(f"- {cell}: {reason}." for cell, reason in WITHOUT.items())]
    lines += [
        "",
        "## Where MindFormers 1.0 differed from LAVIS",
        "",
        "| difference | defect above |",
        "|---|---|",
    ]
    lines += [f"| {name} | {', '.join(defects)} |" for name, defects in FACTS.items()]
    lines += ["", "The others are of files, data or training, which no case of a cell can show:", ""]
    lines += [f"- {name}: {reason}" for name, reason in NO_CASE.items()]
    return "\n".join(lines) + "\n"


def write(path: str, records: list[dict]) -> None:
    """What a run of all defects gave, as JSON."""
    write_json(path, [{key: known(value) for key, value in record.items()} for record in records])
