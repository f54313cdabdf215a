"""Where evaluations run: a private copy of the model (default), or the model itself with everything put back.

Both offer the same few things: the bare module in evaluation mode, the walked parameters to write a point into, and
word of whether anything else that the loss reads has changed.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sgdwalk.errors import InputError
from sgdwalk.memory_format import set_memory_format
from sgdwalk.params import ParameterVector, tensor_bytes

_HOOK_TABLES = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
MOST_NAMES = 20
"""Names of parameters that are listed in a message."""

_OWN_ATTRIBUTES = frozenset({*nn.Module().__dict__, "track_running_stats", "_compiled_call_impl"})
_PLAIN_TYPES = (bool, int, float, complex, str, bytes, type(None))


def bare_module(model: nn.Module) -> nn.Module:
    """The user's own module inside the wrappers of torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # pyright: ignore[reportAssignmentType]
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def batchnorm_layers(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


def set_evaluation_mode(module: nn.Module, batchnorm: str) -> None:
    """Everything in eval mode; BatchNorm in ``train`` mode takes each batch's statistics and keeps none.

    The flags are set one by one: a model's own ``train`` or ``eval`` may do more than set them (merge weights, say).
    """
    for layer in module.modules():
        layer.training = False
        if isinstance(layer, _BatchNorm) and batchnorm == "train":
            layer.training = True
            layer.track_running_stats = False


def select(own: Sequence[str], names: Sequence[str]) -> list[int]:
    """Positions in ``own`` of the parameters that are named, or belong to a layer that is.

    Raises:
        InputError: for a name that stands for none of them.
    """
    if isinstance(names, str) or not names:
        raise InputError(
            f"parameters={names!r}: a list of names of parameters or layers is wanted, such as ['0.weight']."
        )
    for name in names:
        if not any(_belongs(each, name) for each in own):
            listed = ", ".join(own[:MOST_NAMES]) + (", …" if len(own) > MOST_NAMES else "")
            raise InputError(f"There is no parameter or layer {name!r} to differentiate by; there is {listed}.")
    return [index for index, each in enumerate(own) if any(_belongs(each, name) for name in names)]


def _belongs(parameter: str, name: str) -> bool:
    return parameter == name or parameter.startswith(f"{name}.")


class Site:
    """A module to evaluate at points other than the one where training stands."""

    module: nn.Module
    """The bare module; inside ``occupied()`` it is in evaluation mode."""

    targets: list[Tensor]
    """The walked parameters' storage in ``module``, to be written before an evaluation."""

    leaves: list[nn.Parameter]
    """The same as parameters, to differentiate by."""

    here: list[Tensor]
    """The walked parameters where training stands; valid inside ``occupied()``."""

    can_be_held = False
    """Whether the module can stay as it is while the model goes on."""

    def __init__(self, model: nn.Module, vector: ParameterVector, batchnorm: str):
        self.source = bare_module(model)
        for name, layer in self.source.named_modules():
            if isinstance(layer, torch.jit.ScriptModule):
                raise InputError(
                    f"{f'Layer {name!r} of the model' if name else 'The model'} is TorchScript, which can neither be "
                    "copied with parameters to differentiate by nor put back as it was: watch the module as it was "
                    "before torch.jit.script or torch.jit.trace. What torch.compile made can be watched."
                )
        self.vector = vector
        self.batchnorm = batchnorm

    def write(self, values: Iterable[Tensor]) -> None:
        """Move the module to a point, given as tensors of the parameters' shapes."""
        for target, value in zip(self.targets, values, strict=True):
            target.copy_(value)

    def indices(self, names: Sequence[str]) -> list[int]:
        """Which of the walked parameters belong to the named parameters or layers, in the vector's order.

        Raises:
            InputError: for a name that stands for no walked parameter.
        """
        own = {id(parameter): name for name, parameter in self.source.named_parameters()}
        walked = [own.get(id(parameter), "") for parameter in self.vector.parameters]
        return select(walked, names)

    def occupied(self) -> contextlib.AbstractContextManager[None]:
        """Bring the site up to date with the model; on leaving, the model is bitwise what it was."""
        raise AssertionError("abstract")

    def hold(self) -> None:
        """Until ``release()`` the module is, but for the walked parameters, what the model is now."""
        raise AssertionError("abstract")

    def release(self) -> None:
        """From the next ``occupied()`` on the module is what the model is."""
        raise AssertionError("abstract")

    def stands_here(self) -> bool:
        """Whether every parameter of the module is bitwise the model's own, as it is now."""
        pairs = zip(self.source.parameters(), self.module.parameters(), strict=False)
        return all(own.shape == copied.shape and torch.equal(own.detach().to(copied), copied) for own, copied in pairs)

    def fingerprint(self) -> bytes:
        """Digest of what the loss reads besides the walked parameters: other parameters, buffers, plain attributes."""
        digest = hashlib.blake2b(digest_size=16)
        walked = {id(parameter) for parameter in self.vector.parameters}
        for name, layer in self.source.named_modules():
            hooks = [list(layer.__dict__[table]) for table in _HOOK_TABLES]
            digest.update(repr((name, type(layer).__qualname__, hooks)).encode())
            update_digest(digest, _plain_attributes(layer))
            for key, value in [*layer._parameters.items(), *layer._buffers.items()]:
                if value is None or id(value) in walked or self._never_read(layer, key):
                    continue
                digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(tensor_bytes(value))
        return digest.digest()

    def _never_read(self, layer: nn.Module, key: str) -> bool:
        statistics = ("running_mean", "running_var") if self.batchnorm == "train" else ()
        return isinstance(layer, _BatchNorm) and key in (*statistics, "num_batches_tracked")


class Replica(Site):
    """A private copy of the model: nothing that happens in it can reach the training."""

    can_be_held = True

    def __init__(self, model: nn.Module, vector: ParameterVector, batchnorm: str):
        super().__init__(model, vector, batchnorm)
        self._held = False
        self._memory_format = torch.preserve_format
        self.usual_order: Collection[str] = ()
        """Convolutions that compute in the usual order of memory where the copy is in channels_last."""
        self._rebuild()

    def set_memory_format(self, memory_format: torch.memory_format) -> None:
        """Store the copy's four-dimensional parameters in another order; their values stay."""
        self._memory_format = memory_format
        self._order_memory()
        self.targets = [leaf.detach() for leaf in self.leaves]

    def _order_memory(self) -> None:
        # A layer whose __deepcopy__ hands out itself is the user's own: it is given no method.
        own = {id(layer) for layer in self.source.modules()}
        shared = {name for name, layer in self.module.named_modules() if id(layer) in own}
        last = self._memory_format is torch.channels_last
        set_memory_format(self.module, self._memory_format, set(self.usual_order) - shared if last else ())

    def _rebuild(self) -> None:
        self.module = _copy_without_hooks(self.source)
        for layer in list(self.module.modules()):
            for name, child in list(layer.named_children()):
                if hasattr(child, "_orig_mod"):
                    setattr(layer, name, bare_module(child))
        set_evaluation_mode(self.module, self.batchnorm)
        self._structure = _structure(self.source)
        if self._memory_format is not torch.preserve_format:
            self._order_memory()
        copies = dict(self.module.named_parameters(remove_duplicate=False))
        names = {
            id(parameter): name.replace("_orig_mod.", "")
            for name, parameter in self.source.named_parameters(remove_duplicate=False)
        }
        walked = {id(parameter) for parameter in self.vector.parameters}
        # A layer that was replaced while the optimizer keeps its parameters: they are walked, but L reads them no more.
        self.leaves = [
            copies[names[id(parameter)]] if id(parameter) in names else nn.Parameter(parameter.detach().clone())
            for parameter in self.vector.parameters
        ]
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        for leaf in self.leaves:
            leaf.requires_grad_(True)
        self.targets = [leaf.detach() for leaf in self.leaves]
        self._others = [
            (target, parameter)
            for parameter, target in zip(self.source.parameters(), self.module.parameters(), strict=True)
            if id(parameter) not in walked
        ]
        self._layers = list(zip(_bare_modules(self.source), self.module.modules(), strict=True))

    @contextlib.contextmanager
    def occupied(self) -> Iterator[None]:
        if not self._held:
            self._follow()
        self.here = [parameter.detach() for parameter in self.vector.parameters]
        yield

    def _follow(self) -> None:
        """Bring everything but the walked parameters to where the model has it."""
        if _structure(self.source) != self._structure:
            self._rebuild()
        for target, value in self._others:
            target.detach().copy_(value.detach())
        for layer, twin in self._layers:
            for key, value in layer._buffers.items():
                if value is not None and not self._never_read(layer, key):
                    twin._buffers[key] = value.detach().clone()
            for key, value in _plain_attributes(layer).items():
                twin.__dict__[key] = copy.deepcopy(value)
            for table in _HOOK_TABLES:
                twin.__dict__[table] = layer.__dict__[table]

    def hold(self) -> None:
        with torch.no_grad():
            self._follow()
        for _, twin in self._layers:
            for table in _HOOK_TABLES:  # the tables are the model's own: hooks that it gets later are not in the copies
                twin.__dict__[table] = twin.__dict__[table].copy()
        self._held = True

    def release(self) -> None:
        self._held = False


class InPlace(Site):
    """The model itself, for models that cannot be copied or memory that does not allow it."""

    def __init__(self, model: nn.Module, vector: ParameterVector, batchnorm: str):
        super().__init__(model, vector, batchnorm)
        self.module = self.source
        self.leaves = list(vector.parameters)
        # Writes through .data leave the version counters alone.
        self.targets = [parameter.data for parameter in vector.parameters]

    @contextlib.contextmanager
    def occupied(self) -> Iterator[None]:
        self.targets = [parameter.data for parameter in self.vector.parameters]
        self.here = self.vector.views(self.vector.read())
        attributes = [(layer, dict(layer.__dict__)) for layer in self.source.modules()]
        containers = [
            (value, copy.deepcopy(value))
            for layer in self.source.modules()
            for value in _plain_attributes(layer).values()
            if isinstance(value, (list, dict, set, Tensor, np.ndarray))
        ]
        buffers = [(layer, dict(layer._buffers)) for layer in self.source.modules()]
        wanted = {id(leaf) for leaf in self.leaves}
        frozen = [
            (parameter, parameter.requires_grad)
            for parameter in self.source.parameters()
            if parameter.requires_grad is not (id(parameter) in wanted)
        ]
        # The gradients taken here are no business of the hooks that the user put on the parameters for training.
        hooked = [(leaf, leaf._backward_hooks) for leaf in self.leaves if leaf._backward_hooks]
        try:
            for leaf, _ in hooked:
                leaf._backward_hooks = None
            for parameter, flag in frozen:
                parameter.requires_grad_(not flag)
            for layer, originals in buffers:
                for key, value in originals.items():
                    if value is not None:
                        layer._buffers[key] = value.clone()
            for layer in self.source.modules():
                layer.__dict__["_compiled_call_impl"] = None
            set_evaluation_mode(self.source, self.batchnorm)
            yield
        finally:
            for layer, originals in attributes:
                layer.__dict__.clear()
                layer.__dict__.update(originals)
            for layer, originals in buffers:
                layer._buffers.clear()
                layer._buffers.update(originals)
            for container, content in containers:
                _refill(container, content)
            self.write(self.here)
            self.here = []
            for parameter, flag in frozen:
                parameter.requires_grad_(flag)
            for leaf, hooks in hooked:
                leaf._backward_hooks = hooks


def _refill(container: Any, content: Any) -> None:
    """Give a container that the forward pass may have changed its content back; it stays the same object."""
    if isinstance(container, Tensor):
        container.data.copy_(content)
    elif isinstance(container, np.ndarray):
        container[...] = content
    elif isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.update(content)


def _plain_attributes(layer: nn.Module) -> dict[str, object]:
    return {key: value for key, value in layer.__dict__.items() if key not in _OWN_ATTRIBUTES and _is_plain(value)}


def _is_plain(value: object) -> bool:
    """Numbers, texts, and containers of them: what a model may be steered by during training."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.keys())) and all(map(_is_plain, value.values()))
    if isinstance(value, Tensor):
        return value.grad_fn is None and not isinstance(value, nn.Parameter)
    return isinstance(value, (*_PLAIN_TYPES, np.ndarray, np.generic))


def update_digest(digest: Any, value: object) -> None:
    """Feed a plain value, whole, into a digest."""
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(tensor_bytes(value))
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    elif isinstance(value, dict):
        for key, part in value.items():
            digest.update(repr(key).encode())
            update_digest(digest, part)
    elif isinstance(value, (list, tuple)):
        digest.update(f"{type(value).__name__} {len(value)}".encode())
        for part in value:
            update_digest(digest, part)
    else:
        digest.update(repr(value).encode())


def function_state(function: object) -> dict[str, object]:
    """What a loss function may be steered by: a module's attributes and buffers, a function's defaults and closure."""
    if isinstance(function, nn.Module):
        return {
            f"{name}.{key}": value
            for name, layer in function.named_modules()
            for key, value in {**_plain_attributes(layer), **layer._buffers, **layer._parameters}.items()
        }
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _is_filled(cell)]
    attributes = getattr(function, "__dict__", {})
    parts = {"closure": cells, "defaults": getattr(function, "__defaults__", None), **attributes}
    return {key: value for key, value in parts.items() if _is_plain(value)}


def _is_filled(cell: Any) -> bool:
    try:
        return _is_plain(cell.cell_contents)
    except ValueError:  # a variable that has no value yet
        return False


def _bare_modules(module: nn.Module) -> list[nn.Module]:
    """The modules in order, those wrapped by torch.compile unwrapped, as they stand in the copy."""
    return [layer for layer in module.modules() if not hasattr(layer, "_orig_mod")]


def _structure(module: nn.Module) -> list[int]:
    """Changes when a layer, parameter or buffer is added, removed, replaced or resized."""
    structure = []
    for layer in module.modules():
        structure.append(id(layer))
        for value in (*layer._parameters.values(), *layer._buffers.values()):
            structure.append(0 if value is None else hash((tuple(value.shape), value.dtype, value.device)))
        structure.extend(id(parameter) for parameter in layer._parameters.values())
    return structure


def _copy_without_hooks(module: nn.Module) -> nn.Module:
    """A deep copy; hooks stay behind, or a bound hook's owner would be copied with it and the user's see nothing."""
    tables = [(layer, {table: layer.__dict__[table] for table in _HOOK_TABLES}) for layer in module.modules()]
    for layer, hooks in tables:
        for table, entries in hooks.items():
            layer.__dict__[table] = type(entries)()
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise InputError(
            f"The model cannot be copied ({type(error).__name__}: {error}); layers that keep activations and old-style "
            'weight_norm or spectral_norm cannot. Pass evaluate_on="model" to watch(): it evaluates on the model '
            "itself and puts everything back."
        ) from error
    finally:
        for layer, hooks in tables:
            layer.__dict__.update(hooks)
