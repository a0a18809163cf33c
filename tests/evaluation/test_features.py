"""Feature extraction: the command line, the Trainer and Python calls read a caption in one way."""

import numpy as np
import pytest

from mindblip2 import Blip2Processor, Blip2Qformer, Trainer
from mindblip2.evaluation.features import caption_ids, caption_lines
from mindblip2.file_io import FileError

CAPTIONS = [
    "A red Seven!",
    "Question: how many?",
    "one two three four five six seven eight nine ten " * 2 + "red",
    "one two three four five six seven eight nine ten " * 2 + "blue",
]


def test_a10_the_trainer_and_the_processor_give_the_same_features(here, caplog):
    from mindblip2.config import load_config

    config = load_config("blip2_digits", {"context.mode": 1})
    Trainer(args=config, task="feature_extraction").predict([], captions=CAPTIONS, save_arrays="features.npz")
    assert "2 of 4 texts have more than 18 tokens and lose their end" in caplog.text
    with np.load("features.npz") as file:
        ours = file["text_embeds_proj"]
    model, processor = (
        Blip2Qformer.from_pretrained("blip2_digits").set_train(False),
        Blip2Processor.from_pretrained("blip2_digits"),
    )

    def features(processor):
        ids = processor(text=CAPTIONS)["input_ids"]
        return model.extract_features({"text_input": ids}, "text").text_embeds_proj.asnumpy()[:, 0]

    np.testing.assert_allclose(ours, features(processor), atol=1e-5)
    np.testing.assert_array_equal(ours[2], ours[3])  # of which the warning spoke
    processor.clean = False
    assert np.abs(ours - features(processor))[:2].max() > 0.01
    one = Trainer(args=config, task="feature_extraction").predict(
        [], captions=CAPTIONS[0], save_arrays="one.npz"
    )
    assert one["text_embeds_proj"][0] == 1  # one text, not its letters


@pytest.mark.parametrize("preset", ["blip2_stage1_vit_g", "blip2_stage1_evaluator", "blip2_digits"])
def test_a10_every_preset_has_one_rule_for_captions(preset):
    trainer = Trainer(task="feature_extraction", model=preset)
    trainer.model = type("Model", (), {"config": trainer.config.model.model_config})
    processor = Blip2Processor.from_pretrained(preset)
    ids = processor(text=CAPTIONS, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(caption_ids(trainer, trainer.processor(), CAPTIONS), ids)
    processor.clean = False
    # the control
    assert not np.array_equal(processor(text=CAPTIONS, return_tensors="np")["input_ids"], ids)


def test_b12_a_file_of_captions_is_named(tmp_path):
    (tmp_path / "captions.txt").write_text("a cat\n\na dog\n", encoding="utf-8-sig")
    assert caption_lines(tmp_path / "captions.txt") == ["a cat", "a dog"]
    (tmp_path / "captions.txt").write_bytes("一只红色的猫坐在桌子上".encode("gbk"))
    with pytest.raises(
        FileError, match="captions.txt is not a text file with a caption per line: byte 4 is not UTF-8"
    ):
        caption_lines(tmp_path / "captions.txt")
