"""Are layers of the published widths, split over two processes, those of one process?  Judged as parity judges: by torch's own rounding.

    python benchmarks/mesh_full_width.py [--layers vit,qformer,llama] [--modes pynative,graph] [--small] [--markdown FILE]

One block of ViT-g, one layer of the Q-Former (queries with cross-attention, and text), one layer of Llama-7B, with parity's seeded
weights.  Compared are the output, and the gradients of a random linear function of it by the inputs and by every weight: torch in
float64 is the truth, torch in float32 the noise, and parity/compare.py has the limits.  Ours runs in one process, and as a mesh of
1 x 2 under msrun, where each process cuts its pieces of the weights, and the gradients of the pieces are joined; what both hold whole
must be the same, bit for bit.  MISTAKES of model parallelism are judged in the same way and must fail.  The exit code is 0 only if
every tensor passes and every mistake is caught.  ``--small`` tries the script with small layers.

B batch · T positions · P image tokens · D width
"""
import argparse
import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]    # also where the tests load this file by its path

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from bench import hardware  # noqa: E402
from mindspore import nn, ops  # noqa: E402

from convert.shapes import llm_shapes, model_shapes  # noqa: E402
from mindblip2 import Blip2Config, comm, device  # noqa: E402
from mindblip2.cells.blip2_qformer import Blip2Qformer  # noqa: E402
from mindblip2.cells.layers import Linear, linear  # noqa: E402
from mindblip2.cells.qformer import match_bias, pad_mask  # noqa: E402
from mindblip2.config import ContextConfig  # noqa: E402
from mindblip2.hub import no_init, own_piece, whole  # noqa: E402
from mindblip2.split import Split, is_split, whole_shape  # noqa: E402
from parity import ours_llm, seeded_weights  # noqa: E402
from parity.compare import all_pass, compare  # noqa: E402
from parity.nets import Case, cotangent, flattened, named, tensor  # noqa: E402
from parity.our_weights import seeded  # noqa: E402
from parity.patches import replaced  # noqa: E402
from tests.mesh.launch import environment, launch  # noqa: E402

MODES = {"pynative": ms.PYNATIVE_MODE, "graph": ms.GRAPH_MODE}
CARDS = (1, 2)
SECONDS = 1800      # that a mesh may take
LAYERS = {          # name → what it is, and where its weights are
    "vit": ("a block of ViT-g", ("vit.blocks.0.",)),
    "qformer": ("a layer of the Q-Former", ("qformer.encoder.layers.0.", "qformer.memory.")),
    "llama": ("a layer of Llama-7B", ("llm.layers.0.",))}
SMALL = {"vision_config": {"image_size": 56, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96},
         "qformer_config": {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "encoder_width": 64},
         "text_config": {"hidden_size": 64, "num_heads": 4, "intermediate_size": 96}}


# ------------------------------------------------------------------------------------------------ what is computed
def configured(small):
    """The published widths, or small ones, with one layer of each kind."""
    def section(name, **changes):
        return {name: {**(SMALL[name] if small else {}), **changes}}
    return Blip2Config(**section("vision_config", num_hidden_layers=1), **section("qformer_config", num_hidden_layers=1),
                       **section("text_config", num_layers=1), freeze_vision=False)


def inputs_of(layer, config):
    """{name: array}, in the order of the layer's arguments."""
    def normal(name, *shape):
        return seeded_weights.normal(7, f"{layer} {name}", shape)
    vision, qformer, text = config.vision_config, config.qformer_config, config.text_config
    image_BPD = (2, vision.num_tokens, vision.hidden_size)
    if layer == "vit":
        return {"x": normal("x", *image_BPD)}
    if layer == "qformer":
        ids = np.random.default_rng(7).integers(1000, 20000, (2, 8))
        ids[1, 5:] = qformer.pad_token_id
        return {"x": normal("x", 2, qformer.query_length + 8, qformer.hidden_size), "image": normal("image", *image_BPD), "ids": ids}
    mask = np.ones((3, 12), np.int64)
    mask[1, 8:], mask[2, :4] = 0, 0
    return {"x": normal("x", *mask.shape, text.hidden_size), "mask": mask}


