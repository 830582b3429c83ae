"""The arrays that the parts of the server hand each other."""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
