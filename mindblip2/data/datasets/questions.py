"""Questions about pictures with people's answers: VQA's own pairs of files, and lists as LAVIS writes VQAv2
and OK-VQA.

VQA (v1, v2, OK-VQA) has ``{"questions": [{"image_id", "question", "question_id"}], "data_subtype":
"val2014"}`` in one file and ``{"annotations": [{"question_id", "image_id", "answers": [{"answer"}, …]}]}`` in
another; the pictures are COCO's.  LAVIS's rows are ``{"image": file, "question": text, "answer": text or list
of texts, "question_id"?}``; "answers" is read too.
"""

import logging
import os
from collections.abc import Hashable
from typing import NamedTuple

from mindblip2.data.datasets.annotations import AnnotationError, checked_rows, content_of, picture_name, shown

logger = logging.getLogger("mindblip2")

PAIR = "v2_OpenEnded_mscoco_val2014_questions.json and v2_mscoco_val2014_annotations.json"


class Question(NamedTuple):
    """One question: the picture's path or the picture, its text, and the answers, perhaps none."""

    image: object
    question: str
    answers: tuple
    question_id: object = None


def read_questions(files, image_dirs):
    """The :class:`Question` s of ``files``, or None where the first holds something else, as captions.

    Files of annotations answer the questions of the others, by "question_id".  ``image_dirs``: the folder of
    the pictures for each file, or for each file of questions; for VQA's files also the folder above "val2014"
    and so on.

    Raises FileNotFoundError for a file; AnnotationError, naming file and row, for what it holds, for a file
    of answers or of published questions without its partner, and for questions without an annotation."""
    contents = [content_of(file) for file in files]
    kinds = [_official(content) for content in contents]
    if not kinds[0] and not (isinstance(contents[0], list) and asks(contents[0])):
        return None
    answers = {}
    for file, content, kind in zip(files, contents, kinds):
        answers.update(_annotations(file, content) if kind == "annotations" else {})
    asking = [i for i, kind in enumerate(kinds) if kind != "annotations"]
    if not asking:
        raise AnnotationError(
            f"{', '.join(map(os.path.abspath, files))}: answers, but no file of questions: name both in "
            f"annotation_files, as {PAIR}"
        )
    folders = [image_dirs[i] for i in asking] if len(image_dirs) == len(files) else image_dirs
    if len(folders) != len(asking):
        raise AnnotationError(
            f"{', '.join(map(os.path.abspath, files))}: {len(files)} annotation_files, of questions "
            f"{len(asking)}, and "
            f"{len(image_dirs)} image_dirs: expected one folder for each file of questions"
        )
    found = [
        one
        for i, folder in zip(asking, folders)
        for one in _questions(files[i], contents[i], folder, answers)
    ]
    unasked = set(answers) - {one.question_id for one in found}
    if unasked:
        logger.warning(
            "%d of %d annotations answer questions that are not asked here, first question_id %s",
            len(unasked),
            len(answers),
            min(unasked, key=str),
        )
    return found


def asks(rows):
    """Whether rows of a file, or samples, are questions."""
    first = next(iter(rows), None)
    return isinstance(first, Question) or isinstance(first, dict) and "question" in first


def question(row, where, folder=None):
    """A :class:`Question` of one row of a file, whose pictures lie in ``folder``, or of a sample.  An answer
    that is null is none."""
    if isinstance(row, Question):
        return row
    _check(row, ("image", "question"), where, '{"image", "question", "answer"}')
    answers = row.get("answers", row.get("answer"))
    answers = [answers] if isinstance(answers, str) else () if answers is None else answers
    if isinstance(answers, (list, tuple)):
        answers = tuple(one.get("answer") if isinstance(one, dict) else one for one in answers)
    if (
        not isinstance(row["question"], str)
        or not isinstance(answers, tuple)
        or not all(isinstance(one, str) for one in answers)
    ):
        raise AnnotationError(
            f"{where}: question = {shown(row['question'])}, answers = {shown(answers)}: expected texts"
        )
    number, image = row.get("question_id"), row["image"]
    if not isinstance(number, Hashable):
        raise AnnotationError(f"{where}: question_id = {shown(number)}: expected a number or a text")
    if folder is not None:
        image = os.path.normpath(os.path.join(folder, picture_name(image, where, folder)))
    return Question(image, row["question"], answers, number)


