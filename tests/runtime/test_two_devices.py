"""Launches go to the GPU of their tensors, whichever is current: played with fake tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves

from armor.baselines import obs_triton
from armor.baselines.obs_block import prune_block
from armor.factorize.kernels import triton as solver
from armor.runtime import Call
from armor.runtime.gated import Gated
from armor.runtime.registry import load
from armor.runtime.semi_structured import backend as semi_structured
from armor.runtime.semi_structured import compressed
from armor.runtime.triton import backend as triton
from armor.sparse.layer import PackedLayer
from armor.sparse.pattern import TWO_OF_FOUR

pytestmark = pytest.mark.skipif(not load("triton").is_available(), reason="triton is not installed")


class Machine:
    """Two Hopper GPUs; `launched` names what was launched where it should be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = 0
        self.launched: list[str] = []
        monkeypatch.setattr(torch.cuda, "device", self.device)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (9, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: "H100")
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        stream = SimpleNamespace(cuda_stream=0)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: stream)
        properties = SimpleNamespace(multi_processor_count=132)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _=None: properties)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
        monkeypatch.setattr(torch, "_cslt_compress", self.compress)
        monkeypatch.setattr(torch, "_cslt_sparse_mm", self.multiply)
        library = SimpleNamespace(mm_search=lambda *_: (1, 1, 0, 2))
        monkeypatch.setattr(torch._C, "_cusparselt", library, raising=False)
        monkeypatch.setattr(torch, "equal", lambda one, two: False)
        # A CPU build of torch cannot index a fake tensor of a GPU, nor make it contiguous.
        monkeypatch.setattr(Tensor, "__getitem__", lambda tensor, _place: tensor)
        monkeypatch.setattr(Tensor, "contiguous", Tensor.clone)
        monkeypatch.setattr(compressed, "_handle", SimpleNamespace())
        monkeypatch.setattr(compressed, "unpack", self.unpack)
        monkeypatch.setattr(semi_structured, "_algorithms", {})
        monkeypatch.setattr(triton, "_zeroed_counters", lambda *_: None)
        for name in ("core_kernel", "blocks_kernel", "gated_kernel"):
            module = f"armor.runtime.triton.{name}.{name}"
            monkeypatch.setattr(module, Kernel(self, name))
        monkeypatch.setattr(solver, "_sweep", Kernel(self, "sweep"))
        monkeypatch.setattr(obs_triton, "_prune", Kernel(self, "prune"))

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        yield
        self.current = before

    def launch(self, name: str, *tensors: Tensor) -> None:
        assert {tensor.device.index for tensor in tensors} == {self.current}, name
        self.launched.append(name)

    def unpack(self, values: Tensor, indices: Tensor, cols: int) -> Tensor:
        return values.new_empty(len(indices), cols)

    def compress(self, dense: Tensor) -> Tensor:
        self.launch("compress", dense)
        return dense.new_empty(dense.numel() * 9 // 16)

    def multiply(self, packed: Tensor, x: Tensor, *_others: object) -> Tensor:
        self.launch("multiply", packed, x)
        return x.new_empty(x.shape[1], packed.shape[0])


class Kernel:
    """Stands for a Triton kernel."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name = machine, name

    def __getitem__(self, grid: tuple[int, ...]) -> Kernel:
        return self

    def __call__(self, *arguments: object, **_constants: object) -> None:
        tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        self.machine.launch(self.name, *tensors)


def call(device: str) -> Call:
    values = torch.empty(128, 64, dtype=torch.bfloat16, device=device)
    indices = torch.empty(128, 16, dtype=torch.uint8, device=device)
    blocks = torch.empty(4, 32, 32, dtype=torch.bfloat16, device=device)
    return Call(PackedLayer(128, values, indices, blocks, blocks))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield Machine(monkeypatch)


def test_every_launch_goes_to_the_gpu_of_its_tensors(machine: Machine) -> None:
    layer = call("cuda:1")
    few, many = (torch.empty(n, 128, dtype=torch.bfloat16, device="cuda:1") for n in (1, 64))
    triton.matmul(few, layer)
    triton.matmul_shared(many, [layer, layer])
    semi_structured.prepare(layer.layer)
    semi_structured.matmul(many, layer)
    semi_structured.matmul_shared(many, [layer, layer])
    gated = Gated(layer, layer, layer, "silu")
    triton.matmul_gated(many, gated)
    semi_structured.matmul_gated(many, gated)
    kernels = {"core_kernel", "blocks_kernel", "gated_kernel"}
    assert {*machine.launched} == {"compress", "multiply", *kernels}
    assert machine.current == 0


def test_the_sweep_goes_to_the_gpu_of_its_tensors(machine: Machine) -> None:
    codes = torch.empty(64, 8, dtype=torch.uint8, device="cuda:1")
    residual, core, left, right, inverses = (
        torch.empty(shape, dtype=torch.float32, device="cuda:1")
        for shape in ((64, 32), (64, 32), (2, 32, 32), (1, 32, 32), (1, 8, 6, 3))
    )
    solver.sweep(residual, core, codes, left, right, inverses)
    assert machine.launched == ["sweep"]
    assert machine.current == 0
    assert solver._processors(torch.device("cuda:1")) == 132


def test_sparsegpt_prunes_a_block_in_one_launch_on_the_gpu_of_its_tensors(machine: Machine) -> None:
    weight, upper = (torch.empty(32, n, device="cuda:1") for n in (40, 32))
    mask = torch.zeros(32, 40, dtype=torch.bool, device="cuda:1")
    error = prune_block(weight, upper, mask, 2, 4)
    assert machine.launched == ["prune"]
    assert machine.current == 0
    assert error.shape == weight.shape


@pytest.mark.parametrize(
    ("device", "columns", "n", "m", "expected"),
    [
        ("cuda:0", 128, 2, 4, True),
        ("cuda:1", 4, 2, 4, True),
        ("cpu", 128, 2, 4, False),
        ("cuda:0", 132, 2, 4, False),
        ("cuda:0", 6, 2, 4, False),
        ("cuda:0", 128, 4, 8, False),
    ],
)
def test_what_the_kernel_of_sparsegpt_runs(
    device: str, columns: int, n: int, m: int, expected: bool
) -> None:
    with FakeTensorMode():
        assert obs_triton.runs(torch.empty(columns, 40, device=device), n, m) == expected


def test_a_thread_has_cusparselt_on_one_gpu(machine: Machine) -> None:
    """torch makes one handle of it for each thread."""

    def is_supported(device: str) -> bool:
        found = semi_structured.is_supported(
            (128, 128), torch.bfloat16, torch.device(device), 64, TWO_OF_FOUR
        )
        return bool(found)

    assert is_supported("cuda:0")
    assert is_supported("cuda:1")
    semi_structured.prepare(call("cuda:1").layer)
    assert not is_supported("cuda:0")
    assert is_supported("cuda:1")
