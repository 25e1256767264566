"""Lesson 00's look at the reader's machine: what is there, what is missing, and how to mend it."""

import importlib.metadata
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .. import measure, runtime

MINIMUM_PYTHON = (3, 10)
PACKAGES = ("torch", "triton", "transformers", "safetensors", "triton-viz", "matplotlib", "scikit-learn")


@dataclass
class Finding:
    """One line of the report: what was looked at, what was found, and how to mend it; "" where nothing is to be done."""

    what: str
    found: str
    mend: str = ""
    needed: bool = True


@triton.jit
def _probe_kernel(output_ptr, size, BLOCK: tl.constexpr):
    for start in range(0, size, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        tl.store(output_ptr + offsets, offsets + 1, mask=offsets < size)


def _kernel_runs() -> Finding:
    output = torch.zeros(4, dtype=torch.int32, device=runtime.DEVICE)
    try:
        _probe_kernel[(1,)](output, 4, BLOCK=2)
    except Exception as error:
        return Finding(
            "a first kernel",
            f"failed: {type(error).__name__}: {str(error).strip()[:120]}",
            "delete .venv and run `make lab`: it installs the pinned versions. On a GPU, Triton also needs a C compiler",
        )
    right = output.tolist() == [1, 2, 3, 4]
    return Finding(
        "a first kernel",
        "ran, and its result is right" if right else f"ran, and gave {output.tolist()}",
        "" if right else "reinstall triton",
    )


def _gpu() -> list[Finding]:
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        capability = 10 * properties.major + properties.minor
        found = (
            f"{properties.name}, sm_{capability}, {properties.multi_processor_count} SMs, {properties.total_memory / 1e9:.0f} GB"
        )
        findings = [
            Finding(
                "CUDA GPU", found, "" if capability >= 75 else "sm_75 or later is needed; set TRITON_INTERPRET=1 to go on without"
            )
        ]
        if runtime.INTERPRETER:
            findings.append(
                Finding(
                    "TRITON_INTERPRET", "1: kernels do not run on that GPU", "unset it and restart, to use the GPU", needed=False
                )
            )
        return findings
    if shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi"], capture_output=True, check=False).returncode == 0:
        if torch.version.cuda is None:
            return [
                Finding(
                    "CUDA GPU",
                    "the driver sees one, but this PyTorch is a CPU build",
                    "install PyTorch's CUDA build into .venv",
                    needed=False,
                )
            ]
        mend = f"update the driver: this PyTorch wants CUDA {torch.version.cuda}"
        return [Finding("CUDA GPU", "the driver sees one, but PyTorch cannot use it", mend, needed=False)]
    return [Finding("CUDA GPU", "none: kernels run in Triton's interpreter, and timings are shown as recorded")]


def report() -> None:
    """Print what this machine has for the course, a line each, and what to do about what it lacks."""
    findings = []
    old = sys.version_info < MINIMUM_PYTHON
    findings.append(Finding("Python", platform.python_version(), "install Python 3.10 or later" if old else ""))
    findings.append(
        Finding(
            "platform",
            f"{platform.system()} {platform.machine()}",
            "" if platform.system() == "Linux" else "use Linux or WSL: Triton needs it",
        )
    )
    for package in PACKAGES:
        try:
            findings.append(Finding(package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(package, "missing", "run `make lab` once: it installs requirements.txt into .venv"))
    findings += _gpu()
    findings.append(Finding("kernels run on", runtime.describe()))
    findings.append(_kernel_runs())
    recordings = sorted(path.name for path in measure.BENCHMARKS.glob("*") if path.is_dir())
    findings.append(
        Finding("recorded results", ", ".join(recordings) or "none", "" if recordings else "clone the whole repository")
    )
    for finding in findings:
        mark = "ok" if not finding.mend else "MEND" if finding.needed else "note"
        print(f"{mark:4}  {finding.what:18} {finding.found}" + (f"\n{'':24} -> {finding.mend}" if finding.mend else ""))
    missing = sum(bool(finding.mend) and finding.needed for finding in findings)
    print("\nEverything that the course needs is here." if not missing else f"\n{missing} to mend, each with how beside it.")
