"""The command line: parse and call. Results go to stdout, progress and complaints to stderr.

Exit codes: 0 done, 1 an error explained in one line, 2 wrong usage, 130 stopped by Ctrl-C (143 by SIGTERM).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TextIO

import tyro

import sgdwalk
from sgdwalk.paper.config import Execution, Experiment
from sgdwalk.paper.figure import Figure, Method
from sgdwalk.paper.registry import FigureId
from sgdwalk.paper.trainings import Scale
from sgdwalk.sweep_command import Sweep, complain, say_how_to_go_on, tell_cost
from sgdwalk.text import plain

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Run:
    """Train a network by SGD or by full-batch gradient descent, and watch it walk.

    Along every watched update the full training loss is measured at α = 0, 0.1, …, 1 between the parameters before and
    after it. All goes into a run folder, OUT/NAME, which `sgdwalk show` and `sgdwalk report` read. Ctrl-C stops between
    two updates and keeps everything; so does kill -9, but for the last second.

    For example, 40 updates of gradient descent on the bundled digits, then the paper's MLP on 5,000 images of MNIST:

    sgdwalk run --algorithm gd --epochs 40 --name gd

    sgdwalk run --dataset mnist --num-train 5000 --epochs 2 --watch-first 40 --name mnist
    """

    experiment: tyro.conf.OmitArgPrefixes[Experiment] = field(default_factory=Experiment)
    """What is trained and what is watched: these settings decide the numbers, and a run keeps them for good."""
    execution: tyro.conf.OmitArgPrefixes[Execution] = field(default_factory=Execution)
    """How it is carried out."""
    out: Path = Path("runs")
    """Folder that holds run folders."""
    name: str | None = None
    """Name of the run and of its folder in OUT; DATASET-ALGORITHM where not given."""
    data_dir: Path | None = None
    """Folder that holds the data sets as the Hugging Face hub has them: mnist/mnist/, cifar10/plain_text/ or
    tiny-imagenet/data/ with train-*.parquet. Without it the hub's own copy is downloaded, once."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with a run that was stopped or killed, or start it where there is none. The numbers are bitwise those of a
    run that was never stopped."""

    def __call__(self, command: str) -> int:
        from sgdwalk.paper import record

        name = f"{self.experiment.dataset}-{self.experiment.algorithm}" if self.name is None else self.name
        if not name or name in (".", "..") or "/" in name:
            raise sgdwalk.InputError(
                f"--name {name!r} is no name for a folder in {self.out}: use no slashes and no dots."
            )
        folder = self.out / name
        going_on = folder.joinpath("run.json").exists()
        if going_on and not self.resume:
            raise sgdwalk.RunFolderError(
                f"{folder} already holds a run: go on with it by adding --resume, or choose another --name."
            )
        if going_on:
            run = sgdwalk.open_run(folder)
            record.check_same_training(folder, run, self.experiment)
            if record.is_finished(run):
                print(f"{plain(folder)} is finished: all its {len(run.steps):,} updates are there. Nothing to do.")
                return 0
        return self._train(folder, name, going_on, command)

    def _train(self, folder: Path, name: str, going_on: bool, command: str) -> int:
        from sgdwalk.paper.data import load
        from sgdwalk.paper.interrupt import StopOnSignal
        from sgdwalk.paper.progress import ProgressDisplay
        from sgdwalk.paper.train import train
        from sgdwalk.summary import describe

        data = load(self.experiment, self.data_dir)
        with StopOnSignal() as stop, ProgressDisplay() as display:
            finished = train(
                self.experiment,
                data,
                folder,
                name=name,
                execution=self.execution,
                resume=going_on,
                stop=stop,
                progress=lambda *progress: display.update(plain(name, 40), *progress),
            )
        run = sgdwalk.open_run(folder)
        if not finished:
            say_how_to_go_on(
                f"stopped before update {len(run.steps):,} of {self.experiment.num_updates:,}; everything measured is "
                f"kept in {plain(folder)}",
                command if self.resume else f"{command} --resume",
            )
            return stop.exit_code
        for sentence in describe(run):
            print(sentence)
        print(f"Kept in {plain(folder)}; see it with: sgdwalk show {shlex.quote(str(folder))}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Reproduce figures and tables of the paper: their pictures, their numbers, and the paper's statements beside ours,
    with verdicts.

    Trainings are kept in OUT/trainings and shared between figures; a command that was stopped does only what is missing
    when it is given again. Pictures (PNG, SVG, PDF), tables (CSV) and a page (HTML) go to OUT/ID-SCALE;
    of several ids, a page over all of them to OUT/all-SCALE.

    For example, one figure, then everything, at the published setting on two GPUs, first only to see what it takes:

    sgdwalk reproduce fig17 --scale small --data-dir DATA --jobs 2

    sgdwalk reproduce all --scale paper --device cuda:0 cuda:1 --dry-run
    """

    ids: tyro.conf.Positional[tuple[FigureId | Literal["all"], ...]]
    """What to reproduce, one or several; `sgdwalk list` tells what each is."""
    scale: Scale = "small"
    """``smoke``: digits, seconds each, to see that it runs. ``small``: real data, cut to minutes or, where a hundred
    epochs are shown, half an hour. ``paper``: the published setting, for a GPU. What was cut stands on the page."""
    method: Method = "exact"
    """How segments are measured. ``certified``: from samples, within 5 % of the height, for figures and tables of walks
    (fig1, fig2, fig8 to fig21, table1, table2); of all, the others stay exact. Its pages go to OUT/ID-SCALE-certified,
    and show both ways and their costs where OUT has the exact trainings too."""
    data_dir: Path | None = None
    """Folder that holds the data sets as the Hugging Face hub has them (mnist/mnist/, cifar10/plain_text/,
    tiny-imagenet/data/ with train-*.parquet); without it the hub's copies are downloaded, once."""
    out: Path = Path("runs/paper")
    """Folder for trainings and pages."""
    jobs: int | None = None
    """Trainings at a time, each a process of one thread; one for each device where not given."""
    device: tuple[str, ...] = ("cpu",)
    """Where to train: ``cpu``, ``cuda``, ``cuda:1``, …; of several, each training takes the least busy one."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Only tell how many trainings each id still needs, and what all of them would take in time and disk."""
    verbose: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Where that is told, a line for each training in place of one for each id."""

    def __call__(self, command: str) -> int:
        from sgdwalk.paper.certifying import figures
        from sgdwalk.paper.interrupt import StopOnSignal
        from sgdwalk.paper.overview import read_results, summary, write_overview
        from sgdwalk.paper.progress import ProgressDisplay
        from sgdwalk.paper.registry import IDS
        from sgdwalk.paper.run import reproduce_all

        if not self.ids:
            raise sgdwalk.InputError(
                "no id was named: name one or several, or all; `sgdwalk list` tells what there is."
            )
        ids: list[FigureId] = [id for id in IDS if id in self.ids or "all" in self.ids]
        if not self.device or (self.jobs is not None and self.jobs < 1):
            raise sgdwalk.InputError(f"--jobs must be at least 1 and --device name a device; got {self.jobs}.")
        wanted = figures(ids, self.scale, self.method, others="exact" if "all" in self.ids else "refuse")
        if self.dry_run:
            return self._tell_cost(wanted)
        if self.scale == "paper":
            self._tell_cost(wanted, file=sys.stderr)
        with StopOnSignal() as stop, ProgressDisplay() as display:
            pages = reproduce_all(
                wanted,
                out=self.out,
                data_dir=self.data_dir,
                jobs=len(self.device) if self.jobs is None else self.jobs,
                executions=[Execution(device=device) for device in self.device],
                stop=stop,
                update=display.update,
            )
        if pages is None:
            say_how_to_go_on(f"stopped; finished and begun trainings are kept in {plain(self.out)}", command)
            return stop.exit_code
        if len(pages) > 1:
            print(summary(read_results(self.out, self.scale, self.method)))
            print(f"Overview: {plain(write_overview(self.out, self.scale, self.method).absolute())}")
        for page in pages:
            for each in page.judged:
                reading = f" ({each.reading})" if each.reading else ""
                print(f"{each.verdict}: {each.claim}{reading}. {each.finding}")
            for sentence in [] if page.beside is None else page.beside.sentences:
                print(sentence)
            for fault in [] if page.beside is None else page.beside.faults:
                complain(f"error: {fault}")
            print(f"Page: {plain(page.path.absolute())}")
        return 0

    def _tell_cost(self, wanted: Sequence[Figure], file: TextIO | None = None) -> int:
        """Print what the missing trainings take in time and disk."""
        from sgdwalk.paper.run import missing_trainings, undecided_trainings

        def of(some: Sequence[Figure]) -> tuple[list[Experiment], list[Experiment]]:
            folder = self.out / "trainings"
            return missing_trainings(some, folder), undecided_trainings(some, folder)

        missing, undecided = of(wanted)
        of_ids = None if self.verbose else {each.id: of([each]) for each in wanted}
        jobs = len(self.device) if self.jobs is None else self.jobs
        tell_cost(missing, Execution(device=self.device[0]), jobs, self.out, file, undecided, of_ids)
        return 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """Make one HTML file of one or more runs: figures, tables, settings. It needs no network and no other file.

    For example:

    sgdwalk report runs/digits-gd runs/digits-sgd --out runs/report.html
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, in the order in which they are to appear."""
    out: Path | None = None
    """The file to write; report.html in the first run's folder where not given. It is replaced if it exists."""

    def __call__(self, command: str) -> int:
        from sgdwalk.summary import describe, describe_together

        if not self.runs:
            raise sgdwalk.InputError(
                "no run was named: name at least one run folder; `sgdwalk list` shows those there are."
            )
        runs = [sgdwalk.open_run(folder) for folder in self.runs]
        path = self.runs[0] / "report.html" if self.out is None else self.out
        sgdwalk.write_report(runs, path)
        print(plain(path.absolute()))
        if len(runs) == 1:
            lines = describe(runs[0])
        else:
            lines = [f"{plain(run.name, 40)}: {describe(run)[1]}" for run in runs] + describe_together(runs)
        for line in lines:
            print(line)
        return 0


