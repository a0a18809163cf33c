"""Stage 2 at full size from files in the published formats: converted, loaded strictly, and run on a picture
by run_blip2.py, Trainer and pipeline.

    python benchmarks/stage2_full_size.py --folder DIR [--only opt_lavis,opt_hf,vicuna] [--layers N] [--small]
        [--markdown out.md]

| source | files (benchmarks/stage2_files.py) | disk | memory |
|---|---|---|---|
| opt_lavis | blip2_pretrained_opt2.7b.pth, eva_vit_g.pth, OPT-2.7B in float16 | 16 GB | 17 GB |
| opt_hf | Salesforce/blip2-opt-2.7b in float32, converted with --dtype float16 | 23 GB | 17 GB |
| vicuna | blip2_pretrained_vicuna7b.pth, eva_vit_g.pth, 12 layers of Vicuna-7B in float16 | 16 GB | 17 GB |

The weights are random (no download), and so are the captions; the tokenizers are of nearly nothing but
placeholders.  ``--layers`` is the depth of the language model: by default 32 of OPT and 12 of Vicuna, whose
32 would take 32 GB of memory in float32.  One source after the other; its files are removed afterwards.
Every step is a process of its own, whose peak memory is the kernel's (ru_maxrss), pages of mapped files
included; the conversion reads from the disk, and its time includes a sync of the output.  run_blip2.py and
Trainer run in graph mode, as the preset says, and pipeline in PyNative mode, MindSpore's default; pipeline
generates twice, and all must write the same text.  About 15 minutes a source.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
# also where the tests load this file by its path
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import stage2_files  # noqa: E402
from bench import hardware  # noqa: E402
from convert_full_size import CONVERT, elsewhere, to_disk  # noqa: E402

from mindblip2.config import load_config  # noqa: E402

OPT, VICUNA = "stage2_vit_g_opt_2_7b", "stage2_vit_g_vicuna_7b"
SOURCES = {"opt_lavis": (OPT, 32), "opt_hf": (OPT, 32), "vicuna": (VICUNA, 12)}  # preset, layers
JOINED = ["--torch_path", "bridge.pth", "--vit_path", "eva_vit_g.pth", "--llm_path", "llm"]
FLAGS = {"opt_lavis": JOINED, "opt_hf": ["--torch_path", "blip2", "--dtype", "float16"], "vicuna": JOINED}
PROMPT, BEAMS, NEW = "a photo of", 5, 30
LOAD = """
import sys
from mindblip2 import Blip2ImageToTextGeneration
model = Blip2ImageToTextGeneration.from_pretrained(sys.argv[1])
print(sum(p.size for p in model.get_parameters()))
"""
TRAINER = """
import json, sys
from mindblip2 import Trainer
config, picture, out, how = sys.argv[1:]
Trainer(args=config).predict(picture, save_file=out, **json.loads(how))
"""
PIPELINE = """
import json, sys, time
from mindblip2 import pipeline
config, picture, out, how = sys.argv[1:]
times = [time.perf_counter()]
generator = pipeline("image_to_text_generation", model=config)
times.append(time.perf_counter())
for _ in range(2):
    texts = generator(picture, **json.loads(how))
    times.append(time.perf_counter())
with open(out, "w", encoding="utf-8") as file:
    file.write(f"{texts}\\n")
print(json.dumps([later - before for before, later in zip(times, times[1:])]))
"""


class Place:
    """The folder of one source: published files, the cache that mindblip2 looks into, the configuration, and
    the results of run_blip2.py, Trainer and pipeline."""

    def __init__(self, folder, source, options):
        self.folder, self.source = folder / source, source
        preset, layers = SOURCES[source]
        shutil.rmtree(self.folder, ignore_errors=True)
        self.cache = self.folder / "cache"
        self.cache.mkdir(parents=True)
        self.ckpt, self.yaml = self.cache / f"blip2_{preset}.ckpt", self.folder / f"itt_blip2_{preset}.yaml"
        self.yaml.write_text(
            yaml.safe_dump(changed(ROOT / "configs" / self.yaml.name, options, layers)), encoding="utf-8"
        )
        self.config = load_config(self.yaml).model.model_config
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MINDBLIP2_CACHE": str(self.cache),
            "GLOG_v": "3",
        }

    def make(self):
        """Bytes of the published files; the tokenizers go where the preset looks for them."""
        elsewhere(stage2_files.make, self.source, self.folder, self.config)
        if SOURCES[self.source][0] == OPT:
            stage2_files.opt_tokenizer(self.cache / "opt_2_7b")
        else:
            stage2_files.vicuna_tokenizer(self.cache / "vicuna_7b" / "tokenizer.model")
        files = [file for file in self.folder.rglob("*") if file.suffix in (".pth", ".bin", ".safetensors")]
        for file in files:
            to_disk(file)
        return sum(file.stat().st_size for file in files)

    def convert(self):
        start = time.perf_counter()
        _, peak, _ = self.run([*CONVERT, *FLAGS[self.source], "--mindspore_path", str(self.ckpt)])
        to_disk(self.ckpt)
        return time.perf_counter() - start, peak

    def run(self, command):
        """(seconds, peak bytes, last line of output) of a command; RuntimeError with its last lines where it
        fails."""
        start, log = time.perf_counter(), self.folder / "log.txt"
        with open(log, "w", encoding="utf-8") as file:
            child = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=file, stderr=subprocess.STDOUT
            )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if child.returncode:
            raise RuntimeError(
                "\n".join([f"{' '.join(command)} ended with {child.returncode}:", *lines[-20:]])
            )
        return time.perf_counter() - start, usage.ru_maxrss * 1024, lines[-1] if lines else ""


def picture():
    """The path of scikit-learn's china.jpg."""
    from sklearn import datasets

    return Path(datasets.__file__).parent / "images" / "china.jpg"


