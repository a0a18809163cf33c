"""What the benchmarks make of their measurements; the measuring itself is full size and run by hand (make
bench)."""

import importlib.util
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench():
    return loaded("bench")


class Clock:
    """A side whose answers are known."""

    def __init__(self, *seconds):
        self.seconds, self.asked = list(seconds), []

    def ask(self, case):
        self.asked.append(case)
        return self.seconds.pop(0)


def test_sides_take_turns_in_every_round(bench):
    order = []
    sides = {
        name: SimpleNamespace(ask=lambda case, name=name: order.append((case, name)) or 1.0) for name in "ab"
    }
    bench.measure(sides, ["see 1", "see 4"], rounds=2)
    assert order == [(case, name) for case in ("see 1", "see 4") for _ in range(2) for name in "ab"]


def test_ratios_are_medians_of_the_ratios_within_a_round(bench):
    """Rounds of a machine that is slow for a while: the ratio of the medians would be 0.5, no round has seen
    that."""
    figures = bench.measure({"mindblip2": Clock(1.0, 4.0, 4.0), "torch": Clock(2.0, 8.0, 2.0)}, ["see 1"], 3)
    figures["gemm"] = {"mindblip2": [1.0], "torch": [1.0]}
    text = bench.report(figures, {"mindblip2": 4.4e9, "torch": 5e9}, SimpleNamespace(rounds=3), "")
    assert "| see 1 | 4000.0 | 2000.0 | 2.00 |" in text
    assert "mindblip2 4.40 GB, torch 5.00 GB" in text


def test_the_share_of_the_peak_is_that_of_the_measured_products(bench):
    second = bench.GEMM_FLOP / 1e12  # 1 TFLOP/s
    slow = bench.VIT_FLOP * 4 / 0.5e12  # half of it
    figures = {
        "gemm": {"mindblip2": [second], "torch": [2 * second]},
        "vit 4": {"mindblip2": [slow], "torch": [slow]},
    }
    text = bench.report(figures, {"mindblip2": 1, "torch": 1}, SimpleNamespace(rounds=1), "")
    assert "1000 GFLOP/s" in text and "| 1.00 | 50% |" in text


def test_the_work_of_a_vit_is_that_of_its_weights(bench):
    """Every weight of a block multiplies and adds once per token; on top, attention over 257 tokens, once for
    the scores and once for the values."""
    from mindblip2.checkpoint.pretrained import no_init
    from mindblip2.config import Blip2Config
    from mindblip2.models.vit import ViTBlock

    config = Blip2Config().vision_config
    with no_init():
        weights = sum(p.size for p in ViTBlock(config).get_parameters() if p.ndim == 2)
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    work = config.num_hidden_layers * tokens * (weights + 2 * tokens * config.hidden_size)
    assert np.isclose(bench.VIT_FLOP, 2 * work, rtol=1e-6)


def test_a_worker_that_ends_is_an_error_that_says_how_to_look(bench):
    side = bench.Side("nonsense")
    with pytest.raises(RuntimeError, match="worker ended at 'gemm'.*worker.py by hand"):
        side.ask("gemm")


# ------------------------------------------------------------------------------------------------ re-ranking
def test_re_ranking_is_reported_as_pairs_per_second():
    figures = {"texts": {"mindblip2": [2.0, 4.0, 2.0], "torch": [6.0, 12.0, 2.0]}}
    text = loaded("retrieval").report(figures, 64, {"mindblip2": 4e9, "torch": 5e9})
    assert "| texts | 32.0 | 10.7 | 3.00 |" in text and "torch 5.00 GB" in text


def test_both_sides_re_rank_the_same_texts_of_the_stated_lengths():
    worker = loaded("worker")
    image, ids = worker.rerank_inputs(2, 50, 0)
    assert image.shape == (2, 257, 1408) and ids.shape == (50, 35)
    lengths = (ids != 0).sum(1)
    assert lengths.min() == 8 and lengths.max() == 20
    assert ((worker.rerank_inputs(2, 50, 35)[1] != 0).sum(1) == 35).all()
    assert (worker.rerank_inputs(2, 50, 0)[1] == ids).all()


