"""Shapes in signatures: checked while tests run, and only then."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from jaxtyping import TypeCheckError

from armor.baselines.nowag import normalise
from armor.calibrate.targets import Compensation, compensated
from armor.factorize.problem import Problem
from armor.factorize.sweep import sweep


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="weight"):
        normalise(torch.ones(4))
    with pytest.raises(TypeCheckError, match="missed"):
        compensated(torch.ones(3, 4), torch.eye(4), torch.eye(3), Compensation(0.1))


def test_a_field_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="moment"):
        Problem(torch.ones(3, 4), torch.ones(3))


def test_a_wrong_dtype_is_refused() -> None:
    residual, core, eye = torch.ones(8, 8), torch.zeros(8, 8), torch.eye(8).unsqueeze(0)
    with pytest.raises(TypeCheckError, match="choice"):
        sweep(residual, core, torch.zeros(8, 2, dtype=torch.int64), eye, eye)


def test_nothing_is_checked_outside_of_tests() -> None:
    code = "import sys, armor.factorize.exact; print('beartype' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