def changed(preset, options, layers):
    """The preset as a dict, with the depth that is asked for."""
    found = yaml.safe_load(preset.read_text(encoding="utf-8"))
    model = found["model"]["model_config"]
    if options.small:
        for section, sizes in stage2_files.SMALL.items():
            model[section] = {**model.get(section, {}), **sizes}
        found["processor"]["image_processor"] = {
            "image_size": stage2_files.SMALL["vision_config"]["image_size"]
        }
    model["text_config"]["num_layers"] = options.layers or (2 if options.small else layers)
    return found


def measured(place, image):
    """The figures of one source."""
    found = {"source": place.source, "layers": place.config.text_config.num_layers, "files": place.make()}
    rows = {"convert": place.convert()}
    *rows["load"], found["parameters"] = place.run([sys.executable, "-c", LOAD, str(place.yaml)])
    how = json.dumps({"hypothesis_template": PROMPT, "num_beams": BEAMS, "max_new_tokens": NEW})
    out = {
        interface: place.folder / interface / "image_to_text_generation_result.txt"
        for interface in ("run_blip2.py", "Trainer", "pipeline")
    }
    for path in out.values():
        path.parent.mkdir()
    run = {
        "config": place.yaml,
        "run_mode": "predict",
        "load_checkpoint": place.ckpt,
        "predict_data": image,
        "hypothesis_template": PROMPT,
        "generation.num_beams": BEAMS,
        "generation.max_new_tokens": NEW,
        "output_dir": out["run_blip2.py"].parent,
    }
    flags = [str(part) for key, value in run.items() for part in (f"--{key}", value)]
    rows["run_blip2.py"] = place.run([sys.executable, str(ROOT / "run_blip2.py"), *flags])[:2]
    for interface, code in (("Trainer", TRAINER), ("pipeline", PIPELINE)):
        *rows[interface], last = place.run(
            [sys.executable, "-c", code, str(place.yaml), str(image), str(out[interface]), how]
        )
    texts = {path.read_text(encoding="utf-8") for path in out.values()}
    return {
        **found,
        "rows": rows,
        "times": json.loads(last),
        "ckpt": place.ckpt.stat().st_size,
        "same": len(texts) == 1,
        "text": texts.pop().strip(),
    }


def report(found):
    """The figures of one source as Markdown."""
    load, first, second = found["times"]
    lines = [
        f"## {found['source']}",
        "",
        f"{int(found['parameters']) / 1e9:.2f} billion parameters, "
        f"{found['layers']} layers of the language model.  "
        f"Published files {found['files'] / 1e9:.2f} GB, .ckpt {found['ckpt'] / 1e9:.2f} GB.",
        "",
        "| step | seconds | peak GB |",
        "|---|---|---|",
    ]
    lines += [
        f"| {step} | {seconds:.1f} | {peak / 1e9:.2f} |" for step, (seconds, peak) in found["rows"].items()
    ]
    return "\n".join(
        lines
        + [
            "",
            f"In pipeline: loading {load:.1f} s, the first caption {first:.1f} s, "
            f"the second {second:.1f} s.  run_blip2.py, Trainer and pipeline wrote the same: "
            f"{'yes' if found['same'] else 'NO'} ({found['text'][:80]} …).",
        ]
    )


def space(source, text):
    """Bytes on the disk, about: published files and .ckpt."""
    width, opt = text.hidden_size, source != "vicuna"
    layer = width * (4 * width + (2 if opt else 3) * text.feed_forward_size)
    language = text.num_layers * layer + text.vocab_size * width * (1 if opt else 2)
    seen, bridge = 1.02e9, 0.105e9  # the ViT with its unused block, the Q-Former
    return (
        6 * (seen + bridge + language) if source == "opt_hf" else 2 * (2 * seen + 4 * bridge + 2 * language)
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="where the files are made, in a folder for each source"
    )
    parser.add_argument("--only", default=",".join(SOURCES), help="sources, separated by commas")
    parser.add_argument("--layers", type=int, help="of the language model")
    parser.add_argument(
        "--small", action="store_true", help="small models: tries the script, measures nothing"
    )
    parser.add_argument("--markdown", help="write the report here too")
    options = parser.parse_args()
    command = " ".join(sys.argv)
    text = f"# Stage 2 from published files, {date.today()}\n\n{hardware()}\n\nCommand: `python {command}`\n"
    for source in options.only.split(","):
        place = Place(options.folder.resolve(), source, options)
        needed, free = space(source, place.config.text_config), shutil.disk_usage(place.folder).free
        print(
            f"{source}: needs {needed / 1e9:.0f} GB in {place.folder}, {free / 1e9:.0f} GB are free",
            flush=True,
        )
        if needed > free and not options.small:
            sys.exit("not enough space: give another --folder, or fewer --layers")
        try:
            text += f"\n{report(measured(place, picture()))}\n"
        finally:
            shutil.rmtree(place.folder)
    text += f"\nA beam search of {BEAMS} for {NEW} new tokens behind {PROMPT!r}, batch 1.  Random weights.\n"
    print(text)
    if options.markdown:
        Path(options.markdown).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
