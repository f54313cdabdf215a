"""``watch()``: check what it is given, say clearly what cannot be watched, and start a walk."""

from __future__ import annotations

import contextlib
import datetime
import inspect
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from sgdwalk.arguments import (
    EVERY_UPDATE,
    check_budget,
    check_certification,
    check_choices,
    check_of_certified,
    check_plain,
    plain_config,
)
from sgdwalk.calibration import Budgeted
from sgdwalk.certified import Certification
from sgdwalk.columns import DERIVED_COLUMNS
from sgdwalk.data import EvaluationData, evaluation_data
from sgdwalk.errors import InputError, ResumeError, RunFolderError
from sgdwalk.hooks import bare_optimizer
from sgdwalk.journal import Journal
from sgdwalk.measures import At, Here, Measured, for_walk
from sgdwalk.measuring import Measuring
from sgdwalk.objective import NOISE_BATCHES, Forward, LossFunction
from sgdwalk.provenance import check_resumable, provenance
from sgdwalk.records import SCHEMA_VERSION
from sgdwalk.replica import bare_module, batchnorm_layers
from sgdwalk.run import CERTIFIED_COLUMNS, STEP_TABLE_COLUMNS
from sgdwalk.sampled import DENSE, NUM_UNITS, SAMPLE_ONE_IN, SampledSegments
from sgdwalk.store import START_FILE, RunWriter, fsync_folder, holds_run
from sgdwalk.trajectory import Trajectory
from sgdwalk.walk import Walk, learning_rate
from sgdwalk.when import StepPredicate, When, describe, one_in

BY_BUDGET = "chosen by the budget"
"""What a run's settings say of ``method`` and ``when``; the event ``budget_chosen`` says what was chosen."""

LARGEST_PASS = 150_000
"""Examples from which on one pass a step costs more than a sample that tells a height to within 5 % mostly needs."""

_WORDS = ("step", "segment", "columns", "walk", "budget")
"""What no measure can be called, beside the columns: a walk's own schedules and what it may switch off."""

