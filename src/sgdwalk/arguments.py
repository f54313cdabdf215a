"""Arguments of ``watch()`` that are wrong by themselves, whatever the model and the data."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from sgdwalk.errors import InputError
from sgdwalk.measures import At
from sgdwalk.when import When, every

EVERY_UPDATE: When = every(1)
"""The default of ``when`` and ``columns``; any other object, also another ``every(1)``, was asked for."""


def check_choices(
    method: str | None,
    barriers: str,
    certify: str,
    num_points: int,
    batchnorm: str,
    evaluate_on: str,
    precision: str,
    on_error: str,
    steps_per_epoch: int | None,
) -> None:
    choices = {
        "method": (method, (None, "exact", "certified", "sampled")),
        "barriers": (barriers, ("estimated", "exact")),
        "certify": (certify, ("height", "curve")),
        "batchnorm": (batchnorm, ("train", "eval")),
        "evaluate_on": (evaluate_on, ("copy", "model")),
        "precision": (precision, ("float32",)),
        "on_error": (on_error, ("disable", "raise")),
    }
    for key, (value, known) in choices.items():
        if value not in known:
            listed = " and ".join(repr(each) for each in known if each is not None)
            raise InputError(f"{key}={value!r} does not exist; there is {listed}.")
    if isinstance(num_points, bool) or not isinstance(num_points, int) or num_points < 2:
        raise InputError(
            f"num_points={num_points!r}: a segment needs at least 2 intervals to have a point between its ends "
            "(the paper has 10)."
        )
    if steps_per_epoch is not None and (
        isinstance(steps_per_epoch, bool) or not isinstance(steps_per_epoch, int) or steps_per_epoch < 1
    ):
        raise InputError(f"steps_per_epoch must be an integer of at least 1, got {steps_per_epoch!r}.")


def check_plain(model: Any, run: Any, name: Any, measures: Any, flags: Mapping[str, Any]) -> None:
    """Arguments whose kind is all that can be wrong with them."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}, not a torch.nn.Module: pass the module that is trained.")
    if run is not None and not isinstance(run, (str, os.PathLike)):
        raise InputError(f"run={run!r} is no path: name the folder to keep the records in, or pass None.")
    if name is not None and not isinstance(name, str):
        raise InputError(f"name={name!r} is no text: pass what the run is to be called in reports, as a str.")
    if measures is not None and not isinstance(measures, Mapping):
        raise InputError(f'measures={measures!r} is no dict: pass {{"name": f}}, with f(here) returning a float.')
    for key in measures or {}:
        if not isinstance(key, str):
            raise InputError(f"measures has the key {key!r}, and a measure is a column: name it with a str.")
    for flag, value in flags.items():
        if not isinstance(value, bool):
            raise InputError(f"{flag}={value!r}: True or False is wanted.")


def check_certification(tolerance: Any, seed: Any, largest_pass: Any) -> None:
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 < tolerance < 1:
        raise InputError(
            f"tolerance={tolerance!r}: a share of the height between 0 and 1 is wanted, such as 0.05; for exact "
            'heights pass method="exact".'
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"sampling_seed must be an integer of at least 0, got {seed!r}.")
    if largest_pass is not None and (
        isinstance(largest_pass, bool) or not isinstance(largest_pass, int) or largest_pass < 1
    ):
        raise InputError(
            f"largest_pass={largest_pass!r}: a number of examples of at least 1 is wanted, or None to evaluate the "
            "ends of segments over all data always."
        )


def check_of_certified(method: str | None, budget: Any, given: Mapping[str, Any]) -> None:
    """What only certified segments have is not given beside another method."""
    if given and method != "certified" and budget is None:
        told = " and ".join(f"{name}={value!r}" for name, value in given.items())
        raise InputError(
            f'{told} given with method="{method or "exact"}", which does not have it: pass method="certified" too, or '
            "leave it out."
        )


def check_budget(
    budget: Any, method: str | None, when: Any, columns: Any, data: Any, loss_fn: Any, measures: Mapping
) -> None:
    """A budget chooses method and schedule, so neither is given beside it."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not math.isfinite(budget) or budget <= 1:
        raise InputError(
            f"budget={budget!r}: a finite multiple of the unwatched training above 1 is wanted, such as 1.5 for half "
            "as much again."
        )
    asked = [name for name, given in (("method", method is not None), ("when", when is not EVERY_UPDATE)) if given]
    if asked:
        raise InputError(
            f"budget= chooses method and when, and {' and '.join(asked)} was given too: leave out "
            f"{' and '.join(asked)} to let the budget choose, or leave out budget."
        )
    if columns is not EVERY_UPDATE:
        raise InputError(
            "budget= keeps cosine, distance and norms of every update, and columns was given too: leave out one of the "
            "two."
        )
    if data is None or loss_fn is None:
        raise InputError("budget= chooses how the full loss is evaluated, which needs loss_fn and data: pass both.")
    for name, measure in measures.items():
        if not isinstance(measure, At):
            raise InputError(
                f"The measure {name!r} would be taken where segments are, and budget= chooses where, without knowing "
                "what the measure costs. Give it steps of its own: sgdwalk.at(sgdwalk.every(10), measure)."
            )


def plain_config(config: Any) -> dict[str, Any]:
    """What is to be kept with the run, as a run folder holds it."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise InputError(f"config={config!r} is no dict: pass names and plain values, such as {{'seed': 0}}.")
    try:
        return json.loads(json.dumps(dict(config), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"config must hold plain JSON values (numbers that are finite, strings, booleans, None, lists and dicts "
            f"of these): {error}. Pass str() or float() of what is none."
        ) from error
