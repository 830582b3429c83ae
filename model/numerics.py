"""What of the environment changes the bits of a computation, beside the processor and torch."""

import os

# Instructions, kernels and precisions of the libraries that compute, and of the C library's mathematics.
_FAMILIES = (
    "ATEN_", "BLIS_", "CUBLAS", "CUDNN_", "DNNL_", "GLIBC_TUNABLES", "MKL_", "NUMBA_", "NVIDIA_TF32", "ONEDNN_",
    "OPENBLAS_", "PYTORCH_", "ROCBLAS_", "TORCH_",
)  # fmt: skip
# How many threads, which torch is told anyway; what is printed, and where things lie.
_WITHOUT_EFFECT = ("NUM_THREADS", "VERBOSE", "LOGS", "ALLOC_CONF", "_DIR", "_PATH", "_HOME")


def numeric_environment() -> dict[str, str]:
    """The variables that are set, by name. There may be others: a probe of the bits themselves tells the rest."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_FAMILIES) and not name.endswith(_WITHOUT_EFFECT)
    }
