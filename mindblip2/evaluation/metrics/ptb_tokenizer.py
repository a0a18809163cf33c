"""Words of captions as the caption metrics count them: Stanford's PTB tokenizer 3.4.1, without Java.

pycocoevalcap runs that tokenizer over captions and answers, in lower case, and then drops punctuation.  What
is here does the same to captions; tests/evaluation/metrics/test_ptb_tokenizer.py holds it to measured output.
Not covered: smileys that are not two or three signs, addresses that are no plain web or mail address.
"""

import re
import unicodedata

DROPPED = {
    "''",
    "'",
    "``",
    "`",
    "-LRB-",
    "-RRB-",
    "-LCB-",
    "-RCB-",
    ".",
    "?",
    "!",
    ",",
    ":",
    "-",
    "--",
    "...",
    ";",
}
WRITTEN = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "£": "#",
    "€": "$",
    "¢": "cents",
    "&amp;": "&",
    "½": "1/2",
    "¼": "1/4",
    "¾": "3/4",
    "…": "...",
    "–": "--",
    "—": "--",
    "―": "--",
    "“": "''",
    "”": "''",
    '"': "''",
    "«": "''",
    "»": "''",
    "’": "'",
    "‘": "'",
}
# Abbreviations keep their full stop, wherever they stand; those of the second line only with a capital.
ABBREVIATIONS = (
    "mr mrs ms drs? profs? sens? reps? attys? lt col gen messrs govs? adm rev maj sgt cpl pvt capt ste? ave "
    "pres lieut hon "
    "brig co?mdr pfc spc supts? det jr sr bros blvd rd esq inc cos? corp ptys? ltd plc bancorp dept bhd assn "
    "univ intl sys "
    "ph jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thu thurs fri calif conn fla colo kan "
    "mich minn mont "
    "nev okla tenn wis ariz ga ind ky md mo neb va vt wyo ala dak penn etc vs al est ext ft mt tel seq cf sq "
    "bldg mfg"
)
CAPITALS = "Miss Mass Ill La Ore Tex Wash Ark Del Pa"

NUMBER = r"(?:\d*(?:[.:,]\d+)+|\d+)"
WORD = r"[^\W_]+(?:_+[^\W_]+)*"
APOSTROPHE = "['’]"
TOKEN = re.compile(
    "|".join(
        [
            r"</?[A-Za-z][^<>\n]*>",
            r"(?i:https?://)[^\s\"<>|()]+\.[^\s\"<>|()]*[^\s\"<>|.!?,;:()]",
            r"(?i:www\.)(?:[\w-]+\.)+[\w/?=&%#~-]*[\w/]",
            r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*",
            r"[\w-]+\.(?:com|net|org|edu|gov)\b(?:/[^\s\"<>|()]*[^\s\"<>|.!?,;:()])?",
            r"[@#][A-Za-z_]\w*",
            r"&amp;",
            r"[:;]-?[()]",
            # apostrophes
            rf"[Yy]{APOSTROPHE}(?=all\b)",
            rf"(?:[OoDdLlCc]|[Qq]u){APOSTROPHE}[^\W\d_]{{2,}}",
            rf"(?i:ma{APOSTROPHE}am)\b",
            rf"{APOSTROPHE}(?i:n{APOSTROPHE}|em\b|til\b|cause\b|t(?=is\b|was\b))",
            rf"(?<![^\W_]){APOSTROPHE}\d\ds?\b",
            rf"[DdJjLl]{APOSTROPHE}(?=[^\W\d_])",
            rf"{APOSTROPHE}(?i:s|m|d|re|ve|ll|n)(?![^\W_])",
            rf"[Nn]{APOSTROPHE}[Tt]s?(?!\w)",
            r"n`t\b",
            r"(?i:can(?=not(?![\w'-])))",
            r"(?i:(?:gon|wan)(?=na(?![\w'-])))",
            r"(?i:got(?=ta(?![\w'-])))",
            r"(?i:(?:lem|gim)(?=me(?![\w'-])))",
            # full stops
            r"(?:[A-Za-z]\.){2,}-\w+",
            r"(?i:ph|ed)\.(?i:d)\.",
            r"[A-Za-z][A-Za-z0-9]*(?:\.[A-Za-z][A-Za-z0-9]*)+(?![\w.])",
            r"(?:[A-Za-z]\.){2,}",
            r"[a-z](?=\.\s+[A-Z])",
            r"[A-Za-z]\.(?!\.)",
            r"[A-Za-z][A-Za-z0-9]*(?:\.[A-Za-z][A-Za-z0-9]*)+",
            rf"(?i:{ABBREVIATIONS.replace(' ', '|')})\.(?!\w)",
            rf"(?:{CAPITALS.replace(' ', '|')})\.(?!\w)",
            r"(?i:nos?|figs?|ca|pp)\.(?=\s*\d)",
            r"\.{3,}",
            r"\.(?: \.){2,}",
            # numbers and words
            r"\d+[ \xa0]\d+/\d+(?![\w/])",
            r"[A-Z]+(?:[+&][A-Z]+)+\b",
            r"[A-Za-z]\+\+|[CFcf]#|(?:US|HK|NZ|A|C)\$",
            r"--+",
            rf"\d+[^\W\d_]\w*(?:[-‐]{WORD})*(?:/{WORD}){{0,2}}(?!\w)",
            rf"[+-]?{NUMBER}(?:[-‐/](?:{NUMBER}(?!\w)|{WORD}))*",
            rf"[^\W_]+?(?=[Nn]{APOSTROPHE}[Tt]s?(?!\w)|n`t\b)",
            rf"{WORD}(?:[?!]{WORD})+",
            rf"{WORD}(?:[-‐]{WORD})*(?:/{WORD}(?:[-‐]{WORD})*){{0,2}}",
            r"[?!]+",
            r"\*+",
            r"_+",
            "``|''",
            r"\S",
        ]
    )
)
FRACTION = re.compile("[½¼¾]")


def words(caption):
    """The words of a caption that count, in lower case: ``"A dog's toy."`` gives ``["a", "dog", "'s",
    "toy"]``."""
    caption = FRACTION.sub(
        lambda match: f"\u2060{WRITTEN[match.group()]}\u2060", caption.replace("\n", " ").replace("\xad", "")
    )
    written = (_written(match.group()) for match in TOKEN.finditer(caption))
    return [word for token in written for word in token if word not in DROPPED]


def _written(token):
    if token in WRITTEN:
        return [WRITTEN[token]]
    if not _known(token[0]):
        return []
    if re.fullmatch(r"\.[. ]+\.", token):
        return ["..."]
    if re.fullmatch("--+", token):
        return ["--"]
    token = token.lower() if token[1:2].isdigit() else token.lower().replace("’", "'")
    if token[0] in ":;" and token[-1] in "()":
        return [token[:-1] + WRITTEN[token[-1]]]
    return [token.replace(" ", "\xa0")]


def _known(sign):
    """Whether the tokenizer has a rule for a sign; others (emoji, most currencies) are like spaces to it."""
    return ord(sign) < 0x10000 and (
        unicodedata.category(sign) not in ("Cf", "Cc", "Cn", "Sc") or sign in "$¥"
    )
