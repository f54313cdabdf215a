"""One page over all figures and tables: which of the paper's statements hold, which fail, which cannot be told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined

from sgdwalk.paper.certifying import CERTIFIABLE
from sgdwalk.paper.figure import Method, page_name
from sgdwalk.paper.judging import Verdict
from sgdwalk.paper.registry import IDS
from sgdwalk.paper.trainings import Scale

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
HOLDS, FAILS, MIXED, OPEN, UNTESTABLE = "hold", "fail", "hold in part", "are open", "cannot be tested at this scale"
SORTS = (HOLDS, MIXED, FAILS, OPEN, UNTESTABLE)


@dataclass(frozen=True)
class Statement:
    """One sentence of the paper, wherever it was judged."""

    name: str
    words: str
    judged: tuple[tuple[str, str, Verdict], ...]
    """Id, reading and verdict of each."""

    @property
    def sort(self) -> str:
        """What its verdicts amount to.

        ``hold``: at least half of those that could be tested support it, and none contradicts it; ``fail``: the other
        way round; ``hold in part``: some support and some contradict it.

        >>> Statement("few barriers", "...", (("fig1", "", "supported"), ("fig9", "", "not resolved"))).sort
        'hold'
        """
        verdicts = Counter(verdict for _, _, verdict in self.judged)
        supported, contradicted = verdicts["supported"], verdicts["contradicted"]
        tested = supported + contradicted + verdicts["not resolved"]
        if supported and contradicted:
            return MIXED
        if tested == 0:
            return UNTESTABLE
        if 2 * supported >= tested:
            return HOLDS
        return FAILS if 2 * contradicted >= tested else OPEN


def read_results(out: Path, scale: Scale, method: Method = "exact") -> list[dict[str, Any]]:
    """The stored results of every page of a scale in a folder, in the paper's order.

    With ``certified`` those of the pages with certified segments; of ids that cannot have them, the exact ones.
    """
    names = [page_name(id, scale, method if id in CERTIFIABLE else "exact") for id in IDS]
    files = [out / name / "result.json" for name in names]
    return [json.loads(file.read_text("utf-8")) for file in files if file.exists()]


def count(result: Mapping[str, Any]) -> Counter[str]:
    """The verdicts of one figure or table."""
    return Counter(claim["verdict"] for claim in result["claims"])


def statements(results: Sequence[Mapping[str, Any]]) -> list[Statement]:
    """Every sentence once, with all its verdicts; told apart by name and words."""
    found: dict[tuple[str, str], list[tuple[str, str, Verdict]]] = {}
    for result in results:
        for claim in result["claims"]:
            judged = (result["id"], claim["reading"], claim["verdict"])
            found.setdefault((claim["claim"], claim["words"]), []).append(judged)
    return [Statement(name, words, tuple(judged)) for (name, words), judged in found.items()]


def summary(results: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: how many statements hold, fail, cannot be told."""
    every = statements(results)
    sorts = Counter(each.sort for each in every)
    return f"Of {len(every)} statements {', '.join(f'{sorts[sort]} {sort}' for sort in SORTS if sorts[sort])}."


def write_overview(out: Path, scale: Scale, method: Method = "exact") -> Path:
    """Write the page over all pages of a scale that are in a folder; it replaces the one before."""
    results = read_results(out, scale, method)
    pages = {each["id"]: page_name(each["id"], scale, each.get("method", "exact")) for each in results}
    every = statements(results)
    sorts = Counter(each.sort for each in every)
    total = sum((count(result) for result in results), Counter())
    environment = Environment(
        loader=PackageLoader("sgdwalk.paper", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("overview.html.jinja").render(
        scale=scale,
        method=method,
        pages=pages,
        exact=[id for id in pages if id not in CERTIFIABLE],
        statements=every,
        sorts={sort: sorts[sort] for sort in SORTS},
        total={verdict: total[verdict] for verdict in VERDICTS},
        figures=[(result, count(result)) for result in results],
        cuts=list(dict.fromkeys(cut for result in results for cut in result["cuts"])),
        trainings=len({training["run"] for result in results for training in result["trainings"]}),
    )
    folder = out / page_name("all", scale, method)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".index.html.partial"
    partial.write_text(html, encoding="utf-8")
    partial.replace(folder / "index.html")
    return folder / "index.html"
