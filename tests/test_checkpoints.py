"""Checkpoints: the newest whole one wins, whatever happened to the others."""

import errno
import json
import os
import pickle
import shutil
import stat
import sys
import warnings
from pathlib import Path

import pytest
import torch

import killing
from sgdwalk import CheckpointError, Checkpoints
from sgdwalk.checkpoints import MANIFEST_FILE, NUMBERS_FILE, STRUCTURE_FILE, _manifest
from storing import output, python

FILES = (NUMBERS_FILE, STRUCTURE_FILE, MANIFEST_FILE)


def state(step):
    return {"weights": torch.arange(40.0) * step, "buffers": [torch.tensor(step)], "step": step, "text": "θ"}


def assert_holds(loaded, step):
    assert loaded is not None
    assert loaded[0] == step
    assert loaded[1]["step"] == step
    assert loaded[1]["text"] == "θ"
    torch.testing.assert_close(loaded[1]["weights"], state(step)["weights"], rtol=0, atol=0)
    torch.testing.assert_close(loaded[1]["buffers"], state(step)["buffers"], rtol=0, atol=0)


@pytest.fixture
def checkpoints(tmp_path):
    """Checkpoints of steps 10 and 20."""
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    for step in (10, 20):
        checkpoints.save(step, state(step))
    return checkpoints


def names(checkpoints):
    return sorted(os.listdir(checkpoints.folder))


def test_the_newest_is_loaded(checkpoints):
    assert_holds(checkpoints.load_newest(), 20)
    checkpoints.save(100, state(100))
    assert_holds(checkpoints.load_newest(), 100)


