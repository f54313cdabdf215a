"""What sgdwalk raises. Every message says what was seen, what is wanted, and what to do."""

from __future__ import annotations


class SgdwalkError(Exception):
    """Base of every error that sgdwalk raises on purpose; the command line prints it without a traceback."""


class InputError(SgdwalkError, ValueError):
    """An argument, a loss function, a data set or a model that cannot be watched as it is."""


class RunFolderError(SgdwalkError):
    """A run folder that is missing, damaged, already there, or held by another writer."""


class CheckpointError(SgdwalkError):
    """A checkpoint that cannot be written or none that can be read."""


class ResumeError(SgdwalkError):
    """A run that cannot be continued: settings, data or the state that is loaded are not its own."""
