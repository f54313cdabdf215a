"""The guard around every measurement: what runs inside leaves nothing behind in the training outside.

Kept and put back: the random number streams of Python, NumPy and torch (each device), autocast, gradient mode and the
float32 matrix-product precision. Inside, autocast, TF32 and compiled graphs are off.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch.nn.utils import parametrize

_MEASURING: ContextVar[bool] = ContextVar("sgdwalk_is_measuring", default=False)


def is_measuring() -> bool:
    """Whether the forward pass now running is one of sgdwalk's own evaluations.

    A hook that collects activations is called on the evaluation copy too; it can return at once:

    >>> import sgdwalk
    >>> def collect(module, inputs, output):
    ...     if sgdwalk.is_measuring():
    ...         return
    ...     print(output.shape)
    >>> sgdwalk.is_measuring()
    False
    """
    return _MEASURING.get()


def torch_streams(device: torch.device) -> list[torch.Tensor]:
    """Where torch's random streams stand, on the CPU and on the device's kind."""
    return [torch.get_rng_state(), *_device_states(device)]


def host_streams() -> tuple[Any, ...]:
    """Where the random streams of Python and NumPy stand; equal where none has moved."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), (name, np.asarray(keys).tobytes(), *rest)


@contextlib.contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Run a measurement so that no random stream, mode or flag differs afterwards, even when it raises."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 (the user's global stream is exactly what must be kept)
    torch_state = torch.get_rng_state()
    device_states = _device_states(device)
    token = _MEASURING.set(True)
    try:
        with contextlib.ExitStack() as stack:
            for device_type in {"cpu", device.type}:
                # No cache: cast weights leave it with the outermost autocast, which for a model's own one is this.
                stack.enter_context(torch.autocast(device_type, enabled=False, cache_enabled=False))
            stack.enter_context(_full_float32())
            stack.enter_context(_plain_computation())
            if device.type == "cuda":
                stack.enter_context(_deterministic_cudnn())
            if "torch._dynamo" in sys.modules:
                # An evaluation of another batch size would make training's compiled graph symbolic.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(torch.no_grad())
            yield
    finally:
        _MEASURING.reset(token)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        _restore_device_states(device, device_states)


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Products of float32 matrices in float32 on every backend: neither TF32 nor bfloat16 inside.

    The overall setting goes first: a backend that merely follows it then needs no setting of its own.
    """
    changed = []
    try:
        for backend in _PRECISION_HOLDERS:
            precision = backend.fp32_precision
            if precision != "ieee" and (backend is torch.backends or precision != "none"):
                changed.append((backend, precision))
                backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in reversed(changed):
            backend.fp32_precision = precision


_BACKENDS: Any = torch.backends  # its submodules make their attributes at run time
_PRECISION_HOLDERS: tuple[Any, ...] = (
    _BACKENDS,
    _BACKENDS.cuda.matmul,
    _BACKENDS.cudnn,
    _BACKENDS.cudnn.conv,
    _BACKENDS.cudnn.rnn,
    _BACKENDS.mkldnn,
    _BACKENDS.mkldnn.matmul,
    _BACKENDS.mkldnn.conv,
    _BACKENDS.mkldnn.rnn,
)


@contextlib.contextmanager
def _plain_computation() -> Iterator[None]:
    """No result kept from another point, and no eval-mode shortcut that computes another function than training does.

    ``parametrize.cached()`` around the training step would return one point's weights for all; the fused path of
    transformer layers in eval mode treats padding differently from the path that has a gradient.
    """
    cache_depth, cache = parametrize._cache_enabled, parametrize._cache
    shortcut = torch.backends.mha.get_fastpath_enabled()
    parametrize._cache_enabled, parametrize._cache = 0, {}
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = cache_depth, cache
        torch.backends.mha.set_fastpath_enabled(shortcut)


@contextlib.contextmanager
def _deterministic_cudnn() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    benchmark, deterministic = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = benchmark, deterministic


def _device_states(device: torch.device) -> list[torch.Tensor]:
    if device.type == "cuda":
        return torch.cuda.get_rng_state_all()
    if device.type == "mps":
        return [torch.mps.get_rng_state()]
    return []


def _restore_device_states(device: torch.device, states: list[torch.Tensor]) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state_all(states)
    elif device.type == "mps":
        torch.mps.set_rng_state(states[0])
