"""One reader for every form of annotation file; ids that are numbers, equal for equal pictures only; errors
that name the row."""

import json
import os

import pytest

from mindblip2.data.datasets.annotations import AnnotationError, Picture, read_annotations

COCO_TRAIN = [
    {"image": "val2014/COCO_val2014_000000522418.jpg", "caption": "A woman.", "image_id": "coco_522418"},
    {"image": "train2014/COCO_train2014_000000318219.jpg", "caption": "A boy.", "image_id": "coco_318219"},
    {"image": "val2014/COCO_val2014_000000522418.jpg", "caption": "A cake.", "image_id": "coco_522418"},
]
COCO_TEST = [
    {"image": "val2014/a.jpg", "caption": ["one", "two", "three", "four", "five"]},
    {"image": "val2014/COCO_val2014_000000522418.jpg", "caption": ["1", "2", "3", "4", "5", "6", "7"]},
]
VG = [
    {"image": "VG_100K/2.jpg", "caption": "a tree", "dataset": "vg"},
    {"image": "VG_100K/7.jpg", "caption": "sky", "dataset": "vg"},
    {"image": "VG_100K/2.jpg", "caption": "a road", "dataset": "vg"},
]
PLAIN = [
    {"image": "x.png", "caption": "left", "image_id": 7},
    {"image": "y.png", "caption": ["right", "wrong"], "image_id": 8},
]


