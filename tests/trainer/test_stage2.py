"""Stage 2 through the loop of stage 1: it learns, leaves alone what is frozen, resumes bit for bit, starts
from stage 1."""

import mindspore as ms
import numpy as np
import pytest

from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError, write_checkpoint
from mindblip2.config import Blip2Config, LlamaConfig, OPTConfig, OptimizerConfig, load_config
from mindblip2.config.schema import ConfigError
from mindblip2.models import opt
from mindblip2.models.blip2_llm import Blip2ImageToTextGeneration
from mindblip2.models.blip2_qformer import Blip2Qformer
from mindblip2.models.layers import FeedForward
from mindblip2.models.llama import SwiGLU
from mindblip2.trainer import Trainer
from mindblip2.trainer.data_sources import prompt_of
from mindblip2.trainer.tasks.pretrain import recompute
from mindblip2.trainer.train_step import TrainStep
from tests import stage2_small

pytestmark = pytest.mark.usefixtures("here")


def train(small, checkpoint=None, samples=None, **overrides):
    config = load_config(
        small.yaml,
        {
            "output_dir": "run",
            "context.mode": 1,
            **{key.replace("__", "."): value for key, value in overrides.items()},
        },
    )
    trainer = Trainer(args=config, train_dataset=samples or stage2_small.samples(small.pictures))
    return trainer, trainer.train(checkpoint or small.ckpt)


def values(model):
    return {name: p.asnumpy().copy() for name, p in model.parameters_dict().items()}


def test_a_run_lowers_the_loss_and_moves_only_what_is_trained(small, capsys):
    """Beside a run that learns nothing from the same batches and draws of dropout, so that the distance is
    what was learnt."""
    trainer, log = train(
        small,
        runner_config__epochs=6,
        train_dataset__text_transforms__prompt="a photo of ",
        lr_schedule__learning_rate=2e-2,
    )
    still, same = train(
        small,
        runner_config__epochs=6,
        train_dataset__text_transforms__prompt="a photo of ",
        output_dir="still",
        # the control
        lr_schedule__learning_rate=0,
        lr_schedule__warmup_lr_init=0,
        lr_schedule__lr_end=0,
    )
    assert (
        log[-1]["loss"] < same[-1]["loss"] - 0.07
        and log[-1]["lm"] == log[-1]["loss"]
        and 0 <= log[-1]["word_acc"] <= 1
    )
    before, after = Checkpoint(small.ckpt), values(trainer.model)
    moved = {name.split(".")[0] for name in after if not np.array_equal(after[name], before[name])}
    assert moved == {"ln_vision", "qformer", "llm_proj"}
    assert all(np.array_equal(value, before[name]) for name, value in values(still.model).items())
    out = capsys.readouterr().out
    assert "each after 'a photo of '" in out and f"started from {small.ckpt}" in out
    assert "(what was trained; the rest is in" in out
    text = trainer.predict(small.pictures["red"], max_new_tokens=3)  # a trained model can be asked
    assert len(text) == 1 and text[0].startswith("a photo of")


def test_a_resumed_run_is_the_uninterrupted_one(small):
    whole, log = train(small, output_dir="whole")
    train(small, output_dir="parts", runner_config__save_steps=1)
    parts, again = train(
        small,
        small.ckpt,
        output_dir="parts",
        runner_config__save_steps=1,
        resume_training="parts/checkpoint/rank_0/step_0000002",
    )
    assert [entry["loss"] for entry in again] == [entry["loss"] for entry in log]
    one, other = values(whole.model), values(parts.model)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_workers_do_not_change_the_run(small):
    """The text goes through processes, tokenizer and all (tests/data/text/test_prompting_workers.py)."""
    said = {"train_dataset__text_transforms__prompt": "a photo of ", "runner_config__log_every": 1}
    _, alone = train(small, **said)
    _, helped = train(small, output_dir="helped", train_dataset__num_parallel_workers=2, **said)
    # the control
    _, other = train(small, output_dir="other", seed=43, train_dataset__num_parallel_workers=2, **said)
    losses = [[entry["loss"] for entry in log] for log in (alone, helped, other)]
    assert losses[0] == losses[1] != losses[2] and len(losses[0]) == 4


