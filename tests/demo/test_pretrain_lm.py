"""The demo's language model is taught by itself, and stage 2 takes it."""

import numpy as np
import pytest

from mindblip2 import Blip2Processor
from mindblip2.checkpoint.ckpt import Checkpoint, write_checkpoint
from mindblip2.config import load_config
from mindblip2.demo import pretrain_lm
from mindblip2.models.blip2_llm import Blip2ImageToTextGeneration

SMALL = {
    "context.mode": 1,
    "model.model_config.text_config.hidden_size": 32,
    "model.model_config.text_config.num_layers": 1,
    "runner_config.log_every": 5,
}


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    path = folder / "words.ckpt"
    config = load_config(
        "itt_blip2_digits", {**SMALL, "model.model_config.text_config.checkpoint_name_or_path": str(path)}
    )
    return config, path, pretrain_lm.teach(config, path, steps=40, batch=8)


def test_it_learns(taught):
    _, path, log = taught
    assert [entry["step"] for entry in log] == [5, 10, 15, 20, 25, 30, 35, 40]
    # control: it began at chance
    assert log[0]["lm"] == pytest.approx(np.log(390), abs=0.6) and log[-1]["lm"] < log[0]["lm"] - 1.5
    assert log[-1]["word_acc"] > log[0]["word_acc"] + 0.1
    assert (path.parent / "log" / "loss_curve.png").is_file()


def test_stage_2_takes_it(taught, tmp_path):
    config, path, _ = taught
    model = Blip2ImageToTextGeneration(config.model.model_config)
    own = {name: p.asnumpy() for name, p in model.parameters_dict().items() if not name.startswith("llm.")}
    write_checkpoint(tmp_path / "rest.ckpt", ((name, "Float32", array) for name, array in own.items()))
    stored = Checkpoint(path)
    for made in (
        model,
        Blip2ImageToTextGeneration(config.model.model_config).load_checkpoint(tmp_path / "rest.ckpt"),
    ):
        assert all(
            np.array_equal(made.parameters_dict()[name].asnumpy(), stored.float32(name)) for name in stored
        )
    # the control
    other = Blip2ImageToTextGeneration(
        config.model.model_config.replace(text_config={"checkpoint_name_or_path": ""})
    )
    assert not np.array_equal(
        other.llm.word.embedding_table.asnumpy(), model.llm.word.embedding_table.asnumpy()
    )


def test_texts_that_do_not_fit_are_an_error(taught):
    config = load_config(
        "itt_blip2_digits",
        {"processor.tokenizer.max_length": 12, "train_dataset.text_transforms.max_length": 12},
    )
    with pytest.raises(
        ValueError, match=r"a text of \d+ tokens, but processor.tokenizer.max_length = 12: raise it"
    ):
        list(pretrain_lm.batches(config, Blip2Processor.from_config(config.processor).tokenizer, 2, 8))
