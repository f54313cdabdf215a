"""sgdwalk: see how an optimizer walks — the full training loss between every two consecutive iterates.

The names below are loaded on first use, so that reading a run never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgdwalk import analysis, figures
    from sgdwalk.checkpoints import Checkpoints
    from sgdwalk.data import subset
    from sgdwalk.errors import CheckpointError, InputError, ResumeError, RunFolderError, SgdwalkError
    from sgdwalk.isolation import is_measuring
    from sgdwalk.measures import at
    from sgdwalk.report import save_figure, write_report
    from sgdwalk.run import Run, open_run
    from sgdwalk.walk import Walk
    from sgdwalk.watching import watch
    from sgdwalk.when import When, every, first_steps, in_epochs

_HOME = {
    "CheckpointError": "errors",
    "Checkpoints": "checkpoints",
    "InputError": "errors",
    "ResumeError": "errors",
    "Run": "run",
    "RunFolderError": "errors",
    "SgdwalkError": "errors",
    "Walk": "walk",
    "When": "when",
    "at": "measures",
    "every": "when",
    "first_steps": "when",
    "in_epochs": "when",
    "is_measuring": "isolation",
    "open_run": "run",
    "save_figure": "report",
    "subset": "data",
    "watch": "watching",
    "write_report": "report",
}
_MODULES = frozenset({"analysis", "figures"})

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "InputError",
    "ResumeError",
    "Run",
    "RunFolderError",
    "SgdwalkError",
    "Walk",
    "When",
    "analysis",
    "at",
    "every",
    "figures",
    "first_steps",
    "in_epochs",
    "is_measuring",
    "open_run",
    "save_figure",
    "subset",
    "watch",
    "write_report",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"sgdwalk.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"sgdwalk.{name}")
    raise AttributeError(f"module 'sgdwalk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