Measures = Mapping[str, Callable[[Here], Measured] | At]


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None,
    loss_fn: LossFunction | None,
    data: Any,
    *,
    run: str | Path | None = None,
    when: StepPredicate | None = EVERY_UPDATE,
    num_points: int = 10,
    batch_size: int | None = None,
    batchnorm: Literal["train", "eval"] = "train",
    method: Literal["exact", "certified", "sampled"] | None = None,
    budget: float | None = None,
    tolerance: float = 0.05,
    barriers: Literal["estimated", "exact"] = "estimated",
    certify: Literal["height", "curve"] = "height",
    sampling_seed: int = 0,
    largest_pass: int | None = LARGEST_PASS,
    measures: Measures | None = None,
    columns: StepPredicate | None = EVERY_UPDATE,
    gauge: bool = False,
    steps_per_epoch: int | None = None,
    forward: Forward | None = None,
    partition_seed: int | None = 0,
    evaluate_on: Literal["copy", "model"] = "copy",
    precision: str = "float32",
    resume: bool = False,
    on_error: Literal["disable", "raise"] = "disable",
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Walk:
    """Watch every update of an ordinary training loop: L along the segment θ_t → θ_{t+1}, cosine, distance, norms.

    Active on return; use it in a ``with`` statement or call ``close()``. The training is bit for bit what it is
    without. Memory: four vectors of the parameters' size (six while the loss noise is measured).

    Args:
        model: what is trained; wrappers of torch.compile, DataParallel and DistributedDataParallel are seen through.
        optimizer: the optimizer, a list of those that together make one update, or None for manual use
            (``walk.before_step()``, ``walk.after_step()``).
        loss_fn: ``loss_fn(output, target)`` returning a batch mean, per-example losses, or a pair (sum, count).
        data: defines L: a pair of tensors, a map-style data set, a DataLoader (its data set is read once; the loader is
            never iterated) or a list of batches. Without augmentation.
        run: folder to keep the records in; None keeps them in memory.
        when: predicate over steps (from 0) at which segments are measured; None for none, and then loss_fn and data
            may be None.
        num_points: intervals of the grid α = k / num_points; the paper's 10.
        batch_size: examples an evaluation batch; required with BatchNorm unless data come in batches.
        batchnorm: ``train`` takes each evaluation batch's statistics (paper, footnote 5), ``eval`` the running ones.
        method: ``exact`` evaluates every point over all data; ``certified`` the ends over all data and what lies
            between them on samples, each loss with a 95 % interval that holds for the whole segment; ``sampled``
            looks at a few evaluation batches of one in seven of the steps of ``when``, and of more at the start of
            training, for the mean height of an epoch (:func:`sgdwalk.analysis.sampled_epochs`): no single segment is
            measured. ``exact`` where neither it nor ``budget`` is given.
        budget: what the watched training may cost at most, as a multiple of the unwatched one, such as 1.5: in place of
            ``method`` and ``when``, which are then chosen from the measured times of the first updates and of an
            evaluation, once, and told. Nothing is watched before; ``gauge`` is kept.
        tolerance: of ``certified``: half-width of the height's interval, relative to the height (or four times the
            loss noise, if that is more). Where samples do not do, the points that may be the floor are evaluated over
            all data, up to ``largest_pass`` examples.
        barriers: of ``certified``: ``exact`` evaluates the points that leave a barrier undecided, ``estimated`` leaves
            it undecided.
        certify: of ``certified``: ``height`` has the tolerance for the height alone, and losses high above the floor
            are known less well; ``curve`` has it (or four times the loss noise, as there) for every loss along the
            segment, for pictures and fits of it.
        sampling_seed: of ``certified`` and ``sampled``: the sample of each step is a function of it and of the step.
        largest_pass: of ``certified``: with more examples in ``data`` the ends are sampled too, at most so many at each
            end, and the cost of a step stops growing with them; None evaluates the ends over all data always, as
            ``barriers="exact"`` and ``certify="curve"`` do.
        measures: ``{name: f}`` or ``{name: sgdwalk.at(when, f)}``; f(here) returns a float or a dict of floats.
        columns: predicate over steps at which cosine, distance, norms and the gauge are kept, such as ``one_in(10)``
            where at every update they cost too much; wherever something is measured they are there, too, and with None
            there alone. The update before each of them is looked at for what they need of it, others for nothing: one
            in two saves little, one in ten about half or more. Schedules are asked one update ahead then, and
            a loop that moves the parameters by itself is noticed between two updates that are looked at.
        gauge: keep the column ``gauge``, d_{t-1}·g_t with d_{t-1} = θ_t - θ_{t-1}: what the mini-batch of update t
            says, at no evaluation, of L's slope at the end of the update before. Positive: that update went past the
            floor of its segment, a bounce. Of SGD without momentum and weight decay it is made of the cosine's numbers;
            for other updates θ_{t-1} is kept, one vector more.
        steps_per_epoch: updates an epoch, for the ``epoch`` column and schedules that count epochs.
        forward: ``forward(model, batch) -> (output, target)`` for batches that are no (input, target) pairs.
        partition_seed: of the permutation that is cut into evaluation batches; None keeps the data's order.
        evaluate_on: ``copy`` evaluates on a private copy of the model, ``model`` on the model itself and puts
            everything back.
        precision: ``float32``: TF32 and autocast are off while L is evaluated; a float64 model stays float64.
        resume: go on with a run that ``run`` holds; ``walk.load_state_dict()`` must follow before the next update.
            Where it holds none a new one begins, and an event says so.
        on_error: what a failure inside a measurement does: ``disable`` records it once, switches that measurement off
            and lets the training go on; ``raise`` raises.
        name: what the run is called in reports; the folder's name by default.
        config: plain values to keep with the run.

    Raises:
        InputError: for anything that cannot be watched as it is; before training starts where it can be known.
        RunFolderError: where ``run`` holds a run and ``resume`` is not set, or cannot be written.
        ResumeError: where the run was started with other data or settings.

    >>> import torch, sgdwalk
    >>> _ = torch.manual_seed(0)
    >>> model, inputs, targets = torch.nn.Linear(3, 1), torch.randn(64, 3), torch.randn(64, 1)
    >>> optimizer, loss_fn = torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.MSELoss()
    >>> with sgdwalk.watch(model, optimizer, loss_fn, (inputs, targets)) as walk:
    ...     for step in range(3):
    ...         optimizer.zero_grad()
    ...         loss_fn(model(inputs), targets).backward()
    ...         optimizer.step()
    >>> walk.run.steps[["height", "barrier", "distance"]].shape
    (3, 3)

    Source: paper, section 3; the quantities' definitions are those of docs/quantities.md.
    """
    check_plain(model, run, name, measures, {"gauge": gauge, "resume": resume})
    check_choices(method, barriers, certify, num_points, batchnorm, evaluate_on, precision, on_error, steps_per_epoch)
    check_certification(tolerance, sampling_seed, largest_pass)
    of_certified = {"tolerance": tolerance, "barriers": barriers, "certify": certify, "largest_pass": largest_pass}
    unsaid = inspect.signature(watch).parameters
    check_of_certified(method, budget, {name: v for name, v in of_certified.items() if v != unsaid[name].default})
    kept_config = plain_config(config)
    if budget is not None:
        check_budget(budget, method, when, columns, data, loss_fn, measures or {})
        when, gauge = None, True
    certification = Certification(tolerance, barriers, sampling_seed, largest_pass, certify)
    certified = certification if method == "certified" else None
    if when is None and columns is None and budget is None and not measures:
        raise InputError(
            "when=None and columns=None keep nothing but that there was an update: pass one of them, or measures."
        )
    if when is not None and (loss_fn is None or data is None):
        raise InputError("Segments need loss_fn and data to evaluate the full loss: pass both, or when=None.")
    optimizers = _optimizers(optimizer)
    parameters = _parameters(model, optimizers)
    trajectory = Trajectory(parameters, gauge=gauge)
    evaluations, measuring = None, None
    if data is not None and loss_fn is not None:
        layers = batchnorm == "train" and bool(batchnorm_layers(bare_module(model)))
        evaluations = evaluation_data(data, batch_size, partition_seed, batchnorm=layers)
        measuring = Measuring(
            model,
            trajectory,
            evaluations,
            loss_fn,
            forward=forward,
            batchnorm=batchnorm,
            evaluate_on=evaluate_on,
            num_points=num_points,
            certified=certified,
        )
    sampled = method == "sampled" and when is not None
    _check_measures(measures or {}, taken=("gauge",) * gauge + ("sampled",) * (sampled or budget is not None))
    schedules = {"segment": None if sampled else _bound(when, steps_per_epoch)}
    columns = _bound(columns, steps_per_epoch, "columns")
    functions: dict[str, Callable[[Here], Measured]] = {}
    if sampled:
        assert evaluations is not None
        if len(evaluations) < 2:
            raise InputError(
                'method="sampled" draws some evaluation batches, and all data are a single one: pass a batch_size '
                'smaller than the data, or method="exact".'
            )
        functions["sampled"] = SampledSegments(
            min(NUM_UNITS, len(evaluations)), num_points=num_points, seed=sampling_seed
        )
        schedules["sampled"] = _drawn(_bound(when, steps_per_epoch), sampling_seed, steps_per_epoch)
    for key, measure in (measures or {}).items():
        functions[key] = measure.measure if isinstance(measure, At) else measure
        if when is None and not isinstance(measure, At):
            raise InputError(
                f"The measure {key!r} would never be taken: it is taken where segments are, and when=None measures "
                "none. Give it steps of its own: sgdwalk.at(sgdwalk.every(10), measure)."
            )
        schedules[key] = _bound(measure.when if isinstance(measure, At) else when, steps_per_epoch)
    functions = _for_this_walk(functions, measuring, trajectory, optimizers)
    unchecked = measuring.begin(None if budget is None else NOISE_BATCHES) if measuring is not None else []
    budgeted = None
    if budget is not None:
        assert measuring is not None
        budgeted = Budgeted(budget, measuring, certification, steps_per_epoch, hooked=bool(optimizers))
    settings = {
        "when": BY_BUDGET if budget is not None else None if when is None else describe(when),
        "num_points": num_points,
        "batch_size": max(evaluations.sizes) if evaluations is not None else None,
        "batchnorm": batchnorm,
        "method": BY_BUDGET if budget is not None else method or "exact",
        **({} if budget is None else {"budget": budget}),
        **({} if certified is None and budget is None else certification.settings()),
        **({"sampling_seed": sampling_seed} if method == "sampled" else {}),
        "precision": precision,
        "partition_seed": partition_seed,
        "evaluate_on": evaluate_on,
        "steps_per_epoch": steps_per_epoch,
        "measures": sorted(functions),
        "columns": None if columns is None else describe(columns),
        "gauge": gauge,
        "kernel": trajectory.kernel.name,
    }
    info = {
        "schema_version": SCHEMA_VERSION,
        "id": uuid.uuid4().hex,
        "name": name or (Path(run).name if run is not None else "walk"),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "data": _describe_data(evaluations),
        "model": {"class": type(bare_module(model)).__name__, "num_parameters": trajectory.vector.size},
        "optimizers": [_describe_optimizer(each) for each in optimizers],
        "provenance": provenance(
            device=str(trajectory.vector.device),
            num_threads=torch.get_num_threads(),
            seed=kept_config.get("seed"),
        ),
        "config": kept_config,
    }
    writer, remarks = _open_writer(run, info, resume=resume)
    if writer is not None and writer.last_step < 0:
        _save_start(writer.folder / START_FILE, bare_module(model), trajectory)
    elif writer is not None:
        unchecked = []  # told when the run began
    return Walk(
        optimizers,
        lambda: _listed(model, optimizers),
        trajectory,
        measuring,
        evaluations,
        schedules,
        columns,
        functions,
        steps_per_epoch,
        on_error,
        Journal(info, writer),
        [*(("loss_unchecked", message) for message in unchecked), *remarks],
        budgeted,
    )


