"""``sgdwalk sweep``, and what commands that train tell: what it will cost, how to go on."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

import sgdwalk
from sgdwalk.paper.config import Execution, Experiment
from sgdwalk.text import count, number, plain

if TYPE_CHECKING:
    import pandas as pd

    from sgdwalk.paper.grid import Grid


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Train over a grid of settings and seeds, and write one table and one figure over all runs.

    CONFIG is a TOML file: settings of `sgdwalk run`, with underscores for dashes, fixed ones in [settings], lists of
    those that vary in [grid], and the seeds.

        seeds = [0, 1, 2]

        [settings]
        epochs = 4

        [grid]
        learning_rate = [0.1, 0.5]
        batch_size = [50, 100]

    Each run is a process of its own: one that crashes or is killed is told and tried once more, and hurts no other. The
    same command given again does only what is missing; begun runs go on. OUT gets a folder for each run, NAME.csv and
    NAME.png, .svg, .pdf, NAME being that of CONFIG.

    For example, first only to see what it takes:

    sgdwalk sweep rates.toml --jobs 2 --dry-run
    """

    config: tyro.conf.Positional[Path]
    """The sweep's TOML file."""
    out: Path | None = None
    """Folder for the runs, the table and the figure; runs/NAME where not given. Sweeps that share one share runs, also
    with `sgdwalk reproduce`, whose runs are in OUT/trainings."""
    jobs: int | None = None
    """Runs at a time: one for each device where not given, with ray and submitit all at once."""
    executor: Literal["local", "ray", "submitit"] = "local"
    """``local``: processes on this machine. ``ray``, ``submitit`` (SLURM): machines that share OUT and the data;
    extras, told more by tables [ray] and [submitit] of CONFIG."""
    device: tuple[str, ...] = ("cpu",)
    """Where to train: ``cpu``, ``cuda``, ``cuda:1``, …; of several, each run takes the least busy one."""
    num_threads: int = 1
    """torch's threads of each run."""
    checkpoint_every: int | None = None
    """Updates between two checkpoints; by default one whenever 20 seconds have passed since the last."""
    data_dir: Path | None = None
    """Folder that holds the data sets as the Hugging Face hub has them (mnist/mnist/, cifar10/plain_text/,
    tiny-imagenet/data/ with train-*.parquet); without it the hub's copies are downloaded, once."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Only tell which runs are missing, and what they would take in time and disk."""

    def __call__(self, command: str) -> int:
        from sgdwalk.paper.executors import open_executor
        from sgdwalk.paper.grid import missing_of, read_grid, run_grid
        from sgdwalk.paper.interrupt import StopOnSignal
        from sgdwalk.paper.progress import ProgressDisplay

        grid = read_grid(self.config)
        if not self.device or (self.jobs is not None and self.jobs < 1):
            raise sgdwalk.InputError(f"--jobs must be at least 1 and --device name a device; got {self.jobs}.")
        name = self.config.stem
        out = Path("runs") / name if self.out is None else self.out
        jobs = len(self.device) if self.jobs is None and self.executor == "local" else self.jobs
        executions = [
            Execution(device=device, num_threads=self.num_threads, checkpoint_every=self.checkpoint_every)
            for device in self.device
        ]
        if self.dry_run:
            missing, failures = missing_of(grid, out)
            for run, message in failures.items():
                complain(f"warning: {run} cannot be gone on with: {message}")
            finished = len(grid.experiments) - len(missing) - len(failures)
            print(
                f"{count(len(grid.experiments), 'run')}, of which {finished} {'is' if finished == 1 else 'are'} there."
            )
            tell_cost(missing, executions[0], jobs or max(1, len(missing)), out)
            return 0
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(StopOnSignal())
            display = stack.enter_context(ProgressDisplay())
            executor = None
            if self.executor != "local":
                options = grid.options.get(self.executor, {})
                executor = stack.enter_context(
                    open_executor(self.executor, options, executions[0], out / self.executor)
                )
            swept = run_grid(
                grid,
                out,
                name=name,
                data_dir=self.data_dir,
                jobs=jobs,
                executions=executions,
                executor=executor,
                stop=stop,
                update=display.update,
            )
        print_summary(swept.table, grid)
        for path in swept.files[:2]:
            print(plain(path.absolute()))
        if swept.stopped:
            say_how_to_go_on(f"stopped; finished and begun runs are kept in {plain(out)}", command)
            return stop.exit_code
        if swept.failures:
            for run, message in swept.failures.items():
                complain(f"error: {run} failed: {message}")
            say_how_to_go_on(
                f"{count(len(swept.failures), 'run')} of {len(swept.table)} failed, the others are kept", command
            )
            return 1
        return 0


