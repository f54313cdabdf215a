"""The run folder under faults: killed, damaged, full, read-only, forked, wanted by two. As real processes."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import socket
import sqlite3

import pytest

import killing
import sqlite_calls
from sgdwalk import RunFolderError, open_run
from sgdwalk.lock import LOCK_FILE
from sgdwalk.store import RunWriter, holds_run, read_run_folder
from storing import INFO, exact, expected, filled, output, python, record, write_steps

without_system_calls = pytest.mark.skipif(sqlite_calls.why_not() is not None, reason=str(sqlite_calls.why_not()))


def stored(folder):
    return exact(*read_run_folder(folder)[1:])


def line(process):
    """The next line that a process prints."""
    text = process.stdout.readline()
    assert text, process.stderr.read()
    return text.strip()


@contextlib.contextmanager
def running(code, *arguments):
    """A process that is gone afterwards."""
    process = python("-c", code, *arguments, stdin=-1)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# Killed


def deaths(what, folder):
    report = [json.loads(text) for text in output(python(killing.__file__, what, folder)).splitlines()]
    assert report[-1]["ended"] == 0
    assert {death["ended"] for death in report[:-1]} == {-9}
    return report


@without_system_calls
def test_a_kill_at_any_point_of_a_commit_leaves_all_of_it_or_nothing(tmp_path):
    report = deaths("commit", tmp_path)
    assert len(report) > 40
    counts = [death["count"] for death in report]
    assert counts == sorted(counts)
    assert set(counts) == {12, 36}
    assert any(death["journal"] for death in report)
    assert all(death["intact"] and death["same_at_end"] for death in report)


@without_system_calls
def test_a_kill_at_any_point_of_making_the_folder_leaves_a_run_or_none(tmp_path):
    report = deaths("create", tmp_path)
    assert len(report) > 25
    assert {death["is_run"] for death in report} == {False, True}
    for death in report:
        assert death["same_at_end"]
        assert sorted(death["names"]) == ["run.json", "steps.sqlite", "writer.lock"]


WRITE_ON = """
import sys
from pathlib import Path
import storing
from sgdwalk.store import RunWriter
writer = RunWriter.resume(Path(sys.argv[1]))
for step in range(writer.last_step + 1, 1_000_000):
    storing.write_steps(writer, [step])
    assert writer.commit()
    print(step, flush=True)
"""


def test_twenty_kills_from_outside_leave_no_gap_and_no_duplicate(tmp_path):
    folder = filled(tmp_path / "run", 0)
    lines = random.Random(0)
    for _ in range(20):
        with running(WRITE_ON, folder) as process:
            for _ in range(lines.randint(1, 10)):
                printed = line(process)
            process.send_signal(signal.SIGKILL)
            remaining = process.communicate()[0].split()
        committed = int(remaining[-1] if remaining and remaining[-1].isdigit() else printed)
        count = len(read_run_folder(folder)[1])
        assert count >= committed  # the last line may be cut, the row it speaks of is not
        assert stored(folder) == expected(count)
    assert count > 20


# Two writers

HOLD = """
import sys
from pathlib import Path
import storing
from sgdwalk import RunFolderError
from sgdwalk.store import RunWriter, holds_run
folder = Path(sys.argv[1])
try:
    writer = RunWriter.resume(folder) if holds_run(folder) else RunWriter.create(folder, storing.INFO)
except RunFolderError as error:
    print("refused", error, flush=True)
else:
    print("holds", flush=True)
    sys.stdin.readline()
    writer.close()
    print("closed", flush=True)
    sys.stdin.readline()
