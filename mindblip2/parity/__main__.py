"""Is mindblip2 equal to PyTorch on this machine, with these weights?

    python -m parity run --config blip2_digits --ckpt blip2_digits            the embedded model with its own weights
    python -m parity run --config blip2_stage1_vit_g
    python -m parity run --config blip2_stage1_vit_g --weights blip2_pretrained.pth --vit_path eva_vit_g.pth --ckpt out.ckpt
    python -m parity run --config itt_blip2_stage2_vit_g_llama_7b --only language --llm_path llama-7b-hf
    python -m parity run --config blip2_stage1_vit_g --mode trajectory
    python -m parity dump --config blip2_stage1_vit_g --output torch.npz      on a host with torch
    python -m parity check torch.npz --ckpt out.ckpt --device Ascend          on another, without torch
    python -m parity report result.json                                       the page for people: result.html
    python -m parity weights a.pth b.ckpt                                     do two files hold the same model?
    python -m parity mutations                                                what would be noticed: every deliberate defect

Options without a command mean ``run``. Without --weights and --ckpt the weights are seeded random numbers.
The exit code is 0 only if every row passes, every defect is caught, two files are the same; 1 if not; 2 if a
file or an option is wrong.
"""

import argparse
import difflib
import gc
import os
import sys
import time

os.environ.setdefault("GLOG_v", "3")

# Only what is light: help and errors come at once.
from mindblip2.checkpoint.ckpt import CheckpointError  # noqa: E402
from mindblip2.config.schema import ConfigError  # noqa: E402
from mindblip2.file_io import FileError  # noqa: E402
from mindblip2.parity import seeded_weights  # noqa: E402
from mindblip2.parity.dump_file import DumpError, DumpFile  # noqa: E402
from mindblip2.parity.report import summary, timing
from mindblip2.parity.report.diagnosis import diagnose, said  # noqa: E402
from mindblip2.parity.selection import MODES, Selection  # noqa: E402

COMMANDS = {
    "run": "torch and MindSpore side by side",
    "dump": "write inputs, torch's results and the truth to a .npz",
    "check": "compare MindSpore here with a .npz of dump; needs no torch",
    "report": "a page for people (HTML) from the JSON of a run or check",
    "weights": "do two files hold the same model?",
    "mutations": "the mutation table, in minutes, without any file",
}
EXAMPLE = "python -m parity run --config blip2_digits --ckpt blip2_digits"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = found.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help=COMMANDS["run"])
    what = run.add_mutually_exclusive_group()
    what.add_argument("--config", help="preset or YAML file")
    what.add_argument("--defects", action="store_true", help="the same as the command mutations")
    torch_options(run)
    run.add_argument(
        "--resume",
        metavar="FOLDER",
        help="remember there what was compared; the same command goes on from there",
    )
    run.add_argument("--defect", metavar="NAME", help="run with a deliberate defect, which must fail")
    run.add_argument("--steps", type=int, default=200, help="of --mode trajectory")
    ours_options(run)
    result_options(run)
    dump = commands.add_parser("dump", help=COMMANDS["dump"])
    dump.add_argument("--config", help="preset or YAML file")
    torch_options(dump)
    dump.add_argument("--output", required=True, help="the .npz")
    ckpt_option(dump)
    dump.set_defaults(defect=None)
    check = commands.add_parser("check", help=COMMANDS["check"])
    check.add_argument("dump", help="the .npz")
    selecting(check)
    ours_options(check)
    result_options(check)
    again = commands.add_parser("report", help=COMMANDS["report"])
    again.add_argument("result", help="the .json of --report")
    again.add_argument("--output", help="the .html; default: beside the .json")
    again.add_argument("--mutations", help="the .json of the command mutations, to be shown as well")
    weights = commands.add_parser("weights", help=COMMANDS["weights"])
    weights.add_argument("files", nargs=2, help=".pth, .safetensors, folders or .ckpt")
    mutations = commands.add_parser("mutations", help=COMMANDS["mutations"])
    mutations.add_argument("--report", help="write this JSON")
    mutations.add_argument(
        "--markdown", action="store_true", help="run nothing: print the table of docs/parity_mutations.md"
    )
    return found


