"""The planner through its door, and its estimate of activations against processes that keep them."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from mindspore import Tensor, ops

import run_blip2
from mindblip2 import ConfigError, device, load_config
from mindblip2.models.blip2_llm import SLOT_STEP, Blip2ImageToTextGeneration
from mindblip2.trainer import activation_memory
from mindblip2.trainer.activation_memory import activation_bytes
from mindblip2.trainer.communication_volume import Step
from mindblip2.trainer.plan import WAYS, cache_bytes, needs, size_of, step_of
from tests.mesh.launch import ROOT, environment
from tests.trainer import kept

DOOR = ["--config", "itt_blip2_digits", "--run_mode", "plan", "--device_target", "CPU"]


def test_the_door_lists_the_meshes_with_what_they_need(capsys):
    rows = run_blip2.run([*DOOR, "--cards", "4", "--device_memory", "32GB"])
    out = capsys.readouterr().out
    assert [(row.data, row.model) for row in rows] == [(4, 1), (2, 2), (1, 4)]
    assert (
        "| data x model |" in out
        and "4 x 1" in out
        and "32 GB are there (computed)" in out
        and "yes |" in out
    )
    assert (
        rows[0].moments[False] == 2 * rows[0].trained + 4
        and rows[0].moments[True] < rows[0].moments[False] / 3
    )
    assert rows[2].frozen < rows[0].frozen / 2 and rows[2].activations[False] < rows[0].activations[False]


def test_what_fits_is_the_first_way_that_does():
    row = needs(load_config("blip2_digits"), 2, 1)
    totals = [row.total(*how) for how in WAYS.values()]
    assert totals[0] > totals[1] > totals[3] and totals[0] > totals[2] > totals[3]
    assert [row.fits(memory) for memory in (totals[0], totals[0] - 1, totals[3], totals[3] - 1)] == [
        "",
        "recompute",
        "both",
        None,
    ]


def test_one_card_sends_nothing(capsys):
    assert not run_blip2.run(DOOR)[0].travels[True]
    assert "nothing travels" in capsys.readouterr().out


def test_frozen_language_models_are_held_in_half_precision_but_on_a_cpu():
    base = load_config("blip2_stage2_vit_g_llama_7b")
    npu, cpu = needs(base, 1, 4), needs(base.replace(context=base.context.replace(device_target="CPU")), 1, 4)
    language = 6738415616 - 4096 * (2 * 32 + 1)  # Llama-7B without its norms, which are float32 and whole
    assert cpu.frozen - npu.frozen == 2 * language / 4 and cpu.trained == npu.trained
    assert device.target() == "CPU"


def test_accumulated_batches_travel_each_and_their_gradients_once():
    base = load_config("blip2_digits")
    once, twice = (
        needs(base.replace(runner_config=base.runner_config.replace(accumulation_steps=lots)), 2, 2)
        for lots in (1, 2)
    )

    def sent(row, when):
        return sum(size * times for (_, _, way, size), times in row.travels[False].items() if way == when)

    assert (
        sent(twice, "forwards") == 2 * sent(once, "forwards") > 0
        and sent(twice, "gradients") == sent(once, "gradients") > 0
    )
    assert twice.gradients == 2 * once.gradients


def test_the_cache_is_what_generation_holds():
    config = load_config(
        "itt_blip2_digits",
        {"context.device_target": "CPU", "generation.num_beams": 3, "generation.max_new_tokens": 30},
    )
    step = step_of(config, 1, 1, "float32", False)
    model = Blip2ImageToTextGeneration(config.model.model_config).set_train(False)
    queries, rows = config.model.model_config.qformer_config.query_length, 3 * config.eval_dataset.batch_size
    length = queries + step.text
    room = -(-(length + 30) // SLOT_STEP) * SLOT_STEP - length
    x = Tensor(np.zeros((rows, length, config.model.model_config.text_config.hidden_size), np.float32))
    buffers = model.llm.prefill(x, ops.ones(x.shape[:2]), room)[1][0]
    assert cache_bytes(config, step) == sum(one.asnumpy().nbytes for pair in buffers for one in pair)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["--device_memory", "64"],
            "--device_memory 64: expected a number and one of MB, GB, MiB, GiB, as in 64GB",
        ),
        (["--device_memory", "much"], "--device_memory much: expected"),
        (["--cards", "0"], "--cards 0: expected a whole number of at least 1"),
    ],
)
def test_mistakes_are_one_clear_line(arguments, words):
    with pytest.raises(ConfigError, match=words):
        run_blip2.run([*DOOR, *arguments])


def test_sizes():
    assert [size_of(text) for text in ("64GB", "32 GiB", "1.5MB")] == [64e9, 32 * 2**30, 1.5e6]


def grown(part, pairs):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "trainer" / "kept.py"), part, str(pairs)],
        check=True,
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        timeout=200,
    )
    return int(done.stdout.split()[-1])


def estimated(part, pairs):
    config = kept.config_of(part)
    step = Step(config, 1, 1, pairs, kept.TEXT, not config.freeze_vision, False, "float32")
    return activation_bytes(step, target="CPU")


@pytest.mark.parametrize(
    "part",
    [
        "stage1",
        "llama",
        *(
            pytest.param(part, marks=pytest.mark.slow)
            for part in kept.PARTS
            if part not in ("stage1", "llama")
        ),
    ],
)
def test_activations_are_within_a_fifth_of_what_a_process_grows_by(part, monkeypatch):
    """16 pairs more: what a process has besides is then left out."""
    measured = grown(part, 24) - grown(part, 8)
    assert abs((estimated(part, 24) - estimated(part, 8)) / measured - 1) < 0.2
    # the control: layers of the Q-Former that keep nothing
    monkeypatch.setattr(activation_memory, "SELF", activation_memory.Copies(0, 0, 0, 0))
    monkeypatch.setattr(
        activation_memory, "LANGUAGE", dict.fromkeys(activation_memory.LANGUAGE, activation_memory.SELF)
    )
    assert abs((estimated(part, 24) - estimated(part, 8)) / measured - 1) > 0.3


SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"for cards in ([0-9 ]+); do python run_blip2.py (.*) --cards \$cards; done", SCALING)


def printed(command, cards, capsys):
    run_blip2.run([*shlex.split(command), "--cards", cards])
    return [cells(line) for line in capsys.readouterr().out.splitlines() if re.match(r"\| +\d", line)]


def cells(line):
    return [cell.strip() for cell in line.split("|")]


@pytest.mark.parametrize(
    "number", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in range(1, len(COMMANDS)))]
)
def test_the_tables_of_the_docs_are_what_their_commands_print(number, capsys):
    assert len(COMMANDS) == 3
    cards, command = COMMANDS[number]
    written = [cells(line) for line in SCALING.split(command)[1].split("###")[0].splitlines()]
    lines = {count: printed(command, count, capsys) for count in cards.split()}
    memory = [
        line for table in lines.values() for line in table if line[-2] in ("yes", "no") or "with" in line[-2]
    ]
    assert len(memory) == 10 and all(line in written for line in [*memory, *lines["8"]])
    other = printed(f"{command} --batch_size 23", "8", capsys)  # the control
    assert not any(line in written for line in other if line[-2] == "yes")
