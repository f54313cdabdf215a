"""Make the measured part of docs/methods.md and its picture: python docs/make_methods.py [--from FOLDER]

Every number is one of those that the benchmarks keep in benchmarks/results, or of docs/results/small-certified.json.
``--from runs/paper`` makes the latter first, of what ``sgdwalk reproduce ID --scale small --method certified`` and the
same with exact segments wrote to runs/paper. The text around the numbers is written by hand; what lies between the two
marks is replaced.
"""

from __future__ import annotations

import argparse
import html
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import make_pictures
import pandas as pd
from matplotlib.axes import Axes

from sgdwalk.drawing import COLOURS, Picture
from sgdwalk.paper.registry import IDS

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "benchmarks" / "results"
SMALL_CERTIFIED = DOCS / "results" / "small-certified.json"
BEGIN, END = "<!-- measured: made by docs/make_methods.py -->", "<!-- end of measured -->"
NETS = {
    "mlp": "MLP on MNIST",
    "conv": "A small VGG-11 on CIFAR-10",
}
FAMILIES = {
    "exact": ("exact", "ink", "s"),
    "losses": ("polynomial through losses", "muted", "D"),
    "outputs": ("polynomial through outputs", "blue", "o"),
    "certified": ("certified", "green", "^"),
    "sampled": ("sampled", "purple", "v"),
    "mini-batch": ("mini-batch alone", "red", "P"),
    "Cockpit's": ("Cockpit's Alpha", "red", "*"),
    "gauge": ("gauge, of the mean slope", "floor", "X"),
}
"""First word of a method: how the legend calls it, its colour and its shape."""
SHAPE = (
    "A parabola's R² asks for every loss of a segment; certified segments know those high above the floor only as well "
    "as the height needs, and then call a curve less even than it is."
)
"""Why a statement about the shape of segments may be judged otherwise."""
LEAST = 1e-5
"""Errors are drawn no smaller: that of the exact method is rounding."""
TICKS = (1, 3, 10, 30, 100, 300, 1000)

Rows = dict[str, dict[str, Any]]


class Measured(NamedTuple):
    """One network's results, method by method."""

    error: Rows
    price: Rows
    settings: Mapping[str, Any]
    surroundings: Mapping[str, Any]
    commits: Mapping[str, str]
    """What was measured, and at which commit."""


def load() -> dict[str, Measured]:
    """What is stored, by network; a network is left out where errors or prices are missing."""
    found = {}
    for net in NETS:
        paths = [RESULTS / f"error_against_cost_{net}_{part}.json" for part in ("error", "price")]
        if not all(path.exists() for path in paths):
            continue
        error, price = (json.loads(path.read_text("utf-8")) for path in paths)
        commits = {"prices": commit(price), "errors": commit(error)}
        path = RESULTS / f"error_against_cost_{net}_certified.json"
        if path.exists():
            certified = json.loads(path.read_text("utf-8"))
            error["summary"] += certified["summary"]
            commits["errors of certified steps"] = commit(certified)
        path = RESULTS / f"error_against_cost_{net}_cockpit.json"
        if path.exists():
            cockpit = json.loads(path.read_text("utf-8"))
            error["summary"] += cockpit["summary"]
            price["summary"] += cockpit["summary"]
            commits["Cockpit"] = commit(cockpit)
        rows = [{row["method"].partition(" (")[0]: row for row in each["summary"]} for each in (error, price)]
        found[net] = Measured(*rows, error["settings"], price["surroundings"], commits)
    return found


def commit(stored: Mapping[str, Any]) -> str:
    """The one that a result was measured at, as long as it takes to tell it from others."""
    return stored["surroundings"]["commit"][:7]


def methods(measured: Measured) -> Iterator[str]:
    """Those with an error and a price, the dearest first."""
    both = [name for name in measured.error if name in measured.price]
    yield from sorted(both, key=lambda name: -measured.price[name]["training with it / bare"])


def percent(value: Any) -> str:
    if value == "" or value == 0:
        return "" if value == "" else "0"
    return f"{100 * value:,.0f} %" if value > 1 else f"{100 * value:.2g} %"


