"""Reading a run never imports torch, and works where torch is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sgdwalk.store import RunWriter
from synthetic import records_of_walk, settings

BLOCKED = (
    "import sys\n"
    "class Missing:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.split('.')[0] in ('torch', 'safetensors'):\n"
    "            raise ModuleNotFoundError(name + ' is not installed', name=name)\n"
    "sys.meta_path.insert(0, Missing())\n"
)
LOADED = "\nprint([name for name in ('torch', 'safetensors', 'matplotlib.pyplot') if name in sys.modules])"
EVERY_FIGURE = (
    "for name in ('comparison', 'heights', 'progress', 'alpha_star', 'barriers', 'training', 'three_panels'):\n"
    "    sgdwalk.save_figure(getattr(sgdwalk.figures, name)(run), f'{name}.svg')\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "mine"
    writer = RunWriter.create(path, settings("mine"))
    for record in records_of_walk(25, noise=0.3):
        writer.append(record)
    writer.close()
    return path


def python(code: str, cwd: Path) -> str:
    """What a Python that has no torch prints."""
    source = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": source, "MPLCONFIGDIR": str(cwd / "matplotlib")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import sgdwalk.valley, sgdwalk.analysis, sgdwalk.figures, sgdwalk.report",
        "import sgdwalk; sgdwalk.open_run('mine').steps",
        "import sgdwalk; sgdwalk.open_run('mine').segments; sgdwalk.every(3); sgdwalk.RunFolderError",
        "import sgdwalk; sgdwalk.write_report([sgdwalk.open_run('mine')], 'report.html')",
        "import sgdwalk; run = sgdwalk.open_run('mine')\n" + EVERY_FIGURE,
        "import sgdwalk; sgdwalk.analysis.export_csv(sgdwalk.open_run('mine'), 'tables')",
        "from sgdwalk.cli import main; assert main(['show', 'mine']) == 0",
        "from sgdwalk.cli import main; assert main(['report', 'mine', '--out', 'cli.html']) == 0",
        "from sgdwalk.cli import main; assert main(['list', '.']) == 0",
    ],
    ids=["modules", "steps", "names", "report", "figures", "csv", "cli show", "cli report", "cli list"],
)
def test_reading_works_without_torch(folder, statement):
    printed = python(BLOCKED + statement + LOADED, folder.parent)
    assert printed.splitlines()[-1] == "[]"


def test_reading_imports_no_torch_that_is_there(folder):
    code = "import sys, sgdwalk.report, sgdwalk.cli\nsgdwalk.open_run('mine').steps" + LOADED
    assert python(code, folder.parent).splitlines()[-1] == "[]"


def test_the_guard_of_these_tests_bites(folder):
    with pytest.raises(AssertionError, match="is not installed"):
        python(BLOCKED + "import sgdwalk; sgdwalk.watch", folder.parent)
