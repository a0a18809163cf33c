"""A wheel, installed into an empty environment outside the checkout: what is in it, and what works there.

Slow: the wheel is built and installed with pip.  Its dependencies are those of the environment that runs
the tests, so nothing is downloaded."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.architecture_rules import ROOT

pytestmark = pytest.mark.slow
SOURCES = ("mindblip2", "convert", "parity", "configs", "setup.py", "pyproject.toml", "LICENSE")
TORCH_FILE = ROOT / "tests" / "reference" / "tiny" / "blip2_tiny.pth"
CAPTION = """
import sys
from mindblip2 import pipeline
from mindblip2.demo import digits

scenes = digits.held_out("told")[:3]
write = pipeline("image_to_text_generation", model="itt_blip2_digits", max_new_tokens=20)
texts = write([digits.render(scene, 48) for scene in scenes])
print(sum(text == digits.caption(scene) for text, scene in zip(texts, scenes)), "torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since a build leaves build/ and an egg-info in the source folder."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        source,
    ]
    subprocess.run(build, check=True)
    [path] = folder.glob("mindblip2-*.whl")
    return path


@pytest.fixture(scope="module")
def site_packages(wheel, tmp_path_factory):
    """The site-packages folder of a new environment with the wheel in it.

    A .pth file adds the dependencies of this environment.  Python ignores .pth files in a folder added
    like this, so an editable install of the checkout is not active there."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    [site] = folder.glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel]
    subprocess.run(install, check=True)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return site


@pytest.fixture
def run(site_packages, tmp_path):
    """run(*arguments) → the finished process of the new environment's Python, in an empty folder."""
    python = site_packages.parents[2] / "bin" / "python"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments):
        command = [python, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)

    return run


@pytest.fixture
def run_code(run):
    """run_code(code) → its output, in a process in which torch and transformers can not be imported."""

    def run_code(code):
        done = run("-c", f"import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n{code}")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run_code


def test_the_wheel_contains_the_package_its_presets_and_assets_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (("configs", "mindblip2/configs"), ("mindblip2/assets", "mindblip2/assets")):
        assert {f"{inside}/{path.name}" for path in (ROOT / folder).iterdir() if path.is_file()} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "mindblip2").rglob("*.py")} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"mindblip2"}


def test_torch_is_a_dependency_of_the_parity_extra_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(metadata).decode().splitlines()
    needs = [line for line in lines if line.startswith("Requires-Dist: ")]
    assert [line for line in needs if "torch" in line] == ['Requires-Dist: torch==2.13.0; extra == "parity"']
    assert "Requires-Dist: numpy<2" in needs


def test_the_installed_package_is_imported(run_code, site_packages):
    path = Path(run_code("import mindblip2; print(mindblip2.__file__)"))
    assert path.is_relative_to(site_packages) and not path.is_relative_to(ROOT)


@pytest.mark.parametrize("name", ["convert", "parity"])
def test_convert_and_parity_are_installed_inside_the_package_only(run, name):
    assert run("-c", f"import mindblip2.{name}").returncode == 0
    done = run("-c", f"import {name}")  # negative control
    assert done.returncode == 1 and f"ModuleNotFoundError: No module named '{name}'" in done.stderr


def test_presets_are_found(run_code):
    expected = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    assert run_code("import mindblip2.config as c; print(*c.presets())").split() == expected
    assert len(expected) > 0


def test_every_public_name_is_imported_without_torch(run_code):
    code = "import mindblip2\nprint(all(getattr(mindblip2, name) for name in mindblip2.__all__))"
    assert run_code(code) == "True"


def test_a_torch_file_is_converted(run, tmp_path):
    command = ("-m", "mindblip2.convert.convert_weight", "--torch_path")
    done = run(*command, TORCH_FILE, "--mindspore_path", "model.ckpt")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("written: model.ckpt")
    count = "from mindblip2.checkpoint.ckpt import Checkpoint; print(len(Checkpoint('model.ckpt')))"
    assert int(run("-c", count).stdout) > 100
    done = run(*command, tmp_path / "model.ckpt", "--mindspore_path", "other.ckpt")  # negative control
    assert done.returncode == 1 and not (tmp_path / "other.ckpt").exists()


def test_the_embedded_model_writes_captions(run):
    done = run("-c", CAPTION)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "3 False"  # three right captions, torch not imported