"""


def test_a_second_writer_is_refused_naming_the_first(tmp_path):
    with running(HOLD, tmp_path / "run") as first:
        assert line(first) == "holds"
        reason = rf"run is being written by process {first.pid} on {socket.gethostname()} since .*: wait for its end"
        with pytest.raises(RunFolderError, match=reason):
            RunWriter.resume(tmp_path / "run")
        assert stored(tmp_path / "run") == expected(0)  # a reader is welcome
        print(file=first.stdin, flush=True)
        assert line(first) == "closed"
        assert RunWriter.resume(tmp_path / "run").close()


def test_a_second_writer_in_the_same_process_is_refused_and_the_first_keeps_its_lock(tmp_path):
    writer = RunWriter.create(tmp_path / "run", INFO)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for path in (tmp_path / "run", tmp_path / "link"):
        with pytest.raises(RunFolderError, match=rf"already being written by this process \({os.getpid()}\)"):
            RunWriter.resume(path)
    with running(HOLD, tmp_path / "run") as other:
        assert line(other).startswith("refused")
    assert writer.close()
    assert RunWriter.resume(tmp_path / "run").close()


def test_a_reader_in_the_writers_process_does_not_free_the_lock(tmp_path):
    writer = RunWriter.create(tmp_path / "run", INFO)
    writer.append(record(0))
    assert writer.commit()
    open_run(tmp_path / "run")
    writer.read()
    with running(HOLD, tmp_path / "run") as other:
        assert line(other).startswith("refused")
    assert writer.close()


def test_of_several_that_make_the_same_folder_one_wins(tmp_path):
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(running(HOLD, tmp_path / "run")) for _ in range(4)]
        answers = sorted(line(process).split()[0] for process in processes)
    assert answers == ["holds", "refused", "refused", "refused"]


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    with running(HOLD, tmp_path / "run") as process:
        assert line(process) == "holds"
        process.kill()
        process.wait()
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == process.pid
        assert RunWriter.resume(tmp_path / "run").close()


def test_the_lock_of_another_host_is_refused_with_what_to_do(tmp_path):
    folder = filled(tmp_path / "run", 3)
    lock = folder / LOCK_FILE
    lock.write_text(json.dumps({"pid": 7, "host": "elsewhere", "started": "2026-01-01T00:00:00+00:00"}))
    reason = r"written by process 7 on elsewhere since 2026-01-01.*cannot be checked from .*if it has ended, delete"
    with pytest.raises(RunFolderError, match=reason):
        RunWriter.resume(folder)
    assert json.loads(lock.read_text())["host"] == "elsewhere"
    lock.unlink()
    assert RunWriter.resume(folder).close()


@pytest.mark.parametrize("content", ['{"pid": 7, "ho', "[]", "\0\0"])
def test_a_lock_that_cannot_be_read_is_refused_with_what_to_do(tmp_path, content):
    folder = filled(tmp_path / "run", 3)
    (folder / LOCK_FILE).write_text(content)
    with pytest.raises(RunFolderError, match=r"being written by another process.*if it has ended, delete"):
        RunWriter.resume(folder)


# Forked and stopped

FORK = """
import os, sys
from pathlib import Path
import storing
from sgdwalk import RunFolderError
from sgdwalk.store import RunWriter, read_run_folder
folder = Path(sys.argv[1])
writer = RunWriter.create(folder, storing.INFO)
storing.write_steps(writer, range(5))
child = os.fork()
if child == 0:
    assert writer.commit() is False
    assert writer.commit_if_due() is False
    assert writer.close() is False
    assert len(read_run_folder(folder)[1]) == 0
    try:
        RunWriter.resume(folder)
    except RunFolderError as error:
        assert f"being written by process {os.getppid()}" in str(error), error
    else:
        raise AssertionError("a forked child took its parent's folder")
    sys.exit()  # with all that Python does at an ordinary end
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
try:
    RunWriter.resume(folder)
except RunFolderError as error:
    assert "by this process" in str(error), error
storing.write_steps(writer, range(5, 12))
assert writer.commit()
print("forked", flush=True)
sys.stdin.readline()
assert writer.close()
"""


def test_a_forked_child_writes_nothing_and_frees_nothing(tmp_path):
    with running(FORK, tmp_path / "run") as process:
        assert line(process) == "forked"
        with pytest.raises(RunFolderError, match=f"being written by process {process.pid}"):
            RunWriter.resume(tmp_path / "run")
        process.communicate("\n")
        assert process.returncode == 0
    assert stored(tmp_path / "run") == expected(12)


STOP = """
import os, signal, sys
from pathlib import Path
import storing
from sgdwalk.store import RunWriter
writer = RunWriter.create(Path(sys.argv[1]), storing.INFO)
storing.write_steps(writer, range(5))
assert writer.commit()
os.kill(os.getpid(), signal.SIGSTOP)
storing.write_steps(writer, range(5, 12))
assert writer.close()
"""


def test_a_stopped_process_is_read_and_goes_on(tmp_path):
    with running(STOP, tmp_path / "run") as process:
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        assert stored(tmp_path / "run") == expected(5)
        process.send_signal(signal.SIGCONT)
        process.communicate()
        assert process.returncode == 0
    assert stored(tmp_path / "run") == expected(12)


# Busy

FULL_SPEED = """
import sys, time
from pathlib import Path
import storing
from sgdwalk.store import RunWriter
writer = RunWriter.create(Path(sys.argv[1]), storing.INFO)
print("writing", flush=True)
end = time.monotonic() + 60
step = 0
while time.monotonic() < end:
    storing.write_steps(writer, [step])
    writer.commit()
    assert writer.last_error is None, writer.last_error
    step += 1