# ------------------------------------------------------------------------------------------------ kills
@pytest.fixture
def killed(tmp_path):
    """A run of two saves and the digests of its checkpoints."""
    from mindblip2.checkpoint import training_state
    from mindblip2.config import OptimizerConfig
    from mindblip2.trainer.optimizer import AdamW
    from tests.trainer.small import small_model

    kills, model = loaded("kills"), small_model()
    optimizer = AdamW(model.trainable_params(), OptimizerConfig())
    run = kills.Run(tmp_path / "run", 1)
    for step in (1, 2):
        path = training_state.save(
            run.checkpoints,
            model,
            optimizer,
            {"step": step, "loss_scale": {"value": 1.0, "good": 0}, "frozen": None},
        )
        training_state.record_best(run.checkpoints, path, "loss", 0.5)
    return (
        kills,
        run,
        {int(one.name[5:]): kills.contents(one) for one in training_state.saved(run.checkpoints)},
    )


def test_a_lost_torn_or_different_checkpoint_is_noticed(killed):
    import shutil

    kills, run, truth = killed
    assert kills.wrong_with(run, 2, truth) == []
    assert kills.wrong_with(run, 3, truth) == ["step 3 was lost, the newest is 2"]
    assert kills.wrong_with(run, 2, {**truth, 2: "other"}) == [
        "step_0000002 is not that of the undisturbed run"
    ]
    file = run.checkpoints / "step_0000001" / "optimizer.ckpt"
    file.write_bytes(file.read_bytes()[:-100])
    assert kills.wrong_with(run, 2, truth)[0].startswith("step_0000001 cannot be read: ")
    shutil.rmtree(run.checkpoints / "step_0000002")
    assert kills.wrong_with(run, 1, {})[-1] == "the best checkpoint, step_0000002, is gone"


def test_logs_are_compared_to_the_last_digits(killed):
    kills, log = killed[0], [{"step": 1, "loss": 6.0}, {"step": 2, "loss": 0.5}]
    assert kills.same_log(log, [{"step": 1, "loss": 6.0000005}, {"step": 2, "loss": 0.5}])
    for other in (
        log[:1],
        [log[0], {"step": 2, "loss": 0.50001}],
        [log[0], {"step": 2, "itc": 0.5}],
        [log[0], {"step": 3, "loss": 0.5}],
    ):
        assert not kills.same_log(log, other)


def test_kills_are_reported_by_their_moment():
    kills = loaded("kills")
    rows = [
        ("after the start", 0, [], []),
        ("in training", 4, [], []),
        ("in a save", 9, [".partial_step_0000010"], ["step 8 was lost"]),
    ]
    text = kills.report(rows, {"weights": True, "log": False}, 30, 12.0)
    assert (
        "| in a save | 1 | 1 | 9 |" in text
        and "lost, half written or different: 1." in text
        and "kill 3: step 8 was lost" in text
    )
    assert "weights yes, log NO.  30 steps." in text and text.endswith("3 kills, 12 s in all.")
    writers = {
        "split": [
            ("at random", 2, [], []),
            ("in a write", 1, [".x.partial"], ["y is half written or different"]),
        ]
    }
    text = kills.report(rows, {"weights": True}, 30, 12.0, writers)
    assert (
        "| split | 2 | 1 | 3 | 1 |" in text
        and "split, kill 2: y is half written" in text
        and text.endswith("5 kills, 12 s in all.")
    )