@pytest.fixture
def write(tmp_path):
    """write("a.json", content) → path."""

    def written(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return written


def captions(pictures):
    return [picture.captions for picture in pictures]


def test_rows_of_one_picture_become_one_picture_in_file_order(write):
    file = write("coco_karpathy_train.json", COCO_TRAIN)
    woman, boy = read_annotations([file], ["images"])
    assert woman == Picture(
        os.path.join("images", "val2014", "COCO_val2014_000000522418.jpg"),
        ("A woman.", "A cake."),
        0,
        file,
        0,
    )
    assert (boy.captions, boy.image_id, boy.source) == (("A boy.",), 1, f"{file}, row 1")


def test_captions_of_a_test_file_stay_ragged(write):
    pictures = read_annotations(write("test.json", COCO_TEST), "images")
    assert [len(texts) for texts in captions(pictures)] == [5, 7] and pictures[1].captions[6] == "7"


def test_visual_genome_has_no_ids_and_gets_them_by_file(write):
    pictures = read_annotations(write("vg_caption.json", VG), "vg")
    assert captions(pictures) == [("a tree", "a road"), ("sky",)] and [p.image_id for p in pictures] == [0, 1]


def test_a_plain_list_takes_text_and_lists(write):
    assert captions(read_annotations(write("mine.json", PLAIN), "here")) == [("left",), ("right", "wrong")]


def test_ids_are_equal_for_equal_pictures_across_the_files_of_a_set_and_differ_between_sets(write):
    files = [
        write("train.json", COCO_TRAIN),
        write("test.json", COCO_TEST),
        write("vg.json", VG),
        write("more.json", COCO_TRAIN),
    ]
    pictures = read_annotations(files, ["coco", "coco", "vg", "elsewhere"])
    ids = {(picture.file, picture.path): picture.image_id for picture in pictures}
    of = [[picture.image_id for picture in pictures if picture.file == file] for file in files]
    # 522418: by its path, though only one file gives the id
    assert of[1][1] == of[0][0]
    assert len({i for numbers in of for i in numbers}) == len(pictures) - 1 == len(ids) - 1
    # control: the same "image_id" in another folder is another picture
    assert not set(of[3]) & set(of[0])
    assert all(isinstance(i, int) and 0 <= i < 2**31 for i in ids.values())


def test_one_id_for_two_files_is_kept_as_a_collision(write):
    twice = [
        {"image": "a.jpg", "caption": "a", "image_id": 1},
        {"image": "b.jpg", "caption": "b", "image_id": 1},
    ]
    pictures = read_annotations(write("a.json", twice), "")
    assert [(p.path, p.image_id) for p in pictures] == [("a.jpg", 0), ("b.jpg", 0)]


@pytest.mark.parametrize(
    "content, words",
    [
        ("[{", "is not a JSON file"),
        ([], "expected a list of"),
        ({"images": [], "questions": []}, "holds a mapping with the keys ['images', 'questions']"),
        (
            [PLAIN[0], {"image": "x.png", "text": "y"}],
            'row 1: expected {"image", "caption", "image_id"?}, got the keys [\'image\', \'text\']',
        ),
        ([PLAIN[0], PLAIN[1], "x.png"], "row 2: expected"),
        ([{"image": "", "caption": "y"}], "row 0: image = ''"),
        ([{"image": "x", "caption": []}], "row 0: caption = []: expected a text or a list of texts"),
        ([{"image": "x", "caption": ["a", 3]}], "row 0: caption = ['a', 3]"),
        ([{"image": "x", "caption": "a", "image_id": 1.5}], "row 0: image_id = 1.5"),
    ],
)
def test_an_unusable_file_is_named_with_its_row(write, content, words):
    path = write("bad.json", content)
    with pytest.raises(AnnotationError) as error:
        read_annotations([path], [""])
    assert words in str(error.value) and path in str(error.value)


def test_a_missing_file_is_named_absolutely(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no annotation file .*nowhere.json: the folder exists.*--train_dataset_dir"
    ):
        read_annotations([tmp_path / "nowhere.json"], [tmp_path])
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_annotations([tmp_path / "none" / "nowhere.json"], [tmp_path])
    with pytest.raises(AnnotationError, match="1 annotation_files and 2 image_dirs"):
        read_annotations(["a.json"], ["a", "b"])


# ------------------------------------------------------------------------------------------------ COCO's own
COCO = {
    "info": {},
    "images": [
        {"id": 9, "file_name": "a.jpg"},
        {"id": 4, "file_name": "b.jpg"},
        {"id": 5, "file_name": "bare.jpg"},
    ],
    "annotations": [
        {"image_id": 4, "id": 1, "caption": "one"},
        {"image_id": 9, "id": 2, "caption": "two"},
        {"image_id": 4, "id": 3, "caption": "three"},
    ],
}


def test_coco_s_own_file_is_read_as_one_picture_per_image(write):
    pictures = read_annotations([write("captions_val2014.json", COCO)], ["val2014"])
    assert [(os.path.basename(one.path), one.captions, one.image_id) for one in pictures] == [
        ("a.jpg", ("two",), 0),
        ("b.jpg", ("one", "three"), 1),
    ]


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"annotations": [{"image_id": 7, "caption": "x"}]},
            "annotation 0: image_id 7 is none of the 3 images",
        ),
        ({"annotations": [{"caption": "x"}]}, "as captions_val2014.json: KeyError 'image_id'"),
        ({"images": [{"id": 9}]}, "as captions_val2014.json: KeyError 'file_name'"),
        ({"images": 3}, "as captions_val2014.json: TypeError"),
        ({"annotations": []}, "holds a list of length 0"),
        ({"annotations": [{"image_id": 9, "caption": 5}]}, "expected a text or a list of texts"),
    ],
)
def test_a_damaged_file_of_coco_is_named(write, change, words):
    with pytest.raises(AnnotationError, match=words):
        read_annotations([write("captions.json", COCO | change)], ["."])


# ------------------------------------------------------------------------------------------------ other forma
ROWS = [{"image": "a.jpg", "caption": "one, two"}, {"image": "b.jpg", "caption": "three"}]
READ = [("a.jpg", ("one, two",)), ("b.jpg", ("three",))]