def test_none_at_all_is_none(tmp_path):
    assert Checkpoints(tmp_path / "nowhere").load_newest() is None
    assert Checkpoints(tmp_path).load_newest() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_few_are_kept(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for step in range(8, 13):
        assert checkpoints.save(step, state(step)) == tmp_path / f"step-{step}"
    assert names(checkpoints) == sorted(f"step-{step}" for step in range(13 - keep, 13))


def test_a_damaged_one_does_not_count_as_kept(checkpoints):
    (checkpoints.folder / "step-20" / NUMBERS_FILE).write_bytes(b"")
    checkpoints.save(30, state(30))
    assert names(checkpoints) == ["step-10", "step-20", "step-30"]
    checkpoints.save(40, state(40))
    assert names(checkpoints) == ["step-30", "step-40"]


def test_saving_a_step_again_replaces_it(checkpoints):
    checkpoints.save(20, {**state(20), "text": "new"})
    assert checkpoints.load_newest()[1]["text"] == "new"
    assert names(checkpoints) == ["step-10", "step-20"]


def test_saving_the_same_again_touches_nothing(checkpoints, monkeypatch):
    monkeypatch.setattr(os, "rename", None)
    monkeypatch.setattr(os, "fsync", None)
    assert checkpoints.save(20, state(20)).name == "step-20"


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="keep must be at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_a_state_of_another_type_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"the state holds a builtins\.set at /a"):
        Checkpoints(tmp_path / "new").save(1, {"a": {1}})
    assert not (tmp_path / "new").exists()


# Damage


def assert_refused(checkpoints, reason):
    """Step 20 is named as damaged for the reason, and step 10 is used."""
    with pytest.warns(RuntimeWarning, match=rf"step-20 is damaged \(.*{reason}.*\); going on from step-10"):
        assert_holds(checkpoints.load_newest(), 10)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("sixteenths", range(16))
def test_a_file_cut_short_is_named_and_the_one_before_is_used(checkpoints, name, sixteenths):
    path = checkpoints.folder / "step-20" / name
    os.truncate(path, path.stat().st_size * sixteenths // 16)
    assert_refused(checkpoints, "manifest.json")


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_found(checkpoints, name):
    path = checkpoints.folder / "step-20" / name
    content = path.read_bytes()
    for position in range(len(content)):
        bit = 1 << (position % 8)
        path.write_bytes(content[:position] + bytes([content[position] ^ bit]) + content[position + 1 :])
        assert_refused(checkpoints, r"manifest\.json|expected at most")
    path.write_bytes(content)
    assert_holds(checkpoints.load_newest(), 20)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(checkpoints, name):
    (checkpoints.folder / "step-20" / name).unlink()
    assert_refused(checkpoints, f"{name} is missing")


def test_a_file_that_cannot_be_read_is_named(checkpoints, monkeypatch):
    read_bytes = Path.read_bytes

    def failing(path):
        if path.parent.name == "step-20" and path.name == NUMBERS_FILE:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert_refused(checkpoints, "Input/output error")


def test_another_format_version_is_refused_not_guessed(checkpoints):
    path = checkpoints.folder / "step-20" / MANIFEST_FILE
    path.write_text(path.read_text().replace('"version":1', '"version":2'))
    assert_refused(checkpoints, "manifest.json has format version 2, this sgdwalk reads 1")


def test_a_checkpoint_under_another_steps_name_is_refused(checkpoints):
    (checkpoints.folder / "step-20").rename(checkpoints.folder / "step-21")
    with pytest.warns(RuntimeWarning, match=r"step-21 is damaged"):
        assert_holds(checkpoints.load_newest(), 10)


def test_when_all_are_damaged_each_is_named(checkpoints):
    for step in (10, 20):
        (checkpoints.folder / f"step-{step}" / NUMBERS_FILE).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no valid checkpoint in .*step-20 is damaged .*step-10 is damaged"):
        checkpoints.load_newest()


# Foreign things


def empty_folder(path):
    path.mkdir()


def text_file(path):
    path.write_text("mine")


def dangling_link(path):
    path.symlink_to("nowhere")


FOREIGN = {
    "other word": ("step-abc", empty_folder),
    "leading zero": ("step-020", empty_folder),
    "other digits": ("step-٣٠", empty_folder),
    "negative": ("step--1", empty_folder),
    "file of a checkpoint's name": ("step-30", text_file),
    "pytorch file": ("model.pt", text_file),
    "dangling link": ("step-99", dangling_link),
    "hidden file": (".DS_Store", text_file),
    "nameless": ("step-", empty_folder),
}


@pytest.mark.parametrize(("name", "make"), FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_checkpoint_is_ignored_with_a_warning_and_left_alone(checkpoints, name, make):
    path = checkpoints.folder / name
    make(path)
    with pytest.warns(RuntimeWarning, match="is no checkpoint and is ignored") as caught:
        assert_holds(checkpoints.load_newest(), 20)
    assert [str(path) in str(warning.message) for warning in caught] == [True]
    for step in (40, 50, 60):
        checkpoints.save(step, state(step))
    assert os.path.lexists(path)


def test_an_empty_folder_of_a_checkpoints_name_is_damaged(checkpoints):
    (checkpoints.folder / "step-30").mkdir()
    with pytest.warns(RuntimeWarning, match=r"step-30 is damaged \(manifest.json is missing\); going on from step-20"):
        assert_holds(checkpoints.load_newest(), 20)


def test_a_named_pipe_does_not_hold_the_reader_up(checkpoints):
    (checkpoints.folder / "step-30").mkdir()
    os.mkfifo(checkpoints.folder / "step-30" / MANIFEST_FILE)
    with pytest.warns(RuntimeWarning, match=r"step-30 is damaged \(manifest.json is missing\)"):
        assert_holds(checkpoints.load_newest(), 20)


# Pickles


class Bomb:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


def bomb_as_pytorch_file(folder, bomb):
    torch.save({"weights": bomb}, folder / "checkpoint.pt")
    return "checkpoint.pt is no checkpoint and is ignored"


def bomb_under_a_checkpoints_name(folder, bomb):
    (folder / "step-30").write_bytes(pickle.dumps(bomb))
    return "step-30 is no checkpoint and is ignored"


def bomb_as_distributed_checkpoint(folder, bomb):
    (folder / "step-30").mkdir()
    for name in (".metadata", "__0_0.distcp"):
        (folder / "step-30" / name).write_bytes(pickle.dumps(bomb))
    return r"step-30 is damaged \(manifest.json is missing\)"


def bomb_as(*which):
    """A checkpoint whose files are pickles, under a manifest that fits them."""

    def make(folder, bomb):
        files = {name: (folder / "step-20" / name).read_bytes() for name in (STRUCTURE_FILE, NUMBERS_FILE)}
        files |= {name: pickle.dumps(bomb) for name in which}
        (folder / "step-30").mkdir()
        for name, content in files.items():
            (folder / "step-30" / name).write_bytes(content)
        (folder / "step-30" / MANIFEST_FILE).write_bytes(_manifest(30, files))
        return r"step-30 is damaged \(.*(header|utf-8)"

    return make


def bomb_as_manifest(folder, bomb):
    shutil.copytree(folder / "step-20", folder / "step-30")
    (folder / "step-30" / MANIFEST_FILE).write_bytes(pickle.dumps(bomb))
    return r"step-30 is damaged \(manifest.json cannot be read"


BOMBS = {
    "pytorch file": bomb_as_pytorch_file,
    "file of a checkpoint's name": bomb_under_a_checkpoints_name,
    "distributed checkpoint": bomb_as_distributed_checkpoint,
    "tensors": bomb_as(NUMBERS_FILE),
    "structure": bomb_as(STRUCTURE_FILE),
    "both": bomb_as(NUMBERS_FILE, STRUCTURE_FILE),
    "manifest": bomb_as_manifest,
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
def test_a_pickle_is_refused_and_never_run(checkpoints, tmp_path, make):
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Bomb(canary)))
    assert canary.exists()  # it would go off
    canary.unlink()
    reason = make(checkpoints.folder, Bomb(canary))
    with pytest.warns(RuntimeWarning, match=reason):
        assert_holds(checkpoints.load_newest(), 20)
    assert not canary.exists()


def test_no_pickle_is_read_or_written(checkpoints, monkeypatch):
    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, None)
    checkpoints.save(30, state(30))
    assert_holds(checkpoints.load_newest(), 30)


# Disks and processes


def test_a_full_disk_leaves_the_earlier_ones_and_no_trace(small_disk):
    checkpoints = Checkpoints(small_disk.path / "checkpoints")
    for step in (10, 20):
        checkpoints.save(step, state(step))
    small_disk.fill()
    for step in (30, 30, 40):
        with pytest.raises(
            CheckpointError, match=rf"checkpoints/step-{step}: No space left on device. Earlier checkpoints"
        ):
            checkpoints.save(step, state(step))
        assert names(checkpoints) == ["step-10", "step-20"]
        assert_holds(checkpoints.load_newest(), 20)
    small_disk.make_space()
    checkpoints.save(30, state(30))
    assert_holds(checkpoints.load_newest(), 30)


def test_a_state_that_fits_only_in_part_leaves_no_trace(small_disk):
    checkpoints = Checkpoints(small_disk.path / "checkpoints")
    checkpoints.save(10, state(10))
    with pytest.raises(CheckpointError, match="No space left on device"):
        checkpoints.save(20, {"weights": torch.zeros(1_000_000)})
    assert names(checkpoints) == ["step-10"]
    assert_holds(checkpoints.load_newest(), 10)
    checkpoints.save(30, state(30))
    assert_holds(checkpoints.load_newest(), 30)


def test_a_read_only_disk_is_named_and_still_read(small_disk):
    checkpoints = Checkpoints(small_disk.path / "checkpoints")
    checkpoints.save(10, state(10))
    small_disk.read_only()
    with pytest.raises(CheckpointError, match=rf"{small_disk.path}/checkpoints/step-20: Read-only file system"):
        checkpoints.save(20, state(20))
    assert_holds(checkpoints.load_newest(), 10)
    small_disk.read_only(False)
    checkpoints.save(20, state(20))
    assert_holds(checkpoints.load_newest(), 20)


@pytest.mark.parametrize("code", [errno.EIO, errno.EDQUOT, errno.EACCES], ids=["EIO", "EDQUOT", "EACCES"])
@pytest.mark.parametrize("function", ["mkdir", "fsync", "rename"])
def test_a_call_that_fails_leaves_the_earlier_ones_and_no_trace(checkpoints, monkeypatch, function, code):
    with monkeypatch.context() as patch:

        def failing(*_, **__):
            raise OSError(code, os.strerror(code))

        patch.setattr(os, function, failing)
        with pytest.raises(CheckpointError, match=rf"checkpoints/step-30: {os.strerror(code)}"):
            checkpoints.save(30, state(30))
    assert names(checkpoints) == ["step-10", "step-20"]
    assert_holds(checkpoints.load_newest(), 20)
    checkpoints.save(30, state(30))
    assert_holds(checkpoints.load_newest(), 30)


def test_every_file_and_folder_is_synced_before_the_rename_and_the_parent_after(checkpoints, monkeypatch):
    done = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append(path.name)
        assert stat.S_ISDIR(os.fstat(descriptor).st_mode) or path.stat().st_size > 0
        fsync(descriptor)

    def noted_rename(*arguments):
        done.append("rename")
        rename(*arguments)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    checkpoints.save(30, state(30))
    assert done == [STRUCTURE_FILE, NUMBERS_FILE, MANIFEST_FILE, ".step-30.partial", "rename", "checkpoints"]


def test_what_a_killed_process_left_is_passed_over_and_then_removed(checkpoints):
    shutil.copytree(checkpoints.folder / "step-20", checkpoints.folder / ".step-30.partial")
    (checkpoints.folder / ".step-30.partial" / NUMBERS_FILE).write_bytes(b"half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_holds(checkpoints.load_newest(), 20)
    checkpoints.save(40, state(40))
    assert names(checkpoints) == ["step-20", "step-40"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_kill_at_any_point_of_publishing_leaves_a_whole_newest_checkpoint(tmp_path):
    report = [json.loads(line) for line in output(python(killing.__file__, "checkpoint", tmp_path)).splitlines()]
    killed, finished = report[:-1], report[-1]
    assert finished["ended"] == 0
    # Three writes, and twice each call of making, syncing, renaming and removing.
    assert len(killed) >= 25
    assert {death["ended"] for death in killed} == {-9}
    steps = [death["step"] for death in report]
    assert steps == sorted(steps)  # once published it stays published
    assert set(steps) == {2, 3}
    for death in report:
        assert death["intact"]
        assert death["step_at_end"] == 4
        assert sorted(death["names"]) == ["step-3", "step-4"]
