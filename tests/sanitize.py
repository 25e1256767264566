"""compute-sanitizer, memcheck and racecheck, over the launches that the tests of our kernels make.

    python tests/sanitize.py --launches /tmp/launches.pickle

For a machine with a CUDA GPU and compute-sanitizer. First the tests run as ever, and what they launch kernels of `vitcourse`
with is noted: the constants and, of each tensor, type, shape, strides and alignment. Then every launch that differs from the
others is made again under the tools, on random numbers (integers, such as targets, are the test's own). Under a tool a test
takes seconds, and a launch by itself a tenth of one. Each tensor is an allocation of its own there, which ends with its last
element: memcheck sees a step past the end of an allocation, PyTorch cuts small tensors out of one of 2 MB, and the tests put
theirs between guards.

That the tools would find something is shown in every run: memcheck by memory that is an element too short, racecheck by
kernels whose barriers are taken out. Left out are tests that launch no kernel of ours, or too many (refusals, searches,
torch.compile, drawn shapes, tensors of 2^31 elements), and float16, whose kernels are those of bfloat16 with another type.
"""

import argparse
import collections
import dataclasses
import importlib
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOOLS = {"memcheck": 1, "racecheck": 3}  # and how many processes each has, in parts: a launch takes that much longer
FILES = ("attention_gradients", "cross_entropy", "dropout", "gradients", "kernels", "linear_gradients", "norm_linear")
FILES += ("patch_embed_gradients",)
LEFT_OUT = re.compile(
    r"two_to_the_31|search|refus|wrong_|drawn|compiled_in_one|many_elements|65535|every_public|ordinary_call|graph_draws"
    r"|authors_numbers|second_derivative|beside_every_backend"
)
NOTE = "VITCOURSE_LAUNCHES"  # names the folder into which the tests' processes write what they launched
UNTIL = "VITCOURSE_LAUNCHES_UNTIL"  # when they are to stop, in seconds since the epoch
PLANTED = 40  # launches that are made again with a fault


def selected(tests: list[str]) -> list[str]:
    """Those of pytest's tests that are to be noted."""
    half = re.compile(r"(?<!b)float16")
    return [test for test in tests if not LEFT_OUT.search(test) and not half.search(test)]


# Noting launches: pytest's plugin, in every process that runs tests


def describe(value: object) -> tuple:
    """A kernel's argument, so that `build` can make its like."""
    import torch
    from triton.tools.tensor_descriptor import TensorDescriptor

    if isinstance(value, TensorDescriptor):
        return ("descriptor", describe(value.base), tuple(value.shape), tuple(value.strides), tuple(value.block_shape))
    if not isinstance(value, torch.Tensor):
        return ("value", value)
    before = value.data_ptr() % 16 // value.dtype.itemsize
    readable = not value.dtype.is_floating_point and value.numel() < 100_000
    if readable and value.is_cuda:
        readable = not torch.cuda.is_current_stream_capturing() and not torch.cuda.get_sync_debug_mode()
    numbers = value.tolist() if readable else None
    return ("tensor", str(value.dtype).removeprefix("torch."), tuple(value.shape), value.stride(), before, numbers)


def build(described: tuple, short: int = 0) -> object:
    """The like of what was described, on the GPU if there is one; a tensor in memory that ends with its last element.

    short: elements that this memory lacks.
    """
    import torch
    from triton.tools.tensor_descriptor import TensorDescriptor

    from vitcourse import runtime

    if described[0] == "value":
        return described[1]
    if described[0] == "descriptor":
        _, base, shape, strides, block_shape = described
        return TensorDescriptor(build(base, short), list(shape), list(strides), list(block_shape))
    _, name, shape, strides, before, numbers = described
    dtype = getattr(torch, name)
    length = before + (0 if 0 in shape else 1 + sum((size - 1) * stride for size, stride in zip(shape, strides)))
    memory = torch.empty(max(0, length - short), dtype=dtype, device=runtime.DEVICE)
    memory = memory.normal_() if dtype.is_floating_point else memory.zero_()
    if short:
        return Reaching(memory, before)
    tensor = memory.as_strided(shape, strides, before)
    return tensor if numbers is None else tensor.copy_(torch.tensor(numbers, dtype=dtype).reshape(shape))


