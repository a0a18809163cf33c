"""The doors of evaluation: retrieval, classification with its confusions, features of a folder; with the
embedded model."""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

import run_blip2
from mindblip2 import Trainer, load_config
from mindblip2.demo import digits, scenes
from mindblip2.demo.scenes import LabelledSet
from mindblip2.evaluation.zero_shot import ZeroShotClassifier, accuracy
from mindblip2.trainer.tasks import TASKS, task_named

DIGITS = ["--config", "blip2_digits", "--mode", "1"]
RETRIEVAL = [
    *DIGITS,
    "--run_mode",
    "eval",
    "--trainer.type",
    "image_to_text_retrieval",
    "--output_dir",
    "out",
]


def demo(**overrides):
    """The demo's configuration in PyNative mode, which compiles nothing."""
    return load_config("blip2_digits", {"context.mode": 1, **overrides})


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def singles():
    """Ten held-out digits in different colours, two captions each: what the embedded model knows well."""
    chosen = {scene.digits[0]: scene for scene in digits.held_out("digits")}.values()
    return [
        {
            "image": digits.render(scene),
            "captions": [digits.caption(scene, detail) for detail in ("all", "digit")],
            "image_id": number,
        }
        for number, scene in enumerate(chosen)
    ]


@pytest.fixture(scope="module")
def few(singles):
    """The examination of the command line, made short."""
    return [{**sample, "captions": sample["captions"][:1]} for sample in singles[:6]]


# ------------------------------------------------------------------------------------------------ retrieval
def trainer(dataset, **options):
    return Trainer(args=demo(), task="image_to_text_retrieval", eval_dataset=dataset, **options)


