"""The row kernel: a tick of any DNC as machine code, one row at a time, whose bits depend on that row alone."""

from dnc_serve.model.kernel.code import (
    CompileRequest,
    KernelError,
    TickCode,
    compile_code,
    compiled,
    identity,
    request,
    user_cache,
    writable,
)
from dnc_serve.model.kernel.row_kernel import RowKernel

__all__ = [
    "CompileRequest",
    "KernelError",
    "RowKernel",
    "TickCode",
    "compile_code",
    "compiled",
    "identity",
    "request",
    "user_cache",
    "writable",
]