def selecting(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--case",
        action="append",
        metavar="PATTERN",
        help="only cases of such names, as in a shell; may be repeated",
    )
    command.add_argument(
        "--mode",
        choices=(*MODES, "trajectory") if command.prog.endswith("run") else MODES,
        help="chained: end to end, errors add up; isolated: each part on the truth's input; default: these and gradients",
    )


def torch_options(command: argparse.ArgumentParser) -> None:
    selecting(command)
    command.add_argument(
        "--weights", "--torch_path", help="blip2_pretrained.pth; default: seeded random weights"
    )
    command.add_argument("--vit_path", help="eva_vit_g.pth, where the first file holds no ViT")
    command.add_argument(
        "--llm_path",
        help="the language model: a file or folder of transformers'; default: seeded random weights",
    )
    command.add_argument(
        "--only", choices=("vision", "language"), help="one half of a stage-2 model; default: both"
    )
    command.add_argument(
        "--blocks", type=int, help="only so many ViT blocks and layers of the language model"
    )
    command.add_argument("--batch", type=int, default=2, help="pictures; the contrastive loss needs two")
    command.add_argument("--seed", type=int, default=seeded_weights.SEED, help="of random weights")
    command.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="in which both sides may round",
    )


def ckpt_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--ckpt",
        "--load_checkpoint",
        help="our side computes from this converted file, or from packaged weights "
        "(blip2_digits); without --weights torch takes the same",
    )


def ours_options(command: argparse.ArgumentParser) -> None:
    ckpt_option(command)
    command.add_argument(
        "--device", choices=("CPU", "Ascend"), help="of our side; default: what the host has"
    )
    command.add_argument(
        "--graph", action="store_true", help="compile each cell of ours; needs --mode isolated"
    )