assert writer.close(), writer.last_error
print(step)
"""


def test_for_a_minute_a_reader_sees_consistent_prefixes_and_the_writer_loses_nothing(tmp_path):
    seen = [0]
    with running(FULL_SPEED, tmp_path / "run") as process:
        assert line(process) == "writing"
        while process.poll() is None:
            run = open_run(tmp_path / "run")
            steps = run.steps.index
            assert steps.tolist() == list(range(len(steps)))
            assert len(run.segments) == 11 * len(steps)
            assert len(run.events) == (len(steps) + 4) // 5
            assert len(run.epochs) == len(steps) // 10
            seen.append(len(steps))
        printed, errors = process.communicate()
        assert process.returncode == 0, errors
    assert seen == sorted(seen)
    assert len(set(seen)) > 3
    assert stored(tmp_path / "run") == expected(int(printed))


def test_a_busy_database_is_waited_for_briefly_and_loses_no_row(tmp_path):
    writer = RunWriter.create(tmp_path / "run", INFO)
    write_steps(writer, range(5))
    reader = sqlite3.connect(tmp_path / "run" / "steps.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM steps").fetchall()
    for step in range(5, 8):
        assert writer.commit() is False
        assert writer.last_error is None
        write_steps(writer, [step])
    assert exact(*writer.read()[1:]) == expected(8)
    reader.close()
    assert writer.commit()
    assert stored(tmp_path / "run") == expected(8)
    assert writer.close()


# Damaged


def flipped(content, position, bit):
    return content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]


def test_a_flipped_bit_of_the_database_is_named_or_changes_nothing(tmp_path):
    folder = filled(tmp_path / "run", 30)
    path = folder / "steps.sqlite"
    content = path.read_bytes()
    wanted = expected(30)
    damaged = 0
    bits = random.Random(0)
    for position in range(0, len(content), 29):
        path.write_bytes(flipped(content, position, bits.randrange(8)))
        try:
            seen = stored(folder)
        except RunFolderError as error:
            seen = str(error)
        assert seen == wanted or str(path) in seen, position
        damaged += seen != wanted
    assert damaged > 300
    assert sorted(os.listdir(folder)) == ["run.json", "steps.sqlite", "writer.lock"]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("UPDATE segments SET loss = loss * (1 + 3e-16) WHERE step = 3 AND alpha > 0.95", "the row of step 3 "),
        ("UPDATE segments SET kind = 'Exact' WHERE step = 3 AND alpha = 0", "the row of step 3 "),
        ("UPDATE segments SET loss = NULL WHERE step = 3 AND alpha = 0", "the row of step 3 "),
        ("UPDATE segments SET loss = x'00' WHERE step = 3 AND alpha = 0", "the row of step 3 "),
        ("DELETE FROM segments WHERE step = 3 AND alpha = 0", "the row of step 3 "),
        ("DELETE FROM steps WHERE step = 3", "step 3 has a segment but no row"),
        ("UPDATE steps SET epoch = 7 WHERE step = 3", "the row of step 3 "),
        ("UPDATE steps SET cosine = 0 WHERE step = 0", "the row of step 0 "),
        ("UPDATE steps SET measures = '{' WHERE step = 3", "the row of step 3 "),
        ("UPDATE steps SET reasons = '{}' WHERE step = 0", "the row of step 0 "),
        ("UPDATE steps SET crc32 = NULL WHERE step = 3", "the row of step 3 "),
        ("UPDATE epochs SET value = 1 WHERE epoch = 1", "the row of epoch 1 "),
        ("UPDATE events SET message = 'x' WHERE sequence = 1", "the row of event 1 "),
        ("DROP TABLE epochs", "no such table: epochs"),
    ],
)
@pytest.mark.parametrize("opened", [open_run, RunWriter.resume], ids=["open", "resume"])
def test_a_changed_row_is_named(tmp_path, damage, named, opened):
    folder = filled(tmp_path / "run", 12)
    database = sqlite3.connect(folder / "steps.sqlite")
    database.execute(damage)
    database.commit()
    database.close()
    for _ in range(2):  # and a refused resume frees the folder
        with pytest.raises(RunFolderError, match=rf"steps\.sqlite.*{named}.*Take the folder from a copy"):
            opened(folder)


@pytest.mark.parametrize("sixteenths", range(16))
def test_a_database_cut_short_is_named(tmp_path, sixteenths):
    folder = filled(tmp_path / "run", 30)
    path = folder / "steps.sqlite"
    os.truncate(path, path.stat().st_size * sixteenths // 16)
    with pytest.raises(RunFolderError, match=r"steps\.sqlite"):
        open_run(folder)


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95cposix\nsystem\n", b"SQLite format 3\0" + bytes(8000)])
def test_a_foreign_file_in_the_databases_place_is_named(tmp_path, content):
    folder = filled(tmp_path / "run", 3)
    (folder / "steps.sqlite").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"steps\.sqlite"):
        open_run(folder)
    assert (folder / "steps.sqlite").read_bytes() == content


def test_a_missing_database_is_named_and_not_made(tmp_path):
    folder = filled(tmp_path / "run", 3)
    (folder / "steps.sqlite").unlink()
    with pytest.raises(RunFolderError, match=r"cannot read .*steps\.sqlite: unable to open database file; is it there"):
        open_run(folder)
    assert not (folder / "steps.sqlite").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"null", b"{}"])
def test_a_damaged_run_json_is_named(tmp_path, content):
    folder = filled(tmp_path / "run", 3)
    (folder / "run.json").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"run\.json is damaged|schema version None"):
        open_run(folder)


def test_damage_to_one_run_leaves_another_alone(tmp_path):
    bad, good = filled(tmp_path / "bad", 3), filled(tmp_path / "good", 3)
    (bad / "steps.sqlite").write_bytes(b"")
    with pytest.raises(RunFolderError, match="bad"):
        open_run(bad)
    assert stored(good) == expected(3)


# Full, failing and read-only disks


def test_a_full_disk_keeps_the_rows_in_memory_until_there_is_space(small_disk):
    writer = RunWriter.create(small_disk.path / "run", INFO)
    write_steps(writer, range(12))
    assert writer.commit()
    small_disk.fill()
    for step in range(12, 100):  # more than fits into the pages that are there
        write_steps(writer, [step])
        writer.commit()
    assert writer.num_pending > 0
    assert not writer.commit()
    assert f"cannot write {small_disk.path}/run/steps.sqlite: database or disk is full; make space" in writer.last_error
    on_disk = len(read_run_folder(small_disk.path / "run")[1])
    assert on_disk < 100
    assert stored(small_disk.path / "run") == expected(on_disk)
    assert exact(*writer.read()[1:]) == expected(100)
    small_disk.make_space()
    assert writer.commit()
    assert writer.last_error is None
    assert stored(small_disk.path / "run") == expected(100)
    assert writer.close()
    assert sorted(os.listdir(small_disk.path / "run")) == ["run.json", "steps.sqlite", "writer.lock"]


def test_closing_on_a_full_disk_says_so_and_leaves_what_was_stored(small_disk):
    writer = RunWriter.create(small_disk.path / "run", INFO)
    write_steps(writer, range(12))
    assert writer.commit()
    small_disk.fill()
    write_steps(writer, range(12, 100))
    assert not writer.close()
    assert "make space" in writer.last_error
    assert exact(*writer.read()[1:]) == expected(100)  # views stay readable
    small_disk.make_space()
    assert stored(small_disk.path / "run") == expected(12)
    again = RunWriter.resume(small_disk.path / "run")
    write_steps(again, range(12, 20))
    assert again.close()
    assert stored(small_disk.path / "run") == expected(20)


def test_making_a_run_on_a_full_disk_says_so_and_works_when_there_is_space(small_disk):
    small_disk.fill()
    with pytest.raises(RunFolderError, match=rf"{small_disk.path}/run.*(No space left on device|make space)"):
        RunWriter.create(small_disk.path / "run", INFO)
    small_disk.make_space()
    writer = RunWriter.create(small_disk.path / "run", INFO)
    write_steps(writer, range(12))
    assert writer.close()
    assert stored(small_disk.path / "run") == expected(12)


def test_a_disk_that_turns_read_only_is_named_and_recovers(small_disk):
    folder = small_disk.path / "run"
    writer = RunWriter.create(folder, INFO)
    write_steps(writer, range(3))
    assert writer.commit()
    small_disk.read_only()
    write_steps(writer, range(3, 12))
    assert not writer.commit()
    assert f"cannot write {folder}/steps.sqlite: attempt to write a readonly database; give write" in writer.last_error
    with pytest.raises(RunFolderError, match=rf"cannot go back to step 1 in {folder}"):
        writer.rewind(1, 1)
    assert stored(folder) == expected(3)
    small_disk.read_only(False)
    assert writer.commit()
    assert writer.close()
    assert stored(folder) == expected(12)


def test_a_run_on_a_read_only_disk_is_read_and_not_written(small_disk):
    folder = filled(small_disk.path / "run", 12)
    small_disk.read_only()
    assert stored(folder) == expected(12)
    with pytest.raises(RunFolderError, match=rf"cannot write {folder}/{LOCK_FILE}: Read-only file system"):
        RunWriter.resume(folder)
    with pytest.raises(RunFolderError, match=rf"{small_disk.path}/new: Read-only file system"):
        RunWriter.create(small_disk.path / "new", INFO)
    small_disk.read_only(False)


def test_closing_on_a_read_only_disk_frees_the_folder(small_disk):
    writer = RunWriter.create(small_disk.path / "run", INFO)
    small_disk.read_only()
    assert writer.close()
    small_disk.read_only(False)
    assert RunWriter.resume(small_disk.path / "run").close()


CUT_SHORT = """
import sys
from pathlib import Path
import killing, sqlite_calls, storing
from sgdwalk.store import RunWriter
writer = RunWriter.resume(Path(sys.argv[1]))
storing.write_steps(writer, range(12, 30))
with sqlite_calls.replaced("unlink", lambda _: lambda _: killing.die()):  # the journal's end is the commit
    writer.commit()
