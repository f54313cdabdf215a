"""Exact segments beside certified ones of the same trainings: verdicts, heights, barriers, and what each cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import sgdwalk
from sgdwalk.paper.figure import Table
from sgdwalk.paper.selections import is_watched
from sgdwalk.paper.timing import Timing, read_timing

WALK_COLUMNS = (
    *("learning_rate", "batch_loss", "cosine", "distance", "next_distance"),
    *("grad_norm", "param_norm", "update_norm"),
)
"""What a walk is known by at every update, however its segments are measured."""
MADE_WITH = ("torch", "numpy", "device", "num_threads", "platform")
"""What may change the last digits of a training."""
HEIGHT_NOISES, FLOOR_NOISES = 4, 2
"""Loss noises by which two evaluations of one height, or floor, may differ: an end's and the floor's, each twice."""
EXACT_LOOK = 3
"""``looks`` of a certified segment whose floor was evaluated exactly."""

TEXTS: Mapping[str, tuple[str, str]] = {
    "verdicts": (
        "Verdicts by exact and by certified segments",
        "Each statement judged on the same trainings, whose segments were measured in both ways.",
    ),
    "heights": (
        "Heights and floors by exact and by certified segments",
        "Nats per example, means over the watched updates of an epoch, of GD over the whole training. "
        "difference_percent: of the mean heights, in percent of the exact one; update_percent: the median over the "
        "updates of the size of the same; heights_inside: share of updates whose exact height lies between height_low "
        "and height_high, give or take the rounding of the losses (loss_noise) of both evaluations; floors_inside "
        "likewise.",
    ),
    "barriers": (
        "Barriers by exact and by certified segments",
        "Updates that cross a barrier; undecided: that the intervals of certified segments leave open; otherwise: that "
        "certified segments decide otherwise than exact ones; significant: above twice the loss noise.",
    ),
    "cost": (
        "What exact and certified segments cost",
        "examples: training examples; exact_examples and certified_examples: those that went through the model along "
        "all watched segments, times the points at which they did (an exact segment: one pass over the training "
        "examples a point, its start only where the update before was not watched); passes: the same of one update in "
        "passes over the training examples, and share, theirs of exact segments; evaluated_exactly: certified segments "
        "whose samples did not do, so that every point that may be the floor was evaluated exactly, or all points, to "
        "measure the loss noise. seconds: of an update at "
        "which the segment and nothing else was measured, on the machine and beside what else ran there when it was "
        "trained; empty where it was not kept.",
    ),
}
"""Title of each table, and how to read it."""


class Pair(NamedTuple):
    """One training, watched in two ways."""

    role: str
    exact: sgdwalk.Run
    certified: sgdwalk.Run

    @property
    def seed(self) -> int:
        return self.certified.info["config"]["seed"]


@dataclass(frozen=True)
class Agreement:
    """How the two sides agree."""

    verdicts: pd.DataFrame
    """Of :func:`verdicts`; empty where an exact training is missing."""
    heights: pd.DataFrame
    barriers: pd.DataFrame
    cost: pd.DataFrame
    num_walks: int
    """Trainings of which both sides are there."""
    evaluated_exactly: tuple[int, int]
    """Certified segments whose floor is exact, of all; of every training, whether its exact side is there."""
    faults: list[str]
    """What must not be: trainings that were not the same walk."""
    missing: list[str]
    """Names of exact trainings that are not there."""
    command: str
    """What makes them."""

    @property
    def sentences(self) -> list[str]:
        """All of it in a few sentences, for a page and for a terminal."""
        return [
            *self._on_missing(),
            *self._on_verdicts(),
            *self._on_walks(),
            *self._on_numbers(),
            *self._on_cost(),
            *self._on_samples(),
        ]

    @property
    def tables(self) -> list[tuple[Table, pd.DataFrame]]:
        """What there is of them, with what is to be said of each."""
        frames = {"verdicts": self.verdicts, "heights": self.heights, "barriers": self.barriers, "cost": self.cost}
        return [
            (Table(f"beside-exact-{name}", *TEXTS[name], lambda _, frame=frame: frame), frame)
            for name, frame in frames.items()
            if len(frame)
        ]

    def as_dict(self) -> dict[str, Any]:
        """The same in JSON's types."""
        return {
            "sentences": self.sentences,
            "faults": self.faults,
            "walks": self.num_walks,
            "evaluated_exactly": dict(zip(("segments", "of"), self.evaluated_exactly, strict=True)),
            "missing": self.missing,
            "command": self.command,
            "verdicts": _records(self.verdicts),
            "heights": _records(self.heights),
            "barriers": _records(self.barriers),
            "cost": _records(self.cost),
        }

    def _on_missing(self) -> Iterator[str]:
        if self.missing:
            number = len(self.missing)
            yield (
                f"{number} training{'s' * (number > 1)} with exact segments {'are' if number > 1 else 'is'} not there, "
                f"so that only the certified side can be judged. To see both: {self.command}, then this command again."
            )

    def _on_verdicts(self) -> Iterator[str]:
        if self.verdicts.empty:
            return
        other = self.verdicts[self.verdicts["agreement"] == "differs"]
        told = "".join(
            f"; {row.claim}{f' ({row.reading})' if row.reading else ''}: {row.exact} by exact segments, "
            f"{row.certified} by certified ones"
            for row in other.itertuples()
        )
        yield f"{len(self.verdicts) - len(other)} of {len(self.verdicts)} verdicts are those of exact segments{told}."

    def _on_walks(self) -> Iterator[str]:
        if self.num_walks and not self.faults:
            yield (
                f"{self.num_walks} training(s) walked bit for bit alike with exact and with certified segments: every "
                "learning rate, mini-batch loss, cosine, distance and norm, and every validation."
            )

    def _on_numbers(self) -> Iterator[str]:
        if self.num_walks == 0:
            return
        difference, updates = self.heights["difference_percent"], self.heights["updates"]
        inside = _weighted(self.heights["heights_inside"], updates)
        yield (
            f"Mean heights differ by {difference.min():.2g} % to {difference.max():.2g} %; "
            f"{100 * inside:.3g} % of {int(updates.sum()):,} exact heights lie within the certified intervals."
        )
        total = self.barriers[["exact", "certified", "undecided", "otherwise"]].sum()
        yield (
            f"Barriers: {total['exact']} by exact segments, {total['certified']} by certified ones, which leave "
            f"{total['undecided']} undecided and decide {total['otherwise']} otherwise."
        )

    def _on_cost(self) -> Iterator[str]:
        if self.num_walks == 0:
            return
        exact, certified = (int(self.cost[f"{side}_examples"].sum()) for side in ("exact", "certified"))
        one_pass = int((self.cost["updates"] * self.cost["examples"]).sum())
        yield (
            f"A watched update took {certified / one_pass:.2f} passes over the training examples instead of "
            f"{exact / one_pass:.2f}, {100 * certified / exact:.3g} % of the work."
        )
        exact, certified = (
            _weighted(self.cost[f"{side}_seconds"], self.cost["updates"]) for side in ("exact", "certified")
        )
        if math.isnan(exact + certified):
            yield "In seconds it cannot be told: a training's were not kept."
        else:
            yield f"In seconds: {certified:.3g} instead of {exact:.3g}, each as its training ran."

    def _on_samples(self) -> Iterator[str]:
        exactly, segments = self.evaluated_exactly
        if segments:
            yield (
                f"{exactly:,} of {segments:,} certified segments have an exact floor, as samples did not do or to "
                "measure the loss noise."
            )