def _optimizers(optimizer: Any) -> list[Optimizer]:
    if optimizer is None:
        return []
    if isinstance(optimizer, (list, tuple)):
        if not optimizer:
            raise InputError("optimizer is an empty list: pass the optimizers that together make one update.")
        return [bare_optimizer(each) for each in optimizer]
    return [bare_optimizer(optimizer)]


def _parameters(model: nn.Module, optimizers: list[Optimizer]) -> list[nn.Parameter]:
    """The walked parameters, after checking that the model has them."""
    own = {id(parameter) for parameter in bare_module(model).parameters()}
    lazy = [name for name, tensor in _named_tensors(bare_module(model)) if is_lazy(tensor)]
    if lazy:
        raise InputError(
            f"The model has lazy parameters or buffers that are not initialized yet ({', '.join(lazy[:3])}): run one "
            "forward pass before watch()."
        )
    parameters = _listed(model, optimizers)
    foreign = sum(id(parameter) not in own for parameter in parameters)
    if foreign:
        raise InputError(
            f"{foreign} of the optimizer's {len(parameters)} parameters are not the model's: pass the model whose "
            "parameters the optimizer was made with (and make the optimizer after moving the model)."
        )
    return parameters


def _listed(model: nn.Module, optimizers: list[Optimizer]) -> list[nn.Parameter]:
    """The parameters that the optimizers move as they are now; layers may be unfrozen late."""
    if not optimizers:
        return [parameter for parameter in bare_module(model).parameters() if parameter.requires_grad]
    return [parameter for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]]


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _check_measures(measures: Mapping[str, Any], taken: tuple[str, ...]) -> None:
    for name, measure in measures.items():
        own = (*STEP_TABLE_COLUMNS, *CERTIFIED_COLUMNS, *DERIVED_COLUMNS, *_WORDS, *taken)
        if name in own or name.endswith("_reason"):
            raise InputError(f"A measure cannot be named {name!r}, which the walk itself uses: choose another name.")
        function = measure.measure if isinstance(measure, At) else measure
        if isinstance(function, type):
            raise InputError(
                f"measures[{name!r}] is the class {function.__name__}: pass an instance of it, {function.__name__}()."
            )
        if not callable(function):
            raise InputError(
                f"measures[{name!r}] is {measure!r}, which is not callable: pass f(here) or sgdwalk.at(when, f)."
            )


