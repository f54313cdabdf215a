"""The full loss where a model stands now: for questions asked once, outside any walk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypedDict

from torch import nn

from sgdwalk.data import evaluation_data
from sgdwalk.errors import InputError
from sgdwalk.isolation import isolated
from sgdwalk.objective import Forward, FullLoss, LossFunction
from sgdwalk.params import ParameterVector
from sgdwalk.probes import first_evaluation
from sgdwalk.replica import Replica, bare_module, batchnorm_layers, select


class LossOptions(TypedDict, total=False):
    """How L is made of ``(model, loss_fn, data)``; the same words as in :func:`sgdwalk.watch`."""

    batch_size: int | None
    """Examples an evaluation batch; required with BatchNorm unless data come in batches."""
    batchnorm: Literal["train", "eval"]
    """``train`` (default) takes each evaluation batch's statistics, ``eval`` the running ones."""
    parameters: Sequence[str] | None
    """Names of parameters, or of layers for all of theirs, to restrict θ to; all that need a gradient by default."""
    forward: Forward | None
    """``forward(model, batch) -> (output, target)`` for batches that are no (input, target) pairs."""
    partition_seed: int | None
    """Of the permutation that is cut into evaluation batches, 0 by default; None keeps the data's order."""


class StandingLoss(FullLoss):
    """L at the point θ where the model stood when this was made; the model may go on and the copy stays.

    Raises:
        InputError: for a model, loss_fn or data that cannot be measured, before any long work.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Any,
        *,
        batch_size: int | None = None,
        batchnorm: Literal["train", "eval"] = "train",
        parameters: Sequence[str] | None = None,
        forward: Forward | None = None,
        partition_seed: int | None = 0,
        **unknown: Any,
    ):
        if unknown:  # options come through functions of several names, so that Python would name this class
            raise InputError(
                f"There is no option {', '.join(map(repr, unknown))}: besides the arguments in its documentation this "
                f"function takes {', '.join(LossOptions.__annotations__)}."
            )
        if batchnorm not in ("train", "eval"):
            raise InputError(f"batchnorm={batchnorm!r} does not exist; there is 'train' and 'eval'.")
        layers = batchnorm == "train" and bool(batchnorm_layers(bare_module(model)))
        evaluations = evaluation_data(data, batch_size, partition_seed, batchnorm=layers)
        vector = ParameterVector(selected(model, parameters))
        super().__init__(Replica(model, vector, batchnorm), evaluations, loss_fn, forward)
        with super().evaluating():
            self.site.write(self.site.here)
            first_evaluation(self)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Isolated from training; nothing is brought up to date."""
        with isolated(self.site.vector.device):
            yield


def selected(model: nn.Module, names: Sequence[str] | None) -> list[nn.Parameter]:
    """The parameters that need a gradient, or the named ones and those of named layers, in the model's order."""
    own = {name: parameter for name, parameter in bare_module(model).named_parameters() if parameter.requires_grad}
    parameters = list(own.values())
    if not parameters:
        raise InputError("No parameter of the model needs a gradient: there is nothing to differentiate by.")
    return parameters if names is None else [parameters[index] for index in select(list(own), names)]
