"""Evaluation during training: what it finds, that it does not disturb the run, and that the best checkpoint
follows it."""

import itertools
import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindblip2.checkpoint import training_state
from mindblip2.config import OptimizerConfig
from mindblip2.config.schema import ConfigError
from mindblip2.trainer import loop
from mindblip2.trainer.evaluator import LossEvaluator, RetrievalEvaluator, is_due, make_evaluator
from mindblip2.trainer.loop import fit
from mindblip2.trainer.train_step import TrainStep
from tests.trainer.small import Batches, Numbers, held_out_losses, held_out_samples, run_config, small_model

SAMPLES = held_out_samples()


def configured(**changes):
    return run_config(
        **{"eval_dataset__k_test": 2, "eval_dataset__text_transforms__max_length": 8, **changes}
    )


def retrieval(model, config):
    return make_evaluator(config, model, Numbers(), SAMPLES)


class Scripted:
    """An evaluation whose figures are given."""

    def __init__(self, metric, *values):
        self.metric, self.values = metric, iter(values)

    def figures(self):
        return {self.metric: next(self.values)}


def folder_of(path):
    return path / "checkpoint" / "rank_0"


def trained(path, examine=None, **changes):
    """(weights, log without times and evaluations, evaluations) of a run of two epochs of three steps."""
    config, model = configured(runner_config__log_every=1, **changes), small_model()
    log = fit(model, Batches(), config, path, None, None, examine(model, config) if examine else None)
    timed = ("seconds", "samples_per_second")
    steps = [
        {name: value for name, value in entry.items() if name not in timed}
        for entry in log
        if "loss" in entry
    ]
    return (
        {name: p.asnumpy().copy() for name, p in model.parameters_dict().items()},
        steps,
        [e for e in log if "eval_seconds" in e],
    )


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("undisturbed"))


