"""Where kernels run: a CUDA GPU, or Triton's interpreter on the CPU.

The choice is made once, when this module is first imported, and it has to come before Triton's own import: Triton
decorates its standard functions at import time, and they are compiled or interpreted from then on as `TRITON_INTERPRET`
said at that moment. So `import vitcourse` goes before `import triton`.

    TRITON_INTERPRET unset   a CUDA GPU where PyTorch sees one, else the interpreter
    TRITON_INTERPRET=1       the interpreter, also on a machine with a GPU
    TRITON_INTERPRET=0       never the interpreter; with no GPU, kernels can be compiled and not run
"""

import contextlib
import dataclasses
import functools
import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.autograd import forward_ad

_asked = os.environ.get("TRITON_INTERPRET", "").lower()
INTERPRETER: bool = _asked in ("1", "true", "yes", "on") or (_asked == "" and not torch.cuda.is_available())

if INTERPRETER:
    os.environ["TRITON_INTERPRET"] = "1"
    # NumPy warns of -inf - -inf and the like, also in lanes whose result a mask throws away.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"triton\.runtime\.interpreter")
    _triton = sys.modules.get("triton.language")
    if _triton is not None and type(_triton.standard.sum).__name__ != "InterpretedFunction":
        raise ImportError(
            "triton was imported before vitcourse, so its standard functions are set up for a GPU, and this process is "
            "to use the interpreter. Import vitcourse first, or set TRITON_INTERPRET=1 before starting Python."
        )

import triton  # noqa: E402  (only now: see the docstring)
import triton.language as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402


def _let_the_interpreter_loop() -> None:
    """Have a loop's bounds be numbers. Triton 3.6 takes int() of an array of one element, which NumPy 2.4 and later refuse."""
    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch


def _spare_the_interpreter() -> None:
    """Spare Triton's interpreter work of which nothing comes, half of its time in a small kernel."""
    # At every launch and at every call of a device function it searches all of triton.language for what to replace.
    packages = (tl, tl.core, tl.tensor, tl.math, tl.core.tensor_descriptor_base)
    names = {one: [name for name, member in inspect.getmembers(one) if tl.core.is_builtin(member)] for one in packages}

    def patch_builtin(package, builder, scope):
        for name in names[package]:
            member = getattr(package, name)
            if tl.core.is_builtin(member):
                interpreter._patch_attr(package, name, member, builder, scope)

    interpreter._patch_builtin = patch_builtin
    # It builds a table of all types whenever it looks one of them up.
    number = functools.cache(interpreter._get_np_dtype)
    address = interpreter._get_np_dtype(tl.pointer_type(tl.int8))
    interpreter._get_np_dtype = lambda dtype: address if dtype.scalar.is_ptr() else number(dtype.scalar)
    # It computes every sum and product of integers again in int64, for an assertion that only `debug` turns on.
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=options.debug)


# Another Triton may have other names for these. Then it is left as it is, and that is all.
with contextlib.suppress(AttributeError):
    _let_the_interpreter_loop()
    _spare_the_interpreter()

#: Where tensors given to a kernel have to live.
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETER else "cpu")

#: Types a kernel takes, but for what `refusal` says of this GPU. The interpreter's NumPy has no bfloat16.
DTYPES = (torch.float32, torch.float16) if INTERPRETER else (torch.float32, torch.float16, torch.bfloat16)

#: Bytes of shared memory that one program may use, by compute capability (CUDA C++ Programming Guide, table
#: "Technical Specifications per Compute Capability"). Used where no GPU is there to be asked.
SHARED_MEMORY = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}


