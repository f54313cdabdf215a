"""What the trainings of Figures 3 and 7 and of Equation 3 left in their runs, as tables."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

import sgdwalk

NOTHING = float("nan")


def curve(run: sgdwalk.Run) -> pd.DataFrame:
    """Spectral norms of a training, one row a measurement; NaN where a search had not converged.

    Returns:
        Indexed by step: epoch; ``train``, ``eval``, ``whole``, ``authors``, signed, nats per squared unit of the
        parameters; ``train_products`` and ``eval_products``; ``accuracy``: the validation accuracy after that epoch.
    """
    steps = run.steps
    if "spectral_norm_num_products" not in steps:
        return pd.DataFrame(columns=["epoch", "train", "eval", "whole", "authors", "accuracy"], dtype=float)
    steps = steps[steps["spectral_norm_num_products"].notna()]

    def column(name: str) -> pd.Series:
        return steps[name] if name in steps else pd.Series(NOTHING, index=steps.index)

    accuracy = run.epochs["validation_accuracy"] if "validation_accuracy" in run.epochs else pd.Series(dtype=float)
    return pd.DataFrame(
        {
            "epoch": steps["epoch"].astype(int),
            "train": column("spectral_norm"),
            "eval": column("spectral_norm_eval"),
            "whole": column("spectral_norm_whole"),
            "authors": column("spectral_norm_authors"),
            "train_products": column("spectral_norm_num_products"),
            "eval_products": column("spectral_norm_eval_num_products"),
            "accuracy": steps["epoch"].map(accuracy).astype(float),
        }
    )


def curves(runs: Sequence[sgdwalk.Run]) -> pd.DataFrame:
    """The curves of several trainings under one another."""
    tables = [curve(run).assign(seed=run.info["config"]["seed"]) for run in runs]
    table = pd.concat(tables, ignore_index=True)
    table["ratio"] = table["eval"].abs() / table["train"].abs()
    chosen = ["seed", "epoch", "train", "train_products", "eval", "eval_products", "ratio", "accuracy"]
    return table[chosen]


def ways(runs: Sequence[sgdwalk.Run]) -> pd.DataFrame:
    """The same θ measured over a part of the images, over all of them, and by the authors' power iteration."""
    tables = [curve(run).assign(seed=run.info["config"]["seed"]) for run in runs]
    table = pd.concat(tables, ignore_index=True)
    table = table[table["authors"].notna() | table["whole"].notna()]
    table = table.assign(
        whole_by_part=table["whole"] / table["train"], authors_by_part=table["authors"] / table["train"]
    )
    return table[["seed", "epoch", "train", "whole", "authors", "whole_by_part", "authors_by_part"]]


def decompositions(run: sgdwalk.Run) -> pd.DataFrame:
    """Equation 3 along a training, one row a measurement, indexed by step.

    Returns:
        The columns of :class:`sgdwalk.paper.decomposition.Decomposition` without their prefix, and
        ``second_moment_share`` = ‖C‖ / ‖H‖, ``residual_share`` = ‖R‖ / ‖H‖, in spectral norms.
    """
    prefix = "equation3_"
    found = [name for name in map(str, run.steps) if name.startswith(prefix) and not name.endswith("_reason")]
    table = run.steps[found].rename(columns=lambda name: name.removeprefix(prefix))
    if "identity" not in table:
        return pd.DataFrame()
    table = table[table["hessian"].notna() | table["identity"].notna()]
    return table.assign(
        second_moment_share=table["second_moment"] / table["hessian"],
        residual_share=table["residual"] / table["hessian"],
    )


def equation_3(runs: Sequence[sgdwalk.Run]) -> pd.DataFrame:
    """Equation 3 along several trainings, one row a training and update."""
    tables = [
        decompositions(run).rename_axis("update").reset_index().assign(seed=run.info["config"]["seed"]) for run in runs
    ]
    table = pd.concat(tables, ignore_index=True)
    chosen = ["seed", "update", "loss", "accuracy", "identity", "identity_running", "hessian", "second_moment"]
    chosen += ["residual", "second_moment_share", "residual_share", "overlap", "chance", "angle", "exponent"]
    chosen += ["exponent_low", "exponent_high", "exponent_pairs"]
    return table[[name for name in chosen if name in table]]