@dataclass(frozen=True, kw_only=True)
class Show:
    """Show a run in the terminal: what it did in words, the height over the valley floor, a table of its steps."""

    run: tyro.conf.Positional[Path]
    """A run folder."""
    rows: int = 20
    """Rows of the table: the first half and the last half of so many watched steps."""
    all: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Every step, watched or not."""

    def __call__(self, command: str) -> int:
        from sgdwalk.terminal import show

        show(sgdwalk.open_run(self.run), rows=None if self.all else self.rows)
        return 0


@dataclass(frozen=True, kw_only=True)
class List:
    """List what can be reproduced, and the runs in a folder with their state."""

    folder: tyro.conf.Positional[Path] = Path("runs")
    """Where to look for runs, in all its folders."""

    def __call__(self, command: str) -> int:
        from sgdwalk.terminal import list_all

        list_all(self.folder)
        return 0


COMMANDS = {
    "run": Run,
    "reproduce": Reproduce,
    "sweep": Sweep,
    "report": Report,
    "show": Show,
    "list": List,
}
Command = (
    Annotated[Run, tyro.conf.subcommand("run", description="Train a network and watch it walk.")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce", description="Reproduce figures and tables of the paper.")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep", description="Train over a grid of settings and seeds.")]
    | Annotated[Report, tyro.conf.subcommand("report", description="Make one HTML file of one or more runs.")]
    | Annotated[Show, tyro.conf.subcommand("show", description="Show a run in the terminal.")]
    | Annotated[List, tyro.conf.subcommand("list", description="List what can be reproduced, and runs.")]
)
DESCRIPTION = """See how an optimizer walks: the full training loss between every two consecutive parameter vectors.

