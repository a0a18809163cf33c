"""METEOR and SPICE of captions: Java programs that pycocoevalcap brings along.  Without them they are left
out, and a line says why."""

import os
import shutil
import subprocess
from pathlib import Path

from mindblip2.evaluation.metrics.ptb_tokenizer import words

NAMES = ("METEOR", "SPICE")
# SPICE keeps its parses by a library that looks into Java's own classes, which Java allows since release 16
# only if told. Java 8 does not
# read this variable, and needs no leave.
OPENED = " ".join(
    f"--add-opens=java.base/java.{package}=ALL-UNNAMED"
    for package in ("lang", "math", "util", "util.concurrent", "net", "text")
)


def java_scores(captions, references, names=NAMES):
    """``{"METEOR", "SPICE"}`` over all pictures, as far as they can be computed here; both go up to 1.
    ``captions`` and ``references`` as for :func:`mindblip2.evaluation.metrics.captions.caption_scores`."""
    found = {picture: [" ".join(words(caption))] for picture, caption in captions.items()}
    wanted = {picture: [" ".join(words(one)) for one in references[picture]] for picture in captions}
    scores, left_out = {}, {}
    for name in names:
        why = why_not(name)
        if not why:
            try:
                scores[name] = {"METEOR": _meteor, "SPICE": _spice}[name](found, wanted)
                continue
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                why = f"its Java program failed: {error}"
        left_out.setdefault(why, []).append(name)
    for why, those in left_out.items():
        print(f"{' and '.join(those)} left out: {why}")
    return scores


def why_not(name):
    """Why METEOR or SPICE cannot be computed here, and what to do; "" if it can."""
    try:
        from pycocoevalcap.spice import get_stanford_models as models
    except ImportError:
        return "pycocoevalcap is not installed: pip install 'mindblip2[metrics]'"
    if shutil.which("java") is None:
        return "there is no java: install a Java runtime"
    if (
        name == "SPICE"
        and not (Path(models.__file__).parent / models.SPICELIB / f"{models.JAR}.jar").is_file()
    ):
        return (
            "Stanford's parser is not there: python -m pycocoevalcap.spice.get_stanford_models downloads it "
            "once"
        )
    return ""


def _meteor(found, wanted):
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    try:
        return float(meteor.compute_score(wanted, found)[0])
    finally:
        if meteor.lock.locked():  # by a call that failed; its destructor would wait for it for ever
            meteor.lock.release()


def _spice(found, wanted):
    from pycocoevalcap.spice.spice import Spice

    before = os.environ.get("JDK_JAVA_OPTIONS")
    os.environ["JDK_JAVA_OPTIONS"] = OPENED if before is None else f"{before} {OPENED}"
    try:
        return float(Spice().compute_score(wanted, found)[0])
    finally:
        if before is None:
            del os.environ["JDK_JAVA_OPTIONS"]
        else:
            os.environ["JDK_JAVA_OPTIONS"] = before
