"""Walks made of numbers alone: gradient descent on a quadratic bowl, with everything a real run may lack.

L(x) = ½ Σ h_i x_i², so the loss along a segment is exactly a parabola and every derived number is known on paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from sgdwalk.records import NAN, EpochNote, Event, SegmentPoint, StepRecord
from sgdwalk.run import Run

CURVATURES = np.concatenate([[19.8], np.linspace(0.05, 2.0, 30)])


def settings(name: str, **changes: Any) -> dict[str, Any]:
    """What run.json holds."""
    return {
        "schema_version": 1,
        "name": name,
        "created": "2026-03-01T12:00:00+00:00",
        "settings": {
            "when": "every(1)",
            "num_points": 10,
            "batch_size": 500,
            "batchnorm": "train",
            "method": "exact",
            "precision": "float32",
            "partition_seed": 0,
            "evaluate_on": "copy",
            "steps_per_epoch": None,
            "measures": [],
        },
        "data": {"num_examples": 1797, "num_batches": 4, "fingerprint": "c0ffee", "description": "tensors (1797, 64)"},
        "model": {"class": "Sequential", "num_parameters": 4810},
        "optimizers": [
            {
                "class": "SGD",
                "groups": [{"learning_rate": 0.1, "momentum": 0, "weight_decay": 0, "nesterov": False}],
            }
        ],
        "provenance": {
            "python": "3.11.2",
            "torch": "2.13.0",
            "numpy": "2.4.6",
            "platform": "Linux-x86_64",
            "device": "cpu",
            "num_threads": 1,
            "commit": "0123abc",
            "dirty": False,
            "argv": ["sgdwalk", "run"],
            "seed": 0,
        },
        "config": {},
        **changes,
    }


def records_of_walk(
    num_steps: int,
    *,
    learning_rate: float = 0.1,
    noise: float = 0.0,
    steps_per_epoch: int | None = 20,
    watched: Callable[[int], bool] = lambda step: True,
    bump: Callable[[int], float] = lambda step: 0.0,
    measures: Callable[[int], dict[str, float]] = lambda step: {},
    loss_noise: float = 2e-8,
    seed: int = 0,
) -> list[StepRecord]:
    """The steps of a walk: ``noise`` is the gradient's standard deviation, ``bump`` the height of a bump at α = 0.5."""
    rng = np.random.default_rng(seed)
    x = start = rng.normal(size=CURVATURES.size) / np.sqrt(np.arange(1, CURVATURES.size + 1))
    before: np.ndarray | None = None

    def loss(point: np.ndarray) -> float:
        return 0.02 + 0.5 * float(np.sum(CURVATURES * point**2))

    records = []
    for step in range(num_steps):
        gradient = CURVATURES * x + noise * rng.normal(size=x.size)
        after = x - learning_rate * gradient
        segment: tuple[SegmentPoint, ...] = ()
        if watched(step):
            segment = tuple(
                SegmentPoint(
                    alpha=k / 10,
                    loss=loss((1 - k / 10) * x + k / 10 * after) + bump(step) * math.sin(math.pi * k / 10) ** 2,
                )
                for k in range(11)
            )
        reasons = {}
        cosine = NAN
        if before is None:
            reasons["cosine"] = "there is no gradient before the first"
        else:
            cosine = float(before @ gradient / (np.linalg.norm(before) * np.linalg.norm(gradient)))
        records.append(
            StepRecord(
                step=step,
                epoch=None if steps_per_epoch is None else step // steps_per_epoch + 1,
                learning_rate=learning_rate,
                batch_loss=loss(x) * math.exp(0.3 * noise * rng.normal()),
                cosine=cosine,
                distance=float(np.linalg.norm(x - start)),
                next_distance=float(np.linalg.norm(after - start)),
                grad_norm=float(np.linalg.norm(gradient)),
                param_norm=float(np.linalg.norm(x)),
                update_norm=float(np.linalg.norm(after - x)),
                loss_noise=loss_noise if segment and step % 100 == 0 else NAN,
                segment=segment,
                measures=measures(step),
                reasons=reasons,
            )
        )
        x, before = after, gradient
    return records


