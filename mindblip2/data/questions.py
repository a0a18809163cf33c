"""Questions about pictures with people's answers, as LAVIS writes VQAv2 and OK-VQA: JSON lists of
``{"image": file, "question": text, "answer": text or list of texts, "question_id"?}``; "answers" is read too, and entries
``{"answer": text}`` of VQA's own files."""
import os
from typing import NamedTuple

from mindblip2.data.annotations import AnnotationError, rows_of


class Question(NamedTuple):
    """One question: the picture's path or the picture, its text, and the answers, perhaps none."""
    image: object
    question: str
    answers: tuple
    question_id: object = None


def read_questions(files, image_dirs):
    """The :class:`Question` s of ``files``, whose pictures lie under the ``image_dirs`` of the same place.

    Raises FileNotFoundError for a file, AnnotationError, naming file and row, for what it holds."""
    if len(files) != len(image_dirs):
        raise AnnotationError(f"{len(files)} annotation_files and {len(image_dirs)} image_dirs: expected one folder for each file")
    return [question(row, f"{os.path.abspath(file)}, row {i}", folder)
            for file, folder in zip(files, image_dirs) for i, row in enumerate(rows_of(file))]


def asks(rows):
    """Whether rows of a file, or samples, are questions."""
    first = next(iter(rows), None)
    return isinstance(first, Question) or isinstance(first, dict) and "question" in first


def question(row, where, folder=""):
    """A :class:`Question` of one row or sample."""
    if isinstance(row, Question):
        return row
    if not isinstance(row, dict) or not {"image", "question"} <= set(row):
        got = f"the keys {sorted(row)}" if isinstance(row, dict) else repr(row)[:60]
        raise AnnotationError(f"{where}: expected" ' {"image", "question", "answer"}, ' f"got {got}")
    answers = row.get("answers", row.get("answer", ()))
    answers = [answers] if isinstance(answers, str) else answers
    answers = tuple(one.get("answer") if isinstance(one, dict) else one for one in answers)
    if not isinstance(row["question"], str) or not all(isinstance(one, str) for one in answers):
        raise AnnotationError(f"{where}: question = {row['question']!r}, answers = {repr(answers)[:80]}: expected texts")
    image = os.path.normpath(os.path.join(folder, row["image"])) if folder and isinstance(row["image"], str) else row["image"]
    return Question(image, row["question"], answers, row.get("question_id"))
