"""Matrix products over few rows, with the bits that a row has among many.

A kernel is chosen by shape: fewer than eight rows may be multiplied in another order than more. All else in a DNC is
done for each row by itself. So where bits must not depend on a row's company, few rows are filled up with zeros for
the products with weights, and for nothing else: the memory, which is most of the work, stays as small as it is.
"""

from torch import Tensor
from torch.nn.functional import pad

LEAST_ROWS = 8


def filled_up(rows: Tensor, least: int) -> Tensor:
    """[..., B, F] with rows of zeros below, until there are `least`."""
    return pad(rows, [0, 0, 0, least - rows.size(-2)])