def vit(model, x):
    return model.vit.blocks[0](x)


def qformer(model, x, image, ids):
    """Queries and the text behind them: match, the verb in which all weights of a layer take part."""
    part = model.qformer
    queries = part.query_tokens.shape[1]
    bias = match_bias(pad_mask(ids, part.pad_id), queries)
    query, text, _ = part.encoder.layers[0](x[:, :queries], x[:, queries:], part.memory(image)[0], None, bias)
    return ops.cat((query, text), 1)


def llama(model, x, mask):
    return ours_llm.kept(model.llm.layers[0](x, *model.llm.begin(x, mask)[1:])[0], mask)


def torch_sides(case, config):
    """What torch gives in float32 and in float64, one after the other: {name: array} each."""
    import torch

    from parity.cases import their_layer
    from parity.theirs import run_theirs
    from parity.twin_llm import language_twin
    from parity.weights import Weights, make_twin
    theirs = {"vit": lambda twin, x: twin.visual_encoder.blocks[0](x),
              "qformer": lambda twin, x, image, ids: their_layer(twin, x, 0, "match", ids, image),
              "llama": lambda twin, x, mask: ours_llm.kept(twin.layer(0, x, mask), mask)}
    case, found = dataclasses.replace(case, theirs=theirs[case.name]), []
    for dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            twin = (language_twin(ours_llm.one_layer(config.text_config), dtype) if case.name == "llama"
                    else make_twin(Weights(config), config, dtype))
        found.append(run_theirs(case, twin))
    return found


def case_of(layer, config):
    """The layer's comparison, but for the functions."""
    shapes = llm_shapes(ours_llm.one_layer(config.text_config)) if layer == "llama" else model_shapes(config)
    weights = tuple(name for name in shapes if name.startswith(LAYERS[layer][1]))
    return Case(layer, None, None, inputs_of(layer, config), weights, backward=True)


# ------------------------------------------------------------------------------------------------ our processes
class Weighted(nn.Cell):
    """(the random linear function of a layer's output, the output)."""

    def __init__(self, model, layer, weights_BTD):
        super().__init__(auto_prefix=False)
        self.model, self.layer, self.weights_BTD = model, layer, weights_BTD

    def construct(self, *inputs):
        y_BTD = self.layer(self.model, *inputs)
        return (y_BTD * self.weights_BTD).sum(), y_BTD


def made(layer, config):
    """Our model with this card's pieces of the layer's weights, and these."""
    with no_init():
        model = (ours_llm.new_cell(ours_llm.one_layer(config.text_config)) if layer == "llama" else Blip2Qformer(config)).set_train(False)
    weights, given = [p for p in model.get_parameters() if p.name.startswith(LAYERS[layer][1])], seeded(config, seeded_weights.SEED)
    for p in weights:
        p.set_data(ms.Tensor(own_piece(p, given(p.name, whole_shape(p)))))
    return model, weights


def computed(case, config):
    """{name: array}, whole, and how far the cards are apart in what each holds whole, as "apart"."""
    model, weights = made(case.name, config)
    inputs = list(case.inputs.values())
    net = Weighted(model, globals()[case.name], tensor(cotangent(case, 0, inputs[0].shape)))
    places = tuple(i for i, name in enumerate(case.inputs) if name in case.differentiated)
    (_, y), gradients = ms.value_and_grad(net, places, weights, has_aux=True)(*map(tensor, inputs))
    gradients = [gradient.asnumpy() for gradient in flattened(gradients)]
    same = [y.asnumpy(), *gradients[:len(places)], *(g for p, g in zip(weights, gradients[len(places):]) if not is_split(p, comm.mesh.model))]
    apart = max(float(np.abs(piece - array).max()) for array in same for piece in comm.pieces(array))
    joined = [whole(p, g) for p, g in zip(weights, gradients[len(places):])]
    found = named([y.asnumpy()], dataclasses.replace(case, weights=tuple(p.name for p in weights)), gradients[:len(places)] + joined)
    return {**found, "apart": np.array(apart)}


