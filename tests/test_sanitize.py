"""The parts of `sanitize.py` that need no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sanitize
import torch

OUTPUT = """========= COMPUTE-SANITIZER
launch relu_kernel (1,) ...
launch softmax_kernel (2,) ...
========= Invalid __global__ read of size 2 bytes
=========     at softmax_kernel
launch gelu_kernel (3,) ...
Traceback (most recent call last):
torch.AcceleratorError: CUDA error: unspecified launch failure
========= ERROR SUMMARY: 1 error
"""


def test_a_finding_is_told_once_with_its_launch() -> None:
    memory, failure = sanitize.findings(OUTPUT)
    assert memory.startswith("========= Invalid __global__ read") and memory.endswith("softmax_kernel (2,) ...")
    assert failure.startswith("torch.AcceleratorError") and failure.endswith("gelu_kernel (3,) ...")


def test_nothing_is_told_where_nothing_was_found() -> None:
    quiet = "launch a\n========= ERROR SUMMARY: 0 errors\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors)\n"
    assert sanitize.findings(quiet) == []


def test_float16_and_what_launches_nothing_are_left_out() -> None:
    kept = ["t.py::test_x[bfloat16]", "t.py::test_x[float32]"]
    assert sanitize.selected([*kept, "t.py::test_x[float16]", "t.py::test_a_wrong_shape_is_refused[1]"]) == kept


def test_every_launch_is_made_once_under_each_tool() -> None:
    launches = [
        ("vitcourse.kernels.relu", f"kernel_{n}", (n,), (("value", n),), (("BLOCK", ("value", n % 3)),)) for n in range(50)
    ]
    for tool in sanitize.TOOLS:
        assert sorted(sanitize.chosen(launches, tool, planted=False), key=lambda launch: launch[2]) == launches
        planted = sanitize.chosen([*launches, ("m", "k", (1,), (("descriptor", ()),), ())], tool, planted=True)
        assert len(planted) == sanitize.PLANTED and set(planted) < set(launches)


@pytest.mark.parametrize("short", [0, 1])
def test_tensors_are_made_again_with_their_layout_and_no_memory_behind_them(short) -> None:
    packed = torch.randn(2, 5, 3, 4)
    for view in (packed[:, 1:, 1], packed.permute(3, 2, 1, 0)[1:], packed[0, 0, 0].expand(7, 4), packed[:0], torch.tensor(1.0)):
        made = sanitize.build(sanitize.describe(view), short)
        assert made.data_ptr() % 16 == view.data_ptr() % 16 or not view.numel()
        if short:
            assert isinstance(made, sanitize.Reaching)
            assert len(made.memory) == max(0, len(sanitize.build(sanitize.describe(view)).untyped_storage()) // 4 - 1)
        else:
            assert (made.shape, made.stride(), made.dtype) == (view.shape, view.stride(), view.dtype)
            ends = [made.data_ptr() + 4 + 4 * sum((size - 1) * stride for size, stride in zip(made.shape, made.stride()))]
            assert not view.numel() or made.untyped_storage().data_ptr() + made.untyped_storage().nbytes() == ends[0]


def test_whole_numbers_are_the_tests_own() -> None:
    targets = torch.tensor([[3, -100], [0, 7]])
    assert torch.equal(sanitize.build(sanitize.describe(targets.t())).cpu(), targets.t())
    assert sanitize.build(sanitize.describe(0.5)) == 0.5


# Where Triton does not interpret and nothing runs: what a kernel was launched with is what it is launched with again.
AGAIN = """
import json, pickle, types
import torch
import vitcourse
from triton.runtime.jit import JITFunction
import sanitize

calls = []
JITFunction.run = lambda self, *args, grid, warmup, **kwargs: calls.append((self.fn.__name__, grid, args, kwargs))
config = types.SimpleNamespace()
sanitize.pytest_configure(config)
from vitcourse import kernels, runtime
runtime.shared_memory, runtime.multiprocessors = lambda: 227 << 10, lambda: 132
x = torch.randn(6, 40)
for _ in range(2):
    kernels.relu(x[:, :33])
kernels.cross_entropy(x, torch.tensor([0, 39, 1, 2, -100, 5]))
kernels.softmax(x, -1)
first, noted = list(calls), list(config.launches.values())
calls.clear()
sanitize.replay(pickle.loads(pickle.dumps(noted)), 0, 1)
plain = lambda value: [list(value.shape), list(value.stride()), str(value.dtype)] if isinstance(value, torch.Tensor) else value
told = lambda calls: [[name, grid, [plain(value) for value in args], {k: plain(v) for k, v in kwargs.items()}]
                      for name, grid, args, kwargs in calls]
print(json.dumps([told(first), told(calls)]))
"""


def test_launches_are_noted_once_and_made_again() -> None:
    here = Path(__file__).resolve().parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    environment = os.environ | {"TRITON_INTERPRET": "0", sanitize.NOTE: "unused", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", AGAIN], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, again = json.loads(done.stdout.splitlines()[-1])
    assert first[0] == first[1] and again == first[1:]
    assert again[0][0] == "relu_kernel" and len(again) >= 3
