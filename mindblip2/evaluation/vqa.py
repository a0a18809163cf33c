"""Questions about pictures: LAVIS's prompt, and the accuracy of VQA v2 with its normalisation of answers."""

import re

from mindblip2.data.text.cleaning import text_of

PROMPT = "Question: {} Short answer:"  # LAVIS's configurations of VQAv2, OK-VQA and GQA
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = {"a", "an", "the"}
NUMBERS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
NUMBERS["none"] = "0"
# Written without one of their apostrophes they are mended. Not in the list of VQA: "lets", "shes", "wed", and
# those with "I".
CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't "
    "he'd he'd've he's how'd how'll "
    "how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've "
    "o'clock oughtn't 'ow's'at shan't "
    "she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've "
    "someone'll someone's "
    "something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've "
    "they'll they're they've 'twas "
    "wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd "
    "who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll "
    "you're you've"
).split()
MENDED = {
    form[:i] + form[i + 1 :]: form for form in CONTRACTIONS for i, sign in enumerate(form) if sign == "'"
}
MENDED["somebody'd"] = "somebodyd"  # so in the list of VQA
RULES = ("official", "lavis")


def vqa_accuracy(answers, truths, rule="official"):
    """The accuracy (0 to 1) of each question: a list of floats, whose mean is the accuracy of the set.

    ``answers``: one string per question; ``truths``: the answers of people to each, ten in VQA v2.  An answer
    counts as much as a third of the people that gave it, at most 1, averaged over the sets without one of
    them.  Where there is one answer only (GQA), it is right or wrong, normalised: the formula would give 0 to
    a right one.

    ``rule``: "official" is VQA's evaluation since 2021: what is compared is normalised unless the people all
    said the same.  "lavis" always normalises the model's answer, but of the people's answers only the
    punctuation.

    Raises ValueError for lists of other lengths, questions without answers, another rule; TypeError for what
    is no string."""
    if rule not in RULES:
        raise ValueError(f"rule = {rule!r}: expected one of {', '.join(RULES)}")
    if len(answers) != len(truths):
        raise ValueError(f"{len(answers)} answers to {len(truths)} questions: expected one answer for each")
    return [_accuracy(answer, people, rule) for answer, people in zip(answers, truths)]


def normal_answer(answer):
    """An answer in the form in which VQA compares them: no punctuation, lower case, digits, no articles,
    apostrophes mended."""
    words = (NUMBERS.get(word, word) for word in _without_punctuation(_plain(answer)).lower().split())
    return " ".join(MENDED.get(word, word) for word in words if word not in ARTICLES)


def _accuracy(answer, people, rule):
    if isinstance(people, str) or len(people) == 0:
        raise ValueError(f"the people's answers are {people!r}: expected a list of at least one")
    if len(people) == 1:
        return float(normal_answer(answer) == normal_answer(people[0]))
    if rule == "lavis":
        answer = normal_answer(answer)
        people = [_without_punctuation(one) for one in people] if len(set(people)) > 1 else people
    else:
        answer, people = _plain(answer), [_plain(one) for one in people]
        if len(set(people)) > 1:
            answer, people = normal_answer(answer), [normal_answer(one) for one in people]
    agree = [one == answer for one in people]
    return sum(min((sum(agree) - one) / 3, 1.0) for one in agree) / len(people)


def _plain(answer):
    return text_of(answer).replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(answer):
    """Signs beside a space vanish, others become one; a comma between digits makes all of them vanish.  Full
    stops go unless a digit follows."""
    text, number = answer, re.search(r"\d,\d", answer)
    for sign in PUNCTUATION:
        beside = f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if beside or number else " ")
    # VQA's code passes a flag, 32, where the count belongs
    return re.sub(r"\.(?!\d)", "", text, count=32)
