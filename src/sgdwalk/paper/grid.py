"""A sweep: a grid over settings and seeds, as a file or in code, checked before anything starts, and carried out."""

from __future__ import annotations

import difflib
import itertools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pandas as pd

import sgdwalk
from sgdwalk.paper.config import Execution, Experiment
from sgdwalk.paper.cost import time_needed
from sgdwalk.paper.sweep import Executor, TrainingsFailed, Update, is_trained, train_all, training_name
from sgdwalk.paper.sweep_results import draw, results_table, write_table

FORMATS = ("png", "svg", "pdf")
TABLES = ("settings", "grid", "ray", "submitit")
"""The tables of a sweep's file; beside them it has ``seeds``."""


@dataclass(frozen=True)
class Grid:
    """Every combination of some settings' values, each with every seed.

    Raises ``sgdwalk.InputError`` naming the key, what was seen and what is allowed.

    >>> grid = Grid({"epochs": 2}, {"learning_rate": [0.1, 0.5], "batch_size": [50, 100]}, seeds=[0, 1])
    >>> len(grid.experiments)
    8
    >>> grid.points[1]
    {'learning_rate': 0.1, 'batch_size': 100}
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of ``Experiment`` that all trainings share."""
    varied: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """The values of each setting that varies. The first is the figure's x axis, the others make its lines."""
    seeds: Sequence[int] = (0,)
    """Each combination is trained once with each."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """``ray``, ``submitit``: what that executor is told; see ``executors.open_executor``."""

    def __post_init__(self) -> None:
        settings = {name: _setting("settings", name, value) for name, value in self.settings.items()}
        varied = {name: _values(name, values) for name, values in self.varied.items()}
        both = [name for name in varied if name in settings]
        if both:
            raise sgdwalk.InputError(f"{both[0]} stands in settings and in grid: leave it in one of them.")
        _check_list("seeds", self.seeds)
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
                raise sgdwalk.InputError(f"seeds holds {seed!r}: integers of at least 0 are wanted.")
        object.__setattr__(self, "settings", settings)
        object.__setattr__(self, "varied", varied)
        object.__setattr__(self, "seeds", tuple(self.seeds))
        _ = self.experiments  # each checks itself

    @property
    def points(self) -> list[dict[str, Any]]:
        """Every combination of the values that vary."""
        return [dict(zip(self.varied, values, strict=True)) for values in itertools.product(*self.varied.values())]

    @property
    def experiments(self) -> list[Experiment]:
        """The trainings: all seeds of the first combination, then of the next."""
        return [self._experiment(point, seed) for point in self.points for seed in self.seeds]

    def _experiment(self, point: Mapping[str, Any], seed: int) -> Experiment:
        try:
            return Experiment(**self.settings, **point, seed=seed)
        except sgdwalk.InputError as error:
            where = ", ".join(f"{name}={value!r}" for name, value in point.items())
            raise sgdwalk.InputError(f"{f'with {where}: ' if where else ''}{error}") from error


def read_grid(path: str | Path) -> Grid:
    """Read a sweep from a TOML file with ``seeds``, ``[settings]`` and ``[grid]``.

    Raises:
        sgdwalk.InputError: it cannot be read, or says what cannot be meant.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            told = tomllib.load(file)
    except OSError as error:
        raise sgdwalk.InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise sgdwalk.InputError(f"{path} is not TOML: {error}.") from error
    try:
        for name, value in told.items():
            if name not in ("seeds", *TABLES):
                raise sgdwalk.InputError(_unknown(name, ("seeds", *TABLES), "has no place here"))
            if name in TABLES and not isinstance(value, dict):
                raise sgdwalk.InputError(f"{name} = {value!r}: a table is wanted, [{name}] and its keys below.")
        options = {name: told[name] for name in ("ray", "submitit") if name in told}
        return Grid(told.get("settings", {}), told.get("grid", {}), told.get("seeds", [0]), options)
    except sgdwalk.InputError as error:
        raise sgdwalk.InputError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Sweep:
    """What a sweep found, and where it was put."""

    table: pd.DataFrame
    """One row a training: see ``sweep_results.results_table``."""
    files: list[Path]
    """The table as CSV, and the figure as PNG, SVG and PDF."""
    failures: dict[str, str]
    """What went wrong, by the training's name."""
    stopped: bool
    """It was stopped before its end: the same call goes on."""