@pytest.mark.parametrize(
    "name, content",
    [
        ("rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("rows.json", "\n".join(map(json.dumps, ROWS))),
        (
            "metadata.jsonl",
            '{"file_name": "a.jpg", "text": "one, two"}\n\n{"file_name": "b.jpg", "text": "three", "more": 1}\r\n',
        ),
        ("rows.csv", 'image,caption,image_id\r\na.jpg,"one, two",\r\nb.jpg,three,\r\n'),
        ("rows.tsv", "file_name\ttext\na.jpg\tone, two\nb.jpg\tthree"),
        ("rows.txt", "image;caption\na.jpg;one, two\nb.jpg;three\n"),
        ("utf16.json", json.dumps(ROWS).encode("utf-16")),
        ("utf16.json", json.dumps(ROWS).encode("utf-16-le")),
        ("mark.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
    ],
)
def test_c5_json_lines_tables_and_utf_16_are_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert [(one.path, one.captions) for one in read_annotations([tmp_path / name], [""])] == READ


def test_c5_one_row_of_json_lines_is_a_list_of_one(write):
    assert read_annotations([write("one.jsonl", ROWS[1])], [""])[0].captions == ("three",)


KARPATHY = {
    "dataset": "coco",
    "images": [{"filepath": "val2014", "filename": "a.jpg", "split": "test", "sentences": [{"raw": "one"}]}],
}


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("dataset_coco.json", KARPATHY, "is Karpathy's own file of all parts .* coco_karpathy_train.json"),
        (
            "gbk.json",
            '[{"image": "a.jpg", "caption": "一只红色的猫坐在桌子上"}]'.encode("gbk"),
            "not in UTF-8.* can be read as GB18030.*iconv -f GB18030",
        ),
        (
            "results.csv",
            "image_name| comment_number| comment\n1.jpg| 0| A dog .\n",
            "is a table with bars whose first line is .*expected there the names",
        ),
        ("rows.csv", "a.jpg,one\nb.jpg,two\n", "is a CSV whose first line is 'a.jpg,one'"),
        (
            "rows.csv",
            "image,caption\na.jpg,one, two\n",
            "row 0: expected 2 columns, image, caption; put a text that holds ',' into quotes",
        ),
        (
            "rows.jsonl",
            json.dumps(ROWS[0]) + '\n{"image": "b.jpg", "cap\n',
            "rows.jsonl, line 2 is not a row of JSON Lines: .*correct the line",
        ),
        (
            "rows.json",
            [{"image": "C:\\data\\a.jpg", "caption": "one"}],
            "row 0: image = .* is a path of a Windows host: write it relative",
        ),
        (
            "vqa.json",
            [{"image": "a.jpg", "question": "what?"}],
            "row 0: .*these are questions, which stage 2 is evaluated with",
        ),
        ("page.json", b"<!DOCTYPE html><html>", "is not a JSON file: .*it is an HTML page"),
        ("lfs.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "it is a Git LFS pointer"),
        ("a.json", b"\x89PNG\r\n\x1a\n" + bytes(50), "is no text: it is a PNG picture"),
        ("a.json", b"", "is not a JSON file: it is empty"),
        ("a.json", '[{"image": "a.jpg", "capt', "is not a JSON file: Unterminated string.*get it again"),
    ],
)
def test_c5_the_message_names_what_a_file_is(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(
        content
        if isinstance(content, bytes)
        else (content if isinstance(content, str) else json.dumps(content)).encode()
    )
    with pytest.raises(AnnotationError, match=words) as error:
        read_annotations([path], [""])
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    if "Unterminated" not in words and "empty" not in words and "HTML" not in words and "LFS" not in words:
        assert "get it again" not in str(error.value)  # a sound file is not to be got again


def test_c5_one_byte_that_is_not_utf_8_may_be_damage(write, tmp_path):
    (tmp_path / "a.json").write_bytes('[{"image": "a.jpg", "caption": "caf\xe9"}]'.encode("cp1252"))
    with pytest.raises(
        AnnotationError, match="a.json is text, but not in UTF-8 .byte 35.*or correct that byte"
    ):
        read_annotations([tmp_path / "a.json"], [""])


def test_c5_backslashes_of_windows_are_read_unless_a_file_is_named_so(tmp_path, write):
    file = write(
        "rows.json", [{"image": "val\\a.jpg", "caption": "one"}, {"image": "odd\\b.jpg", "caption": "two"}]
    )
    (tmp_path / "odd\\b.jpg").write_bytes(b"")
    assert [os.path.relpath(one.path, tmp_path) for one in read_annotations([file], [str(tmp_path)])] == [
        "val/a.jpg",
        "odd\\b.jpg",
    ]


@pytest.mark.parametrize(
    "content, words",
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 900 + "]" * 900, "row 0: expected"),
        ('[{"image": "a", "caption": NaN}]', "not a finite number"),
        ('[{"image": "a\\u0000", "caption": "b"}]', "expected the picture's file name"),
        ("9" * 5000, "is not a JSON file"),
    ],
)
def test_b12_damaged_json_is_one_line(write, content, words):
    path = write("deep.json", content)
    with pytest.raises(AnnotationError, match=words) as error:
        read_annotations([path], [""])
    assert path in str(error.value) and len(str(error.value)) < 500


def test_b12_a_pipe_is_no_annotation_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(AnnotationError, match="pipe.json is a pipe or device"):
        read_annotations([tmp_path / "pipe.json"], [""])
