"""A training state as bytes and back: every type, dtype, layout and bit."""

import json
import math
import random
import struct

import numpy as np
import pytest
import torch

from sgdwalk import CheckpointError
from sgdwalk.state import decode, encode


def there_and_back(state):
    return decode(*encode(state))


def assert_same(actual, expected):
    """Equal types, structure, strides and bits."""
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True, check_stride=expected.dim() > 0)
        assert (
            actual.contiguous().view(-1).numpy(force=True).tobytes() == expected.contiguous().view(-1).numpy().tobytes()
        )
    elif isinstance(expected, np.ndarray):
        assert (actual.dtype, actual.shape, actual.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
    else:
        assert repr(actual) == repr(expected)


PLAIN = {
    "floats": [0.1, -0.0, 1e-320, math.inf, -math.inf, math.nan, 1.0],
    "integers": [0, -1, 2**63, 3**500],
    "others": [True, False, None, "", "θ \udcff \0 \u2028", b"", b"\x00\xff"],
    "nested": (1, [2, (3, {"four": (5,)})], {}, [], ()),
    "keys": {0: "integer", "0": "text", (1, 2): "tuple", True: None, 1.5: "float", None: "none"},
    "looks like ours": {"float": "nan", "dict": [[1, 2]], "tuple": [1]},
}


@pytest.mark.parametrize("value", PLAIN.values(), ids=PLAIN)
def test_plain_values_come_back_with_their_types(value):
    assert_same(there_and_back({"value": value}), {"value": value})


DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32]
DTYPES += [torch.float16, torch.float32, torch.float64, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)], ids=str)
def test_tensors_of_any_dtype_and_shape(dtype, shape):
    tensor = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    assert_same(there_and_back([tensor]), [tensor])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_tensors_of_dtypes_that_numpy_lacks(dtype):
    tensor = torch.tensor([1.0, -0.5, math.nan]).to(dtype)
    [back] = there_and_back([tensor])
    assert back.dtype == dtype
    assert_same(back.view(torch.uint8), tensor.view(torch.uint8))


def test_not_a_number_keeps_its_bits():
    tensor = torch.tensor([0x7FC00001, -1, 0x7F800000], dtype=torch.int32).view(torch.float32)
    [back] = there_and_back([tensor])
    assert back.view(torch.int32).tolist() == [0x7FC00001, -1, 0x7F800000]


def test_order_of_dimensions_in_memory_is_kept():
    image = torch.randn(2, 3, 4, 5)
    tensors = [image.to(memory_format=torch.channels_last), image.permute(3, 0, 2, 1), torch.randn(4, 6).T]
    assert_same(there_and_back(tensors), tensors)


def test_views_and_shared_tensors_become_copies():
    weights = torch.randn(6, 4)
    back = there_and_back(
        {"all": weights, "again": weights, "rows": weights[1::2, 1:3], "wide": torch.ones(1).expand(3)}
    )
    torch.testing.assert_close(back["rows"], weights[1::2, 1:3], rtol=0, atol=0)
    torch.testing.assert_close(back["wide"], torch.ones(3))
    back["all"].zero_()
    torch.testing.assert_close(back["again"], weights, rtol=0, atol=0)
    assert weights.abs().sum() > 0


def test_the_bytes_do_not_follow_later_updates():
    weights = torch.zeros(3)
    encoded = encode([weights])
    weights += 1
    assert_same(decode(*encoded), [torch.zeros(3)])


@pytest.mark.parametrize("dtype", ["<f8", "<f4", "|b1", "|i1", "<u4", "<i8", "<c16", ">i4", "<f2"])
def test_numpy_arrays(dtype):
    arrays = [np.arange(6).reshape(2, 3).astype(dtype), np.zeros((), dtype), np.zeros((0, 2), dtype)]
    back = there_and_back(arrays)
    assert_same(back, arrays)
    assert back[0].flags.writeable


def test_random_states_of_all_generators_go_on_alike():
    torch.manual_seed(3)
    generators = {"python": random.Random(3), "numpy": np.random.RandomState(3), "new": np.random.default_rng(3)}
    state = {
        "python": generators["python"].getstate(),
        "numpy": generators["numpy"].get_state(),
        "new": generators["new"].bit_generator.state,
        "torch": torch.get_rng_state(),
    }
    back = there_and_back(state)
    assert_same(back, state)
    expected = [
        generators["python"].random(),
        generators["numpy"].rand(),
        generators["new"].random(),
        torch.rand(1).item(),
    ]
    generators["python"].setstate(back["python"])
    generators["numpy"].set_state(back["numpy"])
    generators["new"].bit_generator.state = back["new"]
    torch.set_rng_state(back["torch"])
    actual = [
        generators["python"].random(),
        generators["numpy"].rand(),
        generators["new"].random(),
        torch.rand(1).item(),
    ]
    assert actual == expected


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD, torch.optim.LBFGS], ids=lambda make: make.__name__)
def test_optimizers_and_schedulers_go_on_alike(make):
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}

    def training():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
        optimizer = make(model.parameters(), lr=0.05, **options)
        return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)

    def train(model, optimizer, scheduler, steps):
        for step in steps:
            inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))

            def closure(inputs=inputs):
                optimizer.zero_grad()
                loss = model(inputs).square().mean()
                loss.backward()
                return loss

            optimizer.step(closure)
            scheduler.step()

    whole, parts = training(), training()
    train(*whole, range(8))
    train(*parts, range(4))
    state = there_and_back([part.state_dict() for part in parts])
    parts = training()
    for part, saved in zip(parts, state, strict=True):
        part.load_state_dict(saved)
    train(*parts, range(4, 8))
    for name, tensor in whole[0].state_dict().items():
        assert_same(parts[0].state_dict()[name], tensor)


