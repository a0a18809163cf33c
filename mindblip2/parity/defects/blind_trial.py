"""Does the report alone find a defect? One that is drawn at random is put in, a dump is checked, and only
then is it said which it was.

    python -m mindblip2.parity.defects.blind_trial torch.npz --seed 1          one try: the report, then, after "---", what the defect was
    python -m mindblip2.parity.defects.blind_trial torch.npz --tries 10        ten, and how many were pinned

A defect counts as pinned if the place that the report names first must fail by the mutation table, and no
case that is part of it must fail too: then it is the narrowest place that the table knows. Whether the causes
are right is for a reader to judge.
"""

import argparse
import random
import sys

from mindblip2.config import Blip2Config
from mindblip2.config.schema import build
from mindblip2.parity.candidate.weights import seeded
from mindblip2.parity.defects.mutations import MUTATIONS
from mindblip2.parity.dump_file import DumpFile
from mindblip2.parity.model_triple import pynative
from mindblip2.parity.offline import Check, tells
from mindblip2.parity.report.diagnosis import case_of, diagnose, narrowest, said
from mindblip2.parity.selection import Selection


def tried(dump: DumpFile, defect: str) -> tuple[str, str, bool]:
    """(what the report says, the place, whether that is right) of a check with a defect."""
    given = seeded(build(Blip2Config, dump.header["config"]), dump.header["seed"])
    rows = [row for found in Check(dump, given, defect=defect) for row in found]
    found = diagnose(rows)
    if found is None:
        return "all rows pass", "", False
    return said(found), found.place, pinned(found.place, defect, [row.name for row in rows])


def pinned(place: str, defect: str, names: list[str]) -> bool:
    """Is the place the narrowest that must fail?"""
    wanted = Selection(tuple(MUTATIONS[defect].caught.split(", ")))
    expected = [name for name in dict.fromkeys(map(case_of, names)) if wanted.wants(name)]
    isolated = narrowest(name for name in expected if not name.startswith("chained"))
    return place in (isolated or expected)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if every try was pinned."""
    parser = argparse.ArgumentParser(
        prog="python -m mindblip2.parity.defects.blind_trial",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dump", help="a dump of seeded weights")
    parser.add_argument("--tries", type=int, default=1)
    parser.add_argument("--seed", type=int, help="of the draw; default: another each time")
    options = parser.parse_args(arguments)
    pynative()
    dump, right = DumpFile(options.dump), 0
    for defect in random.Random(options.seed).sample(
        sorted(name for name in MUTATIONS if tells(dump, name)), options.tries
    ):
        report, _, good = tried(dump, defect)
        print(f"{report}\n---\n{'pinned' if good else 'NOT PINNED'}: it was {defect!r}\n", flush=True)
        right += good
    print(f"{right} of {options.tries} pinned")
    return int(right < options.tries)


if __name__ == "__main__":
    sys.exit(main())
