"""The embedded stage 2 of the demo: what it writes about held-out pictures through each door."""

import pytest

import run_blip2
from mindblip2 import Trainer, pipeline
from mindblip2.demo import scenes

SHOWN = 60


@pytest.fixture(scope="module")
def told():
    return scenes.captioned(kind="told")[:SHOWN]


@pytest.fixture(scope="module")
def writes():
    return pipeline("image_to_text_generation", model="itt_blip2_digits", max_new_tokens=20)


def exact(texts, samples):
    return sum(text in sample["captions"] for text, sample in zip(texts, samples)) / len(samples)


def test_held_out_pictures_are_captioned_word_for_word(writes, told):
    texts = writes([sample["image"] for sample in told], batch_size=30)
    assert exact(texts, told) > 0.8
    assert exact(texts[1:] + texts[:1], told) < 0.1  # control: the captions belong to the pictures


def test_questions_are_answered(writes):
    asked = scenes.questions()[:SHOWN]
    answers = writes.predict_answers(
        [one.image for one in asked], [one.question for one in asked], batch_size=30
    )
    right = [answer in one.answers for answer, one in zip(answers, asked)]
    assert sum(right) / len(right) > 0.7
    pictures = [one.image for one in asked]
    others = writes.predict_answers(
        pictures[7:] + pictures[:7], [one.question for one in asked], batch_size=30
    )
    # control: the picture counts
    assert sum(answer in one.answers for answer, one in zip(others, asked)) / len(asked) < 0.5


def test_the_doors_say_the_same(writes, tmp_path, capsys):
    paths = [str(path) for path in scenes.draw(tmp_path)[:3]]
    texts = writes(paths, "a")
    assert all(text.startswith("a ") for text in texts) and len(set(texts)) == 3
    assert (
        Trainer(task="image_to_text_generation", model="itt_blip2_digits").predict(
            input_data=paths,
            hypothesis_template="a",
            max_new_tokens=20,
            save_file=str(tmp_path / "texts.txt"),
        )
        == texts
    )
    capsys.readouterr()
    assert (
        run_blip2.run(
            [
                "--config",
                "itt_blip2_digits",
                "--mode",
                "1",
                "--run_mode",
                "predict",
                "--predict_data",
                *paths,
                "--hypothesis_template",
                "a",
                "--output_dir",
                str(tmp_path),
            ]
        )
        == texts
    )
    printed = capsys.readouterr().out.splitlines()
    assert [f"{path}: {text}" for path, text in zip(paths, texts)] == [
        line for line in printed if line.startswith(str(tmp_path))
    ]