def agree(
    pairs: Sequence[Pair],
    certified: Sequence[sgdwalk.Run],
    exact_claims: Sequence[Mapping[str, str]],
    certified_claims: Sequence[Mapping[str, str]],
    missing: Sequence[str],
    command: str,
) -> Agreement:
    """Put the two sides beside each other.

    Args:
        pairs: the trainings of which both sides are there, each once.
        certified: every training with certified segments, each once.
        exact_claims: claims with ``claim``, ``reading`` and ``verdict``, judged on exact segments; none where a
            training is missing.
        certified_claims: the same claims in the same order, judged on certified segments.
        missing: names of exact trainings that are not there.
        command: what makes them.
    """
    faults = [fault for pair in pairs for fault in differences(pair)]
    return Agreement(
        verdicts(exact_claims, certified_claims) if exact_claims else pd.DataFrame(),
        heights(pairs),
        barriers(pairs),
        cost(pairs),
        len(pairs),
        evaluated_exactly(certified),
        faults,
        list(missing),
        command,
    )


def verdicts(exact: Sequence[Mapping[str, str]], certified: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """Every claim with both verdicts, and whether they are the same."""
    rows = []
    for ours, theirs in zip(certified, exact, strict=True):
        assert (ours["claim"], ours["reading"]) == (theirs["claim"], theirs["reading"])
        row = {"claim": ours["claim"], "reading": ours["reading"]}
        rows.append(row | {"exact": theirs["verdict"], "certified": ours["verdict"]})
    table = pd.DataFrame(rows, columns=["claim", "reading", "exact", "certified"])
    return table.assign(agreement=np.where(table["exact"] == table["certified"], "same", "differs"))


def heights(pairs: Sequence[Pair]) -> pd.DataFrame:
    """Heights and floors by both sides, one row a training and epoch, of GD one a training.

    ``difference_percent``: of the mean heights, in percent of the exact one. ``update_percent``: the median over the
    updates of the size of the same. ``heights_inside``: share of updates whose exact height lies between
    ``height_low`` and ``height_high``, give or take the loss noise of both evaluations; ``floors_inside`` likewise.
    """
    rows = []
    for row, exact, certified in _windows(pairs):
        known = exact["height"].notna() & certified["height"].notna()
        exact, certified = exact[known], certified[known]
        noise = pd.concat([exact["loss_noise"], certified["loss_noise"]], axis=1).max(axis=1).fillna(0.0)
        mean, ours = exact["height"].mean(), certified["height"].mean()
        apart = (certified["height"] - exact["height"]).abs() / exact["height"].where(exact["height"] > 0)
        rows.append(
            {
                **row,
                "updates": len(exact),
                "exact_height": mean,
                "certified_height": ours,
                "difference_percent": 100 * (ours - mean) / mean if mean > 0 else np.nan,
                "update_percent": 100 * apart.median(),
                "heights_inside": _inside(exact["height"], certified, "height", HEIGHT_NOISES * noise),
                "exact_floor": exact["floor"].mean(),
                "certified_floor": certified["floor"].mean(),
                "floors_inside": _inside(exact["floor"], certified, "floor", FLOOR_NOISES * noise),
            }
        )
    return pd.DataFrame(rows)


def barriers(pairs: Sequence[Pair]) -> pd.DataFrame:
    """Barriers by both sides, one row a training and epoch, of GD one a training.

    ``undecided``: updates that certified segments leave undecided; ``otherwise``: that they decide otherwise.
    """
    rows = []
    for row, exact, certified in _windows(pairs):
        known = exact["barrier"].notna() & certified["barrier"].notna()
        rows.append(
            {
                **row,
                "updates": len(exact),
                "exact": int(exact["barrier"].sum()),
                "certified": int(certified["barrier"].sum()),
                "undecided": int((exact["barrier"].notna() & certified["barrier"].isna()).sum()),
                "otherwise": int((exact["barrier"][known] != certified["barrier"][known]).sum()),
                "exact_significant": int(exact["barrier_significant"].sum()),
                "certified_significant": int(certified["barrier_significant"].sum()),
            }
        )
    return pd.DataFrame(rows)


def cost(pairs: Sequence[Pair]) -> pd.DataFrame:
    """What the segments of each training cost by both sides.

    ``…_examples``: examples that went through the model along segments, times the points at which they did, of all
    watched updates; ``…_passes``: the same for one update, in passes over the training examples; ``share``: what
    certified segments took of what exact ones took.
    ``evaluated_exactly``: certified segments whose floor was evaluated exactly. ``…_seconds``: mean of the updates at
    which nothing else is measured, NaN where it was not kept.
    """
    rows = []
    for pair in pairs:
        examples = pair.exact.info["data"]["num_examples"]
        theirs = examples * exact_passes(pair.exact)
        ours = pair.certified.steps["examples_evaluated"].dropna()
        one_pass = examples * len(ours)
        rows.append(
            {
                "training": pair.role,
                "seed": pair.seed,
                "updates": len(ours),
                "examples": examples,
                "exact_examples": int(theirs.sum()),
                "certified_examples": int(ours.sum()),
                "exact_passes": float(theirs.mean()) / examples,
                "certified_passes": float(ours.sum()) / one_pass,
                "share": float(ours.sum() / theirs.sum()),
                "evaluated_exactly": evaluated_exactly([pair.certified])[0],
                "exact_seconds": _seconds(pair.exact),
                "certified_seconds": _seconds(pair.certified),
            }
        )
    return pd.DataFrame(rows)


def evaluated_exactly(certified: Sequence[sgdwalk.Run]) -> tuple[int, int]:
    """Segments of certified walks whose floor was evaluated exactly, and all of them."""
    looks = [run.steps["looks"].dropna() for run in certified if "looks" in run.steps]
    return sum(int((each == EXACT_LOOK).sum()) for each in looks), sum(map(len, looks))


def exact_passes(run: sgdwalk.Run) -> pd.Series:
    """Passes over the training examples that each watched segment of an exact walk took.

    A segment starts where the one before it ended, so that its start is known; at the first update from the beginning,
    and under GD from the gradient. Elsewhere it is one more pass.
    """
    watched = pd.Series(is_watched(run, run.steps), run.steps.index)
    known = watched.shift(fill_value=True) | _is_gd(run)
    return (run.info["settings"]["num_points"] + (~known).astype(int))[watched]


def differences(pair: Pair) -> list[str]:
    """In what the two trainings were not the same walk, in a sentence; nothing where they were."""
    exact, certified = pair.exact.steps, pair.certified.steps
    where = f"{pair.role}, seed {pair.seed}"
    if len(exact) != len(certified):
        return [f"{where}: {len(exact):,} updates with exact segments and {len(certified):,} with certified ones."]
    unlike = {name: _first_difference(exact[name], certified[name]) for name in WALK_COLUMNS}
    unlike = {name: step for name, step in unlike.items() if step is not None}
    noted = [] if pair.exact.epochs.equals(pair.certified.epochs) else ["what was noted for epochs"]
    if not unlike and not noted:
        return []
    since = f", from update {min(unlike.values()):,} on" if unlike else ""
    made = [
        f"{key} {one} and {other}"
        for key in MADE_WITH
        if (one := _made(pair.exact, key)) != (other := _made(pair.certified, key))
    ]
    why = f"They were made with {', '.join(made)}." if made else "Watching must not change a training, and here it did."
    return [
        f"{where}: not the same walk with exact and with certified segments. {', '.join([*unlike, *noted])} "
        f"differ{since}. {why}"
    ]


def _windows(pairs: Sequence[Pair]) -> Iterator[tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]]:
    """The updates that both sides watched, by training and epoch; of GD, whose epochs are updates, by training."""
    for pair in pairs:
        exact, certified = (run.steps[is_watched(run, run.steps)] for run in (pair.exact, pair.certified))
        both = exact.index.intersection(certified.index)
        exact, certified = exact.loc[both], certified.loc[both]
        if _is_gd(pair.exact):
            yield {"training": pair.role, "seed": pair.seed, "epoch": None}, exact, certified
            continue
        for epoch in exact["epoch"].unique():
            chosen = exact["epoch"] == epoch
            row = {"training": pair.role, "seed": pair.seed, "epoch": int(epoch)}
            yield row, exact[chosen], certified[chosen]


