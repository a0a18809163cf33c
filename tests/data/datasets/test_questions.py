"""Files of questions about pictures, as LAVIS and VQA write them."""

import json
import logging

import pytest

from mindblip2.data.datasets.annotations import AnnotationError
from mindblip2.data.datasets.questions import Question, asks, question, read_questions


def write(path, rows):
    path.write_text(json.dumps(rows))
    return path


def test_lavis_s_and_vqa_s_answers_are_read(tmp_path):
    file = write(
        tmp_path / "vqa.json",
        [
            {
                "question_id": 7,
                "image": "val/a.jpg",
                "question": "what?",
                "answer": ["cat", "dog"],
                "dataset": "vqa",
            },
            {
                "image": "val/b.jpg",
                "question": "who?",
                "answers": [{"answer": "me", "answer_confidence": "yes"}],
            },
            {"image": "val/b.jpg", "question": "why?", "answer": "so"},
            {"image": "val/b.jpg", "question": "when?"},
        ],
    )
    found = read_questions([file], [tmp_path])
    assert found[0] == Question(str(tmp_path / "val" / "a.jpg"), "what?", ("cat", "dog"), 7)
    assert [one.answers for one in found[1:]] == [("me",), ("so",), ()]


def test_questions_are_told_from_captions(tmp_path):
    captions = (
        [{"image": "a", "caption": "b"}],
        {"images": [], "annotations": [{"image_id": 1, "id": 2, "caption": "b"}]},
    )
    assert [read_questions([write(tmp_path / "x.json", content)], [tmp_path]) for content in captions] == [
        None,
        None,
    ]
    assert asks([{"image": "a", "question": "b"}]) and asks([Question("a", "b", ())])
    assert not asks([{"image": "a", "caption": "b"}]) and not asks([])


# ------------------------------------------------------------------------------------------------ VQA's pairs
QUESTIONS = [
    {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
    {"image_id": 262148, "question": "What are they in?", "question_id": 262148001},
    {"image_id": 42, "question": "What colour?", "question_id": 42000},
]
HEAD = {"info": {"year": 2017}, "license": {"name": "CC"}, "data_type": "mscoco"}


def annotation(row, *answers, **more):
    return {
        "question_type": "what",
        "multiple_choice_answer": answers[0],
        "image_id": row["image_id"],
        "answer_type": "other",
        "question_id": row["question_id"],
        **more,
        "answers": [
            {"answer": one, "answer_confidence": "yes", "answer_id": i + 1} for i, one in enumerate(answers)
        ],
    }


def pair(folder, questions=QUESTIONS, annotations=None, subset="val2014", **head):
    """The two files, with the answers in another order than the questions."""
    if annotations is None:
        annotations = [
            annotation(row, f"answer {row['question_id']}", "other") for row in reversed(questions)
        ]
    return [
        write(
            folder / f"v2_OpenEnded_mscoco_{subset}_questions.json",
            {**HEAD, "task_type": "Open-Ended", "data_subtype": subset, "questions": questions, **head},
        ),
        write(
            folder / f"v2_mscoco_{subset}_annotations.json",
            {**HEAD, "data_subtype": subset, "annotations": annotations},
        ),
    ]


def test_the_pair_is_joined_by_question_id(tmp_path):
    files = pair(tmp_path)
    found = read_questions(files, [tmp_path])
    assert found[0] == Question(
        str(tmp_path / "COCO_val2014_000000262148.jpg"),
        "Where is he looking?",
        ("answer 262148000", "other"),
        262148000,
    )
    assert [one.question_id for one in found] == [row["question_id"] for row in QUESTIONS]
    assert [one.answers[0] for one in found] == [f"answer {row['question_id']}" for row in QUESTIONS]
    # as it is named
    assert found == read_questions(files[::-1], [tmp_path]) == read_questions(files, [tmp_path, tmp_path])
    # the control
    by_place = json.loads(files[1].read_text())["annotations"]
    assert [one.answers[0] for one in found] != [row["answers"][0]["answer"] for row in by_place]


def test_the_folder_of_the_pictures_may_be_the_one_above(tmp_path):
    (tmp_path / "val2014").mkdir()
    assert read_questions(pair(tmp_path), [tmp_path])[2].image == str(
        tmp_path / "val2014" / "COCO_val2014_000000000042.jpg"
    )
    assert read_questions(pair(tmp_path), [tmp_path / "val2014"])[2].image == str(
        tmp_path / "val2014" / "COCO_val2014_000000000042.jpg"
    )


def test_several_pairs_and_files_of_lavis_are_one_set(tmp_path):
    other = [{"image_id": 7, "question": "Who?", "question_id": 7000}]
    train = pair(tmp_path, other, subset="train2014")
    found = read_questions([*pair(tmp_path), *train], [tmp_path, tmp_path / "train"])
    assert len(found) == 4 and found[3] == Question(
        str(tmp_path / "train" / "COCO_train2014_000000000007.jpg"), "Who?", ("answer 7000", "other"), 7000
    )
    rows = [
        {
            "image": f"val2014/COCO_val2014_{row['image_id']:012d}.jpg",
            "question": row["question"],
            "question_id": row["question_id"],
        }
        for row in QUESTIONS
    ]
    (tmp_path / "val2014").mkdir()
    # LAVIS's list, VQA's answers
    lavis = read_questions([write(tmp_path / "vqa_val_eval.json", rows), pair(tmp_path)[1]], [tmp_path])
    assert lavis == read_questions(pair(tmp_path), [tmp_path])


@pytest.mark.parametrize("subset, pictures", [("test2015", "test2015"), ("test-dev2015", "test2015")])
def test_questions_of_a_test_have_no_answers(tmp_path, subset, pictures):
    found = read_questions(pair(tmp_path, subset=subset)[:1], [tmp_path])
    assert [one.answers for one in found] == [(), (), ()] and found[2].image.endswith(
        f"COCO_{pictures}_000000000042.jpg"
    )


def test_annotations_of_more_questions_are_no_error(tmp_path, caplog):
    files = pair(tmp_path, QUESTIONS[:1], [annotation(row, "x") for row in QUESTIONS])
    with caplog.at_level(logging.WARNING, "mindblip2"):
        assert len(read_questions(files, [tmp_path])) == 1
    assert (
        "2 of 3 annotations answer questions that are not asked here, first question_id 262148001"
        in caplog.text
    )


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda files: files[:1],
            "val2014_questions.json: questions, but no file of their answers, which are published: name both",
        ),
        (
            lambda files: files[1:],
            "val2014_annotations.json: answers, but no file of questions: name both in annotation_files, as "
            "v2_O",
        ),
        (
            lambda files: [*files, files[0]],
            "3 annotation_files, of questions 2, and 1 image_dirs: expected one folder for each file of "
            "quest",
        ),
    ],
)
def test_a_missing_partner_is_named(tmp_path, change, words):
    with pytest.raises(AnnotationError, match=words):
        read_questions(change(pair(tmp_path)), [tmp_path])
    with pytest.raises(FileNotFoundError, match="no annotation file .*nowhere.json"):
        read_questions([pair(tmp_path)[0], tmp_path / "nowhere.json"], [tmp_path])