def _for_this_walk(
    functions: dict[str, Callable[[Here], Measured]],
    measuring: Measuring | None,
    trajectory: Trajectory,
    optimizers: list[Optimizer],
) -> dict[str, Callable[[Here], Measured]]:
    """The measures that this walk takes, after each that can has said whether it can be taken at all."""
    if not functions:
        return functions
    full_loss = None if measuring is None else measuring.full_loss
    here = Here(0, None, learning_rate(optimizers), trajectory.start, full_loss, None, optimizers)
    with contextlib.nullcontext() if full_loss is None else full_loss.evaluating():
        try:
            return {name: for_walk(name, function, here) for name, function in functions.items()}
        finally:
            here.leave()


def _drawn(when: StepPredicate | None, seed: int, steps_per_epoch: int | None) -> StepPredicate:
    """The steps of a sampled walk among those that were asked for."""
    drawn = one_in(SAMPLE_ONE_IN, seed=seed, dense=DENSE)
    assert when is not None
    asked = when if isinstance(when, When) else When(describe(when), lambda step, _: when(step))
    return (drawn & asked).bind(steps_per_epoch)


def _bound(when: StepPredicate | None, steps_per_epoch: int | None, name: str = "when") -> StepPredicate | None:
    if when is not None and not callable(when):
        raise InputError(f"{name} must be a predicate step -> bool such as sgdwalk.every(10), or None; got {when!r}.")
    return when.bind(steps_per_epoch) if isinstance(when, When) else when


