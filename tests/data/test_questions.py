"""Files of questions about pictures, as LAVIS and VQA write them."""
import json

import pytest

from mindblip2.data.annotations import AnnotationError
from mindblip2.data.questions import Question, asks, question, read_questions


def write(path, rows):
    path.write_text(json.dumps(rows))
    return path


def test_lavis_s_and_vqa_s_answers_are_read(tmp_path):
    file = write(tmp_path / "vqa.json", [
        {"question_id": 7, "image": "val/a.jpg", "question": "what?", "answer": ["cat", "dog"], "dataset": "vqa"},
        {"image": "val/b.jpg", "question": "who?", "answers": [{"answer": "me", "answer_confidence": "yes"}]},
        {"image": "val/b.jpg", "question": "why?", "answer": "so"}, {"image": "val/b.jpg", "question": "when?"}])
    found = read_questions([file], [tmp_path])
    assert found[0] == Question(str(tmp_path / "val" / "a.jpg"), "what?", ("cat", "dog"), 7)
    assert [one.answers for one in found[1:]] == [("me",), ("so",), ()]


def test_questions_are_told_from_captions():
    assert asks([{"image": "a", "question": "b"}]) and asks([Question("a", "b", ())])
    assert not asks([{"image": "a", "caption": "b"}]) and not asks([])


@pytest.mark.parametrize("row, words", [({"image": "a"}, 'row 3: expected {"image", "question", "answer"}, got the keys'),
                                        ({"image": "a", "question": 5}, "question = 5"),
                                        ({"image": "a", "question": "b", "answer": [1]}, "answers = .1,.: expected texts")])
def test_a_row_that_is_none_is_named(row, words):
    with pytest.raises(AnnotationError, match=words.replace("{", r"\{")):
        question(row, "file.json, row 3")