def result_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--report", help="write this JSON, with a Markdown and an HTML page beside it")
    if command.prog.endswith("check"):
        command.add_argument(
            "--dtype", choices=("float32", "float16", "bfloat16"), help="default: that of the dump"
        )
        command.add_argument(
            "--defect", metavar="NAME", help="check with a deliberate defect, which must fail"
        )
        command.add_argument("--export", metavar="FOLDER", help="write both sides in msprobe's layout too")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = "python -m parity " + " ".join(given)
    if not given or given[0] not in (*COMMANDS, "-h", "--help"):
        if not given or not given[0].startswith("-"):
            print(unknown_command(*given[:1]), file=sys.stderr)
            return 2
        given = ["run", *given]
    options = parser().parse_args(given)
    try:
        complete(options)
        return globals()[f"{options.command}_"](options, command)
    except (CheckpointError, ConfigError, DumpError, FileError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def unknown_command(name: str = "") -> str:
    """What is said where no command, or none that exists, is given."""
    near = difflib.get_close_matches(name, COMMANDS, 1)
    first = (
        f"error: {name!r} is no command of python -m parity"
        + (f"; did you mean {near[0]!r}?" if near else "")
        if name
        else "error: no command was given; expected one of these"
    )
    return "\n".join(
        [first, *(f"  {command:<11}{what}" for command, what in COMMANDS.items()), f"For example: {EXAMPLE}"]
    )


def complete(options: argparse.Namespace) -> None:
    """Check what argparse cannot. Raises :class:`ConfigError`."""
    if options.command in ("run", "dump") and not options.config and not getattr(options, "defects", False):
        more = " --output torch.npz" if options.command == "dump" else ""
        raise ConfigError(
            f"{options.command} needs --config, the preset or YAML file of the model. For example: "
            f"{EXAMPLE.replace(' run ', f' {options.command} ')}{more}"
        )
    defect = getattr(options, "defect", None)
    if defect is not None:
        from mindblip2.parity.defects.mutations import MUTATIONS

        if defect not in MUTATIONS:
            near = difflib.get_close_matches(defect, MUTATIONS, 1)
            raise ConfigError(
                f"--defect {defect!r} is none of the deliberate defects of stage 1"
                + (
                    f"; did you mean {near[0]!r}?"
                    if near
                    else ": python -m parity mutations --markdown lists them"
                )
            )


def run_(options: argparse.Namespace, command: str) -> int:
    if options.defects:
        from mindblip2.parity.defects import mutation_run

        return mutation_run.run_mutations()[1]
    run = imported_run()
    prepare(options)
    start = time.monotonic()
    if options.mode == "trajectory":
        from mindblip2.parity import trajectory

        return finish(options, *trajectory.rows_of(options), command, start, run.weights_of(options))
    return finish(options, run.run(options), {}, command, start, run.weights_of(options))


def dump_(options: argparse.Namespace, command: str) -> int:
    print(imported_run().dump(options))
    return 0


def check_(options: argparse.Namespace, command: str) -> int:
    start, dump = time.monotonic(), DumpFile(options.dump)
    from mindblip2.parity import offline

    prepare(options)
    rows, note = offline.run(dump, options, Selection(tuple(options.case or ()), options.mode))
    return finish(
        options,
        rows,
        {"weights compared": note} if note else {},
        command,
        start,
        options.ckpt or dump.header["weights"],
    )


def report_(options: argparse.Namespace, command: str) -> int:
    from mindblip2.parity.report import page

    print(page.write(options.result, options.output, options.mutations))
    return 0


def weights_(options: argparse.Namespace, command: str) -> int:
    from mindblip2.parity import compare_models

    said, same = compare_models.compared(*options.files)
    print(said)
    return 0 if same else 1


def mutations_(options: argparse.Namespace, command: str) -> int:
    from mindblip2.parity.defects import mutation_docs

    if options.markdown:
        print(mutation_docs.table(), end="")
        return 0
    from mindblip2.parity.defects import mutation_run

    records, code = mutation_run.run_mutations()
    if options.report:
        mutation_docs.write(options.report, records)
    return code


def imported_run():
    """mindblip2.parity.run, with MindSpore and torch. Collecting garbage among what they define takes a sixth
    of the time of their imports."""
    timing.say("importing MindSpore and torch …")
    with timing.phase("imports"):
        gc.disable()
        try:
            from mindblip2.parity import run
        finally:
            gc.enable()
            gc.freeze()
    return run


def prepare(options: argparse.Namespace) -> None:
    """Device and mode of our side."""
    import mindspore as ms

    from mindblip2.parity.model_triple import pynative

    if options.graph and options.mode != "isolated":
        raise ConfigError(
            "--graph compiles single cells and sees no activations within them: add --mode isolated"
        )
    if options.device not in (None, ms.get_context("device_target")):
        try:
            ms.set_device(options.device)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"--device {options.device}: MindSpore {ms.__version__} cannot use it here "
                f"({str(error).strip().splitlines()[0]}); leave it out for what the host has"
            ) from None
    pynative()
    if options.graph:
        ms.set_context(mode=ms.GRAPH_MODE)
    # it can be set only once in a process
    elif __name__ == "__main__" and ms.get_context("device_target") == "CPU":
        ms.runtime.dispatch_threads_num(1)  # more of them spin: a fifth of the processor time


def finish(
    options: argparse.Namespace, rows: list, more: dict, command: str, start: float, weights: str
) -> int:
    """Print, write, decide."""
    found = diagnose(rows)
    print(summary.terminal(rows), *([said(found)] if found else []), sep="\n")
    for name, value in more.items():
        if isinstance(value, str):
            print(f"{name}: {value}")
    if options.report:
        from mindblip2.parity.report import page

        summary.write(
            options.report,
            rows,
            summary.about(command, time.monotonic() - start, weights=weights, **more),
            found,
        )
        page.write(options.report)
    return 0 if summary.all_pass(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