def _official(content):
    """ "questions" or "annotations" of one of VQA's files, else None."""
    for name in ("questions", "annotations"):
        rows = content.get(name) if isinstance(content, dict) else None
        if isinstance(rows, list) and (not rows or isinstance(rows[0], dict) and "question_id" in rows[0]):
            return name
    return None


def _questions(file, content, folder, answers):
    """The questions of one file, with ``answers`` to those that have none of their own."""
    name, official = os.path.abspath(file), _official(content)
    rows = (
        _coco_rows(name, content, folder)
        if official
        else checked_rows(content, file, 'a list of {"image", "question", "answer"}')
    )
    found = [question(row, f"{name}, row {i}", folder) for i, row in enumerate(rows)]
    if answers:
        return _answered(name, rows, found, answers)
    if official and not content["data_subtype"].startswith("test"):
        raise AnnotationError(
            f"{name}: questions, but no file of their answers, which are published: name both in "
            "annotation_files, "
            f"as {PAIR}"
        )
    return found


def _answered(name, rows, found, answers):
    lost = [one.question_id for one in found if not one.answers and one.question_id not in answers]
    if lost:
        raise AnnotationError(
            f"{name}: {len(lost)} of {len(found)} questions have no annotation, first question_id {lost[0]}; "
            "the "
            f"{len(answers)} annotations begin with {next(iter(answers))}: are the files partners, as {PAIR}?"
        )
    for row, one in zip(rows, found):
        image_id = answers[one.question_id]["image_id"] if not one.answers else None
        if None not in (image_id, row.get("image_id")) and image_id != row["image_id"]:
            raise AnnotationError(
                f"{name}: question_id {one.question_id} is about image_id {row['image_id']}, its annotation "
                "about "
                f"{image_id}: the files are not partners"
            )
    return [
        one if one.answers else one._replace(answers=answers[one.question_id]["answers"]) for one in found
    ]


def _coco_rows(name, content, folder):
    """The rows of VQA's questions with the names of COCO's pictures."""
    kind, subset = content.get("data_type", "mscoco"), content.get("data_subtype")
    if kind != "mscoco" or not isinstance(subset, str):
        raise AnnotationError(
            f"{name}: data_type = {shown(kind)}, data_subtype = {shown(subset)}: expected 'mscoco' and "
            "'val2014' or "
            "the like, which name the pictures; write a list of"
            ' {"image", "question", "question_id"}'
        )
    subset = subset.replace("-dev", "")  # the questions of test-dev are about pictures of test
    below = subset if os.path.isdir(os.path.join(folder, subset)) else ""
    rows = checked_rows(content["questions"], name, "questions")
    for i, row in enumerate(rows):
        _check(
            row,
            ("image_id", "question", "question_id"),
            f"{name}, question {i}",
            '{"image_id", "question", "question_id"}',
        )
        if not isinstance(row["image_id"], int) or isinstance(row["image_id"], bool):
            raise AnnotationError(
                f"{name}, question {i}: image_id = {shown(row['image_id'])}: expected COCO's number of a "
                "picture"
            )
    return [
        {**row, "image": os.path.join(below, f"COCO_{subset}_{row['image_id']:012d}.jpg")} for row in rows
    ]


def _annotations(file, content):
    """question_id → {"answers": texts, "image_id"} of one of VQA's files."""
    name, found = os.path.abspath(file), {}
    for i, row in enumerate(checked_rows(content["annotations"], file, "annotations")):
        where = f"{name}, annotation {i}"
        _check(row, ("question_id", "answers"), where, '{"question_id", "image_id", "answers"}')
        if not isinstance(row["question_id"], Hashable):
            raise AnnotationError(
                f"{where}: question_id = {shown(row['question_id'])}: expected a number or a text"
            )
        if row["question_id"] in found:
            raise AnnotationError(
                f"{where}: question_id {row['question_id']} comes twice; get the file again"
            )
        answers = question({"image": "", "question": "", "answers": row["answers"]}, where).answers
        found[row["question_id"]] = {"answers": answers, "image_id": row.get("image_id")}
    return found


def _check(row, keys, where, expected):
    if not isinstance(row, dict) or not set(keys) <= set(row):
        got = f"the keys {shown(sorted(row))}" if isinstance(row, dict) else shown(row)
        raise AnnotationError(f"{where}: expected {expected}, got {got}")