`sgdwalk run` trains and watches, `sgdwalk show` and `sgdwalk report` let you see it. To watch a training of your own,
put `sgdwalk.watch(model, optimizer, loss_fn, data)` around its loop. Each explains itself: sgdwalk COMMAND --help"""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; wrong usage and ``--help`` leave by ``SystemExit``."""
    args = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Greek letters still gets the rest
    if args == ["--version"]:
        print(f"sgdwalk {sgdwalk.__version__}")
        return 0
    with warnings_as_complaints():
        try:
            return parse(args)(shlex.join(["sgdwalk", *args]))
        except sgdwalk.SgdwalkError as error:
            complain(f"error: {error}")
            return 1
        except KeyboardInterrupt:
            complain("stopped before anything was begun.")
            return INTERRUPTED
        except BrokenPipeError:  # the reader of our output went away, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1


def parse(args: Sequence[str]) -> Run | Reproduce | Sweep | Report | Show | List:
    """The command that the arguments describe."""
    if args and args[0] in COMMANDS:
        return tyro.cli(COMMANDS[args[0]], prog=f"sgdwalk {args[0]}", args=args[1:])
    return tyro.cli(Command, prog="sgdwalk", description=DESCRIPTION, args=args)  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def warnings_as_complaints() -> Iterator[None]:
    """Within it, what sgdwalk warns of or logs is one inert line on stderr."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: complain(f"warning: {record.getMessage()}")
    logger = logging.getLogger("sgdwalk")
    logger.addHandler(handler)
    with warnings.catch_warnings():
        warnings.filterwarnings("always", module=r"sgdwalk\b")
        warnings.showwarning = lambda message, *_: complain(f"warning: {message}")
        try:
            yield
        finally:
            logger.removeHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