@pytest.mark.parametrize(
    "made, words",
    [
        (
            dict(annotations=[annotation(QUESTIONS[0], "x")]),
            "2 of 3 questions have no annotation, first question_id 262148001; the 1 "
            "annotations begin with 262148000: are the files partners",
        ),
        (
            dict(annotations=[annotation(row, "x", image_id=1) for row in QUESTIONS]),
            "question_id 262148000 is about image_id 262148, its "
            "annotation about 1: the files are not partners",
        ),
        (
            dict(annotations=[annotation(QUESTIONS[0], "x")] * 2),
            "annotation 1: question_id 262148000 comes twice",
        ),
        (dict(annotations=[{"question_id": 1}]), "annotation 0: expected .*answers.*, got the keys"),
        (dict(questions=[]), "holds a list of length 0; expected questions"),
        (
            dict(questions=[{**QUESTIONS[0], "image_id": "x"}]),
            "question 0: image_id = 'x': expected COCO's number",
        ),
        (dict(questions=[QUESTIONS[0], {"question_id": 3}]), "question 1: expected .*image_id"),
        (
            dict(data_type="abstract_v002"),
            "data_type = 'abstract_v002', data_subtype = 'val2014': expected 'mscoco'",
        ),
        (dict(data_subtype=None), "data_subtype = None: expected 'mscoco' and 'val2014'"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, made, words):
    annotations = made.pop("annotations", [annotation(row, "x") for row in QUESTIONS])
    with pytest.raises(AnnotationError, match=words):
        read_questions(pair(tmp_path, made.pop("questions", QUESTIONS), annotations, **made), [tmp_path])


# ------------------------------------------------------------------------------------------------ rows
@pytest.mark.parametrize(
    "row, words",
    [
        ({"image": "a"}, 'row 3: expected {"image", "question", "answer"}, got the keys'),
        ({"image": "a", "question": 5}, "question = 5"),
        ({"image": "a", "question": "b", "answer": [1]}, "answers = .1,.: expected texts"),
    ],
)
def test_a_row_that_is_none_is_named(row, words):
    with pytest.raises(AnnotationError, match=words.replace("{", r"\{")):
        question(row, "file.json, row 3")


def test_b12_an_answer_that_is_null_is_none(tmp_path):
    rows = [
        {"image": "a.jpg", "question": "what?", "answer": None},
        {"image": "a.jpg", "question": "what?", "answer": ["x"]},
    ]
    assert [one.answers for one in read_questions([write(tmp_path / "a.json", rows)], [tmp_path])] == [
        (),
        ("x",),
    ]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"question_id": [1]}, r"question_id = \[1\]: expected a number or a text"),
        ({"answer": 5}, "answers = 5: expected texts"),
        ({"answer": [None]}, "answers = .None,.: expected texts"),
        ({"image": 5}, "image = 5: expected the picture's file name"),
        ({"answers": {"a": 1}}, "expected texts"),
    ],
)
def test_b12_values_of_another_type_name_file_and_row(tmp_path, change, words):
    row = {"image": "a.jpg", "question": "what?", "answer": "x", "question_id": 1}
    assert len(read_questions([write(tmp_path / "a.json", [row])], [tmp_path])) == 1
    with pytest.raises(AnnotationError, match=f"a.json, row 0.*{words}"):
        read_questions([write(tmp_path / "a.json", [{**row, **change}])], [tmp_path])


def test_b12_a_list_as_question_id_of_an_annotation(tmp_path):
    with pytest.raises(AnnotationError, match=r"annotation 0: question_id = \[7\]"):
        read_questions(
            pair(tmp_path, annotations=[{**annotation(QUESTIONS[0], "x"), "question_id": [7]}]), [tmp_path]
        )
