"""Compiles ticks to machine code; a process of its own does it, which alone has Numba.

    python -m dnc_serve.model.kernel.compiler FILE… < requests

Requests are a list in JSON, each with the fields of `CompileRequest`; each FILE gets an answer, as `code.py` reads it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
from numba import cfunc, types
from numba.extending import intrinsic

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.kernel.code import SYMBOL, CompileRequest, write_code
from dnc_serve.model.kernel.lanes import inlined
from dnc_serve.model.kernel.tick import make_tick


def compile_tick(request: CompileRequest) -> tuple[bytes, int, int]:
    """An object file with the function SYMBOL, and the numbers and integers of scratch that it needs.

    The function takes the address of a block of int64: the arguments of `make_tick`'s, pointers as addresses.
    """
    tick = make_tick(DNCConfig.from_dict(request.config), request.wide)
    step = inlined(tick.function)
    number = types.float32 if request.precision == "float32" else types.float64
    numbers, rows = _pointer_to(number), _pointer_to(types.int64)
    integers = _pointer_to(types.int32 if number == types.float32 else types.int64)
    flags = _pointer_to(types.uint8)

    @cfunc(types.void(types.CPointer(types.int64)), error_model="numpy", boundscheck=False)
    def call(block):
        step(
            numbers(block[0]), rows(block[1]), rows(block[2]), numbers(block[3]), numbers(block[4]), flags(block[5]),
            numbers(block[6]), numbers(block[7]), integers(block[8]), block[9], block[10],
        )  # fmt: skip

    module = llvm.parse_assembly(call.inspect_llvm().replace(call.native_name, SYMBOL))
    target = llvm.Target.from_triple(module.triple)
    machine = target.create_target_machine(
        cpu=request.processor, features=request.features, opt=3, codemodel="jitdefault", jit=True
    )
    return machine.emit_object(module), tick.scratch, tick.integers


def _pointer_to(kind: Any) -> Any:
    """Makes a pointer to such numbers of an address."""

    @intrinsic
    def pointer(context, address):
        result = types.CPointer(kind)

        def generate(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(result))

        return result(types.int64), generate

    return pointer


if __name__ == "__main__":
    for name, asked in zip(sys.argv[1:], json.load(sys.stdin), strict=True):
        write_code(Path(name), *compile_tick(CompileRequest(**asked)))
