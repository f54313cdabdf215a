"""Reproduce one figure: train what is missing, draw it as the paper does, put its statements beside ours."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

import sgdwalk
from sgdwalk.paper.claims import FIRST_UPDATES, Claim, Judgement
from sgdwalk.paper.config import Execution
from sgdwalk.paper.registry import CUTS, DEVIATIONS, Figure, FigureId, Panel, Scale, figure
from sgdwalk.paper.sweep import Update, is_trained, train_all, training_name

FORMATS = ("png", "svg", "pdf")

Runs = Mapping[str, Sequence[sgdwalk.Run]]
"""By role, one a seed."""


@dataclass(frozen=True)
class Judged:
    """A claim with what our trainings say to it."""

    claim: Claim
    reading: str
    """Which reading of the paper it was judged on, or an empty text."""
    judgement: Judgement


@dataclass(frozen=True)
class Page:
    """What a reproduction wrote."""

    path: Path
    """The HTML page; pictures and tables lie beside it."""
    judged: list[Judged]


def reproduce(
    id: FigureId,
    scale: Scale,
    *,
    out: Path,
    data_dir: Path | None = None,
    jobs: int = 1,
    execution: Execution | None = None,
    stop: Callable[[], bool] = lambda: False,
    update: Update = lambda name, num_done, num_updates, fraction: None,
) -> Page | None:
    """Train what a figure needs and is not there yet, and write its page; None where ``stop`` ended it before.

    Args:
        id: the figure.
        scale: how much of the published setting.
        out: trainings go to ``out/trainings``, the page with pictures and tables to ``out/ID-SCALE``.
        data_dir: as for ``sgdwalk.paper.data.load``.
        jobs: trainings at a time.
        execution: threads, device and checkpoints of each training.
        stop: asked twice a second.
        update: told of the progress of each training.
    """
    wanted = figure(id, scale)
    trainings = out / "trainings"
    missing = [experiment for experiment in wanted.experiments if not is_trained(trainings, experiment)]
    if missing:
        from sgdwalk.paper.data import load  # torch

        load(missing[0], data_dir)  # says what is wrong with the data before any process is started, and caches it
        if not train_all(
            missing, trainings, data_dir=data_dir, jobs=jobs, execution=execution, stop=stop, update=update
        ):
            return None
    runs = {
        role: [sgdwalk.open_run(trainings / training_name(experiment)) for experiment in experiments]
        for role, experiments in wanted.trainings.items()
    }
    return write_page(wanted, runs, out / f"{id}-{scale}")


def judge(wanted: Figure, runs: Runs) -> list[Judged]:
    """Put every claim of a figure to its test."""
    judged = [Judged(claim, reading, claim.judge(runs)) for reading, claim in wanted.claims]
    if wanted.scale != "smoke":
        return judged
    return [replace(each, judgement=replace(each.judgement, verdict="not testable at this scale")) for each in judged]


def write_page(wanted: Figure, runs: Runs, folder: Path) -> Page:
    """Write pictures, tables and the page of a figure into a folder, which is replaced as a whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    windows = [window(panel, runs) for panel in wanted.panels]
    shown = [runs[panel.role][0] for panel in wanted.panels]
    limits = sgdwalk.figures.shared_limits(shown, windows)
    pictures = []
    for number, (panel, run, steps) in enumerate(zip(wanted.panels, shown, windows, strict=True)):
        stem = wanted.id if number == 0 else f"{wanted.id}-{panel.role}"
        picture = sgdwalk.figures.three_panels(run, steps=steps, limits=limits)
        for extension in FORMATS:
            sgdwalk.save_figure(picture, partial / f"{stem}.{extension}")
        write_tables(run, steps, partial / stem)
        pictures.append((panel.label, stem, picture.caption, picture.alternative, as_data_uri(partial / f"{stem}.svg")))
    sgdwalk.write_report(shown, partial / "report.html")
    judged = judge(wanted, runs)
    (partial / "claims.json").write_text(json.dumps([as_row(each) for each in judged], indent=2, ensure_ascii=False))
    environment = Environment(
        loader=PackageLoader("sgdwalk.paper", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("page.html.jinja").render(
        figure=wanted,
        cut=CUTS[wanted.scale],
        deviations=[*DEVIATIONS, *remarks(runs)],
        pictures=pictures,
        judged=judged,
        trainings=[(role, run) for role, each in runs.items() for run in each],
        num_seeds=max(len(each) for each in runs.values()),
        formats=FORMATS,
        first_updates=FIRST_UPDATES,
    )
    (partial / "index.html").write_text(html, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return Page(folder / "index.html", judged)


def window(panel: Panel, runs: Runs) -> range:
    """The steps that a panel shows."""
    steps = runs[panel.role][0].steps
    chosen = steps if panel.epoch is None else steps[steps["epoch"] == panel.epoch]
    return range(chosen.index[0], chosen.index[:FIRST_UPDATES][-1] + 1)


def write_tables(run: sgdwalk.Run, steps: range, stem: Path) -> None:
    """Write the numbers behind a panel, and no text, as ``STEM-steps.csv`` and ``STEM-segments.csv``."""
    run.steps.loc[steps[0] : steps[-1]].select_dtypes(exclude="string").to_csv(f"{stem}-steps.csv")
    segments = run.segments
    segments[segments["step"].isin(steps)].to_csv(f"{stem}-segments.csv", index=False)


def remarks(runs: Runs) -> list[str]:
    """What the trainings' records say of their data, each once."""
    said = [run.info["config"]["data_remark"] for each in runs.values() for run in each]
    return [remark for remark in dict.fromkeys(said) if remark]


def as_row(each: Judged) -> dict[str, str]:
    """A judged claim in JSON's types."""
    return {
        "claim": each.claim.name,
        "words": each.claim.words,
        "source": each.claim.source,
        "reading": each.reading,
        "test": each.claim.test,
        "finding": each.judgement.finding,
        "verdict": each.judgement.verdict,
    }


def as_data_uri(path: Path) -> str:
    """An SVG file as a picture that a page carries within itself."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
