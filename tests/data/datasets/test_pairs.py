"""Loaders: samples per caption or per picture, MindFormers' surface, Flickr8k's text files."""

import json

import pytest

from mindblip2.data.datasets.annotations import AnnotationError
from mindblip2.data.datasets.captioned_images import pictures_and_texts
from mindblip2.data.datasets.pairs import Flickr8kDataLoader, MultiImgCapDataLoader
from mindblip2.file_io import FileError

A = [{"image": "1.jpg", "caption": ["one", "eins", "un"]}, {"image": "2.jpg", "caption": "two"}]
B = [{"image": "3.jpg", "caption": ["three", "drei"]}]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(A))
    (tmp_path / "vg").mkdir()
    (tmp_path / "vg" / "b.json").write_text(json.dumps(B))
    return tmp_path


def load(folder, **options):
    return MultiImgCapDataLoader(
        folder, annotation_files=["a.json", "vg/b.json"], image_dirs=["a", "vg"], **options
    )


def test_training_takes_one_sample_per_caption(folder):
    loader = load(folder)
    assert [sample["caption"] for sample in loader] == ["one", "eins", "un", "two", "three", "drei"]
    assert [sample["image_id"] for sample in loader] == [0, 0, 0, 1, 2, 2] and len(loader) == 6
    assert loader[3] == {"image": str(folder / "a" / "2.jpg"), "caption": "two", "image_id": 1}
    assert loader[-1] == loader[5] and loader.sizes == (4, 2) and loader.shuffle
    with pytest.raises(IndexError):
        loader[6]


def test_evaluation_takes_one_sample_per_picture(folder):
    loader = load(folder, stage="eval")
    assert [sample["caption"] for sample in loader] == [["one", "eins", "un"], ["two"], ["three", "drei"]]
    assert not loader.shuffle and [picture.image_id for picture in loader.pictures] == [0, 1, 2]
    assert len(load(folder, stage="eval", repeat_images=True)) == 6


def test_the_callers_lists_are_not_changed(folder):
    files, dirs = ["a.json"], ["a"]
    first, second = (MultiImgCapDataLoader(folder, files, dirs) for _ in range(2))
    assert (files, dirs) == (["a.json"], ["a"]) and list(first) == list(second)


def test_mindformers_import_path_leads_here():
    import mindblip2
    from mindblip2.dataset.dataloader.multi_image_cap_dataloader import MultiImgCapDataLoader as there

    assert there is MultiImgCapDataLoader is mindblip2.MultiImgCapDataLoader


@pytest.mark.parametrize(
    "options, words",
    [
        ({"stage": "training"}, "stage = 'training': expected one of 'train', 'eval'"),
        ({"ratios": [1]}, "expected a number from 0 for each of the 2 annotation files"),
        ({"ratios": [0, 0]}, "ratios = \\[0, 0\\]"),
        ({"column_names": ["image"]}, "column_names"),
    ],
)
def test_wrong_options_are_named(folder, options, words):
    with pytest.raises(ValueError, match=words):
        load(folder, **options)


def test_no_annotation_files_is_an_error_with_the_folder(folder):
    with pytest.raises(AnnotationError, match=f"no annotation_files: name the JSON files under {folder}"):
        MultiImgCapDataLoader(folder)


def test_flickr8k_is_read_from_its_text_files(tmp_path):
    text = tmp_path / "Flickr8k_text"
    text.mkdir()
    (tmp_path / "Flickr8k_Dataset").mkdir()
    (text / "Flickr8k.token.txt").write_text(
        "1.jpg#0\tA dog .\n1.jpg#1\tA hound .\n2.jpg#0\tA cat .\n3.jpg#0\tA cow .\n"
    )
    (text / "Flickr_8k.trainImages.txt").write_text("2.jpg\n1.jpg\n")
    (text / "Flickr_8k.testImages.txt").write_text("3.jpg\n")
    assert [sample["caption"] for sample in Flickr8kDataLoader(tmp_path)] == [
        "A cat .",
        "A dog .",
        "A hound .",
    ]
    assert list(Flickr8kDataLoader(tmp_path, "eval")) == [
        {"image": str(tmp_path / "Flickr8k_Dataset" / "3.jpg"), "caption": ["A cow ."], "image_id": 0}
    ]
    (text / "Flickr_8k.testImages.txt").write_text("4.jpg\n")
    with pytest.raises(AnnotationError, match="lists 4.jpg"):
        Flickr8kDataLoader(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="Flickr8k.token.txt"):
        Flickr8kDataLoader(tmp_path / "Flickr8k_Dataset")


def test_b12_damaged_text_of_flickr8k_names_the_file(tmp_path):
    (tmp_path / "Flickr8k_Dataset").mkdir()
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("1.jpg\n")
    (tmp_path / "Flickr8k.token.txt").write_text("1.jpg#0\tA dog .\n")
    assert len(Flickr8kDataLoader(tmp_path)) == 1
    (tmp_path / "Flickr8k.token.txt").write_bytes(b"1.jpg#0\tA d\xe9g .\n")
    with pytest.raises(
        FileError, match="Flickr8k.token.txt is not Flickr8k's file of captions: byte 11 is not UTF-8"
    ):
        Flickr8kDataLoader(tmp_path)
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("")
    (tmp_path / "Flickr8k.token.txt").write_text("1.jpg#0\tA dog .\n")
    with pytest.raises(AnnotationError, match="trainImages.txt lists no pictures"):
        Flickr8kDataLoader(tmp_path)


def test_b12_a_caption_without_words_names_file_and_row(folder):
    (folder / "a.json").write_text(json.dumps([*A, {"image": "9.jpg", "caption": ["..."]}]))
    assert load(folder, stage="eval").source(2).endswith("a.json, row 2") and load(folder).source(4).endswith(
        "a.json, row 2"
    )
    with pytest.raises(
        ValueError, match=r"sample 2 .*a.json, row 2.: nothing is left of the caption '\.\.\.'"
    ):
        pictures_and_texts(load(folder, stage="eval"))
