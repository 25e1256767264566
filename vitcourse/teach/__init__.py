"""What only a lesson needs: `check` for answers, `trace` of loads and stores, costs, timing, figures, faults, stand-ins."""

import warnings

# transformers and huggingface_hub ask for progress bars made of widgets, which a notebook here does without.
warnings.filterwarnings("ignore", message="IProgress not found")


def __getattr__(name: str):
    # Lazily: each of them imports something heavy (triton-viz, matplotlib) that the others do not need.
    import importlib

    if name in ("check", "cost", "environment", "faults", "figures", "simulated", "timing", "trace"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