class Reaching:
    """What Triton takes for a tensor, and PyTorch does not allow: one that may reach past its memory."""

    def __init__(self, memory: object, before: int):
        self.memory, self.before, self.dtype = memory, before, memory.dtype

    def data_ptr(self) -> int:
        return self.memory.data_ptr() + self.before * self.dtype.itemsize


def pytest_configure(config) -> None:
    if os.environ.get(NOTE):
        from triton.runtime.jit import JITFunction

        config.launches, run = {}, JITFunction.run

        def noted(self, *args, grid, warmup, **kwargs):
            if self.__module__.startswith("vitcourse.") and isinstance(grid, tuple) and not warmup:
                named = tuple((name, describe(value)) for name, value in kwargs.items())
                launch = (self.__module__, self.fn.__name__, grid, tuple(map(describe, args)), named)
                config.launches.setdefault(re.sub(r", \[[-\d, \[\]]*\]\)", ")", repr(launch)), launch)
            return run(self, *args, grid=grid, warmup=warmup, **kwargs)

        JITFunction.run = noted


def pytest_collection_modifyitems(config, items) -> None:
    if os.environ.get(NOTE):
        kept = set(selected([item.nodeid for item in items]))
        items[:] = [item for item in items if item.nodeid in kept]


def pytest_runtest_setup(item) -> None:
    if time.time() > float(os.environ.get(UNTIL, "inf")):
        import pytest

        pytest.skip("no time left")


def pytest_sessionfinish(session) -> None:
    launches = getattr(session.config, "launches", None)
    if launches:
        Path(os.environ[NOTE], f"{os.getpid()}.pickle").write_bytes(pickle.dumps(list(launches.items())))


def note(processes: int, seconds: float) -> tuple[list[tuple], bool]:
    """What the tests launch, every launch once, and whether all of them ran and passed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "sanitize", "-p", "no:cacheprovider", "-n", str(processes)]
        command += ["--dist", "worksteal", "-rfs", "--no-header", *(str(HERE / f"test_{name}.py") for name in FILES)]
        paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {NOTE: folder, UNTIL: str(time.time() + seconds), "PYTHONPATH": paths}
        done = subprocess.run(
            command, env=environment, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        print("\n".join(line[:300] for line in done.stdout.splitlines()[-12:] if "%]" not in line), flush=True)
        launches = {}
        for path in Path(folder).iterdir():
            launches |= dict(pickle.loads(path.read_bytes()))
        return [launches[key] for key in sorted(launches)], done.returncode == 0 and "no time left" not in done.stdout


# Making them again, in processes that compute-sanitizer watches


def kernel_of(launch: tuple) -> str:
    """What is compiled once: a kernel with its constants."""
    return repr((launch[1], launch[4]))


def replay(launches: list[tuple], share: int, shares: int, short: int = 0) -> None:
    """Make a share of the launches, all of a kernel's in the same share, telling each before it is made."""
    import torch

    from vitcourse import runtime

    mine = [launch for launch in launches if zlib.crc32(kernel_of(launch).encode()) % shares == share]
    for module, name, grid, args, kwargs in mine:
        values, named = [build(value, short) for value in args], {key: build(value, short) for key, value in kwargs}
        print(f"launch {name} {grid} {args} {kwargs}"[:600], flush=True)
        getattr(importlib.import_module(module), name)[grid](*values, **named)
        if runtime.DEVICE.type == "cuda":
            torch.cuda.synchronize()
    print("launch -", flush=True)


def without_barriers() -> None:
    """From now on kernels are compiled without the barriers between their warps."""
    from triton.backends.nvidia.compiler import CUDABackend

    whole = CUDABackend.make_ptx
    CUDABackend.make_ptx = lambda *args: re.sub(r"\n\s*bar\.sync[^;]*;", "", whole(*args))


