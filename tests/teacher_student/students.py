"""Students whose pruned errors are known, shared by the tests."""

import numpy as np
import torch

from prunus.theory.teacher_student import OrderParameters

FIXTURE = OrderParameters(
    [[1.2, 1, 0.1, 0], [1, 1.1, 0, 0.1], [0.1, 0, 0.9, 0.8], [0, 0.1, 0.8, 1]],
    [[1.05, 0.05], [0.95, 0], [0.05, 0.85], [0, 0.9]],
    np.eye(2),
    (2, 1.8, 2.2, 1.9),
    (4, 4),
)


def near(actual, wanted, atol=1e-10, rtol=0.0):
    """Compare as float64; 1e-10 is what ten published decimals allow."""
    actual = torch.as_tensor(actual, dtype=torch.float64)
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(actual, wanted, atol=atol, rtol=rtol)