def every_card_adds(cell, x, bias=None):
    """``Linear.construct`` with the bias within the sum."""
    bias = cell.bias if bias is None else bias
    y = linear(x, cell.weight, bias)
    return comm.leave(y) if cell.sums else y


def cut_in_one(split, array, cards, rank):
    """``Split.cut`` of a fused product as if it were a plain one."""
    return CUT(dataclasses.replace(split, parts=1), array, cards, rank)


CUT = Split.cut
MISTAKES = {        # name → in which layers it can be seen, and what is replaced by what
    "no sum of the gradients behind split weights": (LAYERS, comm, "enter", lambda x: x),
    "no sum of the products": (LAYERS, comm, "leave", lambda x: x),
    "a bias that every card adds": (("vit", "qformer"), Linear, "construct", every_card_adds),
    "q, k and v cut as one": (("vit",), Split, "cut", cut_in_one)}


def worker(folder, cards, small, runs):
    """Compute ``runs``, "layer:mode" or "layer:mode:mistake", into one .npz each."""
    device.use(ContextConfig(device_target="CPU", mode=1))
    comm.start(1, cards)
    config = configured(small)
    for run in runs:
        layer, mode, *mistake = run.split(":")
        ms.set_context(mode=MODES[mode])
        with replaced(*MISTAKES[mistake[0]][1:]) if mistake else contextlib.nullcontext():
            found = computed(case_of(layer, config), config)
        if comm.first():
            np.savez(file_of(folder, cards, run), **found)


def file_of(folder, cards, run):
    return Path(folder) / f"{cards} {run}.npz"


