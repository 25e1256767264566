"""compute-sanitizer over the tests of our kernels: memcheck and racecheck side by side, for as long as there is time.

    python tests/sanitize.py --seconds 500 --log /tmp/sanitized.txt

For a machine with a CUDA GPU and compute-sanitizer. A test takes 5 to 20 s under it, most of which is compiling; the whole is
some 25 minutes of 16 processes. What has passed is added to the log, a tool and a test a line, and left out by the next run with
the same log, so that a run can be continued. Left out always: what launches no kernel of ours, or too many (refusals, searches,
torch.compile, drawn shapes, tensors of 2^31 elements), and PyTorch's own kernels, of which racecheck has something to say.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOOLS = ("memcheck", "racecheck")
FILES = ("attention_gradients", "cross_entropy", "dropout", "gradients", "kernels", "linear_gradients", "norm_linear")
FILES += ("patch_embed_gradients",)
LEFT_OUT = re.compile(
    r"two_to_the_31|search|refus|wrong_|drawn|compiled_in_one|many_elements|65535|every_public|ordinary_call|graph_draws"
    r"|authors_numbers|second_derivative|beside_every_backend"
)
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider"]


def selected(collected: str) -> list[str]:
    """The tests to run, of what `pytest --collect-only -q` printed: float16, whose kernels are bfloat16's, last."""
    tests = [line for line in collected.splitlines() if "::" in line and not LEFT_OUT.search(line)]
    random.Random(0).shuffle(tests)
    return sorted(tests, key=lambda test: "float16" in test and "bfloat16" not in test)


def read(output: str) -> tuple[list[str], list[str]]:
    """The tests that passed, and what is to be looked at, in the output of pytest -v under compute-sanitizer."""
    passed = re.findall(r"^(?:\S*tests/)?(test_\w+\.py::.*?) (?:PASSED|SKIPPED)", output, re.MULTILINE)
    quiet = re.compile(r"COMPUTE-SANITIZER|Target application|ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards|^=+ .* =+$")
    told = [line for line in output.splitlines() if line.startswith("=========") and not quiet.search(line)]
    return passed, told + re.findall(r"^.*? FAILED.*$", output, re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "sanitized.txt")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 2)
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    files = [str(HERE / f"test_{name}.py") for name in FILES]
    tests = selected(subprocess.run([*PYTEST, "--collect-only", "-q", *files], capture_output=True, text=True, check=True).stdout)
    tests = [test.removeprefix("tests/") for test in tests]
    done = set(arguments.log.read_text().splitlines()) if arguments.log.exists() else set()
    running = []
    for tool in TOOLS:
        left, share = [test for test in tests if f"{tool} {test}" not in done], max(1, arguments.processes // len(TOOLS))
        for place in range(min(share, len(left))):
            # From both ends, so that one tool finds compiled what the other has compiled.
            part = left[place::share] if tool == TOOLS[0] else left[place::share][::-1]
            output = tempfile.NamedTemporaryFile("w+", suffix=f".{tool}", delete=False)
            command = ["compute-sanitizer", "--tool", tool, "--kernel-name-exclude", "kns=native", "--target-processes"]
            command += ["application-only", *PYTEST, "-v", "--no-header", *part]
            process = subprocess.Popen(
                command, cwd=HERE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
            running.append((tool, output, process))
    while time.monotonic() < end and any(process.poll() is None for *_, process in running):
        time.sleep(1)
    found = 0
    for tool, output, process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # the sanitizer, and the tests that it runs
            process.wait()
        passed, told = read(Path(output.name).read_text(errors="replace"))
        done |= {f"{tool} {test}" for test in passed}
        found += bool(told)
        print("\n".join([f"{tool}, {output.name}:", *told[:20]]) if told else "", end="\n" if told else "")
    arguments.log.write_text("\n".join(sorted(done)) + "\n")
    for tool in TOOLS:
        print(f"{tool}: {sum(f'{tool} {test}' in done for test in tests)} of {len(tests)} tests passed, so far")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
