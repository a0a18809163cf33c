"""The house keeps its rules (tests/architecture_rules.py), and each rule would notice."""

import re

import pytest

import mindblip2
from tests.architecture_rules import (
    ROOT,
    code,
    import_complaints,
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
CELLS = [name for name in PYTHON if re.fullmatch(r"mindblip2/cells/(?!__init__)\w+\.py", name)]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def kept(complaints):
    assert not complaints, "\n" + "\n".join(complaints)


def test_rooms_import_what_the_table_allows():
    public = getattr(mindblip2, "__all__", ())
    kept([line for name in SOURCES for line in import_complaints(read(name), name, public)])


def test_folders_are_packages():
    kept(package_complaints([name for name in SOURCES if "/" in name]))


def test_cells_explain_their_letters():
    kept([line for name in CELLS for line in legend_complaints(read(name), name)])


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
@pytest.mark.parametrize(
    "file, source, complaint",
    [
        (
            "mindblip2/models/vit.py",
            "from mindblip2.data.images.load import f",
            "cells imports mindblip2.data.images.load.f",
        ),
        (
            "mindblip2/models/vit.py",
            "from mindblip2 import hub",
            "cells imports mindblip2.checkpoint.pretrained",
        ),
        (
            "mindblip2/models/vit.py",
            "from mindblip2.checkpoint.pretrained import no_init",
            "cells imports mindblip2.checkpoint.pretrained.no_init",
        ),
        ("mindblip2/models/vit.py", "from ..trainer import loop", "cells imports mindblip2.trainer.loop"),
        ("mindblip2/models/vit.py", "from mindblip2.models.qformer import QFormer", "vit imports qformer"),
        ("mindblip2/models/losses.py", "from . import blip2_qformer", "losses imports blip2_qformer"),
        ("mindblip2/cells/lora.py", "", "no place in CELL_ORDER"),
        (
            "mindblip2/data/images/load.py",
            "def f():\n    from mindspore import nn",
            "image.py:2: data imports mindspore.nn",
        ),
        ("mindblip2/data/__init__.py", "from ..cells import vit", "data imports mindblip2.models.vit"),
        ("mindblip2/config.py", "import mindspore as ms", "config imports mindspore"),
        ("mindblip2/distributed/comm.py", "import mindblip2.config", "comm imports mindblip2.config"),
        (
            "mindblip2/checkpoint/pretrained.py",
            "from mindblip2.models.vit import ViT",
            "hub imports mindblip2.models.vit.ViT",
        ),
        ("mindblip2/checkpoint/pretrained.py", "def f():\n    import torch", "hub imports torch"),
        (
            "mindblip2/checkpoint/pretrained.py",
            "import importlib\nimportlib.import_module('mindblip2.convert.name_maps.blip2')",
            "hub imports mindblip2.convert.name_maps.blip2",
        ),
        (
            "mindblip2/trainer/loop.py",
            "from mindblip2.pipeline import f",
            "trainer imports mindblip2.pipeline.f",
        ),
        (
            "mindblip2/trainer/loop.py",
            "from mindblip2 import Blip2Qformer",
            "trainer imports mindblip2.Blip2Qformer",
        ),
        ("mindblip2/pipeline/zero_shot.py", "import mindblip2.trainer", "pipeline imports mindblip2.trainer"),
        (
            "mindblip2/evaluation/zero_shot.py",
            "from mindblip2.trainer import f",
            "zero_shot imports mindblip2.trainer.f",
        ),
        ("mindblip2/tools/image_tools.py", "import PIL", "tools imports PIL"),
        ("mindblip2/__init__.py", "from mindblip2.config import A", "imports mindblip2.config.A eagerly"),
        (
            "mindblip2/__init__.py",
            "def f():\n    from parity import twin",
            "front imports mindblip2.parity.reference.model",
        ),
        ("mindblip2/extras.py", "", "in no room"),
        (
            "mindblip2/convert/name_maps/blip2.py",
            "from mindblip2 import trainer",
            "convert imports mindblip2.trainer",
        ),
        (
            "mindblip2/parity/cases/stage1.py",
            "from mindblip2.data import image",
            "parity imports mindblip2.data.images.load",
        ),
        (
            "run_blip2.py",
            "from mindblip2.config import load_config",
            "doorbell imports mindblip2.config.load_config",
        ),
        ("run_blip2.py", "from mindblip2 import hub", "doorbell imports mindblip2.checkpoint.pretrained"),
    ],
)
def test_a_wrong_import_is_reported(file, source, complaint):
    reports = import_complaints(source, file, public=["Trainer"])
    assert len(reports) == 1 and complaint in reports[0]


@pytest.mark.parametrize(
    "file, source",
    [
        (
            "mindblip2/__init__.py",
            "from importlib import import_module\ndef f():\n    from mindblip2.trainer import A",
        ),
        (
            "mindblip2/models/losses.py",
            "import mindspore\nfrom mindblip2.checkpoint.pretrained import Pretrained\nfrom .layers import gelu",
        ),
        ("run_blip2.py", "import argparse\nfrom mindblip2 import Trainer, pipeline"),
    ],
)
def test_a_right_import_is_not_reported(file, source):
    assert import_complaints(source, file, public=["Trainer", "pipeline"]) == []


def test_a_folder_that_is_no_package_is_reported():
    assert package_complaints(["a/__init__.py", "a/b/c.py"]) == ["a/b: no __init__.py"]


@pytest.mark.parametrize(
    "source, complaint",
    [
        ("", "no shape legend"),
        ('"""A cell."""', "no shape legend"),
        ('"""B batch · Q queries"""\ndef f(image_BP):\n    pass', "does not explain P of image_BP"),
    ],
)
def test_a_cell_without_its_letters_is_reported(source, complaint):
    reports = legend_complaints(source, "cell.py")
    assert len(reports) == 1 and complaint in reports[0]
    assert legend_complaints('"""B batch · L = Q + T"""\nx_BQ = y_BLT = MAX_Z = 1', "cell.py") == []


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