def times(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def lines(measured: Mapping[str, Measured]) -> Iterator[str]:
    """The measured part, as Markdown."""
    yield BEGIN
    yield ""
    if measured:
        alternative = html.escape(picture(measured).alternative)
        yield f'<img src="pictures/methods.svg" width="620" alt="{alternative}">'
        yield ""
        yield "*Further left is cheaper, further down is closer. Both axes are logarithmic; exact has rounding errors.*"
    else:
        yield "Error against price has not been measured yet; `benchmarks/error_against_cost.py` does it."
    for net, each in measured.items():
        settings = each.settings
        versions = each.surroundings["versions"]
        yield ""
        yield f"### {NETS[net]}"
        yield ""
        commits = ", ".join(f"{what} of commit {name}" for what, name in each.commits.items())
        yield (
            f"L over {settings['evaluated'] or settings['size']:,} examples, "
            f"{each.error['exact']['steps']} updates of an epoch, "
            f"{settings['samplings']} samplings. {each.surroundings['processor']}, {each.surroundings['threads']} "
            f"thread, torch {versions['torch']}; {commits}; the raw numbers lie in "
            f"[error](../benchmarks/results/error_against_cost_{net}_error.json) and "
            f"[price](../benchmarks/results/error_against_cost_{net}_price.json)."
        )
        yield ""
        yield "| method | training with it / bare | a step's error: median | 95th percentile | the epoch's mean |"
        yield "|---|---:|---:|---:|---:|"
        for name in methods(each):
            error, price = each.error[name], each.price[name]["training with it / bare"]
            cells = [
                percent(error[f"error of {what}"])
                for what in ("a step (median)", "a step (95th percentile)", "the mean")
            ]
            yield f"| {name} | {times(price)} | {' | '.join(cells)} |"
        sampled, gauge = each.error["sampled"], each.error["gauge"]
        yield ""
        yield (
            f"The error of `sampled` is the root mean square over its samplings; its 95 % interval held the exact mean "
            f"in {100 * sampled['coverage']:.0f} of 100. It drew {settings['num_units']} batches of one update in "
            f"{settings['sample_one_in']}; its price is that of updates after the dense start. The gauge "
            "estimates another number, the mean slope at the end of an update: "
            f"{percent(gauge['error of the mean'])} from the exact mean slope, which its interval "
            f"{'held' if gauge['coverage'] else 'did not hold'}."
        )
        unknown = {
            name: row for name, row in each.price.items() if name.startswith("certified") and name not in each.error
        }
        if unknown:
            prices = ", ".join(f"{name}: {times(row['training with it / bare'])}" for name, row in unknown.items())
            yield ""
            yield (
                f"Not in table and picture, as no error was measured: {prices}; there are few evaluation batches to "
                "sample from here."
            )
    yield ""
    yield from certified()
    yield ""
    yield from ideas()
    yield ""
    yield from huge_data()
    yield ""
    yield from figures()
    yield ""
    yield from evaluations()
    yield END


def certified() -> Iterator[str]:
    """What a certified step costs beside the exact one."""
    yield "### A certified step beside the exact one"
    yield ""
    yield (
        "Equal trainings in turns in one process, one watched each way. An exact step is 10 passes over N, whose "
        "points share the work of the MLP's first layer: that makes exact steps cheaper in time than in examples, "
        "and of a certified step only the sampled units. The last share is that of ten evaluations of the whole "
        "network. Examples are of all the steps, times of the last of them, which both walks watch. Raw numbers, step "
        "by step and with their machines: "
        "[results](../benchmarks/results), `certified_segments_*.json`."
    )
    yield ""
    columns = (
        "network",
        "N",
        "tolerance",
        "from step",
        "steps",
        "examples / exact",
        "time / exact",
        "time / ten passes",
    )
    columns += ("half-width / height", "outside", "commit")
    yield f"| {' | '.join(columns)} |"
    yield f"|---|{'---:|' * (len(columns) - 1)}"
    for path in sorted(RESULTS.glob("certified_segments_*.json")):
        stored = json.loads(path.read_text("utf-8"))
        first = stored["settings"]["skip"] + stored["settings"]["before"] + 1  # the one before it is warm-up, too
        for row in stored["summary"]:
            shares = f"{row['examples / exact']:.3f} | {row['time / exact (median)']:.2f} | "
            shares += f"{row.get('time / exact, nothing shared', row['time / exact (median)']):.2f}"
            width = f"{100 * row['half-width, median']:.2g} %"
            yield (
                f"| {row['net']} | {row['N']:,} | {row['tolerance']:g} | {first} | {row['steps']} | {shares} | "
                f"{width} | {row['outside']} | {commit(stored)} |"
            )


def ideas() -> Iterator[str]:
    """What the certified procedure would cost and miss without one of its ideas."""
    stored = json.loads((RESULTS / "certified_ideas.json").read_text("utf-8"))
    yield "### What each idea of the certified segment brings"
    yield ""
    yield (
        f"By count, over the stored steps of real networks and {stored['settings']['samplings']} samplings of each; "
        "exact takes 10 passes. The worst case is one of these or of five made to be hard (rare kinks, label noise, "
        f"levels that err to the same side or against each other). Commit {commit(stored)}; "
        "[raw numbers](../benchmarks/results/certified_ideas.json)."
    )
    yield ""
    yield "| procedure | passes a step | steps that end exact | intervals that miss | in the worst case |"
    yield "|---|---:|---:|---:|---:|"
    for row in stored["summary"]:
        passes, *shares = (value for name, value in row.items() if name != "procedure")
        yield f"| {row['procedure']} | {passes:.2f} | {' | '.join(f'{100 * share:.1f} %' for share in shares)} |"


def huge_data() -> Iterator[str]:
    """Examples a step where the data grow."""
    stored = json.loads((RESULTS / "huge_data.json").read_text("utf-8"))
    yield "### Where the data grow"
    yield ""
    yield (
        f"By count, over made data, {stored['settings']['steps']} steps, tolerance "
        f"{stored['settings']['tolerance']:g}. Above {stored['settings']['largest_pass']:,} examples the ends are "
        f"sampled, too. Commit {commit(stored)}; [raw numbers](../benchmarks/results/huge_data.json)."
    )
    yield ""
    yield "| N | ends | examples a step | of exact | half-width / height, median | within tolerance |"
    yield "|---:|---|---:|---:|---:|---:|"
    for row in stored["summary"]:
        numbers = f"{row['examples a step, mean']:,.0f} | {100 * row['share of exact']:.2g} %"
        width = f"{100 * row['half-width / height, median']:.2g} %"
        yield f"| {row['N']:,} | {row['ends']} | {numbers} | {width} | {row['within tolerance']} |"


def copy_figures(pages: Path) -> None:
    """Take over how each figure by certified segments compares with the exact one, and which trainings made it."""
    found = {}
    for id in IDS:
        page = pages / f"{id}-small-certified" / "result.json"
        if not page.exists():
            continue
        result = json.loads(page.read_text("utf-8"))
        compared = {part: result["beside_exact"][part] for part in ("verdicts", "heights", "barriers", "cost")}
        walks = [training for training in result["trainings"] if training["watched"]]
        found[id] = {**compared, "trainings": walks}
    SMALL_CERTIFIED.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


def figures() -> Iterator[str]:
    """The paper's figures from certified segments beside the exact ones of the same trainings."""
    stored = json.loads(SMALL_CERTIFIED.read_text("utf-8"))
    commits = sorted({training["commit"][:7] for each in stored.values() for training in each["trainings"]})
    yield "### The paper's figures, certified"
    yield ""
    yield (
        "`sgdwalk reproduce fig2 --scale small --method certified` and alike, beside the exact trainings of the same "
        "settings: SGD with a tolerance of 0.05 of the height, gradient descent, of which it is asked whether segments "
        "are parabolas, with one of 0.02 of every loss. VGG-11 and ResNet-56 have 1,200 images here, 40 evaluation "
        "batches of 30, which leaves little to sample from; the MLP has 6,000, in 60 of 100. Figures share trainings, "
        "so their updates overlap. A watched update's start counts where it had to be evaluated. Commits of the "
        "certified trainings: "
        f"{', '.join(commits)}; [raw numbers](results/small-certified.json)."
    )
    yield ""
    columns = ("figure", "verdicts", "the same", "watched updates", "examples / exact", "exact heights inside")
    columns += ("an epoch's mean height differs by at most", "barriers: exact", "certified", "undecided")
    yield f"| {' | '.join(columns)} |"
    yield f"|---|{'---:|' * (len(columns) - 1)}"
    for id, each in stored.items():
        verdicts, heights, barriers, cost = (
            pd.DataFrame(each[part]) for part in ("verdicts", "heights", "barriers", "cost")
        )
        cells = [
            id,
            len(verdicts),
            (verdicts.agreement == "same").sum(),
            f"{heights.updates.sum():,}",
            f"{cost.certified_examples.sum() / cost.exact_examples.sum():.3f}",
            f"{(heights.heights_inside * heights.updates).sum():,.0f}",
            f"{heights.difference_percent.abs().max():.2g} %",
            *(barriers[name].sum() for name in ("exact", "certified", "undecided")),
        ]
        yield f"| {' | '.join(map(str, cells))} |"
    differ = [
        f"{id}, {row['claim']} ({row['reading']}): {row['exact']} by exact segments, {row['certified']} by certified"
        for id, figure in stored.items()
        for row in figure["verdicts"]
        if row["agreement"] != "same"
    ]
    if differ:
        yield ""
        yield f"Verdicts that differ: {'; '.join(differ)}."
        if any("quadratic-like" in each for each in differ):
            yield SHAPE


def evaluations() -> Iterator[str]:
    """What each way to make an exact evaluation cheaper brings."""
    yield "### What makes an evaluation cheaper"
    yield ""
    yield (
        "All points of one segment, in turns: `present` is what `watch()` does (float32, one point after the other, "
        "`channels_last` but in the convolutions that it makes slower, freed memory kept). Time: of the present "
        "evaluation, medians; below one is faster. Memory given back and huge pages have a process of their own each, "
        "and are compared with the present evaluation in another one. Error: the largest distance of a loss from the "
        "one in float64, in heights of the segment. Raw numbers, with their commits: [results](../benchmarks/results), "
        "`evaluation_ideas_*.json`."
    )
    for path in sorted(RESULTS.glob("evaluation_ideas_*.json")):
        stored = json.loads(path.read_text("utf-8"))
        yield ""
        yield f"| {path.stem.rpartition('_')[2]}: evaluation | time / present | error, heights |"
        yield "|---|---:|---:|"
        for row in stored["summary"]:
            yield f"| {row['evaluation']} | {row['ratio (median)']:.2f} | {row['error, heights']:.1g} |"
        for side, reason in stored["raw"]["not_run"].items():
            yield f"| {side} | does not run: {reason.partition(':')[0]} | |"
    yield ""


def render(page: str, measured: Mapping[str, Measured]) -> str:
    """The page with its measured part replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + "\n".join(lines(measured)) + after


def draw(axes: Axes, measured: Measured, title: str) -> list[str]:
    """Error of the epoch's mean against the price, a colour and a shape for each family; says the same in words."""
    points: dict[str, list[tuple[float, float]]] = {}
    said = []
    for name in methods(measured):
        family = name.split(" ")[0].rstrip(",")
        error, cost = measured.error[name]["error of the mean"], measured.price[name]["training with it / bare"]
        points.setdefault(family, []).append((cost, 100 * max(error, LEAST)))
        said.append(f"{name} {times(cost)} times the bare training, {percent(error)} off")
    for family, (label, colour, marker) in FAMILIES.items():
        if family not in points:  # certified ones, where the evaluation batches are too few for them
            continue
        x, y = zip(*sorted(points[family]), strict=True)
        style = {"markersize": 6, "linewidth": 1.1, "color": COLOURS[colour], "label": label}
        axes.plot(x, y, f"{marker}-", **style)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("cost: watched / unwatched training", fontsize=11, color=COLOURS["muted"])
    axes.set_title(title, fontsize=12, fontweight="bold", color=COLOURS["ink"], loc="left", pad=12)
    axes.set_facecolor("none")
    axes.grid(color=COLOURS["rule"], linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(COLOURS["rule"])
    axes.tick_params(which="both", colors=COLOURS["muted"], labelsize=11, length=0)
    axes.set_xticks(ticks := [t for t in TICKS if min(axes.get_xlim()) <= t <= max(axes.get_xlim())], map(str, ticks))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.minorticks_off()
    return said


def picture(measured: Mapping[str, Measured]) -> Picture:
    """A panel for each network, one legend."""
    found = Picture(figsize=(7.6, 4.0), dpi=72, facecolor=COLOURS["paper"])
    found.title = "Error of the mean height of an epoch against the cost of watching"
    said = []
    for index, (net, each) in enumerate(measured.items()):
        axes = found.add_axes((0.11 + 0.5 * index, 0.33, 0.37, 0.56))
        said.append(f"{NETS[net]}: {'; '.join(draw(axes, each, NETS[net]))}.")
    handles, labels = found.axes[0].get_legend_handles_labels()
    found.legend(handles, labels, loc="lower center", ncols=3, fontsize=11, frameon=False, labelcolor=COLOURS["muted"])
    found.alternative = " ".join(said)
    return found


def main(folder: Path = DOCS) -> None:
    """Write the page and the picture into a folder of documentation."""
    measured = load()
    (folder / "methods.md").write_text(render((DOCS / "methods.md").read_text("utf-8"), measured), "utf-8")
    (folder / "pictures").mkdir(exist_ok=True)
    if measured:
        (folder / "pictures" / "methods.svg").write_text(make_pictures.standalone(picture(measured)), "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="pages", type=Path, help="folder that reproduce wrote to")
    options = parser.parse_args()
    if options.pages:
        copy_figures(options.pages)
    main()
