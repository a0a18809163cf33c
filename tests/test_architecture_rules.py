"""The project follows the rules of its architecture, and each rule reports a violation."""

import ast
import os
import re
import shutil
import subprocess
import sys

import pytest

import mindblip2
from tests.architecture_rules import (
    ROOT,
    code,
    data_complaints,
    dynamic_import_complaints,
    eager_complaints,
    entry_point_complaints,
    foreign_imports,
    legend_complaints,
    listed,
    package_complaints,
    path_complaints,
    readme_complaints,
    strictness_complaints,
    unused_writers,
    writer_complaints,
)

FILES = listed()
PYTHON = [name for name in FILES if name.endswith(".py")]
SOURCES = [
    name for name in PYTHON if name.split("/")[0] in ("mindblip2", "convert", "parity", "run_blip2.py")
]
SHAPED = re.compile(r"mindblip2/(models|models/kernels|generation)/(?!__init__|streamer)\w+\.py")
MODELS = [name for name in PYTHON if SHAPED.fullmatch(name)]  # files whose names carry shapes


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def kept(complaints):
    assert not complaints, "\n" + "\n".join(complaints)


def lint_imports(folder):
    """The report of import-linter on the package in ``folder``, unwrapped to one line, and its exit code."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "400"}
    run = subprocess.run(
        [*command, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return " ".join((run.stdout + run.stderr).split()), run.returncode


def test_import_contracts_are_kept():
    report, status = lint_imports(ROOT)
    assert status == 0 and "kept, 0 broken" in report, report


def test_import_contracts_cover_all_packages():
    layers = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("layers = [", 1)[1].split("]", 1)[0]
    named = {name.split(".")[0] for name in re.findall(r"[\w.]+", layers)}
    packages = {name.split("/")[1].removesuffix(".py") for name in PYTHON if name.startswith("mindblip2/")}
    assert named == packages - {"__init__", "__main__"}


def test_imports_that_import_linter_does_not_see():
    public = getattr(mindblip2, "__all__", ())
    data = [name for name in SOURCES if name.startswith("mindblip2/data/")]
    assert data
    kept([line for name in data for line in data_complaints(read(name), name)])
    kept(eager_complaints(read("mindblip2/__init__.py"), "mindblip2/__init__.py"))
    kept(entry_point_complaints(read("run_blip2.py"), "run_blip2.py", public))
    kept([line for name in SOURCES for line in dynamic_import_complaints(read(name), name)])


def test_folders_are_packages():
    kept(package_complaints([name for name in SOURCES if "/" in name]))


def test_model_files_explain_their_letters():
    assert len(MODELS) > 10
    kept([line for name in MODELS for line in legend_complaints(read(name), name)])


def test_loading_is_strict():
    kept([line for name in PYTHON for line in strictness_complaints(read(name), name)])


def test_b5_files_are_written_by_file_io():
    kept([line for name in SOURCES for line in writer_complaints(read(name), name)])
    kept(unused_writers({name: read(name) for name in SOURCES}))


def test_no_path_of_one_machine():
    texts = {name: (ROOT / name).read_bytes() for name in FILES}
    kept(
        [
            line
            for name, data in texts.items()
            if b"\0" not in data
            for line in path_complaints(data.decode("utf-8", "replace"), name)
        ]
    )


def test_readmes_show_the_same_commands():
    kept([f"{name} is missing" for name in ("README.md", "README_CN.md") if name not in FILES])
    assert code(read("README.md")), "README.md shows no command"
    kept(readme_complaints(read("README.md"), read("README_CN.md")))


# ------------------------------------------------------------------------------------------------ negative co
# One import that no contract allows, and the contract that must report it.
LAYERS = "Packages import only those below them"
MODEL_PARTS = "A model file imports only parts of a model that come before it"
KERNELS = "The kernels of one device do not use those of another"
TORCH = "PyTorch is used only by convert and parity, transformers only by parity"
CONVERTER = "The converter works without transformers, the trainer and evaluation"
NO_MINDSPORE = "Configuration, checkpoint files, generation and metrics work without MindSpore"
GENERATION = "Generation imports no model, no data and no device"
REFERENCE = "The reference networks in PyTorch do not import the code they are compared with"
COLLECTIVES = "Collectives and sharding rules import nothing else of the project"
LIBRARIES = "Images, tokenizers and plots stay out of the models and of the thin import paths"
WRONG_IMPORTS = [
    ("models.vit", "mindblip2.trainer.loop", LAYERS),
    ("data.sampler", "mindblip2.models.vit", LAYERS),
    ("data.images.load", "mindblip2.models.vit", LAYERS),
    ("checkpoint.pretrained", "mindblip2.models.vit", LAYERS),
    ("trainer.loop", "mindblip2.pipeline", LAYERS),
    ("pipelines", "mindblip2.trainer", LAYERS),
    ("evaluation.zero_shot", "mindblip2.trainer.data_sources", LAYERS),
    ("models.vit", "mindblip2.models.qformer", MODEL_PARTS),
    ("models.losses", "mindblip2.models.blip2_qformer", MODEL_PARTS),
    ("models.kernels.cpu", "mindblip2.models.kernels.ascend", KERNELS),
    ("checkpoint.pretrained", "torch", TORCH),
    ("trainer.loop", "transformers", TORCH),
    ("checkpoint.pretrained", "mindblip2.convert.name_maps.blip2", TORCH),
    ("pipelines", "mindblip2.parity.reference.model", TORCH),
    ("convert.plan", "mindblip2.trainer.loop", CONVERTER),
    ("convert.plan", "transformers", CONVERTER),
    ("config.schema", "mindspore", NO_MINDSPORE),
    ("generation.beam_search", "mindspore", NO_MINDSPORE),
    ("generation.beam_search", "mindblip2.models.layers", GENERATION),
    ("parity.reference.vit", "mindblip2.models.vit", REFERENCE),
    ("distributed.comm", "mindblip2.config", COLLECTIVES),
    ("tools.image_tools", "PIL", LIBRARIES),
]


def copy_of_the_sources(folder):
    for name in PYTHON:
        if name.startswith("mindblip2/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_report_is_of_the_copied_sources(tmp_path):
    report, status = lint_imports(copy_of_the_sources(tmp_path))
    assert status == 0, report


@pytest.mark.parametrize("module, wrong, contract", WRONG_IMPORTS)
def test_a_wrong_import_breaks_its_contract(tmp_path, module, wrong, contract):
    path = copy_of_the_sources(tmp_path) / "mindblip2" / (module.replace(".", "/") + ".py")
    path.write_text(
        read(f"mindblip2/{path.relative_to(tmp_path / 'mindblip2')}") + f"\n\ndef f():\n    import {wrong}\n"
    )
    report, status = lint_imports(tmp_path)
    assert status == 1 and f"{contract} BROKEN" in report, report
    assert f"mindblip2.{module} -> {wrong} (l." in report


def test_every_contract_has_a_wrong_import():
    names = re.findall(
        r'^name = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(names) == {contract for _, _, contract in WRONG_IMPORTS}


@pytest.mark.parametrize(
    "source, name",
    [
        ("def f():\n    from mindspore import nn", "mindspore.nn"),
        ("import mindspore as ms", "mindspore"),
        ("from mindspore.nn import Cell", "mindspore.nn.Cell"),
    ],
)
def test_mindspore_in_the_data_package_is_reported(source, name):
    reports = data_complaints(source, "mindblip2/data/sampler.py")
    assert len(reports) == 1 and reports[0].endswith(f"data imports {name}")
    assert data_complaints("from mindspore import dataset, Tensor\nimport numpy", "mindblip2/data/a.py") == []


def test_an_eager_import_of_a_public_name_is_reported():
    for source in ("from mindblip2.config import A", "from .config import A"):
        assert eager_complaints(source, "a.py") == ["a.py:1: imports mindblip2.config.A eagerly"]
    assert eager_complaints("import importlib\ndef f():\n    from mindblip2.trainer import A", "a.py") == []


@pytest.mark.parametrize(
    "source, name",
    [
        ("from mindblip2.config import load_config", "mindblip2.config.load_config"),
        ("from mindblip2 import checkpoint", "mindblip2.checkpoint"),
        ("def f():\n    import mindblip2.trainer", "mindblip2.trainer"),
    ],
)
def test_a_private_import_of_the_command_line_is_reported(source, name):
    public = ["Trainer", "pipeline"]
    assert entry_point_complaints(source, "a.py", public)[0].endswith(f"imports {name}, which is not public")
    right = (
        "import argparse\nfrom mindblip2 import Trainer, pipeline\nfrom mindblip2.file_io import FileError"
    )
    assert entry_point_complaints(right, "a.py", public) == []


def test_an_import_by_a_call_is_reported():
    source = (
        "import importlib\nimportlib.import_module('mindblip2.convert.name_maps.blip2')\n__import__('torch')"
    )
    assert len(dynamic_import_complaints(source, "a.py")) == 2
    assert dynamic_import_complaints("importlib.import_module(f'mindblip2.{name}')", "a.py") == []


def test_relative_imports_have_their_full_names():
    found = foreign_imports(
        ast.parse("from ..trainer import loop\nfrom . import vit").body, "mindblip2.models"
    )
    assert [name for _, name in found] == ["mindblip2.trainer.loop", "mindblip2.models.vit"]


def test_a_folder_that_is_no_package_is_reported():
    assert package_complaints(["a/__init__.py", "a/b/c.py"]) == ["a/b: no __init__.py"]


@pytest.mark.parametrize(
    "source, complaint",
    [
        ("", "no shape legend"),
        ('"""A model."""', "no shape legend"),
        ('"""B batch · Q queries"""\ndef f(image_BP):\n    pass', "does not explain P of image_BP"),
    ],
)
def test_a_model_file_without_its_letters_is_reported(source, complaint):
    reports = legend_complaints(source, "model.py")
    assert len(reports) == 1 and complaint in reports[0]
    assert legend_complaints('"""B batch · L = Q + T"""\nx_BQ = y_BLT = MAX_Z = 1', "model.py") == []


@pytest.mark.parametrize(
    "call",
    [
        "m.load_state_dict(d, strict=False)",
        "m.load_state_dict(d, False)",
        "load_param_into_net(m, d, strict_load=False)",
    ],
)
def test_loose_loading_is_reported(call):
    assert len(strictness_complaints(call, "a.py")) == 1
    assert strictness_complaints(call.replace("False", "True"), "a.py") == []


@pytest.mark.parametrize(
    "call",
    [
        "open(path, 'w')",
        "open(path, mode='xb')",
        "open(path, 'r+b')",
        "open(path, mode)",
        "path.open('a')",
        "io.open(path, 'w')",
        "os.fdopen(handle, 'wb')",
        "path.write_text(text)",
        "Path(path).write_bytes(data)",
        "np.save(path, x)",
        "np.savez(path, x=x)",
        "numpy.savetxt(path, x)",
        "x.tofile(path)",
        "image.save(path)",
        "figure.savefig(path)",
        "torch.save(x, path)",
        "save_file(x, path)",
        "shutil.copyfile(a, b)",
        "shutil.copytree(a, b)",
        "json.dump(x, file)",
        "yaml.safe_dump(x, file)",
        "yaml.dump(x, stream=file)",
        "pickle.dump(x, file)",
        "ms.export(net, x, file_name=name)",
        "mindspore.save_checkpoint(net, name)",
        "zipfile.ZipFile(path, 'w')",
        "tempfile.NamedTemporaryFile(delete=False)",
        "logging.FileHandler(path)",
        "with atomic_file(path) as file:\n    json.dump(x, other)",
    ],
)
def test_b5_a_new_writer_is_reported(call):
    reports = writer_complaints(call, "mindblip2/new.py")
    assert len(reports) == 1 and "writes without mindblip2.file_io" in reports[0]


@pytest.mark.parametrize(
    "call",
    [
        "open(path)",
        "open(path, 'rb')",
        "open(path, encoding='utf-8')",
        "path.open('r')",
        "Image.open(stream)",
        "np.load(path)",
        "write_text(path, text)",
        "file_io.write_bytes(path, data)",
        "json.dumps(x)",
        "yaml.safe_dump(x)",
        "model.save_checkpoint(path)",
        "work.export(model)",
        "text.copy()",
        "zipfile.ZipFile(path)",
        "with atomic_file(path, 'wb') as file:\n    np.savez(file, x=x)",
    ],
)
def test_b5_reading_and_file_io_are_not_reported(call):
    assert writer_complaints(call, "mindblip2/new.py") == []


def test_b5_a_reviewed_writer_that_is_gone_is_reported():
    assert any("train.jsonl" in line for line in unused_writers({"mindblip2/trainer/logging.py": "pass"}))


@pytest.mark.parametrize("path", ["/" + "home/me/x.ckpt", "C:\\" + "Users\\me"])
def test_a_path_of_one_machine_is_reported(path):
    assert path_complaints(f"--x {path}", "a.md") == [f"a.md:1: a path of one machine: --x {path}"]
    assert path_complaints("https://x.org/home/y  ./work/x  ~/work/x  /path/to/x  $HOME/work/x", "a.md") == []


def test_a_command_in_one_readme_only_is_reported():
    english = "```text\n0.9\n```\nIt says a 4.\n```bash\nmake demo  # seconds\n```"
    chinese = "```bash\nmake demo  # 几秒\n```"
    assert readme_complaints(english, chinese) == []
    assert "-make demo" in readme_complaints(english, chinese.replace("demo", "test"))
