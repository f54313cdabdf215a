"""Where a run's numbers come from, and whether a run can go on under what is there now."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import sgdwalk
from sgdwalk.errors import ResumeError

_GIT_SECONDS = 10  # a work tree on a slow network disk must not hold up the training
_ABSENT = object()
_MUST_AGREE = ("settings", "data", "model", "config")
_SHOULD_AGREE = ("sgdwalk", "python", "torch", "numpy", "platform", "device", "num_threads", "commit")


def provenance(*, device: str, num_threads: int, seed: int | None) -> dict[str, Any]:
    """What made a run: versions, machine, threads, the commit of the working directory, the command line.

    Args:
        device: where the model computes, such as ``"cpu"`` or the name of an accelerator.
        num_threads: threads within an operation; another number may round sums differently.
        seed: the seed that the experiment was given, None where it is not known.

    Returns:
        Plain JSON values. ``commit`` and ``dirty`` are None outside a git work tree and where git is absent.

    >>> made_by = provenance(device="cpu", num_threads=1, seed=0)
    >>> sorted(made_by)[:6]
    ['argv', 'commit', 'device', 'dirty', 'num_threads', 'numpy']
    """
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {
        "sgdwalk": sgdwalk.__version__,
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "numpy": importlib.metadata.version("numpy"),
        "platform": platform.platform(),
        "device": device,
        "num_threads": num_threads,
        "commit": commit,
        "dirty": None if changes is None else changes != "",
        "argv": list(sys.argv),
        "seed": seed,
    }


def check_resumable(stored: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Compare what ``run.json`` holds with what a resumed run would write there.

    Settings, data, model, optimizer classes and config must agree; versions, machine and threads should.

    Args:
        stored: the info of the run that is to go on.
        now: the info of a run that would be begun now.

    Returns:
        One sentence for each difference that changes results only in their last digits, to be warned of and recorded.

    Raises:
        ResumeError: the run would go on as another one, naming each difference.

    >>> before = {"settings": {"num_points": 10}, "provenance": {"torch": "2.12.0"}}
    >>> check_resumable(before, before | {"provenance": {"torch": "2.13.0"}})
    ["torch was '2.12.0' and is '2.13.0'"]
    """
    different = differences(identity(stored), identity(now))
    if different:
        raise ResumeError(
            f"the run in this folder is another one: {'; '.join(different)}. "
            "Go on with what it was begun with, or give the new run a folder of its own."
        )
    made_by, makes_now = stored.get("provenance", {}), now.get("provenance", {})
    return [text for key in _SHOULD_AGREE for text in _differences(key, made_by.get(key), makes_now.get(key))]


def identity(info: dict[str, Any]) -> dict[str, Any]:
    """What makes a run the one that it is, out of what describes it; plain JSON values."""
    alike = {key: info.get(key) for key in _MUST_AGREE}
    alike["optimizers"] = [optimizer["class"] for optimizer in info.get("optimizers", [])]
    return json.loads(json.dumps(alike))  # a tuple here is a list in run.json


def differences(stored: Any, now: Any) -> list[str]:
    """In words, each difference of two runs' :func:`identity`.

    >>> differences({"settings": {"method": "exact"}}, {"settings": {"method": "certified", "tolerance": 0.05}})
    ["settings.method was 'exact' and is 'certified'", 'settings.tolerance was not set and is 0.05']
    """
    return [text for key in dict.fromkeys([*stored, *now]) for text in _differences(key, stored.get(key), now.get(key))]


def _differences(key: str, stored: Any, now: Any) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*stored, *now]):
            yield from _differences(f"{key}.{name}", stored.get(name, _ABSENT), now.get(name, _ABSENT))
    elif stored != now:
        yield f"{key} was {_told(stored)} and is {_told(now)}"


def _told(value: Any) -> str:
    return "not set" if value is _ABSENT else repr(value)


def _git(*arguments: str) -> str | None:
    """What git says of the working directory; None where it says nothing. It takes no lock and starts no monitor."""
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