def test_a_resumed_run_wants_the_same_language_model(small, tmp_path):
    bridge, llm = split(small, tmp_path)
    both = {"model__model_config__text_config__checkpoint_name_or_path": llm, "runner_config__epochs": 1}
    train(small, bridge, **both)
    held = Checkpoint("run/checkpoint/rank_0/step_0000002/model.ckpt")
    # 7B of frozen weights are not saved again
    assert {name.split(".")[0] for name in held} == {"ln_vision", "qformer", "llm_proj"}
    changed = {name: Checkpoint(llm)[name] for name in Checkpoint(llm)}
    changed["llm.norm.gamma"] = changed["llm.norm.gamma"] + 1
    write_checkpoint("other.ckpt", ((name, "Float32", value) for name, value in changed.items()))
    with pytest.raises(CheckpointError, match="is not the file that .* was trained on: its weights differ"):
        train(
            small,
            bridge,
            **{**both, "model__model_config__text_config__checkpoint_name_or_path": "other.ckpt"},
            resume_training=True,
        )
    train(small, bridge, **both, resume_training=True)


def split(small, folder):
    """The weights as two files: the language model's, and the rest."""
    stored = Checkpoint(small.ckpt)
    for name, mine in (("bridge", False), ("llm", True)):
        write_checkpoint(
            folder / f"{name}.ckpt",
            ((n, "Float32", stored[n]) for n in stored if n.startswith("llm.") is mine),
        )
    return str(folder / "bridge.ckpt"), str(folder / "llm.ckpt")


def test_training_starts_from_a_file_of_stage_1(small, tmp_path, capsys):
    _, llm = split(small, tmp_path)
    first = Blip2Qformer(load_config(small.yaml).model.model_config.replace(text_config=None))
    first.save_checkpoint("one.ckpt")
    trainer, log = train(
        small,
        "one.ckpt",
        model__model_config__text_config__checkpoint_name_or_path=llm,
        runner_config__epochs=1,
    )
    out = capsys.readouterr().out
    assert (
        "started from one.ckpt: vit" in out
        and "left out: " in out
        and "new, with random values: llm_proj 2" in out
    )
    after = values(trainer.model)
    assert np.array_equal(after["vit.pos_embed"], first.vit.pos_embed.asnumpy()) and len(log) == 1


def test_the_step_takes_the_lengths_of_the_batch(small):
    model = Blip2ImageToTextGeneration(load_config(small.yaml).model.model_config).load_checkpoint(small.ckpt)
    batch = {
        "image": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32),
        "input_ids": np.array([[2, 40, 41, 42, 5], [2, 40, 43, 5, 1]], np.int32),
    }
    step = TrainStep(model, OptimizerConfig())
    plain = step([batch], 0.0)
    assert set(plain) == {"loss", "lm", "word_acc", "grad_norm", "skipped"}
    said = {"length": np.array([5, 4], np.int32), "prompt_length": np.array([0, 0], np.int32)}
    assert step([{**batch, **said}], 0.0)["loss"] == pytest.approx(plain["loss"], abs=1e-6)
    assert (
        abs(
            step([{**batch, **said, "prompt_length": np.array([2, 2], np.int32)}], 0.0)["loss"]
            - plain["loss"]
        )
        > 1e-3
    )


WORDS = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 32,
    "initializer_range": None,
}