# ------------------------------------------------------------------------------------------------ the run goe
@pytest.mark.parametrize(
    "examine, names",
    [
        (retrieval, {"eval_txt_r1", "eval_img_r10", "eval_agg_metrics"}),
        (held_out_losses, {"eval_loss", "eval_itc", "eval_itm_acc"}),
    ],
)
def test_a_run_is_bit_for_bit_the_one_without_evaluation(tmp_path, undisturbed, examine, names):
    weights, steps, found = trained(tmp_path, examine, eval_step_interval=1)
    assert same(weights, undisturbed[0]) and steps == undisturbed[1]
    assert [entry["step"] for entry in found] == [1, 2, 3, 4, 5, 6] and names <= set(found[0])
    # of another model each time
    assert len({entry[min(names)] for entry in found}) > 1 or "eval_loss" not in names
    logged = [json.loads(line) for line in (tmp_path / "log" / "train.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]


def test_the_comparison_notices_an_evaluation_that_disturbs(tmp_path, undisturbed, monkeypatch):
    class Nudge(Scripted):
        def figures(self):
            self.model.temp.set_data(self.model.temp * 1.0001)
            return super().figures()

    def examine(model, config):
        nudge = Nudge("loss", *range(6))
        nudge.model = model
        return nudge

    assert not same(trained(tmp_path / "nudged", examine)[0], undisturbed[0])
    monkeypatch.setattr(
        loop, "_evaluated", lambda examination, model, monitor: model.set_train(False) and {"eval_loss": 1.0}
    )
    assert not same(trained(tmp_path / "left in evaluation mode", retrieval)[0], undisturbed[0])


def test_graphs_stay_compiled_and_give_the_same_numbers():
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        model = small_model(
            qformer_config={"num_hidden_layers": 1}, vision_config={"num_hidden_layers": 1}
        ).set_train()
        examination, step = held_out_losses(model, configured()), TrainStep(model, OptimizerConfig())
        state = {**model.parameters_dict(), **step.optimizer.kept()}
        start, seen = {name: p.asnumpy().copy() for name, p in state.items()}, []
        for evaluated in (False, True):
            for name, value in start.items():
                state[name].set_data(Tensor(value))
            numbers = []
            for number, batch in enumerate(Batches().epoch(0)):
                model.noise.set(1, number)
                numbers.append(step([batch], 1e-2))
                if evaluated:
                    model.set_train(False)
                    numbers[-1]["eval"] = examination.figures()
                    model.set_train()
            seen.append((numbers, {name: p.asnumpy().copy() for name, p in state.items()}))
    finally:
        ms.set_context(mode=mode)
    found = [numbers.pop("eval") for numbers in seen[1][0]]
    assert same(seen[0][1], seen[1][1])
    # with several threads the last bit of a sum is not always the same
    for one, other in zip(seen[0][0], seen[1][0]):
        assert one == pytest.approx(other, rel=1e-6)
    assert found[0]["loss"] != found[1]["loss"] != seen[0][0][1]["loss"]
    assert len(step.gradients.compile_cache) == 1 and len(examination.net.compile_cache) == 1


# ------------------------------------------------------------------------------------------------ figures
def test_held_out_losses_draw_the_same_negatives_each_time_and_no_dropout():
    model = small_model().set_train(False)
    examination = held_out_losses(model, configured())
    first, model_key = examination.figures(), model.noise.words.asnumpy().copy()
    model.noise.set(9, 9)
    assert (
        examination.figures() == first
        and "temp" not in first
        and np.array_equal(model.noise.words.asnumpy(), model_key)
    )
    assert first["loss"] == pytest.approx(first["itc"] + first["itm"] + first["lm"], abs=1e-5)
    assert str(examination) == "losses of 4 pairs" and isinstance(examination, LossEvaluator)
    model.set_train()
    assert examination.figures() != first  # the control: with dropout it is another loss


def test_held_out_retrieval_is_that_of_the_task():
    from mindblip2.evaluation.retrieval import RetrievalConfig, recalls, score

    model = small_model()
    examination = retrieval(model, configured())
    pictures, texts = [one["image"] for one in SAMPLES], [one["captions"][0] for one in SAMPLES]
    ids = Numbers()(texts, 8, "max_length", "np")["input_ids"]
    scores = score(model, Numbers().image_processor, pictures, ids, RetrievalConfig(k_test=2, text_length=8))
    assert examination.figures() == recalls(scores.i2t, scores.t2i, np.arange(6))
    assert str(examination) == "retrieval among 6 pictures and 6 texts" and isinstance(
        examination, RetrievalEvaluator
    )


# ------------------------------------------------------------------------------------------------ the best
@pytest.mark.parametrize(
    "metric, values, best",
    [
        ("agg_metrics", (10.0, 50.0, 20.0, 30.0), 2),
        ("loss", (9.0, 3.0, 2.5, 4.0), 3),
        ("CIDEr", (0.1, 0.5, 0.2, 0.3), 2),
        ("agg_metrics", (10.0, 50.0, 50.0, 30.0), 3),
    ],
    ids=["more", "less", "captions", "as much"],
)
def test_the_best_checkpoint_is_the_metrics_and_outlives_the_rotation(tmp_path, metric, values, best):
    config = configured(runner_config__epochs=4, runner_config__keep_checkpoint_max=1)
    fit(small_model(), Batches(1), config, tmp_path, None, None, Scripted(metric, *values))
    assert training_state.best(folder_of(tmp_path)) == {
        "checkpoint": f"step_000000{best}",
        f"eval_{metric}": values[best - 1],
    }
    assert [one.name for one in training_state.saved(folder_of(tmp_path))] == [
        f"step_000000{best}",
        "step_0000004",
    ]


def test_what_is_evaluated_is_saved_and_only_that_can_be_the_best(tmp_path):
    config = configured(
        runner_config__epochs=2,
        eval_epoch_interval=2,
        runner_config__save_steps=2,
        runner_config__keep_checkpoint_max=9,
    )
    fit(small_model(), Batches(), config, tmp_path, None, None, Scripted("agg_metrics", 7.0))
    judged = {
        one.name: training_state.read_state(one)["judged"]
        for one in training_state.saved(folder_of(tmp_path))
    }
    assert judged == {"step_0000002": {}, "step_0000004": {}, "step_0000006": {"eval_agg_metrics": 7.0}}
    assert training_state.best(folder_of(tmp_path))["checkpoint"] == "step_0000006"


@pytest.mark.parametrize("lost", [False, True], ids=["noted", "killed before it was noted"])
def test_a_resumed_run_keeps_the_best(tmp_path, lost):
    config, folder = (
        configured(runner_config__epochs=4, runner_config__keep_checkpoint_max=1),
        folder_of(tmp_path),
    )
    with pytest.raises(StopIteration):
        fit(small_model(), Batches(1), config, tmp_path, None, None, Scripted("agg_metrics", 10.0, 50.0))
    if lost:
        training_state.record_best(folder, folder / "step_0000001", "eval_agg_metrics", 10.0)
    model, newest = small_model(), training_state.find(True, folder)
    model.load_checkpoint(newest)
    fit(model, Batches(1), config, tmp_path, newest, None, Scripted("agg_metrics", 20.0, 30.0))
    assert training_state.best(folder) == {"checkpoint": "step_0000002", "eval_agg_metrics": 50.0}
    assert [one.name for one in training_state.saved(folder)] == ["step_0000002", "step_0000004"]
    logged = [json.loads(line) for line in (tmp_path / "log" / "train.jsonl").read_text().splitlines()]
    assert [entry["eval_agg_metrics"] for entry in logged if "eval_seconds" in entry] == [
        10.0,
        50.0,
        20.0,
        30.0,
    ]


def test_a_run_that_changes_its_metric_begins_to_choose_anew(tmp_path):
    training_state.record_best(tmp_path, tmp_path / "step_0000001", "loss", 0.1)
    training_state.note_best(tmp_path, tmp_path / "step_0000002", {"eval_agg_metrics": 3.0})
    assert training_state.best(tmp_path) == {"checkpoint": "step_0000002", "eval_agg_metrics": 3.0}


# ------------------------------------------------------------------------------------------------ when, and o
def test_intervals():
    def steps(**changes):
        return [step for step in range(1, 13) if is_due(configured(**changes), step, 3)]

    assert steps() == [3, 6, 9, 12] and steps(eval_epoch_interval=2) == [6, 12]
    assert steps(eval_step_interval=5) == [3, 5, 6, 9, 10, 12] and steps(
        eval_step_interval=4, eval_epoch_interval=-1
    ) == [4, 8, 12]
    for wrong in itertools.product(("eval_step_interval", "eval_epoch_interval"), (0, -2)):
        with pytest.raises(
            ConfigError, match=f"{wrong[0]} = {wrong[1]}: expected at least 1, or -1 for none"
        ):
            configured(**dict([wrong]))


def test_without_held_out_data_it_says_what_to_name():
    config = configured(eval_dataset__data_loader={"type": "MultiImgCapDataLoader"})
    with pytest.raises(
        ConfigError, match="do_eval needs held-out data: name them in eval_dataset.data_loader"
    ):
        make_evaluator(config, small_model(), Numbers())
