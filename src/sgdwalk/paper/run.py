"""Reproduce one figure: train what is missing, draw it as the paper does, put its statements beside ours."""

from __future__ import annotations

import base64
import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

import sgdwalk
from sgdwalk.paper import agreement
from sgdwalk.paper.agreement import Agreement, Pair
from sgdwalk.paper.certifying import TOLERANCE, figures, left_out
from sgdwalk.paper.config import Execution, Experiment
from sgdwalk.paper.cost import time_needed
from sgdwalk.paper.figure import DEVIATIONS, Figure, Method, Panel, Runs
from sgdwalk.paper.forking import in_forks
from sgdwalk.paper.judging import Claim, Judgement, Verdict
from sgdwalk.paper.registry import FigureId
from sgdwalk.paper.selections import FIRST_UPDATES
from sgdwalk.paper.sweep import Update, is_trained, train_all, training_name
from sgdwalk.paper.trainings import NUM_SEEDS, Scale

FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Judged:
    """A claim with what our trainings say to it."""

    claim: str
    """Its name."""
    words: str
    source: str
    reading: str
    """Which reading of the paper it was judged on, or an empty text."""
    test: str
    finding: str
    verdict: Verdict
    first_seeds: int | None
    """How many seeds all trainings have; None where those that some have besides say nothing to this claim."""
    verdict_of_first_seeds: Verdict | None
    """What these alone would say."""

    @property
    def moved(self) -> bool:
        """Whether the further seeds change the verdict."""
        return self.first_seeds is not None and self.verdict_of_first_seeds != self.verdict


@dataclass(frozen=True)
class Page:
    """What a reproduction wrote."""

    path: Path
    """The HTML page; pictures and tables lie beside it."""
    judged: list[Judged]
    beside: Agreement | None = None
    """Where segments are certified: how they agree with exact ones."""


@dataclass(frozen=True)
class Drawn:
    """A picture on the page."""

    label: str
    stem: str
    caption: str
    alternative: str
    uri: str
    files: list[str]


def reproduce(
    id: FigureId,
    scale: Scale,
    *,
    out: Path,
    method: Method = "exact",
    data_dir: Path | None = None,
    jobs: int = 1,
    executions: Sequence[Execution] = (Execution(),),
    stop: Callable[[], bool] = lambda: False,
    update: Update = lambda name, num_done, num_updates, fraction: None,
) -> Page | None:
    """Train what a figure needs and is not there yet, and write its page; None where ``stop`` ended it before.

    Args:
        id: the figure.
        scale: how much of the published setting.
        out: trainings go to ``out/trainings``, the page with pictures and tables to ``out/ID-SCALE``, with certified
            segments to ``out/ID-SCALE-certified``.
        method: how segments are measured. Where the trainings with exact ones are in ``out`` too, the page with
            certified ones shows both.
        data_dir: as for ``sgdwalk.paper.data.load``.
        jobs: trainings, and then pages, at a time.
        executions: threads, device and checkpoints of each training.
        stop: asked twice a second.
        update: told of the progress of each training.

    Raises:
        InputError: the figure cannot have certified segments.
    """
    pages = reproduce_all(
        figures([id], scale, method),
        out=out,
        data_dir=data_dir,
        jobs=jobs,
        executions=executions,
        stop=stop,
        update=update,
    )
    return pages[0] if pages else None


def reproduce_all(
    wanted: Sequence[Figure],
    *,
    out: Path,
    data_dir: Path | None = None,
    jobs: int = 1,
    executions: Sequence[Execution] = (Execution(),),
    stop: Callable[[], bool] = lambda: False,
    update: Update = lambda name, num_done, num_updates, fraction: None,
) -> list[Page] | None:
    """The same for several figures: a training that more than one needs is run once, and all are run side by side."""
    trainings = out / "trainings"
    while missing := missing_trainings(wanted, trainings):
        from sgdwalk.paper.data import load  # torch

        for experiment in {each.dataset: each for each in missing}.values():
            load(experiment, data_dir)  # says what is wrong with the data before any process is started, and caches it
        if not train_all(
            missing, trainings, data_dir=data_dir, jobs=jobs, executions=executions, stop=stop, update=update
        ):
            return None

    def write(number: int) -> Page:
        chosen = with_choice(wanted[number], trainings)
        runs = open_runs(chosen, trainings)
        return write_page(chosen, runs, out / chosen.page, beside_exact(chosen, runs, out, data_dir))

    return in_forks(write, len(wanted), jobs)


