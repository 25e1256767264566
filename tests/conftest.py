"""What every test file shares. `vitcourse` is imported before anything that imports Triton: it decides where kernels run."""

import fcntl
import gc
import os
import zlib
from collections.abc import Iterator

# Where a line of the source is in the machine code is for profilers. Without it a kernel compiles a tenth sooner.
os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")
# Every worker, and every lesson's kernel, would have torch.compile start processes of its own, one for each core.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# A time taken on a GPU that all workers share is worth nothing. (Lessons measure; their kernels inherit this.)
os.environ.setdefault("VITCOURSE_MEASURE_ONCE", "1")

import vitcourse  # noqa: F401  # isort: skip
import pytest
import torch
from hypothesis import HealthCheck, settings

from vitcourse import runtime

# The same examples in every run, so that a failure in CI is a failure at the desk. To look for new ones:
#     python -m pytest --hypothesis-profile explore tests/test_kernels.py
# No deadline: a kernel's first call compiles it. Fewer examples on a GPU, where each compiles kernels of its own.
EXAMPLES = 20 if runtime.INTERPRETER else 6
COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeatable", derandomize=True, max_examples=EXAMPLES, print_blob=True, **COMMON)
settings.register_profile("explore", derandomize=False, max_examples=300, print_blob=True, **COMMON)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    # NumPy warns of inf - inf and of an overflowing exp, in lanes that are masked and in tests of special values.
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")
    config.addinivalue_line("markers", "memory(gigabytes): what the test takes of a GPU's memory")


LONG = (
    "test_every_configuration_compiles_and_fits", "test_every_cell_shows_what_is_stored", "test_every_solution_is_right",
    "test_small_blocks", "test_patch_embed_drawn",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Processes begin with a piece of the list each, all of one length, and take from each other at the end (worksteal). So
    # that none is still at a long test when the others have nothing left, the long ones come first, some in every piece.
    pieces = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if getattr(item, "originalname", "") in LONG]
    short = [item for item in items if item not in long]
    whole, items[:] = len(items), []
    for piece in range(pieces):
        items += long[piece::pieces]
        count = max(0, whole * (piece + 1) // pieces - len(items))
        items += short[:count]
        del short[:count]


def pytest_collection_finish() -> None:
    # Modules and thousands of tests stay to the end: the garbage collector need not look through them again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_report_header() -> str:
    return f"kernels run on: {runtime.describe()}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", runtime.DTYPES, ids=[str(dtype).removeprefix("torch.") for dtype in runtime.DTYPES])


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run."""
    return runtime.DEVICE


@pytest.fixture(scope="session")
def dtypes() -> tuple[torch.dtype, ...]:
    """The types that kernels take here. A test with an argument called `dtype` runs once for each."""
    return runtime.DTYPES


@pytest.fixture(autouse=True)
def memory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test marked `memory` has a GPU that is large enough, no other such test beside it, and gives back what it took."""
    mark = request.node.get_closest_marker("memory")
    if mark is None or runtime.DEVICE.type != "cuda":
        yield
        return
    (gigabytes,) = mark.args
    if torch.cuda.get_device_properties(runtime.DEVICE).total_memory < gigabytes * 1e9:
        pytest.skip(f"takes {gigabytes} GB of the GPU's memory")
    with (tmp_path_factory.getbasetemp().parent / "memory.lock").open("w") as lock:  # a folder that all workers share
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, take a configuration by the shape class's hash in place of timing them all.

    Timing compiles every configuration for every new shape class, and a test draws many. This way the tests meet all
    configurations, and the same ones in every run. A test of the search itself undoes this with `monkeypatch.undo()`.
    """

    def choose(self: runtime.Configs, shape_class: str, dtype: torch.dtype, launch: object) -> runtime.Config:
        fitting = self.fitting(runtime.shared_memory(), dtype.itemsize)
        return fitting[zlib.crc32(f"{shape_class} {dtype}".encode()) % len(fitting)]

    monkeypatch.setattr(runtime.Configs, "choose", choose)