def print_summary(table: pd.DataFrame, grid: Grid) -> None:
    """Print one row a combination of settings: means over its finished runs."""
    from sgdwalk.paper.sweep_results import summary

    rows = summary(table, list(grid.varied))
    printed = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in rows.columns.drop("of"):
        printed.add_column(plain(heading).replace("_", " "), justify="right")
    for row in rows.to_dict("records"):
        cells: dict[Any, str] = {name: cell(value) for name, value in row.items()}
        cells["finished"] = f"{row['finished']} of {row.pop('of')}"
        printed.add_row(*(cells[name] for name in row))
    console = Console(file=sys.stdout, highlight=False, markup=False)
    console = console if console.is_terminal else Console(file=sys.stdout, highlight=False, markup=False, width=120)
    console.print(printed)


def cell(value: Any) -> str:
    """A setting or a mean in few characters."""
    if isinstance(value, bool | str):
        return plain(value)
    return number(value, digits=4)


def tell_cost(
    missing: Sequence[Experiment],
    execution: Execution,
    jobs: int,
    out: Path,
    file: TextIO | None = None,
    undecided: Sequence[Experiment] = (),
    of_ids: Mapping[str, tuple[Sequence[Experiment], Sequence[Experiment]]] | None = None,
) -> None:
    """Print the time and disk that missing trainings take, of all of them and of each, or of each id that needs them.

    Args:
        missing: the trainings.
        execution: where they will run; a few forward passes are timed there.
        jobs: trainings at a time.
        out: where they will be kept.
        file: stdout where not given.
        undecided: like those that are chosen by what the missing ones come to.
        of_ids: the same two by what needs them, a line for each in place of one for each training.
    """
    from sgdwalk.paper.estimate import estimate, start_seconds
    from sgdwalk.paper.forking import FORKS
    from sgdwalk.paper.progress import duration
    from sgdwalk.paper.sweep import training_name

    found = estimate([*missing, *undecided], execution.device, execution.num_threads)
    if of_ids is None:
        for index, each in enumerate(found):
            chosen = "" if index < len(missing) else "like one that is chosen by what others come to: "
            name = f"{chosen}{training_name(each.experiment)}"
            print(f"{name}: {duration(each.seconds)}, {each.bytes / 1e6:,.0f} MB", file=file)
    seconds_of = {each.experiment: each.seconds for each in found}
    for id, (needed, chosen) in (of_ids or {}).items():
        told = f"{count(len(needed), 'training')}, {duration(sum(seconds_of[each] for each in needed))}"
        if chosen:
            told += f"; {len(chosen):,} more, chosen by what these come to, "
            told += duration(sum(seconds_of[each] for each in chosen))
        print(f"{id}: {told if needed or chosen else 'nothing is missing'}", file=file)
    seconds, size = sum(each.seconds for each in found), sum(each.bytes for each in found)
    start = start_seconds([*missing, *undecided]) if found else 0.0
    longest = start + max((each.seconds for each in found), default=0.0)
    num_starts = min(jobs, len(found)) if FORKS else len(found)  # forks start in no time
    at_once = max(longest, (seconds + start * num_starts) / jobs)
    once = ", each counted once however many ids need it" if of_ids and len(of_ids) > 1 else ""
    print(
        f"{count(len(found), 'training is', 'trainings are')} missing{once}: {duration(seconds)} of work on "
        f"{execution.device} as timed just now, and {duration(start)} to start; {duration(at_once)} with "
        f"{jobs} at a time if they do not slow each other down; {size / 1e9:.2f} GB of disk in {plain(out)}.",
        file=file,
    )


def complain(message: str) -> None:
    """Say something on stderr, inert whatever names it quotes."""
    print(plain(message, limit=2_000), file=sys.stderr)


def say_how_to_go_on(what: str, command: str) -> None:
    """Tell on stderr what was kept and the command that continues."""
    complain(f"{what}. Go on with:")
    complain(f"  {command}")
