"""Records that are pure functions of their step, so that any process can say what a run folder must hold."""

import math
import os
import subprocess
import sys
from pathlib import Path

from sgdwalk.records import NAN, EpochNote, Event, SegmentPoint, StepRecord
from sgdwalk.store import RunWriter

INFO = {"name": "a run", "settings": {"num_points": 10}, "config": {}}


def record(step, **changes):
    """Step ``step`` of the run: full of digits, with a value undefined here and there."""
    x = math.sin(step + 1) / 3
    values = {
        "epoch": step // 10 + 1,
        "learning_rate": 0.1,
        "batch_loss": 2.3 + x,
        "cosine": NAN if step == 0 else x,
        "distance": abs(x),
        "next_distance": abs(x) * 1.1,
        "grad_norm": 1 + x,
        "param_norm": 87.1 + x,
        "update_norm": 0.1 + 0.1 * x,
        "loss_noise": 2e-8 if step % 100 == 0 else NAN,
        "segment": tuple(SegmentPoint(k / 10, (k / 10 - 0.4 + x) ** 2) for k in range(11)),
        "measures": {"sharpness": 1 / (step + 3)},
        "reasons": {"cosine": "there is no gradient before the first"} if step == 0 else {},
    }
    return StepRecord(step, **{**values, **changes})


def note(epoch):
    return EpochNote(epoch, epoch * 10, {"validation_accuracy": 1 - 1 / (epoch + 2)})


def event(sequence):
    return Event(sequence, sequence * 5, "skipped_update", f"the scaler skipped an update ({sequence})")


def write_steps(writer, steps):
    """Append steps with the notes and events that fall between them, without committing."""
    for step in steps:
        writer.append(record(step))
        if step % 5 == 0:
            writer.add_event(event(step // 5))
        if step % 10 == 9:
            writer.note_epoch(note(step // 10 + 1))


def filled(folder, count):
    """A closed run folder of ``count`` steps."""
    writer = RunWriter.create(folder, INFO)
    write_steps(writer, range(count))
    assert writer.close()
    return folder


def expected(count):
    """What ``read_run_folder`` must return after ``count`` steps, in text that equals only for equal bits."""
    return exact(
        [record(step) for step in range(count)],
        [note(step // 10 + 1) for step in range(count) if step % 10 == 9],
        [event(step // 5) for step in range(count) if step % 5 == 0],
    )


def exact(steps, notes, events):
    return repr((list(steps), list(notes), list(events)))


def python(*arguments, **options):
    """A Python process that finds sgdwalk and the modules beside the tests."""
    tests = Path(__file__).parent
    source = tests.parent / "src"
    environment = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{tests}", **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-W", "error", *map(str, arguments)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def output(process, returncode=0):
    """What a process printed, once it ended as it should."""
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == returncode, stderr
    return stdout