def run_grid(
    grid: Grid,
    folder: str | Path,
    *,
    name: str = "sweep",
    data_dir: Path | None = None,
    jobs: int | None = 1,
    executions: Sequence[Execution] = (Execution(),),
    executor: Executor | None = None,
    retries: int = 1,
    stop: Callable[[], bool] = lambda: False,
    update: Update = lambda name, num_done, num_updates, fraction: None,
) -> Sweep:
    """Train what is missing of a grid, and write one table and one figure over all of it.

    Finished trainings are used as they are; those that were begun go on bitwise. A training that fails is told at once,
    as a warning of the logger ``sgdwalk``, and tried again; the table tells what is missing in the end.

    Args:
        grid: the trainings.
        folder: run folders, ``NAME.csv`` and ``NAME.png``, ``.svg``, ``.pdf`` go there.
        name: of table and figure.
        data_dir: as for ``sgdwalk.paper.data.load``.
        jobs, executions, executor, retries, stop, update: as for ``sweep.train_all``.
    """
    folder = Path(folder)
    missing, failures = missing_of(grid, folder)
    stopped = False
    if missing:
        from sgdwalk.paper.data import load  # torch

        for experiment in {each.dataset: each for each in missing}.values():
            load(experiment, data_dir)  # says what is wrong with the data before anything is started, and caches it
        try:
            stopped = not train_all(
                missing,
                folder,
                data_dir=data_dir,
                jobs=jobs,
                executions=executions,
                executor=executor,
                retries=retries,
                stop=stop,
                update=update,
            )
        except TrainingsFailed as error:
            failures |= error.failures
    table = results_table(grid.varied, grid.experiments, folder, failures)
    folder.mkdir(parents=True, exist_ok=True)
    files = [write_table(table, folder / f"{name}.csv")]
    figure = draw(table, list(grid.varied))
    files += [sgdwalk.save_figure(figure, folder / f"{name}.{each}") for each in FORMATS]
    return Sweep(table, files, failures, stopped)


def missing_of(grid: Grid, folder: Path) -> tuple[list[Experiment], dict[str, str]]:
    """The trainings that are not finished, the longest first; and what is wrong with folders that cannot be read."""
    missing, failures = [], {}
    for experiment in grid.experiments:
        try:
            if not is_trained(folder, experiment):
                missing.append(experiment)
        except sgdwalk.SgdwalkError as error:
            failures[training_name(experiment)] = str(error)
    return sorted(missing, key=lambda experiment: -time_needed(experiment)), failures


def _values(name: str, values: Any) -> tuple[Any, ...]:
    _check_list(f"grid.{name}", values)
    return tuple(_setting("grid", name, value) for value in values)


def _check_list(name: str, values: Any) -> None:
    if not isinstance(values, list | tuple) or not values:
        raise sgdwalk.InputError(f"{name} = {values!r}: a list of at least one value is wanted.")
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise sgdwalk.InputError(f"{name} lists {twice[0]!r} twice.")


def _setting(where: str, name: str, value: Any) -> Any:
    """A value as ``Experiment`` has it: 1 becomes 1.0 where a number is wanted, a list a tuple."""
    if name == "seed":
        raise sgdwalk.InputError(f"{where}.seed: seeds stand in a list of their own, seeds = [0, 1, 2].")
    kinds = _kinds()
    if name not in kinds:
        raise sgdwalk.InputError(f"{where}.{_unknown(name, tuple(kinds), 'is no setting')}")
    wanted, convert = kinds[name]
    try:
        return convert(value)
    except TypeError:
        raise sgdwalk.InputError(f"{where}.{name} = {value!r}: {wanted} is wanted.") from None


def _unknown(name: str, known: Sequence[str], what: str) -> str:
    close = difflib.get_close_matches(name, known, 1)
    meant = f"did you mean {close[0]}? There are" if close else "there are"
    return f"{name} {what}: {meant} {', '.join(known)}."


def _kinds() -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """For each setting that a file can hold: what is wanted, in words, and what makes it of TOML's types."""
    found = {}
    for name, hint in get_type_hints(Experiment).items():
        kind = _kind(hint)
        if kind is not None and name != "seed":
            found[name] = kind
    return found


def _kind(hint: Any) -> tuple[str, Callable[[Any], Any]] | None:
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, UnionType):
        hint = next(each for each in get_args(hint) if each is not type(None))
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return f"one of {', '.join(map(repr, choices))}", lambda value: _one_of(value, choices)
    if get_origin(hint) is tuple:
        element = _kind(get_args(hint)[0])
        assert element is not None, hint
        return f"a list, of which each is {element[0]},", lambda value: tuple(
            map(element[1], _exactly(value, list, tuple))
        )
    if hint is float:
        return "a number", lambda value: float(_exactly(value, int, float))
    words = {int: "an integer", bool: "true or false", str: "a text"}.get(hint)
    return None if words is None else (words, lambda value: _exactly(value, hint))


def _exactly(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:  # True is no integer
        raise TypeError
    return value


def _one_of(value: Any, choices: Sequence[Any]) -> Any:
    if not isinstance(value, str) or value not in choices:
        raise TypeError
    return value
