"""Spectral norm at consecutive iterates: the measure of a walk against its peers, in turns at every iterate.

    python benchmarks/spectral_norm_iterates.py                       # once: the iterates and their exact eigenvalues
    python benchmarks/spectral_norm.py --algorithm sgd --batchnorm eval \\
        --peer curvlinops .curvlinops/bin/python '{"ncv": 3, "tol": 0.1, "warm": true}'
    python benchmarks/spectral_norm.py --algorithm sgd --batchnorm eval --judge     # again, by references made since

Every side finds the eigenvalue of largest magnitude at each of the stored iterates, one after the other, and may go on
from its own last one. sgdwalk runs in this process, as it does in a walk; each peer in a process of its own environment
(``spectral_norm_peers.py PEER --serve``), given as its name, its Python and a setting as JSON. The floor is what an
oracle would pay that knew the eigenvector and had only to tell its eigenvalue: the gradients and one product. With
``--drop``, a side but the first that is more than 1 % off is asked no more: it has not managed what is asked of it, and
a large net takes minutes for each answer. What has no reference yet is measured all the same.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import common
import sgdwalk
import spectral_norm_problem as problems

Answer = dict[str, Any]
WITHIN = 0.01
"""Relative error at which a value counts as found."""


class Ours:
    """``SpectralNorm`` along a walk whose updates lead from one stored iterate to the next."""

    def __init__(self, cache: Path, where: dict[str, str], measure: sgdwalk.SpectralNorm):
        self.cache, self.where, self.measure = cache, where, measure
        self.answer: Answer = {}
        first = problems.load(cache, iterate=0, **where)
        self.model = first.model
        self.walk = sgdwalk.watch(
            self.model,
            None,
            F.cross_entropy,
            first.batches,
            when=None,
            batchnorm=where["batchnorm"],
            measures={"norm": sgdwalk.at(sgdwalk.every(1), self.timed)},
            on_error="raise",
        )

    def timed(self, here: Any) -> float:
        columns: dict[str, Any] = {}
        seconds = common.seconds(lambda: columns.update(self.measure(here)))
        value = columns["value"]
        self.answer = {
            "seconds": seconds,
            "value": value if isinstance(value, float) else None,
            "products": int(columns["num_products"]),
        }
        return 0.0

    def ask(self, iterate: int) -> Answer:
        """A step of the walk, measured at θ_t, where the model stands before the update."""
        at = problems.load(self.cache, iterate=iterate, **self.where)
        self.model.load_state_dict(at.model.state_dict())
        self.walk.before_step()
        self.walk.after_step()
        return self.answer

    def close(self) -> None:
        self.walk.close()


class Peer:
    """A peer in its own environment, asked line by line."""

    def __init__(self, cache: Path, where: dict[str, str], threads: int, name: str, python: str, setting: str):
        self.where, self.setting = where, json.loads(setting)
        script = Path(__file__).resolve().parent / "spectral_norm_peers.py"
        command = [python, str(script), name, "--serve", "--threads", str(threads), "--cache", str(cache)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, iterate: int) -> Answer:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(
            json.dumps({**self.where, "iterate": iterate, "setting": self.setting}), file=self.process.stdin, flush=True
        )
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def floor_seconds(cache: Path, where: dict[str, str]) -> list[float]:
    """The gradients and one product through their graphs, at the first iterate, three times."""
    at = problems.load(cache, iterate=0, **where)
    matrix = sgdwalk.hessian(at.model, F.cross_entropy, at.batches, batchnorm=where["batchnorm"])
    vector = torch.randn(matrix.size, generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(3):
        matrix.release()
        seconds.append(common.seconds(lambda: matrix @ vector))
    return seconds


def judge(raw: dict[str, list[Answer]], exact: list[float]) -> None:
    """Put the relative error beside every answer whose reference is known; None for an answer that gave no value."""
    for answers in raw.values():
        for answer, value in zip(answers, exact, strict=False):
            answer["error"] = None if answer["value"] is None else abs(answer["value"] / value - 1)


def failed(answers: list[Answer]) -> bool:
    """Whether one of those that were judged is further off than what counts as found."""
    errors = [answer["error"] for answer in answers if "error" in answer]
    return any(error is None or error > WITHIN for error in errors)


def summary(raw: dict[str, list[Answer]], floors: list[float]) -> list[dict[str, Any]]:
    """A row a side. Times are medians over iterates of the ratio within an iterate: other work meets sides alike."""
    ours = [answer["seconds"] for answer in next(iter(raw.values()))]
    rows = []
    for name, answers in raw.items():
        seconds = [answer["seconds"] for answer in answers]
        others = [answer["products"] for answer in answers[1:]]
        judged = [answer["error"] for answer in answers if "error" in answer]
        errors = [math.inf if error is None else error for error in judged]
        rows.append(
            {
                "side": name,
                "iterates": len(answers),
                "products, first iterate": answers[0]["products"],
                "products, others (mean)": statistics.mean(others) if others else None,
                "time over the first side's (median)": common.ratio(seconds, ours[: len(seconds)])["median"],
                "time over the floor (median)": statistics.median(seconds) / statistics.median(floors),
                "iterates with a reference": len(judged),
                "largest error, %": 100 * max(errors, default=math.nan),
                "all within 1 %": not failed(answers) and len(judged) == len(ours),
            }
        )
    return rows


def main() -> None:
    parser = common.parser(
        __doc__.splitlines()[0],
        net="mlp",
        algorithm="sgd",
        batchnorm="eval",
        iterates=10,
        cache=str(problems.CACHE),
    )
    parser.add_argument("--tolerance", type=float, nargs="*", default=[0.05, 1e-3], help="sgdwalk's; one side each")
    parser.add_argument(
        "--following",
        type=float,
        nargs="*",
        default=[0.05],
        help="of sides that follow the last eigenvector alone, as peers do (look_every=None)",
    )
    parser.add_argument("--peer", nargs=3, action="append", default=[], metavar=("NAME", "PYTHON", "SETTING"))
    parser.add_argument("--drop", action="store_true", help="ask a side no more that is more than 1 %% off")
    parser.add_argument("--judge", action="store_true", help="measure nothing: judge what is stored anew")
    options = parser.parse_args()
    if not options.tolerance and not options.following:
        parser.error("a side of sgdwalk's is wanted: --tolerance or --following")
    torch.set_num_threads(options.threads)
    cache = Path(options.cache)
    where = {name: getattr(options, name) for name in ("net", "algorithm", "batchnorm")}
    name = "spectral_norm_" + "_".join(where.values())
    problems.references(cache, **where)  # those of other iterates are refused before anything is measured
    if options.judge:
        stored = json.loads((options.out / f"{name}.json").read_text())
        floors = stored["raw"].pop("floor")
        judge(stored["raw"], problems.references(cache, **where))
        stored["summary"] = summary(stored["raw"], floors)
        stored["raw"] = {"floor": floors, **stored["raw"]}
        common.keep(options.out / f"{name}.json", stored)
        print(common.table(stored["summary"]))
        return

    measures = {f"sgdwalk, tolerance {each:g}": sgdwalk.SpectralNorm(each) for each in options.tolerance}
    for each in options.following:
        measures[f"sgdwalk, tolerance {each:g}, look_every=None"] = sgdwalk.SpectralNorm(each, look_every=None)
    sides: dict[str, Ours | Peer] = {side: Ours(cache, where, measure) for side, measure in measures.items()}
    for peer, python, setting in options.peer:
        sides[f"{peer} {setting}"] = Peer(cache, where, options.threads, peer, python, setting)
    raw: dict[str, list[Answer]] = {side: [] for side in sides}
    floors = floor_seconds(cache, where)
    settings = {**where, "iterates": options.iterates, "threads": options.threads}
    settings |= {"tolerance": options.tolerance, "following": options.following, "drop": options.drop}

    def results() -> tuple[Any, ...]:
        return options.out, name, settings, {"floor": floors, **raw}, summary(raw, floors)

    asked = list(sides)
    for iterate in range(options.iterates):
        turn = iterate % len(asked)
        for side in [*asked[turn:], *asked[:turn]]:
            answer = sides[side].ask(iterate)
            raw[side].append(answer)
            judge(raw, problems.references(cache, **where))
            if options.drop and side != asked[0] and failed(raw[side]):
                asked.remove(side)
            print(f"iterate {iterate}: {side}: {answer}", flush=True)
        common.write(*results())  # a large net's iterates take hours: what was measured stays
    for each in sides.values():
        each.close()
    common.report(*results())


if __name__ == "__main__":
    main()
