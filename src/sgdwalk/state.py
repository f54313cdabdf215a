"""A training state as plain bytes, and back, bit by bit: JSON for its structure, safetensors for its numbers.

Nothing here can run code when it is read. Tensors keep dtype, shape and order of their dimensions in memory
(channels_last stays so, and with it the order of every later sum); each becomes a copy on the CPU, shared or not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
import torch

from sgdwalk.errors import CheckpointError

_DTYPES = {
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    torch.complex64,
}
# What safetensors both writes and reads; the others it takes and cannot give back, or not at all.


def encode(state: Any) -> tuple[bytes, bytes]:
    """The structure as JSON and the numbers as safetensors.

    Raises:
        CheckpointError: a value of another type than dict, list, tuple, tensor, NumPy array, bytes, int, float, bool,
            str and None, naming its place.
    """
    tensors: dict[str, torch.Tensor] = {}

    def keep(place: str, tensor: torch.Tensor) -> str:
        # The place in the state names the tensor for whoever looks into the file; a slash comes first, as the
        # format reserves "__metadata__".
        name = place.encode("ascii", "backslashreplace").decode()
        while name in tensors:
            name += "'"
        tensors[name] = tensor
        return name

    structure = json.dumps(_structure(state, "", keep), separators=(",", ":"), allow_nan=False)
    return structure.encode(), safetensors.torch.save(tensors)


def decode(structure: bytes, numbers: bytes) -> Any:
    """The state that :func:`encode` was given.

    Raises:
        ValueError: these bytes are no encoded state.
    """
    try:
        # Checks length, offsets, dtypes and shapes of the header against the file before it makes any tensor.
        tensors = safetensors.torch.load(numbers)
        return _value(json.loads(structure), tensors)
    except (safetensors.SafetensorError, LookupError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _structure(value: Any, place: str, keep: Callable[[str, torch.Tensor], str]) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        pairs = [
            (_structure(key, place, keep), _structure(item, f"{place}/{key}", keep)) for key, item in value.items()
        ]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        items = [_structure(item, f"{place}/{index}", keep) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, torch.Tensor) and _is_plain(value):
        order = sorted(range(value.dim()), key=value.stride, reverse=True)
        copy = value.detach().permute(order).to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {"tensor": keep(place, copy), "dtype": str(value.dtype), "shape": list(value.shape), "order": order}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        name = keep(place, _bytes_tensor(value.tobytes()))
        return {"array": name, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, bytes):
        return {"bytes": keep(place, _bytes_tensor(value))}
    seen = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, torch.Tensor | np.ndarray):
        seen += f" of dtype {value.dtype}"
    raise CheckpointError(
        f"the state holds a {seen} at {place or '/'}: make it of dicts, lists, tuples, dense tensors, NumPy arrays of "
        "numbers, bytes, numbers, strings and None."
    )


def _value(structure: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(structure, list):
        return [_value(item, tensors) for item in structure]
    if not isinstance(structure, dict):
        return structure
    match structure:
        case {"float": str(text)}:
            return float(text)
        case {"dict": list(pairs)}:
            return {_value(key, tensors): _value(item, tensors) for key, item in pairs}
        case {"tuple": list(items)}:
            return tuple(_value(item, tensors) for item in items)
        case {"bytes": str(name)}:
            return tensors[name].numpy().tobytes()
        case {"array": str(name), "dtype": str(dtype), "shape": list(shape)} if re.fullmatch(r"[<>|][biufc]\d+", dtype):
            return np.frombuffer(tensors[name].numpy().tobytes(), dtype=np.dtype(dtype)).reshape(shape).copy()
        case {"tensor": str(name), "dtype": dtype, "shape": shape, "order": list(order)}:
            stored = tensors[name]
            tensor = stored.permute([order.index(dimension) for dimension in range(len(order))])
            if str(tensor.dtype) != dtype or list(tensor.shape) != shape:
                raise ValueError(f"tensor {name} is {tensor.dtype} {list(tensor.shape)}, wanted {dtype} {shape}")
            return tensor
    raise ValueError(f"an unknown kind of value: {sorted(structure)}")


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta and tensor.dtype in _DTYPES


def _bytes_tensor(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())