def test_b5_half_written_and_mixed_files_are_noticed():
    kills = loaded("kills")
    truths = [{"m/a": "1", "m/b": "1", "c": "1"}, {"m/a": "2", "m/b": "2", "c": "2"}]
    assert kills.damaged(truths[1], truths, ("m",)) == [] and kills.damaged({}, truths, ("m",)) == []
    # c is a file of its own
    assert kills.damaged({"m/a": "1", "m/b": "1", "c": "2"}, truths, ("m",)) == []
    assert kills.damaged({"c": "3"}, truths) == ["c is half written or different"]
    for mixed in ({"m/a": "1", "m/b": "2"}, {"m/a": "1"}):
        assert kills.damaged(mixed, truths, ("m",)) == ["m holds files of different models, or not all"]


def test_b5_a_process_is_forked_killed_and_waited_for(tmp_path):
    kills, log = loaded("kills"), tmp_path / "log.txt"
    kills.Process(os.write, 1, b"hello\n", log=log).wait(10)
    assert log.read_text() == "hello\n"
    process = kills.Process(time.sleep, 60, log=log)
    process.kill()
    with pytest.raises(SystemExit, match="ended with 1"):
        kills.Process(int, "x", log=log).wait(10)
    assert "ValueError" in log.read_text()


def test_the_training_is_ended_when_another_command_fails(tmp_path):
    """And is waited for where none fails: the negative control."""
    kills, started = loaded("kills"), threading.Event()
    processes = []

    def training(stop, seconds):
        processes.append(kills.Process(time.sleep, seconds, log=tmp_path / "log.txt", stop=stop))
        started.set()
        processes[-1].wait(600)
        return "trained"

    def fail():
        started.wait(10)
        raise SystemExit("the process ended by itself with 1")

    begun = time.monotonic()
    with pytest.raises(SystemExit, match="ended by itself"):
        kills.run_with_training(lambda stop: training(stop, 600), fail)
    assert time.monotonic() - begun < 60
    with pytest.raises(ProcessLookupError):  # killed and waited for
        os.kill(processes[0].pid, 0)
    assert kills.run_with_training(lambda stop: training(stop, 0.2), lambda: "written") == (
        "trained",
        "written",
    )


def test_an_error_of_the_training_is_raised():
    kills = loaded("kills")
    with pytest.raises(ZeroDivisionError):
        kills.run_with_training(lambda stop: 1 / 0, lambda: "written")


# ------------------------------------------------------------------------------------------------ training an
def test_a_full_width_run_is_reported_with_its_median_step():
    full = loaded("train_full_width")
    log = [
        {"step": step, "itc": 1.0, "itm": 0.5, "lm": 7.0, "seconds": seconds}
        for step, seconds in enumerate((90, 9, 4, 8, 6), 1)
    ]
    text = full.report(log, SimpleNamespace(steps=5, batch=3), 12.5, {"model.ckpt": 0.75}, same=True)
    assert (
        "Median 6.0 s per step of 3 pairs (0.50 pairs/s), peak memory 12.50 GB" in text
        and "not killed: yes" in text
    )
    assert full.untimed([{"step": 1, "seconds": 2, "samples_per_second": 3}]) == [{"step": 1}]


def test_the_pictures_to_train_on_are_read_as_coco(tmp_path):
    from mindblip2 import MultiImgCapDataLoader

    loaded("train_full_width").draw(tmp_path, 4, (64, 48))
    samples = list(MultiImgCapDataLoader(tmp_path, ["train.json"], ["images"]))
    assert len({one["image_id"] for one in samples}) == 4 and len({one["caption"] for one in samples}) == 4


def test_loading_is_compared_with_the_model():
    loading = loaded("loading")
    text = loading.report({"files": [80.0, 100.0]}, 4.0)
    assert "| files | 100 | 10.00 | 25.0 |" in text and "4.00 samples/s" in text
    assert "| files | 100 | 10.00 |\n" in loading.report({"files": [80.0, 100.0]}) + "\n"


