"""Fixtures that several test modules share."""

import subprocess

import pytest


class SmallDisk:
    """A file system of its own, a few pages large."""

    def __init__(self, path):
        self.path = path

    def read_only(self, yes=True):
        """Cover the file system with a read-only view of itself, or take that off; what is open stays writable."""
        if yes:
            subprocess.run(["mount", "--bind", self.path, self.path], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", self.path], check=True)
        else:
            subprocess.run(["umount", self.path], check=True)

    def fill(self):
        """Leave no page free."""
        try:
            with open(self.path / "filling", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        except OSError:
            return

    def make_space(self):
        (self.path / "filling").unlink()


@pytest.fixture
def small_disk(tmp_path_factory):
    """An empty 256 KiB file system; skips where this process may not mount one."""
    path = tmp_path_factory.mktemp("disk")
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield SmallDisk(path)
    while path.is_mount():
        subprocess.run(["umount", "--lazy", path], check=True)
