"""Peers' eigenvalue of largest magnitude at ten consecutive iterates: seconds, products, error against the exact one.

    python -m venv .curvlinops && .curvlinops/bin/pip install -r benchmarks/spectral_norm_curvlinops_requirements.txt
    .curvlinops/bin/python benchmarks/spectral_norm_peers.py curvlinops

and alike for ``pyhessian`` and ``hessian_eigenthings``; ``spectral_norm_iterates.py`` makes the problems and the
references first. Runs in the peer's own environment and needs nothing of sgdwalk. Each peer is asked at its defaults
and at settings that a user who knows it would try; a case that was measured before is measured anew, others are kept.
With ``--serve`` it answers questions ``{"net", "algorithm", "iterate", "batchnorm", "setting"}``, one JSON line each,
so that a driver can let sides take turns at every iterate.

All sides get the same float32 model in the same mode, the same resident batches of 100 and the same threads. What is
timed is all that an iterate asks for once model and data stand, the construction of the peer's objects included.
"""

from __future__ import annotations

import gc
import itertools
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import common
import spectral_norm_problem as problems
from spectral_norm_problem import Problem

Setting = dict[str, Any]
WITHIN = 0.01
"""Relative error at which a value counts as found."""


def counted(owner: object, name: str) -> list[int]:
    """Count the calls of a method of this one object; the count is the list's only element."""
    method, calls = getattr(owner, name), [0]

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return method(*args, **kwargs)

    setattr(owner, name, call)
    return calls


# ---------------------------------------------------------------------------------------------------------- peers
def solve_curvlinops(
    problem: Problem,
    *,
    check_deterministic: bool = True,
    float32: bool = False,
    ncv: int | None = None,
    tol: float = 0,
    warm: bool = False,
    first: int = 8,
) -> tuple[float, int]:
    """SciPy's ``eigsh`` on curvlinops' Hessian; the defaults of both unless told.

    The check for determinism, on by default, costs two products and two gradients; ``to_scipy`` offers float64 vectors
    by default. ``eigsh`` makes one product and ``ncv`` more (20 by default for one pair) before it first looks at its
    tolerance. Warm: it starts from the last eigenvector, and at the first iterate takes ``first`` for ``ncv``.
    """
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    operator = HessianLinearOperator(
        problem.model,
        nn.CrossEntropyLoss(),
        problem.parameters,
        problem.batches,
        check_deterministic=check_deterministic,
    )
    products = counted(operator, "_matmat")
    matrix = operator.to_scipy(dtype="float32" if float32 else None)
    start = problem.carried.get("vector") if warm else None
    if warm and start is None:
        ncv = first
    try:
        value, vector = eigsh(matrix, k=1, which="LM", ncv=ncv, tol=tol, v0=start, rng=torch.initial_seed())
        if warm:
            problem.carried["vector"] = vector[:, 0]
    except ArpackNoConvergence as error:
        value = [*error.eigenvalues, float("nan")]
    return float(value[0]), products[0] + 2 * check_deterministic


def solve_pyhessian(problem: Problem, **setting: Any) -> tuple[float, int]:
    """PyHessian's power iteration. It stops when the running value stops moving and has no place for a start vector.

    Its constructor forces ``model.eval()`` for good; ``train`` problems, whose layers hold no running statistics,
    compute with those of the batch all the same.
    """
    from pyhessian import hessian

    computation = hessian(problem.model, nn.CrossEntropyLoss(), dataloader=problem.batches, cuda=False)
    products = counted(computation, "dataloader_hv_product")
    values, _ = computation.eigenvalues(top_n=1, **setting)
    return values[0], products[0]