# ------------------------------------------------------------------------------------------------ writing
def test_writing_is_reported_against_the_memory():
    """100 GB/s, 10 GB of weights: a token takes 0.1 s at the best."""
    rounds = {"mindblip2": [[0.2] * 2 + [0.4] * 2] * 3, "torch": [[0.5] * 4] * 3}
    found = {
        "prefill": {"mindblip2": [1.0], "torch": [2.0]},
        "few": rounds,
        "many": rounds,
        "weights": 10e9,
        "read": 100.0,
        "graphs": [5, 0, 3],
        "memory": {"mindblip2": 9e9, "torch": 8e9},
    }
    decode = loaded("decode")
    decode.ENDS = 2
    text = decode.report("Llama-7B", found, SimpleNamespace(layers=4, new=5))
    assert "| prefill of 64 places | 1000.0 | 2000.0 | 2.00 |  |  |" in text
    assert "| … of the first 2 | 200.0 | 500.0 | 2.50 | 50% | 20% |" in text
    assert "| … of the last 2 | 400.0 | 500.0 | 1.25 | 25% | 20% |" in text
    assert "median of the ratios: mindblip2 2.00, torch 1.00" in text and "only read: 100.0 GB/s." in text
    assert (
        "5 for the first picture with a prompt of 16 tokens, 0 for ten more" in text
        and "3 for the first prompt of 17" in text
    )
    assert "mindblip2 9.00 GB, torch 8.00 GB (weights 10.00 GB" in text


def test_the_layers_are_as_wide_as_published():
    worker = loaded("language_worker")
    llama, opt = worker.section("llama 4", small=False), worker.section("opt 4", small=False)
    assert (
        llama.hidden_size,
        llama.feed_forward_size,
        llama.num_heads,
        llama.vocab_size,
        llama.num_layers,
    ) == (4096, 11008, 32, 32000, 4)
    assert (opt.hidden_size, opt.feed_forward_size, opt.num_heads, opt.vocab_size, opt.num_layers) == (
        2560,
        10240,
        32,
        50272,
        4,
    )
    assert min(llama.positions, opt.positions) >= 64 + 512


@pytest.mark.slow  # two processes that compile
@pytest.mark.parametrize("model", ["llama", "opt"])
def test_both_sides_write_as_many_tokens(bench, model):
    places = {
        "worker": "language_worker.py",
        "MINDBLIP2_BENCH_LLM": f"{model} 2",
        "MINDBLIP2_BENCH_SMALL": "1",
    }
    sides = [bench.Side(kind, **places) for kind in ("mindspore", "torch")]
    for side in sides:
        assert side.ask("prefill 40") > 0 and len(side.ask("generate 40 7")) == 6 and side.ask("memory") > 1e8
    ours = sides[0]
    first, more, longer = ours.ask("graphs 48")
    assert more == 0 < min(first, longer)  # the longer is the control
    width, ffn, words = 64, 176, 320
    layer = 4 * width * width + (3 if model == "llama" else 2) * width * ffn
    assert ours.ask("weights") == 4 * (2 * layer + words * width)
    assert ours.ask("read") > 0.1
    for side in sides:
        side.end()