def beside_exact(wanted: Figure, runs: Runs, out: Path, data_dir: Path | None) -> Agreement | None:
    """How certified segments agree with the exact ones that are in ``out``; None for a figure with exact ones."""
    if wanted.exact is None:
        return None
    trainings, exact = out / "trainings", wanted.exact
    missing = [each for each in exact.experiments if not is_trained(trainings, each)]
    pairs = {
        experiment: Pair(role, sgdwalk.open_run(trainings / training_name(experiment)), run)
        for role, experiments in exact.trainings.items()
        for experiment, run in zip(experiments, runs[role], strict=True)
        if experiment not in missing and training_name(experiment) != run.name
    }
    command = ["sgdwalk", "reproduce", wanted.id, "--scale", wanted.scale, "--out", str(out)]
    return agreement.agree(
        list(pairs.values()),
        list({run.name: run for each in runs.values() for run in each}.values()),
        [] if missing else [asdict(each) for each in judge(exact, open_runs(exact, trainings))],
        [asdict(each) for each in judge(wanted, runs)],
        [training_name(each) for each in missing],
        shlex.join(command if data_dir is None else [*command, "--data-dir", str(data_dir)]),
    )


def with_choice(wanted: Figure, trainings: Path) -> Figure:
    """The figure with its further trainings too, where the first ones, which decide them, are finished."""
    if wanted.choice is None or not all(is_trained(trainings, each) for each in wanted.experiments):
        return wanted
    chosen = wanted.choice.choose(open_runs(wanted, trainings))
    return replace(wanted, trainings={**wanted.trainings, **chosen}, choice=None)


def undecided_trainings(wanted: Sequence[Figure], trainings: Path) -> list[Experiment]:
    """Trainings like those that cannot be chosen yet, for an estimate."""
    left = [(with_choice(each, trainings).choice, each.experiments) for each in wanted]
    alike = [each for choice, first in left if choice is not None for each in choice.like if each not in first]
    return list(dict.fromkeys(alike))


def missing_trainings(wanted: Sequence[Figure], trainings: Path) -> list[Experiment]:
    """What some figures need and is not there or not finished; the longest first, so that the last ends early.

    What others go on from counts with the longest of those.
    """
    known = [with_choice(each, trainings) for each in wanted]
    needed = dict.fromkeys(experiment for each in known for experiment in each.experiments)
    missing = [experiment for experiment in needed if not is_trained(trainings, experiment)]

    def waiting(experiment: Experiment) -> float:
        return time_needed(experiment) + max(
            (waiting(each) for each in missing if each.after == experiment), default=0.0
        )

    return sorted(missing, key=lambda experiment: -waiting(experiment))


def open_runs(wanted: Figure, trainings: Path) -> Runs:
    """The finished trainings of a figure, by role."""
    return {
        role: [sgdwalk.open_run(trainings / training_name(experiment)) for experiment in experiments]
        for role, experiments in wanted.trainings.items()
    }


def judge(wanted: Figure, runs: Runs) -> list[Judged]:
    """Put every claim of a figure to its test."""
    return [_judged(wanted, reading, claim, runs) for reading, claim in wanted.claims]


def _judged(wanted: Figure, reading: str, claim: Claim, runs: Runs) -> Judged:
    too_small = (wanted.scale == "smoke" and wanted.trainings) or (claim.paper_scale_only and wanted.scale != "paper")

    def verdict(judgement: Judgement) -> Verdict:
        return "not testable at this scale" if too_small else judgement.verdict

    judgement, count = claim.judge(runs), NUM_SEEDS[wanted.scale]
    said = claim.name, claim.words, claim.source, reading, claim.test, judgement.finding, verdict(judgement)
    by_first = claim.judge({role: each[:count] for role, each in runs.items()})
    return Judged(*said, *((None, None) if by_first == judgement else (count, verdict(by_first))))


