"""SQLite's own calls of the operating system, replaced by ours: so a commit can die or fail at any of them.

SQLite lets its default file layer be given other system calls (``xSetSystemCall``, made for tests); Python's module
does not show it, so the library is asked through ctypes.
"""

import _sqlite3
import contextlib
import ctypes
import os
from ctypes import CFUNCTYPE, c_char_p, c_int, c_long, c_size_t, c_void_p

_SIGNATURES = {
    "open": CFUNCTYPE(c_int, c_char_p, c_int, c_int, use_errno=True),
    "pwrite64": CFUNCTYPE(c_long, c_int, c_void_p, c_size_t, c_long, use_errno=True),
    "ftruncate": CFUNCTYPE(c_int, c_int, c_long, use_errno=True),
    "unlink": CFUNCTYPE(c_int, c_char_p, use_errno=True),
    "openDirectory": CFUNCTYPE(c_int, c_char_p, c_void_p, use_errno=True),
}
WRITING = ("pwrite64", "ftruncate", "unlink", "openDirectory")

_METHODS = "Open Delete Access FullPathname DlOpen DlError DlSym DlClose Randomness Sleep CurrentTime GetLastError"


class _FileLayer(ctypes.Structure):
    _fields_ = [
        *(("version", c_int), ("file_size", c_int), ("longest_path", c_int)),
        *(("next", c_void_p), ("name", c_char_p), ("data", c_void_p)),
        *((method, c_void_p) for method in [*_METHODS.split(), "CurrentTimeInt64"]),
        ("set_system_call", CFUNCTYPE(c_int, c_void_p, c_char_p, c_void_p)),
        ("get_system_call", CFUNCTYPE(c_void_p, c_void_p, c_char_p)),
    ]


def _file_layer():
    find = ctypes.CDLL(_sqlite3.__file__).sqlite3_vfs_find
    find.restype, find.argtypes = c_void_p, [c_char_p]
    address = find(None)
    return address, _FileLayer.from_address(address)


def why_not():
    """Why SQLite's calls cannot be replaced here; None where they can."""
    try:
        address, layer = _file_layer()
    except (AttributeError, OSError) as error:
        return f"this Python does not show its SQLite library: {error}"
    if not all(layer.get_system_call(address, name.encode()) for name in _SIGNATURES):
        return "this SQLite lacks some of the system calls to replace"
    return None


@contextlib.contextmanager
def replaced(name, make):
    """Within it, SQLite calls ``make(original)`` in place of the system call ``name``."""
    address, layer = _file_layer()
    signature = _SIGNATURES[name]
    callback = signature(make(signature(layer.get_system_call(address, name.encode()))))
    layer.set_system_call(address, name.encode(), ctypes.cast(callback, c_void_p))
    try:
        yield
    finally:
        layer.set_system_call(address, name.encode(), None)


def failing(name, code):
    """Within it, SQLite's system call ``name`` fails with the error ``code``."""

    def make(_):
        def fail(*_):
            ctypes.set_errno(code)
            return -1

        return fail

    return replaced(name, make)


@contextlib.contextmanager
def dying(point, die):
    """Within it, the process dies where ``point()`` is true: before or after a call that writes, or half way in it."""

    def make(original):
        def call(*arguments):
            if point():
                die()
            if len(arguments) == 4 and point():
                descriptor, content, size, offset = arguments
                os.pwrite(descriptor, ctypes.string_at(content, size // 2), offset)
                die()
            result = original(*arguments)
            if point():
                die()
            return result

        return call

    with contextlib.ExitStack() as stack:
        for name in WRITING:
            stack.enter_context(replaced(name, make))
        yield