def solve_hessian_eigenthings(
    problem: Problem,
    *,
    algorithm: str = "lanczos",
    finite_difference: bool = False,
    fd_eps: float | None = None,
    warm: bool = False,
    first: int = 8,
    **setting: Any,
) -> tuple[float, int]:
    """Its Lanczos (``max_iter`` products, whatever the tolerance; 2 by default for ``k=1``) or its power iteration.

    A product by finite differences costs two gradients. Warm: the power iteration takes a start vector; ``lanczos``
    takes none, but the tridiagonalization under it is public; it makes ``first`` products at the first iterate.
    """
    from hessian_eigenthings import (
        HessianOperator,
        deflated_power_iteration,
        lanczos,
        lanczos_tridiagonal,
        power_iteration_one,
        supervised_loss,
    )

    operator = HessianOperator(
        problem.model,
        problem.batches,
        supervised_loss(nn.CrossEntropyLoss()),
        method="finite_difference" if finite_difference else "autograd",
        fd_eps=fd_eps,
    )
    products = counted(operator, "matvec")
    start = problem.carried.get("vector") if warm else None
    if algorithm == "power" and warm:
        value, vector, *_ = power_iteration_one(operator, init=start, **setting)
    elif warm:
        if start is None:
            start, setting = torch.randn(operator.size), {**setting, "max_iter": first}
        made = lanczos_tridiagonal(operator, start, **setting)
        beside = made.betas[: len(made.alphas) - 1]
        ritz, weights = torch.linalg.eigh(made.alphas.diag() + beside.diag(1) + beside.diag(-1))
        chosen = ritz.abs().argmax()
        value, vector = ritz[chosen], sum(w * q for w, q in zip(weights[:, chosen], made.basis, strict=True))
    else:
        solver = {"lanczos": lanczos, "power": deflated_power_iteration}[algorithm]
        found = solver(operator, **{"k": 1, "seed": torch.initial_seed(), **setting})
        value, vector = found.eigenvalues[0], found.eigenvectors[0]
    if warm:
        problem.carried["vector"] = vector
    return float(value), products[0]


SOLVERS: dict[str, Callable[..., tuple[float, int]]] = {
    "curvlinops": solve_curvlinops,
    "pyhessian": solve_pyhessian,
    "hessian_eigenthings": solve_hessian_eigenthings,
}

KNOWING = {"check_deterministic": False, "float32": True}
SETTINGS: dict[str, list[Setting]] = {
    "curvlinops": [
        {},
        {**KNOWING, "tol": 1e-1, "ncv": 6},
        *({**KNOWING, "tol": 1e-1, "ncv": ncv, "warm": True} for ncv in (2, 3, 4)),
    ],
    "pyhessian": [{}, *({"tol": tol} for tol in (3e-3, 1e-2))],
    "hessian_eigenthings": [
        {},
        *({"max_iter": count} for count in (7, 8)),
        *({"max_iter": count, "warm": True} for count in (2, 3)),
        *({"max_iter": 3, "finite_difference": True, "fd_eps": eps, "warm": True} for eps in (None, 5e-4)),
        {"algorithm": "power"},
        {"algorithm": "power", "tol": 1e-1, "warm": True},
    ],
}
"""The first is the peer's defaults for the largest pair."""


# ------------------------------------------------------------------------------------------------------- questions
def measured(solve: Callable[..., tuple[float, int]], problem: Problem, setting: Setting, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    begin = time.perf_counter()
    value, products = solve(problem, **setting)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "value": None if value != value else value, "products": products}


def warm_up(solve: Callable[..., tuple[float, int]], setting: Setting) -> None:
    """What a process pays once, imports above all, is paid at a net of 330 parameters."""
    model = nn.Sequential(nn.Linear(20, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 10)).eval()
    solve(Problem(model, [(torch.randn(100, 20), torch.randint(10, (100,)))]), **setting)


class Side:
    """One peer, asked iterate by iterate; what a setting carries from one iterate to the next is kept here."""

    def __init__(self, peer: str, cache: Path):
        self.solve, self.cache = SOLVERS[peer], cache
        self.carried: dict[str, dict[str, Any]] = {}
        warm_up(self.solve, {})

    def answer(self, question: dict[str, Any], round_: int = 0) -> dict[str, Any]:
        where = {name: question[name] for name in ("net", "algorithm", "batchnorm")}
        walk = json.dumps([where, question["setting"], round_], sort_keys=True)
        if question["iterate"] == 0:
            self.carried[walk] = {}
        problem = problems.load(self.cache, iterate=question["iterate"], **where)
        problem.carried = self.carried.setdefault(walk, {})
        answer = measured(self.solve, problem, question["setting"], seed=100 * round_ + question["iterate"])
        problem.model.zero_grad()
        del problem
        gc.collect()  # PyHessian's gradients hold their own graph.
        return answer


