"""The command ``mutations``: every deliberate defect on tiny networks."""

from mindblip2.parity.candidate.chained import batch
from mindblip2.parity.cases.language_model import MODELS, LanguageSuite
from mindblip2.parity.compare import failing, not_passing
from mindblip2.parity.defects.language_model import LANGUAGE_MUTATIONS
from mindblip2.parity.defects.mutations import MUTATIONS, verdict_of
from mindblip2.parity.inputs import captions, pictures
from mindblip2.parity.model_triple import pynative
from mindblip2.parity.report.timing import phase
from mindblip2.parity.suite import Suite
from mindblip2.parity.weights import TINY, Weights, make_nets


def suites() -> dict[str, Suite]:
    """All cases on tiny networks: "" is stage 1, the others are the language models by name."""
    pynative()
    inputs = batch(pictures(4, TINY.vision_config.image_size), captions(4, TINY)[0])
    return {"": Suite(make_nets(Weights(TINY), TINY), inputs)} | {
        name: LanguageSuite(name) for name in MODELS
    }


def mutation_table() -> dict:
    """Name of every defect -> (suite, mutation)."""
    return {name: ("", mutation) for name, mutation in MUTATIONS.items()} | LANGUAGE_MUTATIONS


def run_mutations() -> tuple[list[dict], int]:
    """Run every deliberate defect, printing a line for each; returns the lines as records, and the exit
    code."""
    with phase("networks"):
        made = suites()
    with phase("all cases without a defect"):
        rows = {case: found for suite in made.values() for case, found in suite.rows().items()}
    bad, looks = failing(rows), not_passing(rows) - failing(rows)
    named = f", to be looked at: {sorted(looks)}" if looks else ""
    print(
        f"already without a defect: {sorted(bad)}"
        if bad
        else f"without a defect {len(rows)} cases, none fails{named}",
        flush=True,
    )
    records = []
    for name, (suite, mutation) in mutation_table().items():
        verdict, weakest = verdict_of(made[suite], mutation)
        print(f"{verdict}  {name:<40}weakest ratio {weakest:<10.3g}{mutation.caught}", flush=True)
        records.append(
            {"verdict": verdict, "defect": name, "weakest ratio": weakest, "caught": mutation.caught}
        )
    return records, int(bool(bad) or any(record["verdict"] != "caught" for record in records))
