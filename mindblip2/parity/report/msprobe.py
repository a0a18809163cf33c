"""Results in the layout that Ascend's msprobe reads: two dump folders, ours and torch's, and a mapping of
their names.

    FOLDER/npu/step0/rank0/    dump.json, stack.json, construct.json, dump_tensor_data/*.npy    what our
    modules gave FOLDER/bench/step0/rank0/  the same of torch in its dtype, under our names: tensors can be
    compared value by value FOLDER/npu_statistics/…    statistics of ours alone
    FOLDER/torch/step0/rank0/  statistics of torch's, under torch's names, as a dump of msprobe's own in
    PyTorch would have them FOLDER/data_mapping.yaml   our output -> torch's, module by module, for the third
    folder

    # one entry per module and call; the verbs of a Q-Former layer are its calls 0, 1, 2, …
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mindblip2.convert.name_maps.blip2 import LAVIS
from mindblip2.file_io import atomic_file, write_json, write_text
from mindblip2.parity.activation_hooks import module_name
from mindblip2.parity.candidate.chained import verbs_of

STEP = Path("step0") / "rank0"
KINDS = {
    "mindspore": ("Cell", "mindspore.Tensor", "Float32"),
    "pytorch": ("Module", "torch.Tensor", "torch.float32"),
}


def export(
    folder: str | Path, ours: Mapping[str, np.ndarray], torch32: Mapping[str, np.ndarray], freq: int
) -> Path:
    """Write activations by the names of chained rows, "path" or "path verb"; returns the folder."""
    folder = Path(folder)
    side(folder / "npu", {call(name): value for name, value in ours.items()}, "mindspore", tensors=True)
    side(
        folder / "npu_statistics",
        {call(name): value for name, value in ours.items()},
        "mindspore",
        tensors=False,
    )
    side(folder / "bench", {call(name): value for name, value in torch32.items()}, "mindspore", tensors=True)
    theirs = {name: torch_path(name.partition(" ")[0], freq) for name in torch32}
    known = {name: path for name, path in theirs.items() if path}
    side(
        folder / "torch",
        {call(name, path): torch32[name] for name, path in known.items()},
        "pytorch",
        tensors=False,
    )
    mapping = {
        f"Cell.{call(name)}.output.0": f"Module.{call(name, path)}.output.0" for name, path in known.items()
    }
    lines = [f"{json.dumps(a)}: {json.dumps(b)}" for a, b in mapping.items()]
    write_text(
        folder / "data_mapping.yaml", f"# {LAVIS.title}: our output -> torch's\n" + "\n".join(lines) + "\n"
    )
    return folder


def torch_path(path: str, freq: int) -> str | None:
    """LAVIS's path of a module of ours, or of the block or layer that holds it; None of what is no module
    there."""
    for part, theirs in (("", ""), (".norm1", ".norm1"), (".attention.query", ".attention.self.query")):
        if found := module_name(path + part, freq):
            return found.removesuffix(theirs)
    return None


def call(name: str, path: str | None = None) -> str:
    """ "qformer.encoder.layers.0 match" -> "qformer.encoder.layers.0.Cell.forward.2": the number of the call
    is the verb's."""
    own, _, verb = name.partition(" ")
    number = verbs_of(own).index(verb) if verb else 0
    return f"{path or own}.Part.forward.{number}"


def side(folder: Path, values: Mapping[str, np.ndarray], framework: str, tensors: bool) -> None:
    """One dump folder."""
    kind, _, _ = KINDS[framework]
    target = folder / STEP
    data = {}
    for name, value in values.items():
        file = f"{kind}.{name}.output.0.npy"
        data[f"{kind}.{name}"] = {
            "input_args": [],
            "input_kwargs": {},
            "output": [described(value, framework, file if tensors else None)],
        }
        if tensors:
            with atomic_file(target / "dump_tensor_data" / file, "wb") as stream:
                np.save(stream, np.asarray(value, np.float32), allow_pickle=False)
    header = {
        "task": "tensor" if tensors else "statistics",
        "level": "L0",
        "framework": framework,
        "dump_data_dir": str((target / "dump_tensor_data").resolve()) if tensors else None,
    }
    for name, content in (
        ("dump", header | {"data": data}),
        ("stack", {}),
        ("construct", dict.fromkeys(data)),
    ):
        write_json(target / f"{name}.json", content)


def described(value: np.ndarray, framework: str, file: str | None) -> dict:
    """Type, shape, statistics, and where the tensor lies."""
    _, kind, dtype = KINDS[framework]
    value = np.asarray(value, np.float64)
    stats = {"Max": value.max(), "Min": value.min(), "Mean": value.mean(), "Norm": np.sqrt((value**2).sum())}
    return (
        {"type": kind, "dtype": dtype, "shape": list(value.shape)}
        | {name: float(stat) for name, stat in stats.items()}
        | {"requires_grad": False}
        | ({"data_name": file} if file else {})
    )
