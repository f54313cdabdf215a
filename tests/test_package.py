"""The package as others get it: a wheel that holds everything, installs, and runs."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sgdwalk

ROOT = Path(__file__).parent.parent
PAGES = {"paper/page.html.jinja", "paper/overview.html.jinja", "paper/page.css"}
DATA_FILES = {"py.typed", "report.html.jinja", "report.css", "report.js", *PAGES}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that ``python -m build`` makes."""
    folder = tmp_path_factory.mktemp("wheel")
    # The build backend is installed beside the tests: an isolated build would fetch it again.
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
        text=True,
    )
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_module_and_data_file(wheel):
    held = {name.removeprefix("sgdwalk/") for name in zipfile.ZipFile(wheel).namelist() if name.startswith("sgdwalk/")}
    source = ROOT / "src" / "sgdwalk"
    modules = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    assert held == modules | DATA_FILES


def test_the_wheels_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = archive.read(name).decode()
    assert "\nName: sgdwalk\n" in metadata
    assert f"\nVersion: {sgdwalk.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata


def test_an_installed_wheel_runs_the_command_line(wheel, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", tmp_path, wheel],
        check=True,
        capture_output=True,
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "bin" / "sgdwalk", "--help"],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "usage: sgdwalk" in done.stdout
    for command in ("run", "reproduce", "sweep", "report", "show", "list"):
        assert command in done.stdout
    where = subprocess.run(
        [sys.executable, "-c", "import sgdwalk; print(sgdwalk.__file__)"],
        env={"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(tmp_path)