def _inside(exact: pd.Series, certified: pd.DataFrame, name: str, noise: pd.Series) -> float:
    low, high = certified[f"{name}_low"] - noise, certified[f"{name}_high"] + noise
    return float(((exact >= low) & (exact <= high)).mean())


def _first_difference(one: pd.Series, other: pd.Series) -> int | None:
    unlike = ~((one == other) | (one.isna() & other.isna())).to_numpy()
    return int(one.index[unlike][0]) if unlike.any() else None


def _is_gd(run: sgdwalk.Run) -> bool:
    return run.info["config"]["experiment"]["algorithm"] == "gd"


def _made(run: sgdwalk.Run, key: str) -> Any:
    return run.info["provenance"].get(key)


def _seconds(run: sgdwalk.Run) -> float:
    timing = None if run.path is None else read_timing(run.path)
    timing = Timing() if timing is None else timing
    return timing.seconds / timing.updates if timing.updates else float("nan")


def _weighted(values: pd.Series, weights: pd.Series) -> float:
    """Weighted mean; NaN where a value that counts is undefined, or nothing counts."""
    counts = weights > 0
    return float(np.average(values[counts], weights=weights[counts])) if counts.any() else float("nan")


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows in JSON's types; what is undefined is null."""
    plain = table.astype(object).where(table.notna(), None)
    return [
        {str(name): value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
        for row in plain.to_dict("records")
    ]
