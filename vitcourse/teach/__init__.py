"""What only a lesson needs: `check` for a reader's answers, `trace` of loads and stores, costs, timing, figures."""


def __getattr__(name: str):
    # Lazily: each of them imports something heavy (triton-viz, matplotlib) that the others do not need.
    import importlib

    if name in ("check", "cost", "environment", "figures", "timing", "trace"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
