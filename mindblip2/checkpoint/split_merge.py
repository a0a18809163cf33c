"""``run_mode split`` and ``merge``: a whole checkpoint to one file per card of a model group, and back, one
tensor at a time.

The weights of a model only: checkpoints of a training run are whole, moments included, and any mesh resumes
from them.
"""

from pathlib import Path

from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError, write_checkpoint
from mindblip2.checkpoint.load_errors import check_names, check_shapes
from mindblip2.checkpoint.pretrained import no_init
from mindblip2.checkpoint.sharded_checkpoint import SHARD_NAME, SHARD_PATTERN, ShardedCheckpoint, shard_files
from mindblip2.config.schema import ConfigError
from mindblip2.distributed.data_parallel import misfits
from mindblip2.distributed.sharding import is_split
from mindblip2.file_io import read_json, sync_folder, write_json
from mindblip2.models.blip2_llm import Blip2Llm
from mindblip2.models.blip2_qformer import Blip2Qformer
from mindblip2.progress import progress

UNFINISHED = ".split_unfinished.json"  # the names of the shards that a split is writing


def split_checkpoint(config):
    """``load_checkpoint`` of a RunConfig → ``output_dir/piece_I_of_N.ckpt`` for
    ``parallel_config.model_parallel`` cards; returns the paths.  Raises ConfigError where so many cannot
    share the model, CheckpointError where the file does not fit, or shards lie there."""
    cards, folder = config.parallel_config.model_parallel, Path(config.output_dir)
    _check_cards(config, cards)
    _remove_interrupted(folder)
    there = sorted(path.name for path in folder.glob("piece_*_of_*.ckpt"))
    if there:
        raise CheckpointError(
            f"{folder} holds shards already, the first {there[0]}: give another --output_dir, or remove them"
        )
    stored, parameters = Checkpoint(_given(config)), _parameters(config)
    _check(stored, parameters)
    paths = [folder / SHARD_NAME.format(rank, cards) for rank in range(cards)]
    write_json(folder / UNFINISHED, [path.name for path in paths])
    for rank, path in enumerate(progress(paths, desc="split", unit="shard")):
        write_checkpoint(
            path,
            (
                (name, stored.types[name], _shard(parameters[name], stored.view(name), cards, rank))
                for name in stored
            ),
        )
    sync_folder(folder)
    (folder / UNFINISHED).unlink()
    print(f"shards are saved at: {folder}")
    return paths


def merge_checkpoint(config):
    """The folder ``load_checkpoint`` of a RunConfig, with the files of all cards of a model group, see
    :func:`shard_files` → ``output_dir/<model_name>.ckpt``, whose path is returned.  Of ``rank_I`` folders
    ``parallel_config.model_parallel``, where it is given, says how many are one group.  Raises as
    ``split_checkpoint``."""
    folder, cards = Path(_given(config)), config.parallel_config.model_parallel
    path = Path(config.output_dir) / f"{config.trainer.model_name or 'model'}.ckpt"
    files = shard_files(folder, cards if cards > 1 else None) if folder.is_dir() else []
    if len(files) < 2:
        raise CheckpointError(
            f"{folder} holds no shards: expected a folder with {SHARD_NAME.format(0, 'N')} and the others, "
            "or with rank_0/x.ckpt, rank_1/x.ckpt and so on"
        )
    _check_cards(config, len(files))
    if path.exists():
        raise CheckpointError(
            f"{path} is there already: give another --output_dir, or another --trainer.model_name"
        )
    parameters = _parameters(config)
    shards = ShardedCheckpoint(files, parameters)
    _check(shards, parameters)
    write_checkpoint(
        path,
        ((name, shards.types[name], shards[name]) for name in progress(shards, desc="merge", unit="tensor")),
    )
    print(f"checkpoint is saved at: {path}")
    return path


def _remove_interrupted(folder):
    """Remove the shards of a split that was killed before it had written the last one."""
    if (folder / UNFINISHED).is_file():
        for name in read_json(
            folder / UNFINISHED, list, "a list of files", f"remove it, and the shards in {folder}"
        ):
            if isinstance(name, str) and SHARD_PATTERN.fullmatch(name):
                (folder / name).unlink(missing_ok=True)
                for rest in folder.glob(f".{name}.*.partial"):
                    rest.unlink()
        (folder / UNFINISHED).unlink()


def _shard(parameter, array, cards, rank):
    return parameter.division.cut(array, cards, rank) if is_split(parameter, cards) else array


def _given(config):
    if not config.load_checkpoint:
        raise ConfigError(f"run_mode {config.run_mode} needs --load_checkpoint")
    return config.load_checkpoint


def _check_cards(config, cards):
    reasons = misfits(config.model.model_config, cards)
    if cards < 2 or reasons:
        raise ConfigError(
            f"{cards} shards: "
            + (
                f"{cards} does not divide {'; '.join(reasons)}"
                if reasons
                else "give --parallel_config.model_parallel 2 or more"
            )
        )


def _parameters(config):
    """Those of the model, by name and without values: what is of interest is their shape and division."""
    with no_init():
        return (Blip2Qformer if config.model.model_config.text_config is None else Blip2Llm)(
            config.model.model_config
        ).parameters_dict()


def _check(stored, parameters):
    """A stage-2 file may leave out the language model, which lies elsewhere."""
    if not any(name.startswith("llm.") for name in stored):
        parameters = {name: p for name, p in parameters.items() if not name.startswith("llm.")}
    check_names(list(stored), parameters, stored.path)
    check_shapes(dict.fromkeys(parameters, stored), parameters)
