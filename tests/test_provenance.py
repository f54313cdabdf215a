"""Provenance: what made a run, and what may change before it goes on."""

import copy
import json
import platform
import subprocess

import pytest

from sgdwalk import ResumeError
from sgdwalk.provenance import check_resumable, provenance
from storing import output, python

INFO = {
    "name": "a run",
    "created": "2026-01-01T00:00:00+00:00",
    "settings": {"num_points": 10, "measures": ["sharpness"]},
    "data": {"num_examples": 100, "fingerprint": "0123"},
    "model": {"class": "MLP", "num_parameters": 42},
    "optimizers": [{"class": "SGD", "groups": [{"learning_rate": 0.1}]}],
    "config": {"epochs": 3},
    "provenance": {
        "torch": "2.13.0",
        "num_threads": 1,
        "argv": ["train.py"],
        "seed": 0,
        "commit": "abc",
        "dirty": False,
    },
}


def changed(*path, to):
    info = copy.deepcopy(INFO)
    place = info
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return info


@pytest.fixture
def work_tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "train.py").write_text("one")
    git("add", ".")
    git("commit", "-qm", "one")
    return git


def made_by():
    return provenance(device="cpu", num_threads=3, seed=7)


def test_it_says_what_it_was_given_and_what_it_found(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--epochs", "3"])
    found = made_by()
    assert (found["device"], found["num_threads"], found["seed"]) == ("cpu", 3, 7)
    assert found["argv"] == ["train.py", "--epochs", "3"]
    assert found["python"] == platform.python_version()
    assert json.loads(json.dumps(found)) == found


def test_it_names_the_commit_and_whether_the_tree_differs_from_it(work_tree, tmp_path):
    assert (made_by()["commit"], made_by()["dirty"]) == (work_tree("rev-parse", "HEAD"), False)
    (tmp_path / "untracked.txt").write_text("x")
    assert made_by()["dirty"] is False
    (tmp_path / "train.py").write_text("two")
    assert made_by()["dirty"] is True


def test_outside_a_work_tree_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert (made_by()["commit"], made_by()["dirty"]) == (None, None)


def test_without_git_there_is_no_commit(work_tree, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert (made_by()["commit"], made_by()["dirty"]) == (None, None)


def test_versions_are_those_imported_and_torch_is_not_imported_to_tell():
    import torch

    code = (
        "import sys, sgdwalk.provenance as p\n"
        "found = p.provenance(device='cpu', num_threads=1, seed=None)\n"
        "assert 'torch' not in sys.modules\n"
        "print(found['torch'])"
    )
    # The distribution's version may lack the build's suffix, or carry it.
    assert torch.__version__.startswith(output(python("-c", code)).strip().split("+")[0])


def test_nothing_changed_is_resumable_without_a_word():
    assert check_resumable(INFO, copy.deepcopy(INFO)) == []
    assert check_resumable(INFO, changed("settings", "measures", to=("sharpness",))) == []


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("settings", "num_points"), 20, "settings.num_points was 10 and is 20"),
        (("settings", "measures"), [], r"settings.measures was \['sharpness'\] and is \[\]"),
        (("settings", "new"), 1, "settings.new was not set and is 1"),
        (("data", "fingerprint"), "4567", "data.fingerprint was '0123' and is '4567'"),
        (("model", "num_parameters"), 43, "model.num_parameters was 42 and is 43"),
        (("config", "epochs"), 4, "config.epochs was 3 and is 4"),
        (("optimizers", 0, "class"), "Adam", r"optimizers was \['SGD'\] and is \['Adam'\]"),
    ],
)
def test_another_run_is_refused_naming_the_difference(path, to, message):
    with pytest.raises(ResumeError, match=message):
        check_resumable(INFO, changed(*path, to=to))


def test_all_differences_are_named_at_once():
    now = changed("settings", "num_points", to=20) | {"config": {}}
    with pytest.raises(ResumeError, match=r"num_points was 10 and is 20; config.epochs was 3 and is not set"):
        check_resumable(INFO, now)


@pytest.mark.parametrize(("key", "to"), [("torch", "2.14.0"), ("num_threads", 2), ("commit", "def")])
def test_versions_and_threads_are_told_and_go_on(key, to):
    before = INFO["provenance"][key]
    assert check_resumable(INFO, changed("provenance", key, to=to)) == [f"{key} was {before!r} and is {to!r}"]


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("name",), "renamed"),
        (("created",), "2027"),
        (("provenance", "argv"), ["train.py", "--resume"]),
        (("provenance", "dirty"), True),
        (("optimizers", 0, "groups", 0, "learning_rate"), 0.01),
    ],
)
def test_what_differs_between_any_two_starts_is_no_difference(path, to):
    assert check_resumable(INFO, changed(*path, to=to)) == []
