"""MINDIR files, loaded again without any code of ours, give the model's numbers."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

import run_blip2
from mindblip2 import Trainer
from mindblip2.config.schema import ConfigError
from mindblip2.data.processor import Blip2Processor
from mindblip2.models.blip2_llm import Blip2ImageToTextGeneration
from mindblip2.models.blip2_qformer import Blip2Classifier

CLOSE = 1e-5  # float32, the same operations in another graph
DEMO = ["--config", "blip2_digits", "--run_mode", "export"]


class Loaded:
    """What ``mindir.json`` names; a part is called with arrays, and gives arrays by name."""

    def __init__(self, folder):
        self.said = json.loads((folder / "mindir.json").read_text(encoding="utf-8"))
        self.graphs = {
            name: nn.GraphCell(ms.load(str(folder / part["file"])))
            for name, part in self.said["parts"].items()
        }

    def __call__(self, name, *arrays):
        part = self.said["parts"][name]
        inputs = []
        for (key, wanted), array in zip(part["inputs"].items(), arrays, strict=True):
            array = np.asarray(array, wanted["dtype"])
            assert list(array.shape) == wanted["shape"], key
            inputs.append(Tensor(array))
        found = self.graphs[name](*inputs)
        found = found if isinstance(found, (tuple, list)) else (found,)
        for axes, one in zip(part["outputs"].values(), found, strict=True):
            assert len(axes.split()) == one.ndim
        return dict(zip(part["outputs"], (one.asnumpy() for one in found)))


@pytest.mark.usefixtures("here")
def test_stage_1(tmp_path):
    said = run_blip2.run(
        [*DEMO, "--trainer.type", "feature_extraction", "--output_dir", "out", "--predict_batch_size", "2"]
    )
    assert (said["task"], said["device"], sorted(said["parts"])) == (
        "feature_extraction",
        "CPU",
        ["match", "read", "see"],
    )
    loaded, model = Loaded(tmp_path / "out" / "mindir"), Blip2Classifier.from_pretrained("blip2_digits")
    rng = np.random.default_rng(0)
    image = rng.standard_normal(said["parts"]["see"]["inputs"]["image"]["shape"]).astype(np.float32)
    ids = Blip2Processor.from_pretrained("blip2_digits").tokenizer(
        ["a three", "a seven in a corner"],
        max_length=said["parts"]["read"]["inputs"]["input_ids"]["shape"][1],
        padding="max_length",
        return_tensors="np",
    )["input_ids"]
    both = {"image": Tensor(image), "text_input": Tensor(ids)}
    for mode, part, given in (("image", "see", (image,)), ("text", "read", (ids,))):
        wanted, found = model.extract_features(both, mode), loaded(part, *given)
        for name in found:
            assert np.abs(found[name] - getattr(wanted, name).asnumpy()).max() < CLOSE, name
    logits = model.itm_logits(Tensor(image), Tensor(ids)).asnumpy()
    assert np.abs(loaded("match", image, ids)["itm_logits"] - logits).max() < CLOSE
    # negative control
    assert np.abs(loaded("match", image[::-1], ids)["itm_logits"] - logits).max() > 1e-2


@pytest.mark.usefixtures("here")
def test_classification(tmp_path):
    said = run_blip2.run(
        [*DEMO, "--trainer.type", "zero_shot_image_classification", "--candidate_labels", "three", "seven"]
    )
    loaded, model = (
        Loaded(tmp_path / "output" / "digits" / "mindir"),
        Blip2Classifier.from_pretrained("blip2_digits"),
    )
    assert said["labels"] == ["three", "seven"] and np.shape(said["label_ids"])[0] == 2
    image = (
        np.random.default_rng(0)
        .standard_normal(said["parts"]["classify"]["inputs"]["image"]["shape"])
        .astype(np.float32)
    )
    wanted = model(Tensor(image), Tensor(np.array(said["label_ids"], np.int32))).asnumpy()
    assert np.abs(loaded("classify", image, said["label_ids"])["probabilities"] - wanted).max() < CLOSE


def written(loaded, image, rows, new):
    """Greedy generation with the parts alone."""
    length = loaded.said["parts"]["embed"]["inputs"]["input_ids"]["shape"][1]
    padded = np.array([[loaded.said["pad_token_id"]] * (length - len(row)) + row for row in rows])
    query, text = loaded("see", image)["query_embeds"], loaded("embed", padded)["text_embeds"]
    seen = np.array([[0] * (length - len(row)) + [1] * (query.shape[1] + len(row)) for row in rows])
    # padding goes before the queries
    x = np.stack(
        [
            np.concatenate([text[i, : length - len(row)], query[i], text[i, length - len(row) :]])
            for i, row in enumerate(rows)
        ]
    )
    state, tokens = loaded("prefill", x, seen), []
    for slot in range(seen.shape[1], seen.shape[1] + new):
        tokens.append(state["logits"].argmax(-1))
        if len(tokens) < new:
            state = loaded("decode", tokens[-1], slot, state["mask"], state["cache"])
    return np.stack(tokens, 1)


@pytest.mark.usefixtures("here")
def test_generation(small, tmp_path):
    trainer = Trainer(small.yaml)
    said = trainer.export(
        small.ckpt, tmp_path / "mindir", batch_size=2, prompt="a photo of", max_new_tokens=6
    )
    loaded, model = (
        Loaded(tmp_path / "mindir"),
        Blip2ImageToTextGeneration.from_pretrained(small.yaml, small.ckpt),
    )
    rows = [said["prompt_ids"], said["prompt_ids"][:2]]
    assert said["prompt"] == "a photo of" and len(rows[0]) > 2
    image = (
        np.random.default_rng(0)
        .standard_normal(said["parts"]["see"]["inputs"]["image"]["shape"])
        .astype(np.float32)
    )
    wanted = model.generate(Tensor(image), rows, max_new_tokens=6, min_new_tokens=6, eos_token_id=299)
    assert np.array_equal(written(loaded, image, rows, 6), wanted)
    # negative control
    assert not np.array_equal(written(loaded, image[::-1] * 3, rows[::-1], 6), wanted)


@pytest.mark.usefixtures("here")
def test_for_an_npu_on_a_host_without_one(small, tmp_path):
    run = [
        "--config",
        small.yaml,
        "--run_mode",
        "export",
        "--load_checkpoint",
        small.ckpt,
        "--model.model_config.compute_dtype",
        "bfloat16",
    ]
    for device, dtype in (("Ascend", "bfloat16"), ("CPU", "float32")):
        said = run_blip2.run([*run, "--device_target", device, "--output_dir", device])
        assert said["device"] == device and said["parts"]["decode"]["inputs"]["cache"]["dtype"] == dtype
    graphs = {
        device: (tmp_path / device / "mindir" / "prefill.mindir").read_bytes() for device in ("Ascend", "CPU")
    }
    assert [b"FlashAttentionScore" in graphs[device] for device in ("Ascend", "CPU")] == [True, False]


@pytest.mark.usefixtures("here")
def test_errors(small):
    with pytest.raises(ConfigError, match="cannot use it here.*leave --device_target out"):
        run_blip2.run([*DEMO[:2], "--run_mode", "eval", "--device_target", "Ascend"])
    with pytest.raises(ValueError, match="leave room for"):
        Trainer(small.yaml).export(small.ckpt, max_new_tokens=1000)
    with pytest.raises(TypeError, match="no argument 'beams'"):
        Trainer(small.yaml).export(small.ckpt, beams=3)
    with pytest.raises(TypeError, match="beams"):
        Trainer("blip2_digits", task="feature_extraction").export(beams=3)
