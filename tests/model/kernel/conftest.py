"""Helpers are compiled for the same kind of processor as served code."""

import os

from dnc_serve.model import DNCConfig
from dnc_serve.model.kernel.code import request

_target = request(DNCConfig(input_size=1, hidden_size=1))
os.environ |= {"NUMBA_CPU_NAME": _target.processor, "NUMBA_CPU_FEATURES": _target.features}
