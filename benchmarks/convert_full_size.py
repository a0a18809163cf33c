"""Memory and speed of the conversion at full size: LAVIS .pth -> .ckpt -> .pth, against ``cp`` of the same
file.

    python benchmarks/convert_full_size.py --folder DIR

DIR needs 19 GB; --keep keeps the files.

The weights are random (no download): 857 tensors of the published shapes, ViT included.  Every command runs
in a process of its own with its input dropped from the page cache, and its time includes a sync of the output
to the disk.  Peak memory is the kernel's (ru_maxrss), file pages that are mapped included.
"""

import argparse
import importlib.metadata
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONVERT = [sys.executable, str(ROOT / "convert" / "convert_weight.py")]


def make(path):
    """A file as LAVIS would save the whole stage-1 model: ``{"model": state dict}``, the tied tensors stored
    once."""
    sys.path.insert(0, str(ROOT))
    import torch

    from mindblip2.parity.reference.config import ReferenceConfig
    from mindblip2.parity.reference.model import seeded_state_dict
    from mindblip2.parity.seeded_weights import TIED

    path.parent.mkdir(parents=True, exist_ok=True)
    state = seeded_state_dict(ReferenceConfig())
    state.update({name: state[owner] for name, owner in TIED.items()})
    if len(state) != 857:
        raise ValueError(f"{len(state)} tensors, LAVIS has 857")
    torch.save({"model": state}, path)
    to_disk(path)


def to_disk(path):
    """Write what the page cache holds of a file, and drop it, so that the next reader reads the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(command, source, target):
    """(seconds until the target is on the disk, CPU seconds and peak bytes of the process)."""
    to_disk(source)
    start = time.perf_counter()
    child = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise RuntimeError(f"failed: {' '.join(command)}")
    to_disk(target)
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def equal(one, two):
    """Do two LAVIS files hold the same bits under the same names?"""
    import torch

    one, two = (torch.load(path, mmap=True, weights_only=True)["model"] for path in (one, two))
    return one.keys() == two.keys() and all(
        value.dtype == two[name].dtype and torch.equal(value, two[name]) for name, value in one.items()
    )


def elsewhere(function, *arguments):
    """The function's result from a process of its own: a child's ru_maxrss counts what its parent ever
    held."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the files are made: 19 GB")
    parser.add_argument("--keep", action="store_true", help="keep blip2_full.pth and blip2_full.ckpt")
    options = parser.parse_args()
    pth, copy, ckpt, back = (
        options.folder / f"blip2_full{end}" for end in (".pth", ".copy", ".ckpt", ".back.pth")
    )
    half = options.folder / "blip2_full.half.ckpt"
    if not pth.is_file():
        elsewhere(make, pth)
    runs = {
        "cp": (["/bin/cp", str(pth), str(copy)], pth, copy),
        "to .ckpt": ([*CONVERT, "--torch_path", str(pth), "--mindspore_path", str(ckpt)], pth, ckpt),
        "to .pth": (
            [*CONVERT, "--to_torch", "--mindspore_path", str(ckpt), "--torch_path", str(back)],
            ckpt,
            back,
        ),
        "to .ckpt, float16": (
            [*CONVERT, "--torch_path", str(pth), "--mindspore_path", str(half), "--dtype", "float16"],
            pth,
            half,
        ),
    }
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("mindspore", "torch", "numpy")
    )
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}, {versions}\n"
    )
    print(
        "| command | output GB | seconds | GB/s | CPU seconds | peak GB | peak / output |\n"
        "|---|---|---|---|---|---|---|",
        flush=True,
    )
    for name, (command, source, target) in runs.items():
        seconds, cpu, peak = measure(command, source, target)
        size = target.stat().st_size
        print(
            f"| {name} | {size / 1e9:.2f} | {seconds:.1f} | {size / 1e9 / seconds:.2f} | {cpu:.1f} | "
            f"{peak / 1e9:.2f} | {peak / size:.2f} |",
            flush=True,
        )
        if target is copy:
            copy.unlink()
    print(f"\n.pth -> .ckpt -> .pth holds the same bits: {'yes' if elsewhere(equal, pth, back) else 'NO'}")
    for path in (back, half) if options.keep else (back, half, pth, ckpt):
        path.unlink()


if __name__ == "__main__":
    main()
