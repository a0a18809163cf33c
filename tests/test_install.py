"""What an installed wheel gives, away from the checkout.  Slow: pip builds it, with setuptools from the
index."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.architecture_rules import ROOT

pytestmark = pytest.mark.slow
PACKED = ("mindblip2", "convert", "parity", "configs", "setup.py", "pyproject.toml", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since a build leaves build/ and an egg-info behind."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source], check=True
    )
    [path] = folder.glob("mindblip2-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """run(code) → its output, in a process that sees the installed wheel and not the checkout, and has no
    torch."""
    site, elsewhere = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True
    )

    def run(code):
        code = f"import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n{code}"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run("import mindblip2; print(mindblip2.__file__)").startswith(str(site))
    return run


def test_the_wheel_holds_sources_presets_and_assets_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (("configs", "mindblip2/configs"), ("mindblip2/assets", "mindblip2/assets")):
        assert {f"{inside}/{path.name}" for path in (ROOT / folder).iterdir() if path.is_file()} <= names
    for package in ("mindblip2", "convert", "parity"):
        assert {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "mindblip2",
        "convert",
        "parity",
    }


def test_torch_is_asked_for_by_parity_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(metadata).decode().splitlines()
    needs = [line for line in lines if line.startswith("Requires-Dist: ")]
    assert [line for line in needs if "torch" in line] == ['Requires-Dist: torch==2.13.0; extra == "parity"']
    assert "Requires-Dist: numpy<2" in needs


def test_presets_are_found_away_from_the_checkout(installed):
    expected = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    assert installed("import mindblip2.config as c; print(*c.presets())").split() == expected
    assert len(expected) > 0


def test_every_public_name_loads_without_torch(installed):
    assert (
        installed("import mindblip2\nprint(all(getattr(mindblip2, name) for name in mindblip2.__all__))")
        == "True"
    )
