"""Sharded checkpoints: split, merged, and loaded on any mesh; files that do not fit are named in an error."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import run_blip2
from mindblip2 import CheckpointError, ConfigError
from mindblip2.checkpoint import split_merge
from mindblip2.checkpoint.ckpt import Checkpoint, write_checkpoint
from mindblip2.checkpoint.pretrained import no_init
from mindblip2.checkpoint.sharded_checkpoint import shard_files
from mindblip2.config import load_config
from mindblip2.distributed import comm
from mindblip2.models.blip2_llm import Blip2Llm
from mindblip2.models.blip2_qformer import Blip2Qformer
from tests import stage2_small

FOUR = {"vision_config": {"num_attention_heads": 4}, "qformer_config": {"num_attention_heads": 4}}
pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module", params=["stage 1", "stage 2"])
def model(request, tmp_path_factory):
    """(YAML file, .ckpt, class) of a small model with four heads everywhere; the vocabulary of stage 1 is
    divided by neither 2 nor 4."""
    folder, cell = tmp_path_factory.mktemp("model"), Blip2Qformer if request.param == "stage 1" else Blip2Llm
    sections = stage2_small.sections(stage2_small.tokenizer_files(folder / "words"), num_heads=4)
    own = sections["model"]["model_config"]
    for name, changes in FOUR.items():
        own[name] = {**own[name], **changes}
    own["qformer_config"]["vocab_size"] = 31
    if cell is Blip2Qformer:
        own.pop("text_config"), sections["model"].pop("arch")
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    cell(load_config(path).model.model_config).save_checkpoint(folder / "small.ckpt")
    return str(path), folder / "small.ckpt", cell


def run(mode, model, load, out, *more):
    return run_blip2.run(
        [
            "--config",
            model[0],
            "--run_mode",
            mode,
            "--load_checkpoint",
            str(load),
            "--output_dir",
            str(out),
            *more,
        ]
    )


def split(model, out, cards=2):
    return run("split", model, model[1], out, "--parallel_config.model_parallel", str(cards))


@pytest.mark.parametrize("cards", [2, 4])
def test_back_and_forth(model, cards):
    paths = split(model, "shards", cards)
    assert [path.name for path in paths] == [f"piece_{rank}_of_{cards}.ckpt" for rank in range(cards)]
    whole = Checkpoint(model[1])
    merged = Checkpoint(run("merge", model, "shards", "merged"))
    assert list(merged) == list(whole) and merged.types == whole.types
    assert all(np.array_equal(merged[name], whole[name]) for name in whole)
    name = "vit.blocks.0.attn.qkv.weight"
    assert Checkpoint(paths[0]).shapes[name][0] == whole.shapes[name][0] // cards
    assert max(path.stat().st_size for path in paths) < model[1].stat().st_size
    # negative control: the cards in another order
    swapped = Path("swapped")
    swapped.mkdir()
    for rank in range(cards):
        shutil.copy(paths[rank], swapped / f"piece_{cards - 1 - rank}_of_{cards}.ckpt")
    other = Checkpoint(run("merge", model, swapped, "other"))
    assert not np.array_equal(other[name], whole[name]) and np.array_equal(
        other["vit.pos_embed"], whole["vit.pos_embed"]
    )


@pytest.mark.parametrize("mesh, rank", [(1, 0), (2, 1), (4, 3)])
def test_pieces_are_loaded_on_any_mesh(model, mesh, rank):
    split(model, "shards")
    config = load_config(model[0]).model.model_config
    with comm.simulate_mesh(1, mesh, rank):
        cut = model[2](config).load_checkpoint(model[1]).parameters_dict()
        with no_init():
            own = model[2](config).load_checkpoint("shards").parameters_dict()
        assert list(own) == list(cut) and all(
            np.array_equal(own[name].asnumpy(), cut[name].asnumpy()) for name in cut
        )
    if mesh == 2:  # which is what the card's file holds
        shard = Checkpoint("shards/piece_1_of_2.ckpt")
        assert all(np.array_equal(shard[name], own[name].asnumpy()) for name in own)


def test_the_layout_of_ranks(model):
    for rank, path in enumerate(split(model, "shards")):
        for group in (0, 1):  # two data-parallel groups hold the same
            Path(f"ranks/rank_{2 * group + rank}").mkdir(parents=True)
            shutil.copy(path, f"ranks/rank_{2 * group + rank}/small-10_2.ckpt")
    merged = Checkpoint(run("merge", model, "ranks", "merged", "--parallel_config.model_parallel", "2"))
    whole = Checkpoint(model[1])
    assert all(np.array_equal(merged[name], whole[name]) for name in whole)
    with pytest.raises(CheckpointError, match="a shard of 4 has .*are these all shards"):
        run("merge", model, "ranks", "again")
    shutil.copy(path, "ranks/rank_1/another.ckpt")
    with pytest.raises(CheckpointError, match="expected one .ckpt in rank_1, got 2"):
        run("merge", model, "ranks", "again", "--parallel_config.model_parallel", "2")
    shutil.rmtree("ranks/rank_1")
    with pytest.raises(CheckpointError, match="expected one .ckpt in rank_1, but rank_2 comes next"):
        run("merge", model, "ranks", "again")
    assert not Path("again").exists()


def changed(path, **changes):
    """Rewrite a file with other arrays; None: without it."""
    stored = Checkpoint(path)
    entries = [(name, stored.types[name], stored[name]) for name in stored]
    write_checkpoint(
        path,
        [
            (name, kind, changes.get(name.replace(".", "_"), array))
            for name, kind, array in entries
            if changes.get(name.replace(".", "_"), array) is not None
        ],
    )


def test_what_does_not_fit(model):
    first, second = split(model, "shards")

    def refused(message, *more):
        with pytest.raises((CheckpointError, ConfigError), match=message):
            run("merge", model, "shards", "merged", *more)
        assert not list(Path("merged").glob("*"))

    before = second.read_bytes()
    changed(second, vit_pos_embed=Checkpoint(second)["vit.pos_embed"] + 1)
    refused("vit.pos_embed, which every card holds whole, is another in .*piece_1_of_2.ckpt")
    second.write_bytes(before)
    changed(second, vit_pos_embed=None)
    refused("belong to different models: only one holds vit.pos_embed")
    second.write_bytes(before[:1000])
    refused("truncated")
    second.unlink()
    refused(re.escape("piece_1_of_2.ckpt is not there; copy all 2"))
    shutil.copy(first, "shards/piece_1_of_3.ckpt")
    refused("it holds shards of 2 and of 3")
    with pytest.raises(CheckpointError, match="holds shards already"):
        split(model, "shards")
    shutil.rmtree("shards")
    refused("holds no shards")
    split(model, "shards")
    with pytest.raises(CheckpointError, match="holds shards already"):
        split(model, "shards", 4)
    with pytest.raises(ConfigError, match="3 does not divide the ViT's heads"):
        split(model, "three", 3)
    with pytest.raises(ConfigError, match="model_parallel 2 or more"):
        split(model, "one", 1)
    with pytest.raises(ConfigError, match="needs --load_checkpoint"):
        run_blip2.run(["--config", model[0], "--run_mode", "split", "--parallel_config.model_parallel", "2"])
    run("merge", model, "shards", "merged")
    with pytest.raises(CheckpointError, match="is there already"):
        run("merge", model, "shards", "merged")


# ------------------------------------------------------------------------------------------------ interrupted
def test_b7_a_split_that_was_killed_does_not_block_the_next(model, monkeypatch):
    written = []

    def killed(path, tensors):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write_checkpoint(path, tensors)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(split_merge, "write_checkpoint", killed)
        split(model, "shards", 4)
    assert [path.name for path in Path("shards").glob("piece*")] == ["piece_0_of_4.ckpt"]
    split(model, "shards")
    split(model, "fresh")
    assert sorted(path.name for path in Path("shards").iterdir()) == [
        "piece_0_of_2.ckpt",
        "piece_1_of_2.ckpt",
    ]
    assert all(
        (Path("shards") / path.name).read_bytes() == path.read_bytes() for path in Path("fresh").iterdir()
    )
    with pytest.raises(
        CheckpointError,
        match="holds shards already, the first piece_0_of_2.ckpt: give another --output_dir, or remove",
    ):
        # negative control: what is finished, or was put there by somebody, is not touched
        split(model, "shards")
    Path("shards/piece_1_of_2.ckpt").unlink()
    with pytest.raises(CheckpointError, match="holds shards already"):
        split(model, "shards")


@pytest.mark.parametrize(
    "name, complaint",
    [
        (
            "piece_1_of_99999999999.ckpt",
            "piece_0_of_99999999999.ckpt and 99999999997 more are not there; copy all 99999999999",
        ),
        (
            "piece_x_of_y.ckpt",
            "piece_x_of_y.ckpt has no name of a shard: expected piece_I_of_N.ckpt, I from 0 to N - 1",
        ),
        ("piece_2_of_2.ckpt", "has no name of a shard"),
        ("piece_0_of_0.ckpt", "has no name of a shard"),
        ("piece_-1_of_2.ckpt", "has no name of a shard"),
        ("piece_00_of_02.ckpt", "has no name of a shard"),
        ("piece_0_of_2_of_3.ckpt", "has no name of a shard"),
        (f"piece_0_of_{'9' * 200}.ckpt", "has no name of a shard"),
    ],
)
def test_b7_odd_names_of_pieces_are_clean_errors_at_once(tmp_path, name, complaint):
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=complaint):
        shard_files(tmp_path)
    (tmp_path / name).unlink()
    for rank in (0, 1):
        (tmp_path / f"piece_{rank}_of_2.ckpt").touch()
    assert [path.name for path in shard_files(tmp_path)] == ["piece_0_of_2.ckpt", "piece_1_of_2.ckpt"]


def test_b7_odd_names_of_ranks_are_no_crash(tmp_path):
    for name in ("rank_0", "rank_1²"):
        (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match="expected one .ckpt in rank_0"):
        shard_files(tmp_path)
