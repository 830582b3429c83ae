"""The arrays that the parts of the server hand each other."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
"""A state [S]: see `dnc_serve.model.rows`."""

Array = NDArray[Any]
"""Inputs or outputs [T, *shape], in the model's dtypes, and fields of a state in theirs."""