def serve(side: Side, lines: Iterable[str]) -> None:
    for line in lines:
        print(json.dumps(side.answer(json.loads(line))), flush=True)


# ---------------------------------------------------------------------------------------------------------- report
def case(side: Side, where: dict[str, str], setting: Setting, options) -> dict[str, Any]:
    exact = problems.references(side.cache, **where)[: options.iterates]
    answers = [
        side.answer({**where, "iterate": iterate, "setting": setting}, round_)
        for round_ in range(options.rounds)
        for iterate in range(options.iterates)
    ]
    errors = [
        abs(answer["value"] / value - 1) if answer["value"] is not None else None
        for answer, value in zip(answers, exact * options.rounds, strict=False)
        if len(exact) == options.iterates
    ]
    return {
        **where,
        "setting": setting,
        "iterates": options.iterates,
        "rounds": options.rounds,
        "seconds": [answer["seconds"] for answer in answers],
        "products": [answer["products"] for answer in answers],
        "values": [answer["value"] for answer in answers],
        "relative_errors": errors,
        "all_within": all(error is not None and error <= WITHIN for error in errors) if errors else None,
        "surroundings": common.surroundings(),
    }


def row(made: dict[str, Any]) -> dict[str, Any]:
    setting = ", ".join(f"{name}={value}" for name, value in made["setting"].items())
    errors = made["relative_errors"]
    return {
        "net": made["net"],
        "walk": made["algorithm"],
        "BatchNorm": made["batchnorm"],
        "setting": setting or "defaults",
        "iterates": len(made["seconds"]),
        "seconds an iterate (median)": statistics.median(made["seconds"]),
        "products (mean)": round(statistics.mean(made["products"]), 1),
        "largest relative error": ("none found" if None in errors else max(errors)) if errors else "no reference",
        "all within 1 %": {True: "yes", False: "no", None: "–"}[made["all_within"]],
    }


def main() -> None:
    parser = common.parser(
        __doc__.splitlines()[0],
        net="mlp",
        algorithm="all",
        batchnorm="all",
        iterates=10,
        rounds=1,
        cache=str(problems.CACHE),
    )
    parser.add_argument("peer", choices=SOLVERS)
    parser.add_argument("--settings", default="all", help="all, defaults, or a JSON list of settings")
    parser.add_argument("--serve", action="store_true", help="answer questions on standard input")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")  # PyHessian's way

    side = Side(options.peer, Path(options.cache))
    if options.serve:
        return serve(side, sys.stdin)
    if options.settings == "all":
        settings = SETTINGS[options.peer]
    else:
        settings = [{}] if options.settings == "defaults" else json.loads(options.settings)

    name = f"spectral_norm_{options.peer}"
    for net, algorithm, batchnorm, setting in itertools.product(
        problems.NETS if options.net == "all" else [options.net],
        problems.ALGORITHMS if options.algorithm == "all" else [options.algorithm],
        problems.BATCHNORMS if options.batchnorm == "all" else [options.batchnorm],
        settings,
    ):
        where = {"net": net, "algorithm": algorithm, "batchnorm": batchnorm}
        made = case(side, where, setting, options)
        print(common.table([row(made)]).splitlines()[-1], flush=True)
        keep(options.out, name, {**where, "setting": setting}, made)
    kept = json.loads((options.out / f"{name}.json").read_text())["raw"]
    common.report(options.out, name, {"threads": options.threads, "within": WITHIN}, kept, [row(made) for made in kept])
    return None


def keep(out: Path, name: str, which: dict[str, Any], made: dict[str, Any]) -> None:
    """Put the case into the peer's file, in the place of an earlier one with the same net, walk, mode and setting."""
    path = out / f"{name}.json"
    before = json.loads(path.read_text())["raw"] if path.exists() else []
    kept = [other for other in before if any(other[part] != value for part, value in which.items())]
    kept.append(made)
    common.write(out, name, {"threads": made["surroundings"]["threads"], "within": WITHIN}, kept, [*map(row, kept)])


if __name__ == "__main__":
    main()
