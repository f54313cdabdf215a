"""The report: one self-contained HTML file of figures, tables and provenance; and figures saved as pictures."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from sgdwalk import __version__
from sgdwalk import report_tables as tables
from sgdwalk.drawing import COLOURS
from sgdwalk.errors import InputError, SgdwalkError
from sgdwalk.report_figures import label_of, pointed_at, sections, step_data
from sgdwalk.summary import describe, describe_together
from sgdwalk.svg import StyleSheet
from sgdwalk.text import plain

if TYPE_CHECKING:
    from sgdwalk.run import Run


def write_report(runs: Sequence[Run], path: str | Path, *, title: str | None = None) -> Path:
    """Write one self-contained HTML file about a run, or about several side by side.

    It needs no network and forbids itself any; it is light or dark as the reader prefers, and prints. The file appears
    whole or not at all: what was at ``path`` stays as it was if anything goes wrong.

    Args:
        runs: at least one; two side by side are what it is made for.
        path: of the file; its folder is made where it does not exist, a file already there is replaced.
        title: the heading; by default the names of the runs.

    Returns:
        The path of the file.

    Raises:
        InputError: no run was given.
        SgdwalkError: the file could not be written; the message names the path and the reason.

    >>> import tempfile
    >>> write_report([run], Path(tempfile.mkdtemp()) / "report.html").name
    'report.html'
    """
    if not runs:
        raise InputError("A report needs at least one run and got none: pass write_report([run], path).")
    return _publish(Path(path), render(runs, title=title).encode())


def render(runs: Sequence[Run], *, title: str | None = None) -> str:
    """The report's HTML.

    >>> render([run]).startswith("<!DOCTYPE html>")
    True
    """
    labels = [label_of(run, index) for index, run in enumerate(runs)]
    styles = StyleSheet()
    body = sections(runs, styles)
    palette = "".join(f"--{name}:{value};" for name, value in COLOURS.items())
    swatches = "\n".join(f".fill-{name}{{background:var(--{name})}}" for name in COLOURS)
    style = Markup(f":root{{{palette}}}\n{_resource('report.css')}\n{swatches}\n{styles.css}")
    script = Markup(_resource("report.js"))
    views = [
        {
            **vars(label),
            "sentences": describe(run),
            "epochs": tables.epochs_table(run, label),
            "means": tables.means_tables(run, label),
            "steps": tables.steps_table(run, label),
            "left_out": tables.left_out_table(run, label),
            "events": tables.events_table(run, label),
        }
        for run, label in zip(runs, labels, strict=True)
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(_resource("report.html.jinja")).render(
        title=plain(title or _usual_title([label.name for label in labels]), 200),
        version=__version__,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=_inert_json(step_data(runs)),
        pointing=_pointing(runs),
        runs=views,
        together=describe_together(runs),
        key_numbers=tables.key_numbers(runs),
        sections=body,
        settings=tables.settings(runs),
    )


def _usual_title(names: list[str]) -> str:
    if len(names) <= 2:
        return " beside ".join(names)
    return f"{len(names)} walks side by side"


def _pointing(runs: Sequence[Run]) -> str:
    shown, total = sum(len(pointed_at(run)) for run in runs), sum(len(run.steps) for run in runs)
    return "" if shown == total else f" Of {total:,} steps {shown:,} can be read so; the lines are drawn from all."


def _resource(name: str) -> str:
    return resources.files("sgdwalk").joinpath(name).read_text("utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _inert_json(value: Any) -> Markup:
    """JSON that cannot end its script element, holds no bare NaN and nothing outside ASCII."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Save a figure as PNG, PDF or SVG, as its suffix says, with its caption in the file's metadata.

    Args:
        figure: from :mod:`sgdwalk.figures`, or any other of matplotlib's; only the former have title and caption.
        path: ends in .png, .pdf or .svg; a file already there is replaced, whole or not at all.

    Returns:
        The path of the file.

    Raises:
        InputError: another suffix.
        SgdwalkError: the file could not be written.

    >>> import tempfile
    >>> from sgdwalk import figures
    >>> save_figure(figures.heights(run), Path(tempfile.mkdtemp()) / "heights.svg").name
    'heights.svg'
    """
    path = Path(path)
    title, caption = getattr(figure, "title", ""), getattr(figure, "caption", "")
    metadata_of = {
        ".png": {"Title": title, "Description": caption},
        ".pdf": {"Title": title, "Subject": caption, "CreationDate": None},
        ".svg": {"Title": title, "Description": caption, "Date": None},
    }
    suffix = path.suffix.lower()
    if suffix not in metadata_of:
        raise InputError(f"{path} does not end in .png, .pdf or .svg: a figure is saved in one of these formats.")
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "sgdwalk"}):
        figure.savefig(file, format=suffix[1:], dpi=200, metadata=metadata_of[suffix])
    return _publish(path, file.getvalue())


def _publish(path: Path, content: bytes) -> Path:
    """Write a file so that its name always stands for a whole one: the old or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SgdwalkError(
            f"{path} could not be written: {error.strerror}. A file that was there before is unchanged; make room or "
            "name another place."
        ) from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path