class Custom:
    pass


UNKNOWN = {
    "object": (Custom(), "test_state.Custom at /a/1"),
    "function": (print, "builtins.builtin_function_or_method"),
    "set": ({1}, "builtins.set"),
    "object array": (np.array([Custom()]), "numpy.ndarray of dtype object"),
    "structured array": (np.zeros(1, dtype=[("x", "f8")]), "numpy.ndarray of dtype"),
    "sparse": (torch.eye(2).to_sparse(), "torch.Tensor of dtype torch.float32"),
    "meta": (torch.empty(2, device="meta"), "torch.Tensor of dtype torch.float32"),
    "complex128": (torch.zeros(1, dtype=torch.complex128), "torch.Tensor of dtype torch.complex128"),
}


@pytest.mark.parametrize(("value", "seen"), UNKNOWN.values(), ids=UNKNOWN)
def test_other_types_are_refused_naming_their_place(value, seen):
    with pytest.raises(CheckpointError, match=rf"the state holds a {seen}.*: make it of dicts"):
        encode({"a": [1, value]})


STRUCTURE, NUMBERS = encode({"weights": torch.arange(6.0).reshape(2, 3), "bytes": b"abc", "array": np.zeros(2)})


def numbers(header, data=NUMBERS[-24:]):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin=0, end=24, dtype="F32", shape=(2, 3)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


FORGED_NUMBERS = {
    "empty": b"",
    "header of 10^12 bytes": struct.pack("<Q", 10**12) + NUMBERS[8:],
    "header of 2^64 - 1 bytes": b"\xff" * 8 + NUMBERS[8:],
    "header beyond the end": struct.pack("<Q", len(NUMBERS)) + NUMBERS[8:],
    "header no JSON": numbers(b"{" * 100),
    "overlapping offsets": numbers({"/weights": entry(), "/bytes": entry(20, 24, "U8", (4,))}),
    "offsets beyond the end": numbers({"/weights": entry(0, 10**12, "U8", (10**12,))}),
    "offsets backwards": numbers({"/weights": entry(24, 0)}),
    "negative offsets": numbers({"/weights": entry(-24, 0)}),
    "huge shape": numbers({"/weights": entry(shape=(2**40, 2**40))}),
    "shape larger than its bytes": numbers({"/weights": entry(shape=(3, 3))}),
    "negative shape": numbers({"/weights": entry(shape=(-2, -3))}),
    "unknown dtype": numbers({"/weights": entry(dtype="F31")}),
    "bytes left over": numbers({"/weights": entry()}, NUMBERS[-24:] + b"more"),
    "pickle": b"\x80\x04\x95cposix\nsystem\n(S'touch canary'\ntR.",
    "another dtype than the state's": numbers({"/weights": entry(dtype="I32")}),
    "another shape than the state's": numbers({"/weights": entry(shape=(3, 2))}),
    "tensors missing": numbers({}, b""),
}


@pytest.mark.parametrize("forged", FORGED_NUMBERS.values(), ids=FORGED_NUMBERS)
def test_forged_numbers_are_refused(forged):
    structure = json.dumps(
        {"dict": [["weights", {"tensor": "/weights", "dtype": "torch.float32", "shape": [2, 3], "order": [0, 1]}]]}
    ).encode()
    good = decode(structure, numbers({"/weights": entry()}))
    assert_same(good["weights"].shape, torch.Size([2, 3]))
    with pytest.raises(ValueError, match=r"\w"):
        decode(structure, forged)


FORGED_STRUCTURES = {
    "empty": b"",
    "no text": b"\xff\xfe\x00",
    "not a number": b"[NaN, {}]",
    "deeply nested": b"[" * 100_000 + b"]" * 100_000,
    "unknown kind": b'{"class": "os.system"}',
    "tensor missing": b'{"tensor": "/nowhere", "dtype": "torch.float32", "shape": [2], "order": [0]}',
    "order of another length": b'{"tensor": "/weights", "dtype": "torch.float32", "shape": [2, 3], "order": [0]}',
    "order twice the same": b'{"tensor": "/weights", "dtype": "torch.float32", "shape": [2, 3], "order": [0, 0]}',
    "object array": b'{"array": "/array", "dtype": "|O8", "shape": [2]}',
    "array of another size": b'{"array": "/array", "dtype": "<f8", "shape": [3]}',
    "array of a huge size": b'{"array": "/array", "dtype": "<f8", "shape": [1000000000000]}',
    "array of a huge type": b'{"array": "/array", "dtype": "<f999", "shape": [2]}',
    "list as a key": b'{"dict": [[[], 1]]}',
    "pairs of three": b'{"dict": [[1, 2, 3]]}',
    "no pairs": b'{"dict": [1]}',
}


@pytest.mark.parametrize("forged", FORGED_STRUCTURES.values(), ids=FORGED_STRUCTURES)
def test_forged_structures_are_refused(forged):
    with pytest.raises(ValueError, match=r"\w"):
        decode(forged, NUMBERS)