def write_page(wanted: Figure, runs: Runs, folder: Path, beside: Agreement | None = None) -> Page:
    """Write pictures, tables and the page of a figure into a folder, which is replaced as a whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    drawn = [*draw_walks(wanted, runs, partial), *draw_chart(wanted, runs, partial)]
    made = [(table, table.make(runs)) for table in wanted.tables]
    compared = [] if beside is None else beside.tables
    for table, frame in [*made, *compared]:
        frame.to_csv(partial / f"{table.name}.csv", index=False)
    shown = wanted.reported or list(dict.fromkeys(panel.role for panel in wanted.panels)) or list(runs)
    if shown:
        sgdwalk.write_report([runs[role][0] for role in shown], partial / "report.html")
    judged = judge(wanted, runs)
    result = json.dumps(as_result(wanted, runs, judged, beside), indent=1, ensure_ascii=False)
    (partial / "result.json").write_text(result + "\n", encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("sgdwalk.paper", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("page.html.jinja").render(
        figure=wanted,
        deviations=[*(DEVIATIONS if runs else ()), *wanted.deviations, *remarks(runs)],
        pictures=drawn,
        tables=[(table, *as_cells(frame)) for table, frame in made],
        judged=judged,
        beside=beside,
        compared=[(table, *as_cells(frame)) for table, frame in compared],
        left_out=left_out(wanted),
        tolerance=TOLERANCE,
        trainings=[training_row(role, run) for role, each in runs.items() for run in each],
        num_seeds=max((len(each) for each in runs.values()), default=0),
        first_updates=FIRST_UPDATES,
    )
    (partial / "index.html").write_text(html, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return Page(folder / "index.html", judged, beside)


def draw_walks(wanted: Figure, runs: Runs, folder: Path) -> list[Drawn]:
    """Draw each walk in the paper's three panels, all to one scale, and write the numbers behind them."""
    windows = [window(panel, runs) for panel in wanted.panels]
    shown = [runs[panel.role][0] for panel in wanted.panels]
    limits = sgdwalk.figures.shared_limits(shown, windows) if shown else None
    drawn = []
    for number, (panel, run, steps) in enumerate(zip(wanted.panels, shown, windows, strict=True)):
        stem = wanted.id if number == 0 else f"{wanted.id}-{panel.role}"
        picture = sgdwalk.figures.three_panels(run, steps=steps, limits=limits)
        write_tables(run, steps, folder / stem)
        files = [f"{stem}-steps.csv", f"{stem}-segments.csv"]
        drawn.append(save(picture, folder, stem, panel.label, picture.caption, picture.alternative, files))
    return drawn


def draw_chart(wanted: Figure, runs: Runs, folder: Path) -> list[Drawn]:
    """Draw what is no walk."""
    if wanted.chart is None:
        return []
    chart = wanted.chart(runs)
    return [save(chart.figure, folder, wanted.id, chart.label, chart.caption, chart.alternative, [])]


def save(picture: Any, folder: Path, stem: str, label: str, caption: str, alternative: str, files: list[str]) -> Drawn:
    """Write a picture in every format."""
    for extension in FORMATS:
        sgdwalk.save_figure(picture, folder / f"{stem}.{extension}")
    uri = "data:image/svg+xml;base64," + base64.b64encode((folder / f"{stem}.svg").read_bytes()).decode()
    return Drawn(label, stem, caption, alternative, uri, [*(f"{stem}.{extension}" for extension in FORMATS), *files])


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


def as_result(wanted: Figure, runs: Runs, judged: list[Judged], beside: Agreement | None = None) -> dict[str, Any]:
    """All that a page says but its pictures and the tables' numbers, in JSON's types."""
    return {
        "id": wanted.id,
        "scale": wanted.scale,
        "method": wanted.method,
        "title": wanted.title,
        "published": wanted.published,
        "cuts": wanted.cuts,
        "deviations": list(wanted.deviations),
        "remarks": remarks(runs),
        "tables": [{"name": table.name, "title": table.title, "text": table.text} for table in wanted.tables],
        "claims": [asdict(each) for each in judged],
        "trainings": [training_row(role, run) for role, each in runs.items() for run in each],
        **({} if beside is None else {"beside_exact": beside.as_dict()}),
    }


def training_row(role: str, run: sgdwalk.Run) -> dict[str, Any]:
    """What made the numbers: one training's settings and provenance."""
    made = run.info["provenance"]
    return {
        "role": role,
        "run": run.name,
        "seed": run.info["config"]["seed"],
        "examples": run.info["data"]["num_examples"],
        "updates": len(run.steps),
        "watched": int(run.segments["step"].nunique()),
        "distance": float(run.steps["next_distance"].iloc[min(FIRST_UPDATES, len(run.steps)) - 1]),
        "validation_accuracy": float(run.epochs["validation_accuracy"].iloc[-1]),
        "torch": made["torch"],
        "device": made["device"],
        "num_threads": made["num_threads"],
        "platform": made["platform"],
        "commit": made["commit"],
        "dirty": made["dirty"],
    }


def as_cells(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table for a person: three significant digits, an empty cell where nothing is known.

    >>> as_cells(pd.DataFrame({"mean_height": [0.012345, float("nan")], "epoch": [1, 2]}))
    (['mean height', 'epoch'], [['0.0123', '1'], ['', '2']])
    """

    def cell(value: Any) -> str:
        if value is None or (isinstance(value, float) and pd.isna(value)):
            return ""
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    rows = [[cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return [str(name).replace("_", " ") for name in frame.columns], rows