def findings(output: str) -> list[str]:
    """What is to be looked at: what compute-sanitizer says after a launch, each launch once, and how Python ended."""
    quiet = re.compile(r"COMPUTE-SANITIZER|Target application|ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards|=========\s*$")
    found, launch = [], "before the first launch"
    for line in output.splitlines():
        if line.startswith("launch "):
            launch = line
        elif (line.startswith("=========") and not quiet.search(line)) or re.match(r"[\w.]*(Error|Exception)\b", line):
            if not found or not found[-1].endswith(launch):
                found.append(f"{line.strip()}  {launch}")
    return found


def chosen(launches: list[tuple], tool: str, planted: bool) -> list[tuple]:
    """The launches that one process under `tool` has to share with others, in its order."""
    if planted:  # not where a descriptor knows the tensor's end, or a kernel waits for another's copy
        launches = [launch for launch in launches if "'descriptor'" not in repr(launch[3])]
        return launches[:: max(1, len(launches) // PLANTED)][:PLANTED]
    # One tool from either end, so that each finds compiled what the other has compiled.
    return launches if tool == "memcheck" else launches[::-1]


@dataclasses.dataclass
class Watched:
    """A process under a tool: a share of the launches, or all of those with a planted fault."""

    tool: str
    planted: bool
    process: subprocess.Popen
    output: Path

    @classmethod
    def start(cls, launches: Path, tool: str, share: int, shares: int, planted: bool) -> "Watched":
        command = ["compute-sanitizer", "--tool", tool, "--target-processes", "application-only", "--kernel-name-exclude"]
        command += ["kns=native", "--destroy-on-device-error", "kernel", sys.executable, __file__, "--launches", str(launches)]
        command += ["--replay", tool, str(share), str(shares)] + ["--planted"] * planted
        more = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        if planted:
            more["TRITON_CACHE_DIR"] = tempfile.mkdtemp()
        with tempfile.NamedTemporaryFile("w", suffix=f".{tool}", delete=False) as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ | more
            )
        return cls(tool, planted, process, Path(output.name))

    def end(self, seconds: float) -> tuple[int, list[str]]:
        """How many launches were made, and what was found. What still runs after so many seconds is stopped."""
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)  # the sanitizer, and Python under it
            self.process.wait()
        text = self.output.read_text(errors="replace")
        return max(0, len(re.findall("^launch ", text, re.MULTILINE)) - 1), findings(text)  # the last one was not ended


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--launches", type=Path, required=True, help="file of what the tests launch; written if it is not there")
    parser.add_argument("--seconds", type=float, default=3600, help="for all of it")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--replay", nargs=3, metavar=("TOOL", "SHARE", "SHARES"), help=argparse.SUPPRESS)
    parser.add_argument("--planted", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    if not arguments.launches.exists():
        arguments.launches.write_bytes(pickle.dumps(note(arguments.processes, arguments.seconds * 2 / 3)))
    launches, passed = pickle.loads(arguments.launches.read_bytes())
    if arguments.replay:
        tool, share, shares = arguments.replay
        if arguments.planted and tool == "racecheck":
            without_barriers()
        mine = chosen(launches, tool, arguments.planted)
        replay(mine, int(share), int(shares), short=int(arguments.planted and tool == "memcheck"))
        return 0
    running = []
    for tool, parts in TOOLS.items():
        shares = max(1, arguments.processes * parts // sum(TOOLS.values()))
        places = [(share, shares, False) for share in range(shares)] + [(0, 1, True)]
        running += [Watched.start(arguments.launches, tool, *place) for place in places]
    made, found = collections.Counter(), collections.Counter()
    for one in sorted(running, key=lambda one: one.planted):
        launched, told = one.end(end - time.monotonic())
        made[one.tool, one.planted] += launched
        found[one.tool, one.planted] += sum(line.startswith("=") for line in told) if one.planted else len(told)
        if told and not one.planted:
            print("\n".join([f"{one.tool}, {one.output}:", *(line[:400] for line in told[:12])]))
    if not passed:
        print("Not every test was noted, or one failed.")
    for tool in TOOLS:
        print(
            f"{tool}: {made[tool, False]} of {len(launches)} launches made, of {len({*map(kernel_of, launches)})} kernels, "
            f"{found[tool, False]} findings; {found[tool, True]} of {made[tool, True]} planted faults found"
        )
        passed &= made[tool, False] == len(launches) and not found[tool, False] and found[tool, True] > 0
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