# ------------------------------------------------------------------------------------------------ the judgement
def run_all(folder, layers, modes, small):
    """Start one process, then two; raises RuntimeError with what they said where one fails."""
    runs = [f"{layer}:{mode}" for layer in layers for mode in modes]
    wrong = [f"{layer}:pynative:{name}" for name, (seen, *_) in MISTAKES.items() for layer in layers if layer in seen]
    options = ["--compute", folder, *(["--small"] if small else [])]
    done = subprocess.run([sys.executable, __file__, *map(str, options), "--cards", "1", *runs], cwd=folder, env=environment(),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    code, said = done.returncode, done.stdout
    if code == 0:
        code, said = launch(2, Path(__file__).resolve(), *options, "--cards", "2", *runs, *wrong, logs=folder / "logs", seconds=SECONDS)
    if code != 0:
        raise RuntimeError(f"a process ended with {code}:\n{said[-4000:]}")
    return runs, wrong


def judged(folder, runs, wrong, layers, small):
    """{layer: {tensor: (torch's own error, {(cards, run): Row})}} of the runs, {run: [Row]} of those with a mistake, and
    {(cards, run): how far the cards are apart} of all.  Raises ValueError where a process gave other tensors than torch."""
    config, tensors, caught, apart = configured(small), {}, {}, {}
    for layer in layers:
        torch32, truth = torch_sides(case_of(layer, config), config)
        tensors[layer] = {name: (compare(name, torch32[name], torch32[name], truth[name]).rel_frobenius, {}) for name in truth}
        for cards, run in [(cards, run) for cards in CARDS for run in runs] + [(2, run) for run in wrong]:
            if run.split(":")[0] != layer:
                continue
            with np.load(file_of(folder, cards, run)) as ours:
                if set(ours) != {*truth, "apart"}:
                    raise ValueError(f"{run} on {cards}: not the same tensors as torch: {sorted(set(ours) ^ {*truth, 'apart'})}")
                rows = {name: compare(name, ours[name], torch32[name], truth[name]) for name in truth}
                apart[cards, run] = float(ours["apart"])
            if run in wrong:
                caught[run] = list(rows.values())
            else:
                for name, row in rows.items():
                    tensors[layer][name][1][cards, run] = row
    return tensors, caught, apart


def as_it_should_be(tensors, caught, apart):
    """Whether every tensor passes, the cards agree, and every mistake is caught."""
    rows = [row for layer in tensors.values() for _, found in layer.values() for row in found.values()]
    return (all_pass(rows) and not any(far for (_, run), far in apart.items() if run not in caught)
            and all(any(row.verdict == "fail" for row in found) for found in caught.values()))


def report(tensors, caught, apart):
    """The figures as Markdown."""
    lines = ["| layer | mode | tensors | worst ratio, one process | worst ratio, mp = 2 | apart | verdict |", "|---|---|---|---|---|---|---|"]
    for layer, found in tensors.items():
        for run in dict.fromkeys(run for _, rows in found.values() for _, run in rows):
            one, two = ([rows[cards, run] for _, rows in found.values()] for cards in CARDS)
            lines.append(f"| {LAYERS[layer][0]} | {run.split(':')[1]} | {len(one)} | {worst(one).ratio:.2f} | {worst(two).ratio:.2f} | "
                         f"{apart[2, run]:g} | {worst(one + two).verdict} |")
    lines += ["", "| mistake | layer | tensors that fail | worst ratio | caught |", "|---|---|---|---|---|"]
    for run, rows in caught.items():
        layer, _, mistake = run.split(":")
        fails = sum(row.verdict == "fail" for row in rows)
        lines.append(f"| {mistake} | {LAYERS[layer][0]} | {fails} of {len(rows)} | {worst(rows).ratio:.3g} | {'yes' if fails else 'NO'} |")
    lines += ["", "Errors are |ours - truth| / |truth|, of the worse of the modes; the true gradient of a key's bias is 0.  Ratios are errors over",
              "those of torch in float32: up to 4 passes, above 10 fails (parity/compare.py).  \"apart\": the largest difference between both",
              "processes in what each holds whole.", "", "| layer | tensor | torch float32 | one process | mp = 2 | ratio, one | ratio, mp = 2 | verdict |", "|---|---|---|---|---|---|---|---|"]
    for layer, found in tensors.items():
        for name, (noise, rows) in found.items():
            one, two = (worst([row for (count, _), row in rows.items() if count == cards]) for cards in CARDS)
            lines.append(f"| {layer} | {name or 'output'} | {noise:.2e} | {one.rel_frobenius:.2e} | {two.rel_frobenius:.2e} | {one.ratio:.2f} | "
                         f"{two.ratio:.2f} | {worst([one, two]).verdict} |")
    return "\n".join(lines)


def worst(rows):
    return max(rows, key=lambda row: row.ratio)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default=",".join(LAYERS))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--small", action="store_true", help="small layers: tries the script, shows nothing about full width")
    parser.add_argument("--markdown", help="write the report here too")
    parser.add_argument("--compute", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--cards", type=int, help=argparse.SUPPRESS)
    parser.add_argument("runs", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compute:
        return worker(options.compute, options.cards, options.small, options.runs)
    machine, layers, modes = hardware(), options.layers.split(","), options.modes.split(",")
    with tempfile.TemporaryDirectory() as folder:
        found = judged(Path(folder), *run_all(Path(folder), layers, modes, options.small), layers, options.small)
    text = (f"# Layers of full width on mp = 2, {date.today()}\n\n{machine}\n\nCommand: `python {' '.join(sys.argv)}`\n\n"
            + report(*found) + "\n")
    print(text)
    if options.markdown:
        Path(options.markdown).write_text(text, encoding="utf-8")
    sys.exit(not as_it_should_be(*found))


if __name__ == "__main__":
    main()