"""


@without_system_calls
def test_an_unfinished_commit_on_a_read_only_disk_says_what_to_do(small_disk):
    folder = filled(small_disk.path / "run", 12)
    process = python("-c", CUT_SHORT, folder)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (folder / "steps.sqlite-journal").exists()
    small_disk.read_only()
    with pytest.raises(RunFolderError, match=r"steps\.sqlite.*copy the folder to where you may write"):
        open_run(folder)
    small_disk.read_only(False)
    assert stored(folder) == expected(12)


@without_system_calls
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=["EIO", "ENOSPC", "EDQUOT"])
@pytest.mark.parametrize("call", [*sqlite_calls.WRITING, "open"])
def test_a_failing_call_of_the_system_reaches_nobody_and_loses_nothing(tmp_path, call, code):
    folder = filled(tmp_path / "run", 12)
    writer = RunWriter.resume(folder)
    write_steps(writer, range(12, 60))
    with sqlite_calls.failing(call, code):
        stored_all = writer.commit()
    if not stored_all:
        assert f"cannot write {folder}/steps.sqlite: " in writer.last_error
        assert exact(*writer.read()[1:]) == expected(60)
    # A folder that cannot be synced, and a journal that need not be cut, fail no commit.
    assert stored_all == (call in ("ftruncate", "openDirectory"))
    write_steps(writer, range(60, 70))
    assert writer.commit()
    assert stored(folder) == expected(70)
    assert writer.close()


def test_a_deleted_folder_is_named(tmp_path):
    writer = RunWriter.create(tmp_path / "run", INFO)
    writer.append(record(0))
    shutil.rmtree(tmp_path / "run")
    assert not writer.commit()
    assert f"cannot write {tmp_path}/run/steps.sqlite: unable to open database file" in writer.last_error
    assert not writer.close()
    assert not holds_run(tmp_path / "run")


def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    folder = filled(tmp_path / "run", 3)
    folder.chmod(0)
    code = (
        "import os, sys\n"
        "from sgdwalk.store import read_run_folder, RunFolderError\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try: read_run_folder(sys.argv[1])\n"
        "except RunFolderError as error: print(error)\n"
    )
    assert output(python("-c", code, folder)).strip() == f"cannot read {folder}/run.json: Permission denied."
    folder.chmod(0o700)