def cdiv(number: int, size: int) -> int:
    """number / size, rounded up. (triton.cdiv is for kernels as well, and takes 2 us of the host's time.)"""
    return -(-number // size)


def next_power_of_2(number: int) -> int:
    """The least power of 2 that is no less than `number`; 0 for 0: triton.next_power_of_2, as quick as `cdiv`."""
    return 1 << (number - 1).bit_length() if number else 0


def describe() -> str:
    """One line on where kernels run, with versions: for the top of a notebook or of a table."""
    versions = f"PyTorch {torch.__version__.split('+')[0]}, Triton {triton.__version__}"
    if INTERPRETER:
        return f"Triton's interpreter on the CPU ({versions})"
    return f"{gpu_name()} ({versions})"


@functools.cache  # asked at every launch, and the driver takes its time to answer
def _properties(device: int):
    return torch.cuda.get_device_properties(device)


def gpu_name() -> str:
    """The current CUDA device's name, such as "NVIDIA H200"; "no GPU" where kernels do not run on one."""
    return _properties(torch.cuda.current_device()).name if DEVICE.type == "cuda" else "no GPU"


def capability() -> int:
    """The current CUDA device's compute capability as one number: 90 for sm_90. 0 where kernels do not run on a GPU."""
    if DEVICE.type != "cuda":
        return 0
    properties = _properties(torch.cuda.current_device())
    return 10 * properties.major + properties.minor


def multiprocessors() -> int:
    """Multiprocessors of the current CUDA device: 132 on an H200."""
    return _properties(torch.cuda.current_device()).multi_processor_count


def shared_memory() -> int:
    """Bytes of shared memory that one program may use on the current CUDA device."""
    return _properties(torch.cuda.current_device()).shared_memory_per_block_optin


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def refusal(dtype: torch.dtype) -> str:
    """Why kernels do not take `dtype` here, in words; "" where they do."""
    if dtype == torch.bfloat16 and INTERPRETER:
        return "Triton's interpreter computes with NumPy, which has no bfloat16, and its results in it are wrong"
    if dtype == torch.bfloat16 and 0 < capability() < 80:
        return f"{gpu_name()} has no bfloat16 arithmetic, which came with sm_80; it is sm_{capability()}"
    if dtype not in DTYPES:
        return "there is no kernel for it"
    return ""


def check_tensors(function: str, optional: Mapping[str, torch.Tensor | None] | None = None, **tensors: torch.Tensor) -> None:
    """Refuse tensors that `function`'s kernel cannot take, by argument name; those in `optional` may be None.

    Raises TypeError for something that is no tensor or no dense one, and for a type that `refusal` refuses; ValueError for a
    tensor on another device than `DEVICE`, or on another GPU than the current one.
    """
    given = {name: tensor for name, tensor in (optional or {}).items() if tensor is not None}
    for name, tensor in (tensors | given).items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{function}: {name} is a {type(tensor).__name__}; a torch.Tensor is accepted")
        if tensor.layout != torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            raise TypeError(f"{function}: {name} is a {kind} tensor; a dense one is accepted")
        why = refusal(tensor.dtype)
        if why:
            accepted = ", ".join(_name(dtype) for dtype in DTYPES if not refusal(dtype))
            raise TypeError(f"{function}: {name} has type {_name(tensor.dtype)}; accepted: {accepted}; {why}")
        if tensor.device.type != DEVICE.type:
            where = "Triton's interpreter, on the CPU" if INTERPRETER else f"the GPU ({gpu_name()})"
            raise ValueError(
                f'{function}: {name} is on "{tensor.device}"; this kernel runs on {where}: move it with .to("{DEVICE}")'
            )
        if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
            current = f"cuda:{torch.cuda.current_device()}"
            raise ValueError(
                f'{function}: {name} is on "{tensor.device}" and kernels are launched on the current device, "{current}"'
            )


def needs_gradient(*tensors: torch.Tensor | None) -> bool:
    """Whether a result of these tensors has to carry a gradient, or would have to carry a tangent.

    Our functions have no forward-mode derivative. Said to need a gradient, they come to a torch.autograd.Function, which says so;
    an operator by itself would return a result with no tangent, which counts as zero.
    """
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return True
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    return any(tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def first_derivative_only(backward: Callable) -> Callable:
    """A Function's `backward`, refused with RuntimeError where a graph of it is asked for, by create_graph=True.

    torch.autograd.function.once_differentiable refuses later, by a node in that graph. Autograd passes the node by where it is
    asked for the gradients of some tensors only, and what is missing then counts as zero.
    """

    @functools.wraps(backward)
    def checked(ctx, *grads):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            name = type(ctx).__name__.strip("_").removesuffix("Backward")
            raise RuntimeError(
                f"{name}: trying to differentiate twice what has a first derivative only; call it without create_graph=True"
            )
        return backward(ctx, *grads)

    return checked


def check_numbers(function: str, **numbers: float) -> None:
    """Refuse a tensor where `function` takes a number, by argument name, with TypeError: it would get no gradient."""
    for name, number in numbers.items():
        if isinstance(number, torch.Tensor):
            raise TypeError(f"{function}: {name} is a Tensor; a number is accepted")


def autocast_to_float32(tensor: torch.Tensor) -> bool:
    """Whether PyTorch computes softmax and layer norm of `tensor` in float32 here: under CUDA's autocast, not the CPU's.

    (PyTorch's documentation of torch.amp, "CUDA Ops that can autocast to float32".)
    """
    return tensor.is_cuda and torch.is_autocast_enabled("cuda")


_LIBRARY = torch.library.Library("vitcourse", "DEF")


def operator(schema: str, fake: Callable) -> Callable[[Callable], Callable]:
    """Make a launcher the PyTorch operator `vitcourse::<schema>`; what is decorated is called through PyTorch from then on.

    torch.compile and torch.export take an operator as one step, and do not try to look inside. What it returns they learn
    from `fake`: the same arguments to empty tensors of the right shapes, strides and types.
    """

    def register(launcher: Callable) -> Callable:
        name = schema.partition("(")[0]
        _LIBRARY.define(schema)
        _LIBRARY.impl(name, launcher, "CompositeExplicitAutograd")
        torch.library.register_fake(f"vitcourse::{name}", fake, lib=_LIBRARY)
        return getattr(torch.ops.vitcourse, name).default

    return register


@functools.cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def side_by_side(first: Callable[[], torch.Tensor], second: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the two launchers return. On a GPU `second` has a stream of its own, so that both may run at once.

    That pays where one waits for memory and the other for arithmetic, and where `first` leaves room: the GPU starts programs of
    `second` once all of `first` have started. Whatever is launched afterwards waits for both.
    """
    if DEVICE.type != "cuda":
        return first(), second()
    stream = torch.cuda.current_stream()
    other = _second_stream(stream.device)
    other.wait_stream(stream)
    one = first()
    with torch.cuda.stream(other):
        two = second()
    stream.wait_stream(other)
    two.record_stream(stream)  # its memory is the other stream's, which may not have it back before this one is done with it
    return one, two


def dot_precision(dtype: torch.dtype) -> str:
    """What `tl.dot` is told for its `input_precision`: a float32 product follows torch.get_float32_matmul_precision().

    "highest" asks for float32 in full. From sm_80 on that is "tf32x3": each operand is split into two tf32 numbers, and
    three of their four products are summed on the tensor cores (Ootomo and Yokota, arXiv 2203.03341). The tests
    hold it to twice PyTorch's own float32 error, and `vit_forward.csv` has its speed beside PyTorch's. "high" and
    "medium" are "tf32".
    """
    if dtype != torch.float32 or capability() < 80:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@dataclass(frozen=True)
class Config:
    """One way to launch a kernel: its block sizes by name, warps per program and pipeline stages."""

    blocks: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 3

    def options(self) -> dict[str, int]:
        """The keyword arguments of a launch, `kernel[grid](..., **config.options())`."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass
class Configs:
    """A kernel's launch configurations, and the choice among them by shape class.

    candidates: what a GPU that nobody has measured searches through, in the order to try.
    pinned: GPU name, then shape class, to the configuration measured to be the fastest there.
    shared_bytes: (config, bytes an element) to an upper bound of the shared memory it takes.
    """

    kernel: str
    candidates: list[Config]
    shared_bytes: Callable[[Config, int], int]
    pinned: Mapping[str, Mapping[str, Config]] = field(default_factory=dict)
    _found: dict[tuple, Config] = field(default_factory=dict)

    def fitting(self, shared: int, itemsize: int) -> list[Config]:
        """The candidates that fit `shared` bytes of shared memory."""
        return [config for config in self.candidates if self.shared_bytes(config, itemsize) <= shared]

    def choose(self, shape_class: str, dtype: torch.dtype, launch: Callable[[Config], None]) -> Config:
        """The configuration for `shape_class`: pinned, found before, or the fastest of a search that calls `launch`.

        While a CUDA graph is being captured nothing can be timed, so a shape class not seen before gets the first
        candidate that fits.
        """
        pinned = self.pinned.get(gpu_name(), {}).get(f"{shape_class} {dtype.itemsize}")
        if pinned is not None:
            return pinned
        key = (gpu_name(), triton.__version__, self.kernel, shape_class, str(dtype))
        if key not in self._found:
            fitting = self.fitting(shared_memory(), dtype.itemsize)
            if torch.cuda.is_current_stream_capturing():
                return fitting[0]
            stored = _read_cache().get(" | ".join(key))
            options = [config.options() for config in fitting]
            if stored in options:
                self._found[key] = fitting[options.index(stored)]
            else:
                self._found[key] = _fastest(fitting, launch)
                _write_cache(" | ".join(key), self._found[key].options())
        return self._found[key]


def _fastest(configs: list[Config], launch: Callable[[Config], None]) -> Config:
    def time(config: Config) -> float:
        try:
            launch(config)
        except triton.runtime.errors.OutOfResources:
            return float("inf")
        # In a CUDA graph, because Python takes longer to launch a small kernel than the GPU to run it.
        return triton.testing.do_bench_cudagraph(lambda: launch(config), rep=5, return_mode="median")

    return min(configs, key=time)


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vitcourse" / "configs.json"


def _read_cache() -> dict:
    try:
        return json.loads(_cache_file().read_text())
    except (OSError, ValueError):
        return {}


def _write_cache(key: str, options: dict) -> None:
    # A cache that cannot be written costs a search the next time and nothing else.
    try:
        file = _cache_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(_read_cache() | {key: options}, indent=1))
        os.replace(scratch, file)
    except OSError:
        pass