def _describe_data(evaluations: EvaluationData | None) -> dict[str, Any]:
    if evaluations is None:
        return {}
    return {
        "description": evaluations.description,
        "num_examples": evaluations.num_examples,
        "num_batches": len(evaluations),
        "fingerprint": evaluations.fingerprint(),
    }


def _describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.tolist()
        if isinstance(value, (tuple, list)):
            return [plain(part) for part in value]
        if isinstance(value, (bool, int, str, type(None))) or (isinstance(value, float) and math.isfinite(value)):
            return value
        return repr(value)

    groups = []
    for group in optimizer.param_groups:
        described = {key: plain(value) for key, value in group.items() if key not in ("params", "lr")}
        num_parameters = sum(parameter.numel() for parameter in group["params"])
        groups.append({"learning_rate": plain(group.get("lr")), "num_parameters": num_parameters, **described})
    return {"class": type(optimizer).__name__, "groups": groups}


def _save_start(path: Path, module: nn.Module, trajectory: Trajectory) -> None:
    """Keep θ_0 in the run folder, under the parameters' names."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    vector = trajectory.vector
    tensors = zip(vector.parameters, vector.views(trajectory.start), strict=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        # Straight into the file: the content as bytes would be one more vector.
        safetensors.torch.save_file({names[id(parameter)]: start for parameter, start in tensors}, partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        fsync_folder(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise RunFolderError(f"cannot write {path}: {error}.") from error


def _open_writer(
    run: str | Path | None, info: dict[str, Any], *, resume: bool
) -> tuple[RunWriter | None, list[tuple[str, str]]]:
    """The run folder's writer, and what a reader should know about going on with it."""
    if run is None:
        if resume:
            raise InputError("resume=True needs run=, the folder of the run to go on with.")
        return None, []
    folder = Path(run)
    if not holds_run(folder):
        message = f"resume=True, and {folder} held no run to go on with: this one begins there anew."
        return RunWriter.create(folder, info), [("nothing_to_resume", message)] if resume else []
    if not resume:
        raise RunFolderError(
            f"{folder} holds a run already: pass resume=True and load the walk's state to go on with it, or name "
            "another folder."
        )
    writer = RunWriter.resume(folder)
    try:
        differences = check_resumable(writer.info, info)
    except ResumeError:
        writer.close()
        raise
    if not differences:
        return writer, []
    message = f"Resumed elsewhere ({'; '.join(differences)}): numbers may differ in their last digits."
    return writer, [("provenance_changed", message)]
