"""Hidden states alone, or first of several values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from armor.calibrate.form import Form, hidden_in

A, B = torch.zeros(1, 2, 4), torch.ones(1, 2, 4)


@pytest.mark.parametrize("output", [A, (A,), [A], (A, None), (A, B), [A, 3]])
def test_other_hidden_states_in_the_same_form(output: Any) -> None:
    form = Form.of(output)
    made = form.wrap(B)
    assert type(made) is type(output)
    assert hidden_in(output) is A
    assert hidden_in(made) is B
    if isinstance(output, (tuple, list)):
        assert list(made[1:]) == list(output[1:])
    assert form.is_plain == (
        not isinstance(output, (tuple, list)) or output[1:] in ((), [], (None,))
    )
