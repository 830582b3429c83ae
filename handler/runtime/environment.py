"""The environment of the processes that `dnc serve` starts: chosen by name, not inherited.

TorchServe alone reads some sixty variables, which can move its ports, its logs and its models; Java takes options from
three more, and Python could be made to wait at a prompt. What a server does follows from its settings instead.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from dnc_serve.handler.config import TOKENS_VARIABLE

_KEPT = frozenset({
    TOKENS_VARIABLE,
    # Who and where.
    "PATH", "HOME", "USER", "LOGNAME", "TZ", "TMPDIR", "XDG_CACHE_HOME",
    # The same modules as `dnc serve` itself, and nothing written where that isn't wanted.
    "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONNOUSERSITE", "PYTHONDONTWRITEBYTECODE",
    "PYTHONPYCACHEPREFIX", "PYTHONFAULTHANDLER", "VIRTUAL_ENV",
    # Libraries, and the compiler of `--compile`.
    "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "GLIBC_TUNABLES", "ROCM_PATH",
    "CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH",
    "LIBRARY_PATH",
    # The way to a collector of traces or a store elsewhere.
    "SSL_CERT_FILE", "SSL_CERT_DIR", "grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy",
    "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY",
})  # fmt: skip
_KEPT_FAMILIES = (
    # How numbers are computed: threads, instructions, devices.
    "ATEN_", "BLIS_", "CUBLAS", "CUDA_", "CUDNN_", "DNNL_", "GOMP_", "HIP", "HSA_", "KMP_", "MKL_", "NUMBA_", "NVIDIA_",
    "OMP_", "ONEDNN_", "OPENBLAS_", "PYTORCH_", "ROCR_", "TORCH", "TRITON_",
    # How memory is allocated.
    "MALLOC_", "TCMALLOC_",
    # gRPC and OpenTelemetry.
    "GRPC_", "OTEL_",
)  # fmt: skip


def child_environment(own: Mapping[str, str]) -> dict[str, str]:
    """What a child gets of our environment, and what it is given besides."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_FAMILIES)}
    if search := kept.get("PYTHONPATH"):  # the child runs in another folder
        kept["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in search.split(os.pathsep))
    # Java can't name a file that isn't ASCII in the locale C, and neither would log in one encoding.
    return {**kept, "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", **own}
