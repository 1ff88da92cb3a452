"""Small matrices are solved on one thread, and the setting comes back."""

import numba
import torch

from armor.run.threads import SHARED_FROM, threads_for


def test_small_matrices_take_one_thread() -> None:
    before = torch.get_num_threads(), numba.get_num_threads()
    with threads_for(SHARED_FROM - 1):
        assert (torch.get_num_threads(), numba.get_num_threads()) == (1, 1)
    assert (torch.get_num_threads(), numba.get_num_threads()) == before
    with threads_for(SHARED_FROM):
        assert (torch.get_num_threads(), numba.get_num_threads()) == before
