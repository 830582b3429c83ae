"""The machine code of one package, called without the interpreter's lock.

torch's own loader holds the lock throughout a call, so that nothing else of the process goes on meanwhile. What it
calls is a C interface, `torch/csrc/inductor/aoti_runtime/interface.h`, and ctypes lets go of the lock.
"""

import ctypes
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# From inputs [T, B, I] and states [B, S], contiguous and of the shapes that the code was made for, outputs [T, B, O]
# and the states after them.
Code = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# In so many threads at once each package may be called; more wait for one another.
CALLERS = 9

_pointer_of: Any = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_capsule_of: Any = ctypes.pythonapi.PyCapsule_New
_capsule_of.restype, _capsule_of.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_Pair = ctypes.c_void_p * 2


def load_code(package: Path, device: torch.device) -> Code:
    """The code of a package; on a CPU it lets other threads run. Raises OSError, RuntimeError if it can't be loaded."""
    if device.type == "cpu":
        return CpuCode(package)
    index = -1 if device.index is None else device.index
    loader = torch._inductor.aoti_load_package(str(package), run_single_threaded=True, device_index=index).loader

    def code(inputs: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        # Without the wrapper around it, which parses a description of its arguments at every call.
        outputs, after = loader.boxed_run([inputs, states])
        return outputs, after

    return code


class CpuCode:
    """May be called in several threads at once."""

    def __init__(self, package: Path) -> None:
        # Not above: it is torch's own, and another torch that lacks it can still run TorchScript.
        from torch._C import _aoti

        self._torch: Any = _aoti
        library = _mapped(package)
        create, self._run = library.AOTInductorModelContainerCreateWithDevice, library.AOTInductorModelContainerRun
        create.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p)
        self._run.argtypes = (
            ctypes.c_void_p, _Pair, ctypes.c_size_t, _Pair, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p,
        )  # fmt: skip
        self._container = ctypes.c_void_p()
        if create(ctypes.byref(self._container), CALLERS, b"cpu", None):
            raise OSError("its code can't be set up; standard error says why")

    def __call__(self, inputs: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """As `Code`; raises RuntimeError if the code fails."""
        capsules: Any = self._torch.unsafe_alloc_void_ptrs_from_tensors([inputs, states])
        taken, given = _Pair(*[_pointer_of(capsule, None) for capsule in capsules]), _Pair()
        if self._run(self._container, taken, 2, given, 2, None, None):
            raise RuntimeError("compiled code failed; standard error says why")
        results: Any = [_capsule_of(each, None, None) for each in given]
        outputs, after = self._torch.alloc_tensors_by_stealing_from_void_ptrs(results)
        return outputs, after


def _mapped(package: Path) -> ctypes.CDLL:
    """The package's library, which needs no file any more."""
    try:
        with tempfile.TemporaryDirectory(prefix="dnc-compiled-") as folder, zipfile.ZipFile(package) as files:
            names = files.namelist()
            libraries = [name for name in names if name.endswith(".so")]
            # Operators that code calls by name stand in a list; calling them takes more than this interface.
            lists = [name for name in names if name.endswith(".json") and not name.endswith("_metadata.json")]
            if len(libraries) != 1 or lists:
                raise OSError(f"it holds {len(libraries)} libraries and {len(lists)} lists of operators, not 1 and 0")
            return ctypes.CDLL(files.extract(libraries[0], folder))
    except zipfile.BadZipFile as exc:
        raise OSError(str(exc)) from exc
