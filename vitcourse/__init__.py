"""vitcourse: a Vision Transformer on Triton kernels that its notebooks build one by one."""

from . import runtime as runtime  # first: it decides where kernels run before Triton is imported

__version__ = "0.1.0"
__all__ = ["ViT", "ViTConfig", "kernels", "layers", "runtime"]


def __getattr__(name: str):
    # Lazily, so that `import vitcourse` in a lesson on one kernel does not import the model.
    import importlib

    if name in ("ViT", "ViTConfig"):
        return getattr(importlib.import_module(".vit", __name__), name)
    if name in ("kernels", "layers"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