@pytest.mark.slow  # two compilations of the training graph
@pytest.mark.parametrize(
    "text, theirs",
    [
        (OPTConfig(**WORDS, eos_token_id=5, max_position_embeddings=20), opt.FeedForward),
        (LlamaConfig(**WORDS), SwiGLU),
    ],
    ids=["opt", "llama"],
)
def test_recomputed_parts_give_the_same_step(text, theirs):
    """Loss, all gradients and the updated parameters, bit for bit; the Q-Former's dropout is drawn in
    both."""
    ms.set_context(mode=ms.GRAPH_MODE)
    random, config = (
        np.random.default_rng(0),
        Blip2Config(
            max_txt_len=8,
            vision_config=stage2_small.VISION,
            qformer_config=stage2_small.QFORMER,
            text_config=text,
        ),
    )
    batch = {
        "image": random.standard_normal((2, 3, 16, 16)).astype(np.float32),
        "input_ids": random.integers(6, 60, (2, 6)).astype(np.int32),
    }

    def stepped(again):
        ms.set_seed(3)
        model = Blip2ImageToTextGeneration(config).set_train()
        if again:
            recompute(model)
        marked = {type(cell) for _, cell in model.cells_and_names() if "output_recompute" in cell.get_flags()}
        # the Q-Former's and the language model's
        assert marked == ({FeedForward, theirs} if again else set())
        step, found = TrainStep(model, OptimizerConfig()), []
        for seed in (6, 5):
            model.noise.set(seed, 0)
            found.append([gradient.asnumpy() for gradient in step._gradients(batch)[2]])
        model.noise.set(5, 0)
        return (
            *found,
            step([batch], 1e-2),
            {name: value for name, value in values(model).items() if not name.startswith("vit")},
        )

    (other, plain, numbers, after), (_, again, same, recomputed) = stepped(False), stepped(True)
    assert same == numbers and all(map(np.array_equal, again, plain)) and len(plain) > 40
    assert all(np.array_equal(recomputed[name], after[name]) for name in after)
    assert sum(map(np.array_equal, other, plain)) < len(plain) / 2  # the control: another draw of dropout


def test_held_out_losses_choose_the_best_checkpoint(small, capsys):
    config = load_config(small.yaml, {"output_dir": "run", "runner_config.epochs": 1, "context.mode": 1})
    trainer = Trainer(
        args=config,
        train_dataset=stage2_small.samples(small.pictures),
        eval_dataset=stage2_small.samples(small.pictures)[:4],
    )
    log = trainer.train(small.ckpt)
    assert any("eval_loss" in entry and "eval_word_acc" in entry for entry in log)
    assert "step_0000002 (" in capsys.readouterr().out


def test_a_model_of_the_user_is_read_and_not_the_run_s_configuration(small):
    """Both feeds take the language model's ids from the model: the run's configuration may have none."""
    config = load_config(small.yaml, {"output_dir": "run", "runner_config.epochs": 1, "context.mode": 1})
    model, pairs = Blip2ImageToTextGeneration(config.model.model_config), stage2_small.samples(small.pictures)
    plain = config.replace(model={"model_config": {"text_config": None}})
    log = Trainer(args=plain, model=model, train_dataset=pairs, eval_dataset=pairs[:4]).train(small.ckpt)
    same = Trainer(args=config.replace(output_dir="same"), train_dataset=pairs, eval_dataset=pairs[:4]).train(
        small.ckpt
    )
    assert plain.model.model_config.text_config is None
    numbers = [
        [entry[name] for entry in run for name in ("loss", "eval_loss") if name in entry]
        for run in (log, same)
    ]
    assert numbers[0] == numbers[1] and len(numbers[0]) == 2


# ------------------------------------------------------------------------------------------------ the prompt
def test_the_prompt_may_stand_at_either_place(small):
    text, own = "train_dataset.text_transforms.prompt", "model.model_config.prompt"
    assert (
        prompt_of(load_config(small.yaml, {text: "a "}))
        == prompt_of(load_config(small.yaml, {own: "a "}))
        == "a "
    )
    assert (
        prompt_of(load_config(small.yaml, {own: True, text: "a "})) == "a "
        and prompt_of(load_config(small.yaml)) == ""
    )
    with pytest.raises(ConfigError, match="give both the same"):
        prompt_of(load_config(small.yaml, {text: "a ", own: "b "}))


def test_what_does_not_fit_is_said_before_the_first_step(small):
    with pytest.raises(ValueError, match="leaves no room for a caption"):
        train(small, train_dataset__text_transforms__prompt="a photo of " * 9)
    with pytest.raises(ConfigError, match="texts of 16 tokens, but the model has 6 positions for them"):
        Trainer(
            args=load_config(
                small.yaml, {"model.model_config.text_config.max_position_embeddings": 10, "context.mode": 1}
            ),
            train_dataset=stage2_small.samples(small.pictures),
        ).train()
