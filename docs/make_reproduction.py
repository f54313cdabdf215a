"""Write docs/reproduction.md from stored results: python docs/make_reproduction.py [--from FOLDER].

``--from runs/paper`` first copies what ``sgdwalk reproduce ID --scale small --out runs/paper`` wrote: the words and
verdicts (result.json) and the tables (CSV), not the runs and not the numbers of single steps. Nothing on the page is
typed by hand but the sentences around the numbers.
"""

# ruff: noqa: E501
from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from sgdwalk.paper.figure import DEVIATIONS
from sgdwalk.paper.overview import VERDICTS, count, statements, summary
from sgdwalk.paper.registry import IDS, TITLES
from sgdwalk.paper.run import as_cells
from sgdwalk.paper.tables import PAPER_DISTANCE
from sgdwalk.paper.trainings import WHOLE_NETWORK_GD_IMAGES

DOCS = Path(__file__).parent
RESULTS = DOCS / "results"
SCALE = "small"


def copy_results(pages: Path) -> None:
    """Take over the stored part of every page that is there."""
    for id in IDS:
        page = pages / f"{id}-{SCALE}"
        if not (page / "result.json").exists():
            continue
        folder = RESULTS / SCALE / id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        result = json.loads((page / "result.json").read_text("utf-8"))
        shutil.copy(page / "result.json", folder)
        for table in result["tables"]:
            shutil.copy(page / f"{table['name']}.csv", folder)


def load() -> dict[str, dict[str, Any]]:
    """The stored results, in the paper's order; each with its tables as data frames under ``frames``."""
    found = {}
    for id in IDS:
        folder = RESULTS / SCALE / id
        if (folder / "result.json").exists():
            result = json.loads((folder / "result.json").read_text("utf-8"))
            result["frames"] = {each["name"]: read(folder / f"{each['name']}.csv") for each in result["tables"]}
            found[id] = result
    return found


def read(path: Path) -> pd.DataFrame:
    """A table; one without rows or columns is an empty file."""
    try:
        return pd.read_csv(path)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def render(results: dict[str, dict[str, Any]]) -> str:
    """The page as Markdown."""
    return "\n".join(lines(results)).rstrip() + "\n"


