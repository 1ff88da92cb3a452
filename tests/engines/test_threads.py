"""Thread counts depend on the matrix and the machine alone, and the setting comes back."""

import numba
import torch

from armor.engines.threads import threads
from armor.run.threads import SHARED_FROM, forward_threads, solve_threads


def test_small_matrices_take_few_threads() -> None:
    assert solve_threads(2**17 - 1, together=1, cores=64) == 1
    assert solve_threads(576 * 576, together=1, cores=64) == 5
    assert solve_threads(576 * 576, together=1, cores=2) == 2
    assert solve_threads(576 * 576, together=2, cores=2) == 1
    assert solve_threads(SHARED_FROM, together=1, cores=64) == 64
    assert solve_threads(SHARED_FROM, together=3, cores=64) == 21
    assert solve_threads(SHARED_FROM, together=3, cores=2) == 1
    assert forward_threads(2) == 2


def test_the_setting_comes_back() -> None:
    before = torch.get_num_threads(), numba.get_num_threads()
    with threads(1):
        assert (torch.get_num_threads(), numba.get_num_threads()) == (1, 1)
    assert (torch.get_num_threads(), numba.get_num_threads()) == before
