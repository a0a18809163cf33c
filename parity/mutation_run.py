"""The command ``mutations``: every deliberate defect on tiny networks."""

from parity.compare import failing, not_passing
from parity.inputs import captions, pictures
from parity.llm_cases import MODELS, LanguageSuite
from parity.llm_defects import LANGUAGE_MUTATIONS
from parity.mutations import MUTATIONS, verdict_of
from parity.nets import pynative
from parity.ours_chained import batch
from parity.phases import phase
from parity.suite import Suite
from parity.weights import TINY, Weights, make_nets


def suites() -> dict[str, Suite]:
    """All cases on tiny networks: "" is stage 1, the others are the language models by name."""
    pynative()
    inputs = batch(pictures(4, TINY.vision_config.image_size), captions(4, TINY)[0])
    return {"": Suite(make_nets(Weights(TINY), TINY), inputs)} | {name: LanguageSuite(name) for name in MODELS}


def mutation_table() -> dict:
    """Name of every defect -> (suite, mutation)."""
    return {name: ("", mutation) for name, mutation in MUTATIONS.items()} | LANGUAGE_MUTATIONS


def run_mutations() -> tuple[list[dict], int]:
    """Run every deliberate defect, printing a line for each; returns the lines as records, and the exit code."""
    with phase("networks"):
        made = suites()
    with phase("all cases without a defect"):
        rows = {case: found for suite in made.values() for case, found in suite.rows().items()}
    bad, looks = failing(rows), not_passing(rows) - failing(rows)
    named = f", to be looked at: {sorted(looks)}" if looks else ""
    print(f"already without a defect: {sorted(bad)}" if bad else f"without a defect {len(rows)} cases, none fails{named}", flush=True)
    records = []
    for name, (suite, mutation) in mutation_table().items():
        verdict, weakest = verdict_of(made[suite], mutation)
        print(f"{verdict}  {name:<40}weakest ratio {weakest:<10.3g}{mutation.caught}", flush=True)
        records.append({"verdict": verdict, "defect": name, "weakest ratio": weakest, "caught": mutation.caught})
    return records, int(bool(bad) or any(record["verdict"] != "caught" for record in records))