def lines(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The page, line by line."""
    yield "# Reproduction of “A Walk with SGD”"
    yield ""
    yield "Made by `python docs/make_reproduction.py` from `docs/results`; do not edit. Every id is one command, such as"
    yield "`sgdwalk reproduce fig2 --scale small`, with `--data-dir DIR` where the Hugging Face hub cannot be reached. Figures"
    yield "as pictures, single steps and segments are on the page that the command writes."
    yield ""
    yield "## What was cut"
    yield ""
    yield f"All numbers here are of scale **{SCALE}**: real data, cut until a laptop's two cores do it. None is of the"
    yield "published setting, and what only that setting can tell is marked *not testable at this scale*."
    yield ""
    for cut in dict.fromkeys(cut for result in results.values() for cut in result["cuts"]):
        yield f"- {cut}"
    for remark in dict.fromkeys(remark for result in results.values() for remark in result["remarks"]):
        yield f"- {remark}"
    yield ""
    yield "At every scale:"
    yield ""
    for deviation in DEVIATIONS:
        yield f"- {deviation}"
    yield ""
    yield from verdicts(results)
    yield "## Questions that the paper leaves open"
    yield ""
    for title, answer in QUESTIONS:
        yield f"### {title}"
        yield ""
        yield from answer(results)
        yield ""
    for result in results.values():
        yield from section(result)
    yield from provenance(results)


def verdicts(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """How many claims hold, fail, cannot be told."""
    yield "## The paper's statements"
    yield ""
    yield f"**{summary(list(results.values()))}** A statement holds where at least half of the verdicts that could be had"
    yield "support it and none contradicts it, fails where it is the other way round, and holds in part where some support and"
    yield "some contradict it. It is judged once for each figure, network and reading that it is made of. Thresholds were set"
    yield "before these trainings were run; statistics and thresholds stand in `src/sgdwalk/paper/*_claims.py`."
    yield ""
    yield "| statement | in all | verdicts |"
    yield "|---|---|---|"
    for each in statements(list(results.values())):
        counts = Counter(verdict for _, _, verdict in each.judged)
        told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
        yield f"| {cell(each.name)}: “{cell(each.words)}” | **{each.sort}** | {told} |"
    yield ""
    yield "By figure, one verdict for each network and reading:"
    yield ""
    yield f"| id | what | {' | '.join(VERDICTS)} |"
    yield f"|---|---|{'---|' * len(VERDICTS)}"
    total: Counter[str] = Counter()
    for id, result in results.items():
        counts = count(result)
        total += counts
        yield f"| {id} | {cell(result['title'].partition(': ')[2])} | {' | '.join(str(counts[each]) for each in VERDICTS)} |"
    for id in [id for id in IDS if id not in results]:
        yield f"| {id} | {cell(TITLES[id].partition(': ')[2])}: **not run yet** | | | | |"
    yield f"| all | | {' | '.join(f'**{total[each]}**' for each in VERDICTS)} |"
    yield ""
    yield from further_seeds(results)


def further_seeds(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The claims whose verdict the first seeds alone would not give."""
    judged = [(id, claim) for id, result in results.items() for claim in result["claims"] if claim.get("first_seeds")]
    moved = [(id, claim) for id, claim in judged if claim["verdict_of_first_seeds"] != claim["verdict"]]
    if not moved:
        return
    ids, first = ", ".join(dict.fromkeys(id for id, _ in judged)), moved[0][1]["first_seeds"]
    yield "### What further seeds decide"
    yield ""
    yield f"In {ids} trainings of which no segment is asked for have more seeds than the {first} of others: two were added, to all of"
    yield f"them alike, after {first} had left many statements open. Of {len(judged)} verdicts that rest on them {len(moved)} are not what the first {first} say:"
    yield ""
    yield "| statement | id | reading | by the first seeds | by all | what was found |"
    yield "|---|---|---|---|---|---|"
    for id, claim in moved:
        cells = (claim["reading"], claim["verdict_of_first_seeds"], claim["verdict"], claim["finding"])
        yield f"| {cell(claim['claim'])} | {id} | {' | '.join(map(cell, cells))} |"
    yield ""


def section(result: dict[str, Any]) -> Iterator[str]:
    """One figure or table: its numbers and its claims."""
    yield f"## {result['title']}"
    yield ""
    yield f"The paper: “{result['published']}”"
    yield ""
    for deviation in result["deviations"]:
        yield f"- {deviation}"
    if result["deviations"]:
        yield ""
    for table in result["tables"]:
        yield f"**{table['title']}.** {table['text']}"
        yield ""
        yield from markdown(result["frames"][table["name"]])
    yield "| verdict | statement | reading | what was found |"
    yield "|---|---|---|---|"
    for claim in result["claims"]:
        words = f"{cell(claim['claim'])}: “{cell(claim['words'])}”"
        yield f"| **{claim['verdict']}** | {words} | {cell(claim['reading'])} | {cell(claim['finding'])} |"
    yield ""


def markdown(frame: pd.DataFrame) -> Iterator[str]:
    """A table in Markdown."""
    headings, rows = as_cells(frame)
    if not rows:
        yield "Nothing was measured for it at this scale."
        yield ""
        return
    yield f"| {' | '.join(map(cell, headings))} |"
    yield f"|{'---|' * len(headings)}"
    for row in rows:
        yield f"| {' | '.join(map(cell, row))} |"
    yield ""


def cell(text: str) -> str:
    """Text that stays in its cell of a Markdown table."""
    return text.replace("|", "\\|")


def evaluation_noise(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """(a) Barriers and heights that the authors' evaluation adds."""
    for network in ("vgg11", "resnet56", "mlp"):
        for row in rows(results, "table1", f"noise-{network}"):
            yield (
                f"- {NETWORKS[network]}, epoch {row.epoch}: of {row.updates} updates {row.clean_barriers} cross a "
                f"barrier by the clean evaluation and {row.authors_barriers} by the authors'; with noise of the "
                f"deviation that their repeated evaluations show ({row.deviation:.2g}) added to the clean losses it is "
                f"{row.expected_barriers:.1f} ({row.expected_barriers_low:.0f} to {row.expected_barriers_high:.0f}). Mean height "
                f"{row.clean_height:.3g} clean, {row.authors_height:.3g} by theirs "
                f"({row.authors_height / row.clean_height:.1f} times), {row.expected_height:.3g} with the noise added. "
                f"Over the paper's 45,000 images the deviation would be {row.full_deviation:.2g}, and make "
                f"{row.full_barriers:.1f} of these updates cross a barrier."
            )


def batchnorm_modes(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """(b) Running statistics, and fewer examples."""
    for network in ("vgg11", "mlp"):
        for row in rows(results, "table1", f"batchnorm-{network}"):
            yield (
                f"- {NETWORKS[network]}, epoch {row.epoch}, {row.updates} updates: mean height {row.clean_height:.3g} "
                f"and {row.clean_barriers} barriers with batch statistics, {row.eval_height:.3g} and "
                f"{row.eval_barriers} with running ones; over a quarter of the examples {row.quarter_height:.3g} and "
                f"{row.quarter_barriers}, over a sixteenth {row.sixteenth_height:.3g} and {row.sixteenth_barriers}."
            )


def grid(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """(c) Ten intervals against a hundred."""
    for network in ("vgg11", "mlp"):
        for row in rows(results, "table1", f"finer-{network}"):
            yield (
                f"- {NETWORKS[network]}, epoch {row.epoch}, {row.updates} updates: {row.coarse_barriers} barriers on "
                f"10 intervals, {row.fine_barriers} on 100; the coarse floor lies {row.floor_gap:.2%} of the height "
                f"above the fine one on average, {row.largest_floor_gap:.2%} at most."
            )


def gd_reading(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """(d) Which gradient reaches the distance of Figure 1."""
    walks = {row.walk: row for row in rows(results, "fig1", "distance")}
    paper = PAPER_DISTANCE["gd"]
    found = [f"{walk}: {row.distance:.3g} ({row.lowest:.3g} to {row.highest:.3g})" for walk, row in walks.items()]
    yield f"After 40 updates of VGG-11, ‖θ_40 - θ_0‖ over the seeds: {'; '.join(found)}. The paper: about {paper:g}."
    yield ""
    yield "The distance of gradient descent depends on the width of the network and on the examples: the paper's setting has"
    yield "all channels and 45,000 images (`--scale paper`)."
    least, most = WHOLE_NETWORK_GD_IMAGES["mean"]
    summed, few, many = (
        walks[f"GD, {reading}, whole network, {images} images"].distance
        for reading, images in (
            ("sum of nine mean gradients", least),
            ("mean gradient", least),
            ("mean gradient", most),
        )
    )
    nearer = "nearer to it" if abs(many - paper) < abs(few - paper) else "no nearer to it"
    yield f"With all channels and {least} images the mean gradient comes {few / paper:.1f} times as far as the paper, the sum of nine"
    yield f"{summed / paper:.1f} times; with {most} images the mean gradient comes {many / paper:.1f} times as far, {nearer}."
    found = [
        f"{row.walk}: {row.distance:.3g} ({row.lowest:.3g} to {row.highest:.3g})"
        for row in rows(results, "fig2", "distance")
        if row.walk.startswith("SGD")
    ]
    yield ""
    yield f"For comparison {'; '.join(found)}. The paper: about {PAPER_DISTANCE['sgd']:g}."


def line_search(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The nearest prior work on the same segments."""
    yield "Mutschler and Zell (2021, arXiv 2103.17132) find that the full loss along SGD's updates is a parabola. On our"
    yield "segments, and what an exact line search would do with them (α* is where the parabola has its minimum, in steps):"
    yield ""
    for role, words in (
        ("vgg11", "VGG-11, η = 0.1"),
        ("vgg11-low", "VGG-11, η = 0.05"),
        ("resnet56", "ResNet, η = 0.3"),
    ):
        for row in rows(results, "table2", f"parabolas-{role}"):
            yield (
                f"- {words}, {row.updates} updates: median R² {row.r2:.4f} (5 % below {row.r2_low:.3f}); "
                f"{row.with_minimum:.0%} have a minimum, at {row.alpha_star:.2f} of the step (median); "
                f"{row.beyond_minimum:.0%} of the steps pass it; an exact line search would take "
                f"{row.line_search_rate:.2g} ({row.line_search_rate_low:.2g} to {row.line_search_rate_high:.2g})."
            )


NETWORKS = {"vgg11": "VGG-11", "resnet56": "ResNet", "mlp": "MLP"}
QUESTIONS: tuple[tuple[str, Callable[[dict[str, dict[str, Any]]], Iterator[str]]], ...] = (
    ("How much of the late barriers and heights is noise of the authors' evaluation?", evaluation_noise),
    ("BatchNorm's running statistics, and fewer examples", batchnorm_modes),
    ("What does a grid of ten intervals miss?", grid),
    ("Which reading of full-batch gradient descent reaches a distance of 1.4?", gd_reading),
    ("Are the segments parabolas, and where on them does SGD land?", line_search),
)


def rows(results: dict[str, dict[str, Any]], id: str, table: str) -> Iterator[Any]:
    """The rows of a stored table; none where it is not stored."""
    frame = results.get(id, {}).get("frames", {}).get(table, pd.DataFrame())
    return frame.itertuples(index=False)


def provenance(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Every training once, with what made it."""
    yield "## Trainings"
    yield ""
    yield "| run | seed | examples | updates | watched | validation accuracy | made with |"
    yield "|---|---|---|---|---|---|---|"
    known = {each["run"]: each for result in results.values() for each in result["trainings"]}
    for name in sorted(known):
        each = known[name]
        made = f"torch {each['torch']}, {each['device']}, {each['num_threads']} thread, commit {(each['commit'] or '')[:10]}{' with changes' if each['dirty'] else ''}"
        accuracy = f"{each['validation_accuracy']:.3f}"
        yield f"| {name} | {each['seed']} | {each['examples']} | {each['updates']} | {each['watched']} | {accuracy} | {made} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--from", dest="pages", type=Path, help="folder of pages, the --out of `sgdwalk reproduce`")
    options = parser.parse_args()
    if options.pages is not None:
        copy_results(options.pages)
    (DOCS / "reproduction.md").write_text(render(load()), encoding="utf-8")


if __name__ == "__main__":
    main()