def quadratic_walk(
    name: str = "SGD",
    num_steps: int = 60,
    *,
    info: dict[str, Any] | None = None,
    epochs: list[EpochNote] | None = None,
    events: list[Event] | None = None,
    **options: Any,
) -> Run:
    """A run of ``records_of_walk``, with a validation accuracy noted for each epoch."""
    records = records_of_walk(num_steps, **options)
    if epochs is None:
        lasts = {record.epoch: record.step for record in records if record.epoch is not None}
        epochs = [
            EpochNote(epoch, step + 1, {"validation_accuracy": 1 - 0.6 * math.exp(-0.5 * epoch)})
            for epoch, step in lasts.items()
        ]
    return Run(settings(name, **(info or {})), records, epochs, events or [])


def sampled_walk(
    name: str = "sampled",
    num_steps: int = 60,
    *,
    one_in: int = 5,
    gauge: bool = True,
    num_units: float = 16.0,
    **options: Any,
) -> Run:
    """A walk of which no segment was measured and one step of so many sampled: height 1, 2, 3, … at these."""

    def measures(step: int) -> dict[str, float]:
        measured = {"gauge": NAN if step == 0 else 0.1} if gauge else {}
        if step % one_in == 0:
            height = 1.0 + step // one_in
            found = {"loss": 9.0, "next_loss": 8.0, "floor": 5.0, "height": height, "interior": float(step > 0)}
            measured |= {f"sampled_{key}": value for key, value in found.items()}
            measured |= {"sampled_alpha_star": 0.7, "sampled_num_units": num_units}
        return measured

    return quadratic_walk(name, num_steps, watched=lambda step: False, measures=measures, **options)


def gradient_descent(num_steps: int = 60, **options: Any) -> Run:
    """Full-batch descent that bounces across one steep direction (h η = 1.98)."""
    return quadratic_walk("GD", num_steps, learning_rate=0.1, noise=0.0, **options)


def stochastic_descent(num_steps: int = 60, **options: Any) -> Run:
    """Noisy descent: it bounces at a height."""
    return quadratic_walk("SGD", num_steps, learning_rate=0.1, **{"noise": 0.4, "seed": 1, **options})


def troubled_walk(num_steps: int = 45, name: str = "trouble") -> Run:
    """Everything at once: unwatched steps, a loss that is not finite, a zero gradient, barriers, no epochs, events."""
    records = records_of_walk(
        num_steps,
        noise=0.3,
        steps_per_epoch=None,
        watched=lambda step: step % 15 < 10,
        bump=lambda step: {3: 0.5, 4: 3e-8, 18: 1.0}.get(step, 0.0),
        measures=lambda step: {"batch_sharpness": 18 + math.sin(step)},
    )
    changed = {
        5: _with_lost_loss(records[5], alpha=0.5, reason="the loss was not finite (nan) at α = 0.5"),
        7: _changed(records[7], cosine=NAN, reasons={"cosine": "the gradient before it was zero"}),
        20: _with_lost_loss(records[20], alpha=0.0, reason="the loss was not finite (inf) at α = 0"),
        30: _changed(
            records[30], measures={"batch_sharpness": NAN}, reasons={"batch_sharpness": "RuntimeError: no convergence"}
        ),
        31: _changed(records[31], segment=(), reasons={"segment": "the measurement failed: out of memory"}),
    }
    records = [changed.get(record.step, record) for record in records]
    events = [
        Event(0, 12, "skipped_update", "The gradient scaler skipped an update: its gradients were not finite."),
        Event(1, 31, "measurement_failed", "MemoryError while the loss along a segment was measured."),
    ]
    return Run(settings(name), records, [], events)


def _changed(record: StepRecord, **changes: Any) -> StepRecord:
    from dataclasses import replace

    return replace(record, **changes)


def _with_lost_loss(record: StepRecord, *, alpha: float, reason: str) -> StepRecord:
    segment = tuple(
        SegmentPoint(point.alpha, NAN if math.isclose(point.alpha, alpha) else point.loss) for point in record.segment
    )
    return _changed(record, segment=segment, reasons={**record.reasons, "segment": reason})