def test_trainer_evaluates_pictures_with_their_captions(singles, capsys):
    figures = trainer(singles).evaluate(k_test=5)
    assert figures["txt_r1"] >= 90 and figures["img_r1"] >= 70
    assert (
        figures["recipe"]["pictures"] == 10
        and figures["recipe"]["texts"] == 20
        and figures["recipe"]["k_test"] == 5
    )
    assert (
        figures["recipe"]["weights"].endswith("blip2_digits.ckpt") and figures["recipe"]["image_size"] == 48
    )
    folder = Path("output/digits")
    assert json.loads((folder / "image_to_text_retrieval_evaluation.json").read_text()) == figures
    assert (folder / "image_to_text_retrieval_hits.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert f"{figures['txt_r1']:8.2f}" in printed and "rerank itm+itc" in printed and "weights " in printed
    others = [
        {**one, "captions": other["captions"]} for one, other in zip(singles, singles[1:] + singles[:1])
    ]
    # control: captions of other pictures are not found
    assert trainer(others).evaluate(k_test=5)["txt_r1"] <= 20


def test_files_and_arrays_of_the_same_pictures_have_the_same_figures(few, tmp_path):
    for number, sample in enumerate(few):
        Image.fromarray(sample["image"]).save(f"{number}.png")
    files = [
        {"image": str(tmp_path / f"{number}.png"), "caption": sample["captions"]}
        for number, sample in enumerate(few)
    ]
    figures, same = trainer(few).evaluate(k_test=3), trainer(files).eval(k_test=3)
    assert {key: figures[key] for key in figures if key != "recipe"} == {
        key: same[key] for key in same if key != "recipe"
    }


def test_the_command_line_evaluates_scenes_and_its_flags_arrive(few, monkeypatch):
    monkeypatch.setattr(scenes, "captioned", lambda size: few)
    figures = run_blip2.run([*RETRIEVAL, "--k_test", "2", "--rerank", "itm"])
    recipe = figures["recipe"]
    assert (recipe["k_test"], recipe["rerank"], recipe["text_length"]) == (2, "itm", 32) and "itc" in figures
    assert Path("out/image_to_text_retrieval_evaluation.json").is_file()
    alone = run_blip2.run([*RETRIEVAL, "--rerank", "none"])
    assert alone["recipe"]["pairs"] == 0 and "itc" not in alone
    mindformers = run_blip2.run([*RETRIEVAL, "--eval_dataset.add_extra_itm_score", "false"])
    assert mindformers["recipe"]["rerank"] == "none" and mindformers["txt_r1"] == alone["txt_r1"]


def test_annotation_files_are_evaluated_as_the_same_pictures_given_by_hand(singles, tmp_path):
    (tmp_path / "images").mkdir()
    for number, sample in enumerate(singles):
        Image.fromarray(sample["image"]).save(f"images/{number}.png")
    rows = [
        {"image": f"{number}.png", "caption": sample["captions"][: 1 + number % 2]}
        for number, sample in enumerate(singles)
    ]
    Path("test.json").write_text(json.dumps(rows))
    files = [
        "--eval_dataset_dir",
        str(tmp_path),
        "--eval_dataset.data_loader.annotation_files",
        "[test.json]",
        "--eval_dataset.data_loader.image_dirs",
        "[images]",
        "--eval_dataset.data_loader.type",
        "MultiImgCapDataLoader",
    ]
    figures = run_blip2.run([*RETRIEVAL, *files, "--k_test", "4"])
    given = trainer(
        [{"image": sample["image"], "captions": row["caption"]} for sample, row in zip(singles, rows)]
    ).evaluate(k_test=4)
    assert (figures["recipe"]["pictures"], figures["recipe"]["texts"]) == (10, 15)
    assert {key: figures[key] for key in figures if key != "recipe"} == {
        key: given[key] for key in given if key != "recipe"
    }
    with pytest.raises(ValueError, match="samples 1 and 2 are the same picture"):
        # one sample per caption: not for this
        run_blip2.run([*RETRIEVAL, *files, "--eval_dataset.data_loader.stage", "train"])


def test_the_examination_is_500_held_out_scenes():
    samples = scenes.captioned(48)
    assert len(samples) == len({sample["captions"][0] for sample in samples}) == 500
    assert samples[0]["image"].shape == (48, 48, 3)


def test_mistakes_are_named_before_the_model_runs(few, monkeypatch):
    loaded = []
    monkeypatch.setattr("mindblip2.trainer.tasks.load", lambda *inputs: loaded.append(inputs))
    with pytest.raises(ValueError, match="nowhere.png"):
        trainer([*few, {"image": "nowhere.png", "caption": "a red seven"}]).evaluate()
    with pytest.raises(ValueError, match="rerank = 'both'"):
        trainer(few).evaluate(rerank="both")
    with pytest.raises(ValueError, match="k_tests"):
        trainer(few).evaluate(k_tests=3)
    assert not loaded
    monkeypatch.undo()
    with pytest.raises(ValueError, match="texts of 64 tokens, but the model has 32 positions"):
        trainer(few).evaluate(text_length=64)


def test_names_of_the_task_and_its_preset():
    for alias in ("blip2_retrieval", "blip2_retireval", "ImageToTextRetrievalTrainer"):
        assert task_named(alias) == "image_to_text_retrieval"
    assert set(TASKS) >= {"image_to_text_retrieval", "feature_extraction"}
    config = load_config("run_blip2_stage1_vit_g_retrieval_flickr30k.yaml")
    assert config.trainer.type == "image_to_text_retrieval"
    # LAVIS's
    assert (config.eval_dataset.k_test, config.eval_dataset.text_transforms.max_length) == (128, 35)
    with pytest.raises(FileNotFoundError, match="blip2_stage1_vit_g.ckpt"):
        Trainer(
            task="blip2_retireval",
            model="blip2_stage1_vit_g",
            eval_dataset=[{"image": np.zeros((8, 8, 3), np.uint8), "caption": "nothing"}],
        ).eval()


# ------------------------------------------------------------------------------------------------ classificat
class Answers:
    """A classifier whose probabilities are given."""

    def __init__(self, rows, labels):
        self.rows, self.labels, self.batches = np.array(rows), labels, []

    def probabilities(self, pictures, batch_size):
        self.batches.append(len(pictures))
        return self.rows[pictures]


def test_accuracy_per_class_and_confusions():
    labels = ["cat", "dog", "eel", "fly", "gnu", "hen"]
    rows = [
        [0.9, 0.1, 0, 0, 0, 0],
        [0.2, 0.8, 0, 0, 0, 0],
        [0.5, 0.5, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0.5, 0.1, 0.1, 0.1, 0.1, 0.1],
    ]
    classifier = Answers(rows, labels)
    figures, counts = accuracy(classifier, range(5), ["cat", "cat", "dog", "dog", "eel"], batch_size=2)
    assert classifier.batches == [2, 2, 1]  # never all pictures at once
    assert figures["top1"] == 2 / 5  # of the tie between cat and dog nothing is gained
    assert figures["top5"] == 4 / 5  # eel is one of five second places: the sixth
    assert figures["per_class"] == {"cat": 0.5, "dog": 0.5, "eel": 0.0}
    expected = np.zeros((6, 6), int)
    expected[0, 0] = expected[0, 1] = expected[1, 0] = expected[1, 1] = expected[2, 0] = 1
    assert counts.tolist() == expected.tolist()
    shifted, _ = accuracy(classifier, range(5), ["hen", "hen", "hen", "hen", "hen"])
    assert shifted["top1"] == 0  # control


@pytest.mark.parametrize(
    "truths, rows, words",
    [
        (["cow"], [[1, 0]], "'cow' is none"),
        (["cat", "dog"], [[1, 0]], "1 pictures with 2"),
        ([], [], "0 pictures"),
        (["cat"], [[np.nan, 0]], "NaN or infinite"),
    ],
)
def test_an_examination_that_means_nothing_is_refused(truths, rows, words):
    with pytest.raises((ValueError, FloatingPointError), match=words):
        accuracy(Answers(rows, ["cat", "dog"]), range(len(rows)), truths)


def test_pictures_may_come_from_any_sequence_and_labels_are_read_once(monkeypatch):
    class Lazy:
        """Pictures drawn when they are asked for."""

        def __init__(self, exam):
            self.exam = exam

        def __len__(self):
            return len(self.exam)

        def __getitem__(self, i):
            return digits.render(self.exam[i])

    exam = digits.held_out("digits")[::30]
    read, real = [], ZeroShotClassifier.label_features
    monkeypatch.setattr(
        ZeroShotClassifier, "label_features", lambda self: read.append(self._label_LE is None) or real(self)
    )
    truths = [digits.DIGITS[scene.digits[0]] for scene in exam]
    data = LabelledSet("every 30th", Lazy(exam), truths, digits.DIGITS, "a handwritten {}")
    config = demo(**{"eval_dataset.batch_size": 4})
    figures = Trainer(args=config, eval_dataset=[data]).evaluate()
    assert figures["every 30th"]["top1"] >= 0.8 and set(figures["every 30th"]["per_class"]) <= set(
        digits.DIGITS
    )
    assert read == [True, False, False]
    assert (
        Path("output/digits/zero_shot_image_classification_every_30th_confusion.png").stat().st_size > 3_000
    )


# ------------------------------------------------------------------------------------------------ features
def test_features_of_a_folder_and_of_captions(singles):
    Path("pictures").mkdir()
    for number, sample in enumerate(singles[:5]):
        Image.fromarray(sample["image"]).save(f"pictures/{number}.png")
    Path("captions.txt").write_text("".join(f"{sample['captions'][0].upper()}.\n" for sample in singles[:5]))
    run = [
        *DIGITS,
        "--run_mode",
        "predict",
        "--trainer.type",
        "feature_extraction",
        "--predict_batch_size",
        "2",
        "--predict_data",
    ]
    result = run_blip2.run([*run, "pictures", "captions.txt"])
    assert result["image_embeds"] == [5, 8, 128] and Path(
        "feature_extraction_result.txt"
    ).read_text().strip() == str(result)
    with np.load("feature_extraction_result.npz") as file:
        arrays = dict(file)
    assert (
        arrays["paths"].tolist() == [f"pictures/{number}.png" for number in range(5)]
        and len(arrays["captions"]) == 5
    )
    for name in ("image_embeds_proj", "text_embeds_proj"):
        np.testing.assert_allclose(np.linalg.norm(arrays[name], axis=-1), 1, atol=1e-5)
    similarity = (arrays["image_embeds_proj"] @ arrays["text_embeds_proj"].T).max(1)
    assert similarity.argmax(1).tolist() == list(range(5))
    # control: these are not unit vectors
    assert np.abs(np.linalg.norm(arrays["image_embeds"], axis=-1) - 1).min() > 0.1
    alone = Trainer(args=demo(), task="feature_extraction").predict(
        [singles[0]["image"]], captions=[singles[0]["captions"][0]], save_arrays="one.npz"
    )
    assert alone["file"] == "one.npz"
    with np.load("one.npz") as file:
        np.testing.assert_allclose(file["image_embeds"][0], arrays["image_embeds"][0], atol=1e-4)
        np.testing.assert_allclose(file["text_embeds_proj"][0], arrays["text_embeds_proj"][0], atol=1e-5)


def test_an_unreadable_picture_is_named_before_features_are_made():
    Path("pictures").mkdir()
    Path("pictures/torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match="torn.png"):
        Trainer(args=demo(), task="feature_extraction").predict("pictures")
    with pytest.raises(TypeError, match="unknown option 'top_k'"):
        Trainer(args=demo(), task="feature_extraction").predict("pictures", top_k=3)
    assert not Path("feature_extraction_result.npz").exists()
