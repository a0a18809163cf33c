"""Captions scored on the way in training of stage 2: the figures of the evaluation, the best checkpoint by
them, an undisturbed run."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mindblip2.checkpoint.ckpt import Checkpoint
from mindblip2.config import load_config
from mindblip2.config.schema import ConfigError
from mindblip2.data.processor import Blip2Processor
from mindblip2.data.text.prompting import PromptedText
from mindblip2.models.blip2_llm import Blip2ImageToTextGeneration, Blip2Llm
from mindblip2.trainer import Trainer, caption_evaluator
from tests import stage2_small
from tests.trainer.small import Numbers, held_out_losses, held_out_samples, run_config, small_model

RATE = {
    "lr_schedule.learning_rate": 0.1,
    "eval_step_interval": 1,
    "runner_config.log_every": 1,
    "runner_config.keep_checkpoint_max": 9,
}
FOLDER = Path("run/checkpoint/rank_0")
# those that are always computed
SCORES = [name for name in caption_evaluator.SCORES if name not in caption_evaluator.JAVA]

pytestmark = pytest.mark.usefixtures("here")


def held_out(small, red="red", rest="something else"):
    """The four pictures; only the red one can be described well."""
    return [
        {"image": path, "caption": [red, "a red square"] if colour == "red" else [f"{rest} {colour}"]}
        for colour, path in small.pictures.items()
    ]


def configured(small, **changes):
    return load_config(
        small.yaml,
        {
            "output_dir": "run",
            "context.mode": 1,
            "generation.max_new_tokens": 4,
            "generation.num_beams": 2,
            "eval_dataset.batch_size": 3,
            **RATE,
            **{key.replace("__", "."): value for key, value in changes.items()},
        },
    )


def train(small, eval_dataset=None, **changes):
    """The log of a run of four steps."""
    trainer = Trainer(
        args=configured(small, **changes),
        train_dataset=stage2_small.samples(small.pictures),
        eval_dataset=eval_dataset,
    )
    return trainer.train(small.ckpt)


def judged(log):
    return [entry for entry in log if "eval_seconds" in entry]


def best():
    return json.loads((FOLDER / "best.json").read_text())


@pytest.fixture(scope="module")
def written(small, tmp_path_factory):
    """What is written about the red picture after each of the four steps."""
    texts, real = [], caption_evaluator.write
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("written"))
        patch.setattr(caption_evaluator, "write", lambda *given: texts.append(real(*given)) or texts[-1])
        train(small, held_out(small), metric__type="CIDEr")
    own = [step[0] for step in texts]
    assert len(own) == 4 and own[1] and own.count(own[1]) == 1  # else nothing below would be shown
    return own


def test_the_best_checkpoint_is_the_one_with_the_best_captions(small, written, capsys):
    log = train(small, held_out(small, written[1]), metric__type="CIDEr")
    scores = [entry["eval_CIDEr"] for entry in judged(log)]
    assert len(scores) == 4 and max(scores) == scores[1] > max(scores[0], *scores[2:])
    assert best() == {"checkpoint": "step_0000002", "eval_CIDEr": scores[1]}
    out = capsys.readouterr().out
    assert (
        "evaluation: captions of 4 pictures" in out
        and "best checkpoint: run/checkpoint/rank_0/step_0000002 (" in out
    )
    # the control: other references
    other = train(small, held_out(small, written[3]), metric__type="CIDEr", output_dir="other")
    assert [entry["eval_CIDEr"] for entry in judged(other)] != scores
    assert "step_0000002" not in Path("other/checkpoint/rank_0/best.json").read_text()


def test_the_figures_are_those_of_the_evaluation(small, written):
    data = held_out(small, written[1])
    found = judged(train(small, data, metric__type="agg_metrics", eval_dataset__text_transforms__prompt="a "))
    for step in (2, 4):
        trainer = Trainer(
            args=configured(small, eval_dataset__text_transforms__prompt="a "), eval_dataset=data
        )
        figures = trainer.evaluate(FOLDER / f"step_000000{step}")
        assert figures["agg_metrics"] == figures["CIDEr"] + figures["Bleu_4"] and figures["prompt"] == "a"
        assert {name: figures[name] for name in SCORES} == {
            name: found[step - 1][f"eval_{name}"] for name in SCORES
        }
    unasked = Trainer(args=configured(small), eval_dataset=data).evaluate(FOLDER / "step_0000002")
    # the control: without the prompt
    assert any(unasked[name] != found[1][f"eval_{name}"] for name in SCORES)


def test_the_run_is_bit_for_bit_the_one_without_captions(small):
    train(small, held_out(small), metric__type="CIDEr", output_dir="written")
    train(small, output_dir="plain")
    one, other = (
        Checkpoint(f"{run}/checkpoint/rank_0/step_0000004/model.ckpt") for run in ("written", "plain")
    )
    assert set(one) == set(other) and all(np.array_equal(one[name], other[name]) for name in one)
    train(small, output_dir="third", seed=43)
    third = Checkpoint("third/checkpoint/rank_0/step_0000004/model.ckpt")  # the control
    assert not all(np.array_equal(one[name], third[name]) for name in one)


def test_losses_choose_unless_something_else_is_said(small):
    # the last: so say MindFormers' files
    for said in ({}, {"metric__type": "loss"}, {"metric__type": "Accuracy"}):
        found = judged(train(small, held_out(small), output_dir=f"run{len(said)}{said}", **said))
        assert "eval_loss" in found[0] and "eval_CIDEr" not in found[0]


def test_files_of_captions_are_read(small):
    rows = [
        {"image": f"{colour}.png", "caption": ["a thing", f"a {colour} thing"]} for colour in small.pictures
    ]
    (small.folder / "held_out.json").write_text(json.dumps(rows))
    log = train(
        small,
        do_eval=True,
        metric__type="Bleu_1",
        eval_dataset__data_loader__dataset_dir=str(small.folder),
        eval_dataset__data_loader__annotation_files=["held_out.json"],
        eval_dataset__data_loader__image_dirs=["."],
    )
    assert "eval_Bleu_1" in judged(log)[-1] and set(best()) == {"checkpoint", "eval_Bleu_1"}


@pytest.mark.parametrize(
    "key",
    [
        "train_dataset.text_transforms.prompt",
        "model.model_config.prompt",
        "eval_dataset.text_transforms.prompt",
    ],
)
def test_a_model_is_asked_with_the_ids_that_it_was_trained_with(small, key):
    config = load_config(small.yaml, {key: "a photo of "})
    processor = Blip2Processor.from_config(config.processor)
    trained = PromptedText(processor.tokenizer, config.model.model_config, "a photo of ", 16)
    row = trained("a square")
    learnt_after = row["input_ids"][: row["prompt_length"]].tolist()
    # the control: with the space
    assert trained.ids(caption_evaluator.asking_prompt(config)) == learnt_after != trained.ids("a photo of ")
    said = {"eval_dataset.data_loader.hypothesis_template": "it is "}
    # what is asked for goes as it is
    assert caption_evaluator.asking_prompt(load_config(small.yaml, {key: "a photo of ", **said})) == "it is "


def test_java_s_scores_are_in_an_evaluation_and_on_the_way_where_they_decide(small, monkeypatch, capsys):
    asked = []

    def stand_in(found, wanted, names):
        asked.append((len(found), list(names)))
        return {name: len(found) / 10 for name in names}

    monkeypatch.setattr(caption_evaluator, "java_scores", stand_in)
    figures = Trainer(args=configured(small), eval_dataset=held_out(small)).evaluate(small.ckpt)
    assert figures["METEOR"] == figures["SPICE"] == 0.4 and asked == [(4, ["METEOR", "SPICE"])]
    train(small, held_out(small), metric__type="METEOR", eval_step_interval=-1)
    assert asked[1:] == [(1, ["METEOR"]), (4, ["METEOR"]), (4, ["METEOR"])] and set(best()) == {
        "checkpoint",
        "eval_METEOR",
    }
    train(small, held_out(small), metric__type="CIDEr", eval_step_interval=-1, output_dir="other")
    assert asked[4:] == [(1, []), (4, []), (4, [])]


def test_a_metric_that_cannot_be_computed_is_said_before_the_first_step(small, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(
        ConfigError, match="metric.type = 'SPICE' cannot be computed here, see above: name Bleu_1 or .*CIDEr"
    ):
        train(small, held_out(small), metric__type="SPICE")
    assert "SPICE left out: pycocoevalcap is not installed" in capsys.readouterr().out and not FOLDER.exists()
    # an evaluation goes on without
    figures = Trainer(args=configured(small), eval_dataset=held_out(small)).evaluate(small.ckpt)
    assert "METEOR" not in figures and "CIDEr" in figures


# ------------------------------------------------------------------------------------------------ said before
@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"metric__type": "Cider"},
            "metric.type = 'Cider': expected loss, since what is evaluated is losses of 4 pairs, or a score "
            "of "
            "captions: Bleu_1, .*CIDEr",
        ),
        (
            {"metric__type": "CIDEr", "generation__num_beam": 3},
            "no argument 'num_beam'; did you mean 'num_beams'",
        ),
        ({"metric__type": "CIDEr", "generation__max_new_tokens": 60}, "leave room for 5. new tokens"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(small, changes, words):
    with pytest.raises((ConfigError, TypeError, ValueError), match=words):
        train(small, held_out(small), **changes)
    assert not FOLDER.exists()


def test_a_model_that_writes_nothing_has_no_captions(small):
    bare = Blip2Llm(load_config(small.yaml).model.model_config)
    with pytest.raises(ConfigError, match="a Blip2Llm writes nothing: make a Blip2ImageToTextGeneration"):
        caption_evaluator.writer_of(bare, None)
    assert issubclass(Blip2ImageToTextGeneration, Blip2Llm)


def test_stage_1_has_no_score_of_captions():
    from mindblip2.trainer.evaluator import make_evaluator as examine

    with pytest.raises(
        ConfigError,
        match="expected agg_metrics, since what is evaluated is retrieval among 6 pictures and 6 texts$",
    ):
        examine(
            run_config(metric__type="CIDEr", eval_dataset__text_transforms__max_length=8),
            small_model(),
            Numbers(),
            held_out_samples(),
        )
    assert held_out_losses(small_model(), run_config(metric__type="loss")).metric == "loss"


def test_a16_a_metric_that_is_the_same_whatever_is_written_never_chooses_a_checkpoint(small):
    for metric in ("CIDEr", "agg_metrics"):
        with pytest.raises(
            ConfigError,
            match=f"metric.type = '{metric}' cannot choose a checkpoint here: there is one picture",
        ):
            train(small, held_out(small)[:1], metric__type=metric)
    assert not FOLDER.exists()
    scores = caption_evaluator.score(["a red cat"], [["a red cat"]], ())
    assert scores["Bleu_4"] > 0 and not {"CIDEr", "agg_metrics"} & set(scores)
    # negative control
    assert {"CIDEr", "agg_metrics"} <= set(
        caption_evaluator.score(["a red cat", "a dog"], [["a red cat"], ["a dog"]], ())
    )


def test_a16_retrieval_among_one_picture_is_refused():
    from mindblip2.trainer.evaluator import make_evaluator as examine

    config = run_config(eval_dataset__text_transforms__max_length=8)
    with pytest.raises(ConfigError, match="do_eval by retrieval with one picture: every text finds it"):
        examine(config, small_model(), Numbers(), held_out_samples(1))
    # negative control
    assert "among 2 pictures" in str(examine(config, small_model(), Numbers(), held_out_samples(2)))
