"""Checkpoints: training states in a folder that survives a kill, a full disk and a damaged file.

``step-N/`` is the state before update N: ``state.json``, ``tensors.safetensors``, and ``manifest.json`` with size and
sha256 of both. It appears by a rename of a folder written and synced before, so whatever has the name is whole. No
pickle is ever read or written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from sgdwalk import state as plain
from sgdwalk.errors import CheckpointError
from sgdwalk.store import fsync_folder

FORMAT_VERSION = 1
STRUCTURE_FILE = "state.json"
NUMBERS_FILE = "tensors.safetensors"
MANIFEST_FILE = "manifest.json"
_LONGEST_MANIFEST = 4096  # bytes; ours have some 250
_NAME = re.compile(r"step-(0|[1-9][0-9]*)")
_PARTIAL = re.compile(r"\.step-[0-9]+\.partial")


class Checkpoints:
    """The checkpoints of one run, the newest few of them kept.

    Args:
        folder: where they are; made when the first is saved.
        keep: how many valid ones to keep, at least 1. Two let a run go on when the newest is damaged.

    >>> import tempfile, torch
    >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()) / "checkpoints")
    >>> checkpoints.save(40, {"weights": torch.ones(2), "epoch": 1}).name
    'step-40'
    >>> checkpoints.load_newest()
    (40, {'weights': tensor([1., 1.]), 'epoch': 1})
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        if keep < 1:
            raise CheckpointError(f"keep must be at least 1, or there would be nothing to go on with; got {keep}.")
        self.folder = Path(folder).absolute()
        self.keep = keep

    def save(self, step: int, state: dict[Any, Any]) -> Path:
        """Publish the state before update ``step``, then remove all but the newest valid checkpoints.

        Args:
            step: updates performed so far.
            state: dicts, lists and tuples of tensors, NumPy arrays, bytes, int, float, bool, str and None.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: the state holds something else, or the folder cannot be written; what was there is intact.
        """
        structure, numbers = plain.encode(state)
        files = {STRUCTURE_FILE: structure, NUMBERS_FILE: numbers}
        manifest = _manifest(step, files)
        final = self.folder / f"step-{step}"
        partial = self.folder / f".step-{step}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_partial()
            if _is_intact(final, manifest):
                return final
            partial.mkdir()
            for name, content in {**files, MANIFEST_FILE: manifest}.items():
                _write(partial / name, content)
            fsync_folder(partial)
            if final.exists():  # another state of this step, or a damaged one
                shutil.rmtree(final)
            os.rename(partial, final)
            fsync_folder(self.folder)
            self._remove_old(step)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"cannot write the checkpoint {final}: {error.strerror}. Earlier checkpoints are intact; "
                "make the folder writable or make space."
            ) from error
        return final

    def load_newest(self) -> tuple[int, dict[Any, Any]] | None:
        """The newest valid checkpoint, ``(step, state)`` with all tensors on the CPU; None where there is none.

        What is damaged or foreign is named by a ``RuntimeWarning``; nothing of it is used.

        Raises:
            CheckpointError: there are checkpoints and each is damaged.
        """
        damaged = []
        for step in self._steps(warn=True):
            path = self.folder / f"step-{step}"
            try:
                state = _load(path, step)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                damaged.append(f"{path} is damaged ({reason})")
                continue
            for problem in damaged:
                warnings.warn(f"{problem}; going on from {path.name}.", RuntimeWarning, stacklevel=2)
            return step, state
        if damaged:
            raise CheckpointError(
                f"no valid checkpoint in {self.folder}: {'; '.join(damaged)}. Take them from a copy, or start again."
            )
        return None

    def _steps(self, *, warn: bool) -> list[int]:
        """Steps of the folders that look like checkpoints, newest first."""
        steps = []
        for name in sorted(os.listdir(self.folder)) if self.folder.is_dir() else []:
            if _PARTIAL.fullmatch(name):
                continue
            match = _NAME.fullmatch(name)
            if match and (self.folder / name).is_dir():
                steps.append(int(match[1]))
            elif warn:
                warnings.warn(f"{self.folder / name} is no checkpoint and is ignored.", RuntimeWarning, stacklevel=3)
        return sorted(steps, reverse=True)

    def _remove_old(self, step: int) -> None:
        """Remove what is older than the newest ``keep`` valid ones; ``step`` has just been written."""
        older = [self.folder / f"step-{other}" for other in self._steps(warn=False) if other < step]
        num_valid = 1
        for path in older if len(older) >= self.keep else []:
            if num_valid >= self.keep:
                shutil.rmtree(path, ignore_errors=True)  # what is left of it is removed next time
            elif _is_intact(path):
                num_valid += 1

    def _remove_partial(self) -> None:
        """Remove what a killed process was writing: a run has one writer."""
        for name in os.listdir(self.folder):
            if _PARTIAL.fullmatch(name):
                shutil.rmtree(self.folder / name)


def _manifest(step: int, files: dict[str, bytes]) -> bytes:
    sums = {name: {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()} for name in files}
    return json.dumps({"version": FORMAT_VERSION, "step": step, "files": sums}, separators=(",", ":")).encode()


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _load(path: Path, step: int) -> dict[Any, Any]:
    files = _verified_files(path, step)
    return plain.decode(files[STRUCTURE_FILE], files[NUMBERS_FILE])


def _is_intact(path: Path, manifest: bytes | None = None) -> bool:
    """Whether a checkpoint is there and all its bytes are those of the manifest, or of this very manifest."""
    try:
        _verified_files(path, int(path.name.removeprefix("step-")))
        return manifest in (None, (path / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError):
        return False


def _verified_files(path: Path, step: int) -> dict[str, bytes]:
    """The files of a checkpoint, each read once, whole, and as long and with the sha256 that the manifest says."""
    manifest = _read(path / MANIFEST_FILE, _LONGEST_MANIFEST)
    try:
        sizes = {name: json.loads(manifest)["files"][name]["bytes"] for name in (STRUCTURE_FILE, NUMBERS_FILE)}
        version = json.loads(manifest)["version"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{MANIFEST_FILE} cannot be read: {error!r}") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{MANIFEST_FILE} has format version {version!r}, this sgdwalk reads {FORMAT_VERSION}")
    files = {name: _read(path / name, size) for name, size in sizes.items()}
    # One form of manifest fits these bytes: comparing it whole finds damage anywhere in it, too.
    if _manifest(step, files) != manifest:
        raise ValueError(f"the sha256 or the length of a file is not that of {MANIFEST_FILE}")
    return files


def _read(path: Path, most: int) -> bytes:
    """A whole file, unless it is missing or longer than it may be."""
    if not path.is_file():
        raise ValueError(f"{path.name} is missing")
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"{path.name} has {size} bytes, expected at most {most}")
    return path.read_bytes()
