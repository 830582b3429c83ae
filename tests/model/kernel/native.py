"""The kernel's helpers, compiled to be called with numpy arrays; and kernels of any configuration, compiled here."""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numba import cfunc, types

from dnc_serve.model import DNC
from dnc_serve.model.kernel.code import CompileRequest, TickCode, code_file, compiled, request, write_code
from dnc_serve.model.kernel.compiler import compile_tick
from dnc_serve.model.kernel.lanes import inlined
from dnc_serve.model.kernel.row_kernel import RowKernel

# Compiled once for all processes that test, and for the next run; `make clean` removes it.
FOLDER = Path(__file__).parents[3] / "build" / "test-kernels"


def native(function: Callable[..., None], kinds: str, dtype: Any) -> Callable[..., None]:
    """A helper for arrays of a precision. `kinds`, one for each argument: array of (n)umbers or of (i)ntegers as wide,
    (s)ize, (x) a number, (f)lag; sizes are no constants here, so one compilation serves all."""
    number, integer = (types.float32, types.int32) if dtype == np.float32 else (types.float64, types.int64)
    known = {
        "n": (types.CPointer(number), ctypes.c_void_p),
        "i": (types.CPointer(integer), ctypes.c_void_p),
        "s": (types.int64, ctypes.c_int64),
        "x": (number, ctypes.c_float if dtype == np.float32 else ctypes.c_double),
        "f": (types.boolean, ctypes.c_bool),
    }
    names = [f"a{place}" for place in range(len(kinds))]
    scope = {"helper": inlined(getattr(function, "py_func", function))}
    exec(f"def call({', '.join(names)}):\n    helper({', '.join(names)})", scope)
    compiled = cfunc(types.void(*(known[kind][0] for kind in kinds)), error_model="numpy")(scope["call"])
    entry = ctypes.CFUNCTYPE(None, *(known[kind][1] for kind in kinds))(compiled.address)

    def run(*arguments: Any) -> None:
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                assert argument.flags.c_contiguous and (argument.dtype == dtype or argument.dtype.kind == "i")
        entry(*(argument.ctypes.data if isinstance(argument, np.ndarray) else argument for argument in arguments))

    run.keep = compiled  # type: ignore[attr-defined]
    return run


@cache
def _code(asked_of: str) -> TickCode:
    asked: CompileRequest = REQUESTS[asked_of]
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = code_file(FOLDER, asked)
    with FileLock(file.with_suffix(".lock")):
        if compiled(asked, [FOLDER]) is None:
            write_code(file, *compile_tick(asked))
    return TickCode(file)


REQUESTS: dict[str, CompileRequest] = {}


def kernel_of(dnc: DNC, threads: int = 1, most_bits: int = 512) -> RowKernel:
    """The kernel of a model, in the model's precision."""
    dtype = dnc.output.weight.detach().numpy().dtype
    asked = request(dnc.config, dtype.name, most_bits)
    REQUESTS[repr(asked)] = asked
    return RowKernel(dnc.config, dnc.state_dict(), _code(repr(asked)), threads, dtype)
