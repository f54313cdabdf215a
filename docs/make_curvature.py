"""Make the measured part of docs/curvature.md: python docs/make_curvature.py

Every number is one of those that benchmarks/spectral_norm.py keeps in benchmarks/results. The text around the numbers
is written by hand; what lies between the two marks is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "benchmarks" / "results"
BEGIN, END = "<!-- measured: made by docs/make_curvature.py -->", "<!-- end of measured -->"
NETS = {"mlp": "MLP on MNIST, 5,000 examples", "vgg11": "VGG-11 on CIFAR-10, 1,000 examples"}
MODES = {"eval": "BatchNorm with running statistics", "train": "BatchNorm in train mode"}
COLUMNS = ("side", "iterates", "products: first", "others", "time / sgdwalk: median", "sum of others", "largest error")


def lines() -> Iterator[str]:
    """The measured part, as Markdown."""
    yield BEGIN
    for net, called in NETS.items():
        for path in sorted(RESULTS.glob(f"spectral_norm_{net}_*.json")):
            stored = json.loads(path.read_text("utf-8"))
            settings, where = stored["settings"], stored["surroundings"]
            yield ""
            commit = where["commit"][:12] + (" with changes" if where["dirty"] else "")
            threads = f"{settings['threads']} thread{'s' * (settings['threads'] > 1)}"
            yield (
                f"**{called}, {settings['algorithm'].upper()}, {MODES[settings['batchnorm']]}** "
                f"({where['processor']}, {threads}, torch {where['versions']['torch']}, commit {commit}, "
                f"[{path.name}](../benchmarks/results/{path.name}))"
            )
            yield ""
            yield f"| {' | '.join(COLUMNS)} |"
            yield f"|---|{'---:|' * (len(COLUMNS) - 1)}"
            sides = [row["side"] for row in stored["summary"]]
            for row in stored["summary"]:
                yield f"| {' | '.join(cells(row, stored['raw'][row['side']], stored['raw'][sides[0]]))} |"
    yield ""
    yield END


def cells(row: dict[str, Any], answers: list[dict[str, Any]], first: list[dict[str, Any]]) -> Iterator[str]:
    """One side's, beside the first side's answers."""
    iterates = len(answers)
    seconds, ours = (sum(answer["seconds"] for answer in each[1:iterates]) for each in (answers, first))
    others, error = row["products, others (mean)"], row["largest error, %"]
    yield side(row["side"])
    yield str(iterates)
    yield str(row["products, first iterate"])
    yield "–" if others is None else f"{others:.1f}"
    yield "{:.2f}".format(row["time over the first side's (median)"])
    yield f"{seconds / ours:.2f}" if ours else "–"
    judged = row.get("iterates with a reference", iterates)
    beside = "" if judged == iterates else f" at {judged}"
    yield (f"{error:.2g} %" if error < 10 else f"{error:.0f} %") + beside if judged else "unknown"


def side(name: str) -> str:
    """The name of a side in words: ``pyhessian {"tol": 0.003}`` is ``PyHessian, tol=0.003``."""
    peer, brace, setting = name.partition(" {")
    if not brace:
        return name
    called = {"pyhessian": "PyHessian", "hessian_eigenthings": "hessian-eigenthings"}.get(peer, peer)
    told = [f"{key}={value}" for key, value in json.loads("{" + setting).items()]
    return ", ".join([called, *(told or ["its defaults"])])


def render(page: str) -> str:
    """The page with its measured part replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + "\n".join(lines()) + after


def main(folder: Path = DOCS) -> None:
    """Write the page into a folder of documentation."""
    (folder / "curvature.md").write_text(render((DOCS / "curvature.md").read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
