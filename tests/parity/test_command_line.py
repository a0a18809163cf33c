"""``python -m parity``: what is said where the command line is incomplete, and where the time goes."""

import subprocess
import sys

import pytest

from mindblip2.parity.__main__ import COMMANDS, main


def said(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_c10_without_a_command_the_commands_are_named(capsys):
    lines = said(capsys).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(COMMANDS) and lines[0].startswith(
        "error: no command"
    )
    assert lines[-1] == "For example: python -m parity run --config blip2_digits --ckpt blip2_digits"


def test_c10_an_unknown_command_names_the_nearest(capsys):
    assert "'frobnicate' is no command of python -m parity\n" in said(capsys, "frobnicate")
    assert "did you mean 'check'?" in said(capsys, "chekc", "torch.npz")
    assert "did you mean 'mutations'?" in said(capsys, "mutation")


@pytest.mark.parametrize("command", ["run", "dump"])
def test_c10_a_missing_configuration_comes_with_an_example(capsys, command):
    line = said(capsys, *([command, "--output", "x.npz"] if command == "dump" else [command]))
    assert (
        line.startswith(f"error: {command} needs --config")
        and f"python -m parity {command} --config blip2_digits" in line
    )
    assert line.count("\n") == 1


def test_c10_a_device_that_this_wheel_never_has_is_not_offered(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--config", "blip2_digits", "--device", "GPU"])
    assert ended.value.code == 2 and "invalid choice: 'GPU'" in capsys.readouterr().err


def test_c10_help_and_errors_need_neither_mindspore_nor_torch():
    code = (
        "import sys; from mindblip2.parity.__main__ import main; main(['frobnicate']); heavy = {'mindspore', "
        "'torch', 'transformers'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); import "
        "mindblip2.parity.model_triple; assert 'mindspore' in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).returncode == 0


def test_c13_a_run_says_where_its_time_goes(capsys):
    """The control: a run of other cases has no line for what it does not do."""
    arguments = ["run", "--config", "blip2_digits", "--blocks", "1", "--mode", "isolated", "--case", "read"]
    assert main(arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "importing MindSpore and torch …"
    names = [line.partition(":")[0] for line in lines]
    assert names[1:] == [
        "imports",
        "weights and networks",
        "ViT, 1 blocks",
        "Q-Former and losses",
        "compared",
        "of this",
    ]
    assert "MindSpore " in lines[-1] and "torch in float64 " in lines[-1] and "\r" not in "".join(lines)


@pytest.mark.parametrize(
    "small, parts",
    [(256 * 2**20, {"stage1", "stage1.losses"}), (0, {"stage1.losses"} | {f"stage1.{k}" for k in range(6)})],
)
def test_c13_gradients_that_fit_are_taken_at_once(small, parts, monkeypatch):
    from mindblip2.config import load_config
    from mindblip2.parity import streaming
    from mindblip2.parity.inputs import captions, pictures
    from mindblip2.parity.result_sinks import ComparingSink
    from mindblip2.parity.weights import Weights

    monkeypatch.setattr(streaming, "SMALL", small)
    config, seen = load_config("blip2_digits").model.model_config, []

    class Names(ComparingSink):
        def case(self, case, nets):
            seen.append(case)
            return []

    window = streaming.Window(Weights(config), config)
    for _ in streaming.Stream(window, pictures(2, 48), captions(2, config), 1, Names()):
        pass
    found = {case.name: case.weights for case in seen if case.name.startswith("stage1")}
    assert set(found) == parts
    trained = sorted(name for weights in found.values() for name in weights)
    assert trained == sorted(parameter.name for parameter in window.nets.ours.trainable_params())
