"""What the benchmarks share: both sides alternating in one process, raw numbers kept with all that made them."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import io
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = (
    *("torch", "numpy", "numba", "pandas", "scipy", "sgdwalk"),
    *("cockpit-for-pytorch", "backpack-for-pytorch", "curvlinops-for-pytorch", "pyhessian", "hessian-eigenthings"),
)


# --------------------------------------------------------------------------------------------------- command line
def parser(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """The options that every benchmark takes, and one of its own for each keyword (an int, a float or a string)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("SGDWALK_DATA_DIR"), help="real data sets")
    parser.add_argument("--threads", type=int, default=1, help="threads that torch may use")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the raw numbers")
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return parser


def arguments(description: str, **defaults: Any) -> argparse.Namespace:
    parsed = parser(description, **defaults).parse_args()
    torch.set_num_threads(parsed.threads)
    return parsed


# --------------------------------------------------------------------------------------------------------- timing
def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def alternate(sides: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Run every side once a round, in an order that is turned round by round; seconds of each run by side.

    Whatever else the machine does meets the sides alike, so a round's ratio is worth more than its seconds.
    """
    names = list(sides)
    for _ in range(warmup):
        for name in names:
            sides[name]()
    raw: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        turn = index % len(names)
        order = names[turn:] + names[:turn]
        for name in order if index % 2 == 0 else reversed(order):
            raw[name].append(seconds(sides[name]))
    return raw


def counted(run: Callable[[], object], kept: list[float]) -> Callable[[], None]:
    """``run``, with the processor seconds of each call kept: with one thread they leave out what others take."""

    def counting() -> None:
        begin = time.process_time()
        run()
        kept.append(time.process_time() - begin)

    return counting


@contextlib.contextmanager
def elsewhere(
    make: Callable[..., Callable[[], Any]], *arguments: Any, environment: Mapping[str, str] | None = None
) -> Iterator[Callable[[], Any]]:
    """What ``make(*arguments)`` returns, to be called in a process of its own, which does nothing while it is not.

    ``environment``: variables of that process alone. ``make`` is a function of a module, as a new process imports it.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, make, *arguments), daemon=True)
    with mock.patch.dict(os.environ, environment or {}):
        process.start()
    theirs.close()  # so that recv() raises, and does not wait for ever, where the process ends early

    def ask() -> Any:
        ours.send(True)
        return ours.recv()

    try:
        yield ask
    finally:
        with contextlib.suppress(BrokenPipeError):
            ours.send(False)
        process.join()


def _serve(connection: Any, make: Callable[..., Callable[[], Any]], *arguments: Any) -> None:
    run = make(*arguments)
    while connection.recv():
        connection.send(run())


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Median over rounds of the ratio within a round, with the quartiles."""
    each = np.asarray(numerator) / np.asarray(denominator)
    low, middle, high = np.percentile(each, [25, 50, 75])
    return {"median": float(middle), "quartile_low": float(low), "quartile_high": float(high), "rounds": len(each)}


# ----------------------------------------------------------------------------------------------------------- data
def examples(path: Path, split: str, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` images of a data set kept as Parquet: (images in [0, 1], labels).  # (N, C, H, W), (N,)"""
    import pyarrow.parquet
    from PIL import Image

    (file,) = sorted(path.rglob(f"{split}-*.parquet"))
    table = pyarrow.parquet.read_table(file).slice(0, count)
    if len(table) < count:
        raise SystemExit(f"{file} holds {len(table)} examples, {count} were asked for.")
    column = "img" if "img" in table.column_names else "image"
    pixels = [np.asarray(Image.open(io.BytesIO(cell["bytes"].as_py()))) for cell in table[column]]
    images = torch.from_numpy(np.stack(pixels)).float() / 255
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(table["label"].to_pylist())


def _data_dir(data_dir: Path | None, name: str) -> Path:
    if data_dir is None:
        raise SystemExit(f"{name} is needed: name the folder that holds {name}/ with --data-dir or SGDWALK_DATA_DIR.")
    return Path(data_dir) / name


def mnist(data_dir: Path | None, count: int) -> tuple[Tensor, Tensor]:
    images, labels = examples(_data_dir(data_dir, "mnist"), "train", count)
    return (images - 0.5).flatten(1), labels


def cifar10(data_dir: Path | None, count: int) -> tuple[Tensor, Tensor]:
    images, labels = examples(_data_dir(data_dir, "cifar10"), "train", count)
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    deviation = torch.tensor([0.2023, 0.1994, 0.2010]).view(3, 1, 1)
    return (images - mean) / deviation, labels


# -------------------------------------------------------------------------------------------------------- results
def git(*command: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=False
    ).stdout.strip()


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def surroundings() -> dict[str, Any]:
    """Machine, versions, commit and whether the work tree differs from it (results aside)."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", ".", ":!benchmarks/results")),
    }


def write(folder: Path, name: str, settings: Mapping[str, Any], raw: Any, summary: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {
        "benchmark": name,
        "settings": {key: value for key, value in settings.items() if key not in ("data_dir", "out")},
        "summary": summary,
        "surroundings": surroundings(),
        "raw": raw,
    }
    keep(path, content)
    return path


def keep(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table; floats with three significant digits."""

    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([cell(row[name]) for name in header] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(folder: Path, name: str, settings: Mapping[str, Any], raw: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep the raw numbers and print the table."""
    path = write(folder, name, settings, raw, rows)
    where = surroundings()
    print(table(rows))
    print(
        f"\n{where['processor']}, {where['cores']} cores, {where['threads']} thread(s), torch {torch.__version__}, "
        f"commit {where['commit'][:12]}{' with changes' if where['dirty'] else ''}; raw numbers: {path}"
    )


def milliseconds(values: Sequence[float]) -> float:
    return 1000 * statistics.median(values)