# ------------------------------------------------------------------------------------------------ stage 2 fro
def test_files_of_stage_2_hold_what_the_published_ones_hold(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    from mindblip2 import Blip2Config

    files, config = loaded("stage2_files"), Blip2Config(text_config={"type": "OPTConfig"})
    # all sizes, no numbers
    monkeypatch.setattr(files, "value", lambda name, shape: torch.empty(shape, device="meta"))
    files.bridge(tmp_path / "bridge.pth", config, "opt_proj")
    files.vit(tmp_path / "vit.pth", config)
    bridge, vit = (torch.load(tmp_path / name, weights_only=True) for name in ("bridge.pth", "vit.pth"))
    assert len(bridge["model"]) == 260 and bridge["model"]["opt_proj.weight"].shape == (2560, 768)
    assert len(vit) == 40 * 13 + 4 + 4 and {tensor.dtype for tensor in vit.values()} == {torch.float16}
    used = [
        tensor.numel()
        for name, tensor in vit.items()
        if not name.startswith(("blocks.39.", "norm.", "head."))
    ]
    assert sum(used) == 985_894_528


def test_shards_are_named_by_their_index_and_none_is_too_large(tmp_path, monkeypatch):
    files, saved = loaded("stage2_files"), {}
    monkeypatch.setattr(files, "SHARD", 100)
    shapes = {"a": (5, 5), "b": (20,), "c": (60,), "d": (2, 3)}
    files.write_shards(
        tmp_path,
        shapes,
        "model",
        ".bin",
        lambda name, shape: shape,
        lambda part, path: saved.update({path.name: part}),
        2,
    )
    assert [list(saved[f"model-0000{i}-of-00003.bin"]) for i in (1, 2, 3)] == [["a", "b"], ["c"], ["d"]]
    index = json.loads((tmp_path / "model.bin.index.json").read_text())
    assert index["metadata"]["total_size"] == 222 and all(
        name in saved[file] for name, file in index["weight_map"].items()
    )


def test_tokenizers_have_the_published_words_and_ids(tmp_path):
    from mindblip2.data.text.language_tokenizer import LanguageTokenizer

    files = loaded("stage2_files")
    files.opt_tokenizer(tmp_path / "opt")
    files.vicuna_tokenizer(tmp_path / "vicuna" / "tokenizer.model")
    opt = LanguageTokenizer(tmp_path / "opt", "GPT2Tokenizer")
    vicuna = LanguageTokenizer(tmp_path / "vicuna" / "tokenizer.model", bos_token="</s>")
    assert (len(opt), len(vicuna)) == (50265, 32000)
    assert opt.encode("\n") == [2, 50118] and vicuna.convert_ids_to_tokens([0, 1, 2, 3]) == [
        "<unk>",
        "<s>",
        "</s>",
        "<0x00>",
    ]
    for one in (opt, vicuna):
        assert (
            one.decode(one.encode("a photo of")) == "a photo of" and one.decode([30000]) == "placeholder30000"
        )


def test_stage_2_from_files_is_reported_with_its_memory():
    full = loaded("stage2_full_size")
    found = {
        "source": "opt_hf",
        "layers": 32,
        "files": 15e9,
        "parameters": "3740000000",
        "rows": {"convert": (60.0, 1.2e9)},
        "times": [20.0, 40.0, 30.0],
        "ckpt": 7.5e9,
        "same": False,
        "text": "['a']",
    }
    text = full.report(found)
    assert (
        "3.74 billion parameters, 32 layers" in text
        and "15.00 GB, .ckpt 7.50 GB" in text
        and "| convert | 60.0 | 1.20 |" in text
    )
    assert "wrote the same: NO (['a'] …)" in text
    opt, vicuna = (
        full.load_config(f"itt_blip2_{name}").model.model_config.text_config
        for name in (full.OPT, full.VICUNA)
    )
    assert full.space("opt_lavis", opt) == pytest.approx(15.5e9, rel=0.01) and full.space(
        "opt_hf", opt
    ) == pytest.approx(22.6e9, rel=0.01)
    assert full.space("vicuna", vicuna) == pytest.approx(31.9e9, rel=0.01)


@pytest.mark.slow  # five processes for each source
@pytest.mark.parametrize("source", ["opt_lavis", "opt_hf", "vicuna"])
def test_small_files_are_run_by_all_interfaces(tmp_path, source):
    full = loaded("stage2_full_size")
    place = full.Place(tmp_path, source, SimpleNamespace(layers=3, small=True))
    found = full.measured(place, full.picture())
    assert (
        found["same"]
        and found["layers"] == 3
        and set(found["rows"]) == {"convert", "load", "run_blip2.py", "Trainer", "pipeline"}
    )
    assert all(seconds > 0 and 1e8 < peak < 2e9 for seconds, peak in found["rows"].values())
    assert 0.3 < found["ckpt"] / found["files"] < 1.1 and int(found["parameters"]) > 1e6
