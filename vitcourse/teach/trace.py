"""Every load and store of every program: run a function that launches Triton kernels, and see what they touched.

`record` runs the function in Triton's interpreter on CPU tensors, whether the process otherwise runs kernels on a GPU or
not, and returns a `Trace`. Nothing in the function has to change: for the time of the call a launch of any kernel, however
the function reaches it, goes to the interpreter with triton-viz's hooks in place, and `vitcourse.runtime` says "CPU".

    trace = record(add, x, y)
    trace.launches[0].grid              (4, 1, 1)
    trace.accesses[0].elements          the elements of x_ptr that program 0 reads first
    trace.owners(trace.result).program  which program stored each element of the result

An access outside of the tensors that the kernel was given raises `IllegalAccess` before it happens, so a wild pointer
cannot end the process; a function that does not finish raises `TookTooLong`.
"""

import inspect
import linecache
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

# First: runtime decides where kernels run before Triton is imported, and the kernels' modules keep what it says then, which
# during `record` is not the truth.
from .. import kernels, runtime

# ruff: isort: split
import triton
from triton.runtime import Autotuner, JITFunction, interpreter
from triton.runtime.interpreter import InterpretedFunction
from triton.tools.tensor_descriptor import TensorDescriptor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # in a notebook, tqdm asks for ipywidgets, which nothing here needs
    import triton_viz
    from triton_viz.core.callbacks import ForLoopCallbacks, OpCallbacks
    from triton_viz.core.client import Client, ClientManager
    from triton_viz.core.data import AtomicCas, AtomicRMW, Load, Store
    from triton_viz.core.patch import (
        OPERATION_REGISTRY,
        PatchOp,
        triton_viz_visit_For,
        unpatch_for_loop,
        unpatch_lang,
        unpatch_op,
    )

Program = tuple[int, int, int]

# triton-viz 3.0 hooks these two before the interpreter has made them its own, and a kernel that calls one (tl.rand calls the
# second) then fails. A trace needs no hook there.
OPERATION_REGISTRY["triton"].namespaces[triton.language].pop("trans", None)
OPERATION_REGISTRY["triton"].namespaces[triton.language.math].pop("umulhi", None)


class IllegalAccess(Exception):
    """A program was about to load or store outside of every tensor that its kernel was given.

    kernel, program, kind: whose access, and "load", "store" or "atomic".
    tensor: the kernel's parameter that the addresses were counted from, as far as they tell.
    element: the first illegal lane's distance from that tensor's first element, in elements; negative before it.
    size: how many elements of memory the tensor spans.
    lanes: how many lanes of this access were illegal.
    source: the line of the kernel.
    """

    def __init__(self, kernel: str, program: Program, kind: str, tensor: str, element: int, size: int, lanes: int, source: str):
        self.kernel, self.program, self.kind, self.tensor = kernel, program, kind, tensor
        self.element, self.size, self.lanes, self.source = element, size, lanes, source
        verb = {"load": "loads from", "store": "stores to", "atomic": "updates"}[kind]
        super().__init__(f"program {program} of {kernel} {verb} element {element} of {tensor}, which has {size}: `{source}`")


class TookTooLong(Exception):
    """The function was stopped: it ran past the time limit, or its kernels past the limit on their accesses."""


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: its name, its grid, the tensors it was given, by parameter name, and its Python function.

    versions: how often PyTorch had changed each of these tensors in place.
    """

    kernel: str
    grid: Program
    tensors: dict[str, torch.Tensor]
    function: Callable
    versions: dict[str, int]


@dataclass(frozen=True, eq=False)
class Access:
    """One load, store or atomic update of a block of elements by one program.

    launch: its place in `Trace.launches`; kernel: that launch's kernel.
    program: the program's index in the grid.
    kind: "load", "store" or "atomic".
    tensor: the parameter that the elements belong to. An access that touches several tensors is recorded once for each.
    elements: what the active lanes touch, as offsets in elements from the tensor's first element in memory. For a
        contiguous tensor that is the index into the flattened tensor.
    addresses: the same as absolute byte addresses.
    masked: how many lanes the mask switched off.
    itemsize: bytes an element.
    file, line: where in the kernel's source.
    """

    launch: int
    kernel: str
    program: Program
    kind: str
    tensor: str
    elements: np.ndarray
    addresses: np.ndarray
    masked: int
    itemsize: int
    file: str
    line: int

    @property
    def bytes(self) -> int:
        """Bytes that the active lanes move."""
        return self.elements.size * self.itemsize

    @property
    def source(self) -> str:
        """The text of the line."""
        return linecache.getline(self.file, self.line).strip()


@dataclass(frozen=True, eq=False)
class Owners:
    """Who stored each element of a tensor: arrays of the tensor's shape.

    program: the number of the program that stored the element last, x + y * grid x + z * grid x * grid y; -1 for none.
    stores: how many times it was stored.
    """

    program: np.ndarray
    stores: np.ndarray

    @property
    def twice(self) -> np.ndarray:
        """True where an element was stored more than once."""
        return self.stores > 1


@dataclass(eq=False)
class Trace:
    """What `record` saw. result: what the function returned; launches and accesses in the order in which they happened.

    undefined: the lines of loads of floating-point numbers with lanes that a mask switched off and no `other` to say what
    these hold: 0 in the interpreter, and anything on a GPU.
    """

    result: Any = None
    launches: list[Launch] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)
    undefined: list[str] = field(default_factory=list)

    def programs(self, launch: int | None = None) -> list[Program]:
        """The programs that loaded or stored something, each once, in the order in which they ran."""
        return list(dict.fromkeys(access.program for access in self.accesses if launch in (None, access.launch)))

    def owners(self, tensor: torch.Tensor | str) -> Owners:
        """Which program stored each element of `tensor`: a tensor, or a parameter's name in the last launch that has it.

        Atomic updates count as stores.
        """
        if isinstance(tensor, str):
            tensor = next(launch.tensors[tensor] for launch in reversed(self.launches) if tensor in launch.tensors)
        first, span = tensor.data_ptr(), _span(tensor)
        owner, stores = np.full(span, -1, dtype=np.int64), np.zeros(span, dtype=np.int64)
        for access in self.accesses:
            if access.kind != "load":
                elements = (access.addresses - first) // tensor.element_size()
                elements = elements[(elements >= 0) & (elements < span)]
                grid_x, grid_y, _ = self.launches[access.launch].grid
                x, y, z = access.program
                owner[elements] = x + grid_x * (y + grid_y * z)
                np.add.at(stores, elements, 1)
        memory = torch.arange(span).as_strided(tensor.shape, tensor.stride()).numpy()
        return Owners(owner[memory], stores[memory])

    def changed_after(self, tensor: torch.Tensor) -> bool:
        """Whether PyTorch has changed the tensor's memory in place since the last launch that was given it."""
        memory = tensor.untyped_storage().data_ptr()
        for launch in reversed(self.launches):
            for name, given in launch.tensors.items():
                if given.untyped_storage().data_ptr() == memory:
                    return _version(tensor) > launch.versions[name]
        return False

    @property
    def bytes_read(self) -> int:
        """Bytes that all active lanes of all loads and atomic updates read, an element counted as often as it is read."""
        return sum(access.bytes for access in self.accesses if access.kind != "store")

    @property
    def bytes_written(self) -> int:
        """Bytes that all active lanes of all stores and atomic updates write."""
        return sum(access.bytes for access in self.accesses if access.kind != "load")


def record(
    function: Callable, *args: Any, seconds: float = 60.0, accesses: int = 1_000_000, undefined: float = 0.0, **kwargs: Any
) -> Trace:
    """Call `function(*args, **kwargs)`, with its kernels in Triton's interpreter, and return what they loaded and stored.

    Tensors that reach a kernel have to be on the CPU. An `@autotune`d kernel runs its first configuration. Raises what
    the function raises; `IllegalAccess` before an access outside of the kernel's tensors; `TookTooLong` after `seconds`
    (only the main thread can be stopped so) or after `accesses` loads and stores. All three of ours carry the trace up to
    that point as `error.trace`. undefined: what the lanes of `Trace.undefined` hold.
    """
    recorder = _Recorder(Trace(), accesses, undefined)
    with _intercepted(recorder):
        try:
            with time_limit(seconds, recorder.interruptible):
                recorder.trace.result = function(*args, **kwargs)
        except Exception as error:
            ours = _cause(error)
            if isinstance(ours, (IllegalAccess, TookTooLong)):
                ours.trace = recorder.trace
                raise ours from None
            raise
    return recorder.trace


def launched(function: Callable, *args: Any, **kwargs: Any) -> list[str]:
    """The names of the Triton kernels that `function(*args, **kwargs)` launches, in order, where they run otherwise too.

    Unlike `record` it lets each run where it would, in the interpreter or on the GPU, and looks at nothing else. A search for
    the fastest configuration, the package's or `@autotune`'s, counts as the one launch that it is for. PyTorch's own kernels
    are not seen, nor what torch.compile makes or a CUDA graph replays.
    """
    names: list[str] = []
    searches = 0

    def counted(run: Callable, searching: bool) -> Callable:
        def wrapper(kernel, *args, **kwargs):
            nonlocal searches
            if not searches and not kwargs.get("warmup"):
                names.append(_innermost(kernel).__name__)
            searches += searching
            try:
                return run(kernel, *args, **kwargs)
            finally:
                searches -= searching

        return wrapper

    def search(*args, **kwargs):
        nonlocal searches
        searches += 1
        try:
            return fastest(*args, **kwargs)
        finally:
            searches -= 1

    before, fastest = {owner: owner.run for owner in _RUN}, runtime._fastest
    try:
        for owner, run in before.items():
            owner.run = counted(run, owner is Autotuner)
        runtime._fastest = search
        function(*args, **kwargs)
    finally:
        for owner, run in before.items():
            owner.run = run
        runtime._fastest = fastest
    return names


def _innermost(kernel: Any) -> Callable:
    """The Python function under a kernel's decorators."""
    while hasattr(kernel, "fn"):
        kernel = kernel.fn
    return kernel


@contextmanager
def time_limit(seconds: float, interruptible: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Raise TookTooLong inside the block once the process has computed for `seconds`. Outside of the main thread, never.

    Seconds of the processor's time, so that a busy machine does not make a function look endless.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal, _frame):
        if interruptible():
            raise TookTooLong(f"still running after {seconds:g} seconds")
        signal.setitimer(signal.ITIMER_PROF, 0.01, seconds)

    handler = signal.signal(signal.SIGPROF, stop)
    # Repeatedly, for a function that catches the first one.
    before = signal.setitimer(signal.ITIMER_PROF, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        signal.setitimer(signal.ITIMER_PROF, *before)


def _cause(error: BaseException) -> BaseException:
    # The interpreter wraps what a device function raises in an InterpreterError, once for each level of calls.
    while type(error).__name__ == "InterpreterError" and error.__cause__ is not None:
        error = error.__cause__
    return error


def _version(tensor: torch.Tensor) -> int:
    """How often PyTorch has changed the tensor's memory in place; 0 for one of inference mode, which keeps no count."""
    return 0 if tensor.is_inference() else tensor._version


def _span(tensor: torch.Tensor) -> int:
    """How many elements of memory lie from a tensor's first element to its last, both included."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))


def _tensors(name: str, argument: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(argument, torch.Tensor):
        yield name, argument
    elif isinstance(argument, TensorDescriptor):
        yield from _tensors(name, argument.base)
    elif isinstance(argument, tuple):
        for index, item in enumerate(argument):
            yield from _tensors(f"{name}[{index}]", item)
    elif isinstance(getattr(argument, "base", None), torch.Tensor):  # triton.reinterpret's wrapper
        yield name, argument.base


#: Where code lies that is not the kernel's author's.
LIBRARIES = tuple(os.path.dirname(module.__file__) + os.sep for module in (triton, triton_viz, torch, np))


def _kernel_line() -> tuple[str, int]:
    """File and line of the kernel that is running: the innermost frame that is neither Triton's, triton-viz's nor ours."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file != __file__ and not file.startswith(LIBRARIES):
            return file, frame.f_lineno
        frame = frame.f_back
    return "", 0


class _Recorder(Client):
    """The triton-viz client that fills a Trace."""

    NAME = "vitcourse"

    def __init__(self, trace: Trace, limit: int, undefined: float):
        super().__init__()
        self.trace = trace
        self.limit = limit
        self.undefined = undefined
        self.manager = ClientManager([self])
        self.interpreted: dict[JITFunction, InterpretedFunction] = {}
        self.in_machinery = False
        self.launching = False
        self.program: Program = (0, 0, 0)
        self.extents: list[tuple[str, int, int]] = []

    def interruptible(self) -> bool:
        """Whether the time limit may raise here: not while hooks are being set or taken away."""
        return not self.in_machinery

    def launch(self, kernel: JITFunction | InterpretedFunction, args: tuple, grid: Any, kwargs: dict) -> None:
        if isinstance(kernel, JITFunction):
            kernel = self.interpreted.setdefault(kernel, InterpretedFunction(kernel.fn))
        self.in_machinery = self.launching = True
        try:
            # The interpreter makes tensors of its own; a torch function mode around `record` is not to see those. NumPy
            # warns of what masked lanes compute.
            with torch._C.DisableTorchFunction(), np.errstate(all="ignore"):
                options = {name: value for name, value in kwargs.items() if name in kernel.arg_names}
                bound = inspect.getcallargs(kernel.fn, *args, **options)
                grid = tuple(grid(bound) if callable(grid) else grid)
                grid += (1,) * (3 - len(grid))
                tensors = dict(pair for name, value in bound.items() for pair in _tensors(name, value))
                for name, tensor in tensors.items():
                    if tensor.device.type != "cpu":
                        raise ValueError(f'{name} is on "{tensor.device}", and this call has its other tensors on the CPU')
                self.extents = [
                    (name, tensor.data_ptr(), tensor.data_ptr() + _span(tensor) * tensor.element_size())
                    for name, tensor in tensors.items()
                ]
                versions = {name: _version(tensor) for name, tensor in tensors.items()}
                self.trace.launches.append(Launch(kernel.fn.__name__, grid, tensors, kernel.fn, versions))
                if 0 in grid:
                    return  # no programs, which a GPU takes as well and triton-viz does not
                with self.manager.patch_run(kernel.fn, backend="triton"):
                    _leave_loops_alone()
                    with self.lanes_without_a_value():
                        _RUN[InterpretedFunction](
                            kernel, *args, grid=grid, warmup=False, client_manager=self.manager, jit_fn=None, **options
                        )
        finally:
            _unpatch()
            self.in_machinery = self.launching = False

    @contextmanager
    def lanes_without_a_value(self) -> Iterator[None]:
        """Note masked loads that do not say what the lanes hold which are switched off, and have these hold `undefined`."""
        builder = interpreter.interpreter_builder
        load = builder.create_masked_load

        def masked_load(pointers, mask, other, *rest, **named):
            result = load(pointers, mask, other, *rest, **named)
            off = ~np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
            if other is None and off.any() and np.issubdtype(result.data.dtype, np.floating):
                self.trace.undefined.append(linecache.getline(*_kernel_line()).strip())
                result.data[off] = self.undefined
            return result

        builder.create_masked_load = masked_load
        try:
            yield
        finally:
            builder.create_masked_load = load

    def access(self, kind: str, pointers: Any, mask: Any) -> None:
        if len(self.trace.accesses) >= self.limit:
            raise TookTooLong(f"still running after {self.limit:,} loads and stores")
        addresses = np.ravel(pointers.data).astype(np.int64)
        active = np.ones(addresses.shape, dtype=bool)
        if mask is not None:
            active = np.broadcast_to(mask.data, pointers.data.shape).ravel().astype(bool)
        masked = int(active.size - active.sum())
        addresses = addresses[active]
        itemsize = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        file, line = _kernel_line()

        legal = np.zeros(addresses.shape, dtype=bool)
        pieces = []
        for name, start, end in self.extents:
            inside = (addresses >= start) & (addresses + itemsize <= end) & ~legal
            if inside.any():
                legal |= inside
                pieces.append((name, start, addresses[inside]))
        if not legal.all():
            # Lanes inside a tensor tell which one the others were meant for; else it is the nearest.
            wild = int(addresses[~legal][0])
            reached = [name for name, _, _ in pieces]
            candidates = [extent for extent in self.extents if extent[0] in reached] or self.extents
            if not candidates:
                candidates = [("no tensor", 0, 0)]
            name, start, end = min(candidates, key=lambda extent: max(extent[1] - wild, wild - extent[2], 0))
            source = linecache.getline(file, line).strip()
            element, size = (wild - start) // itemsize, (end - start) // itemsize
            raise IllegalAccess(self.kernel, self.program, kind, name, element, size, int((~legal).sum()), source)

        if not pieces:  # every lane is masked: kept, as an access of nothing, under the tensor that the pointers lie nearest to
            first = int(np.ravel(pointers.data)[0].astype(np.int64)) if pointers.data.size else 0
            nearest = min(self.extents, key=lambda extent: max(extent[1] - first, first - extent[2], 0), default=("", 0, 0))
            pieces = [(nearest[0], nearest[1], addresses)]
        launch = len(self.trace.launches) - 1
        for name, start, touched in pieces:
            elements = (touched - start) // itemsize
            self.trace.accesses.append(
                Access(launch, self.kernel, self.program, kind, name, elements, touched, masked, itemsize, file, line)
            )

    @property
    def kernel(self) -> str:
        return self.trace.launches[-1].kernel

    # triton-viz's callbacks

    def register_op_callback(self, op_type, *args, **kwargs) -> OpCallbacks:
        if op_type is Load:
            return OpCallbacks(before_callback=lambda pointers, mask, keys: self.access("load", pointers, mask))
        if op_type is Store:
            return OpCallbacks(before_callback=lambda pointers, mask, keys: self.access("store", pointers, mask))
        if op_type is AtomicRMW:
            return OpCallbacks(before_callback=lambda op, pointers, value, mask, *rest: self.access("atomic", pointers, mask))
        if op_type is AtomicCas:
            return OpCallbacks(before_callback=lambda pointers, *rest: self.access("atomic", pointers, None))
        return OpCallbacks()

    def grid_idx_callback(self, grid_idx: Program) -> None:
        self.program = tuple(grid_idx)
        self.in_machinery = False

    def post_run_callback(self, fn: Callable) -> bool:
        self.in_machinery = True
        return True

    def pre_run_callback(self, fn: Callable) -> bool:
        return True

    def arg_callback(self, name, arg, arg_cvt) -> None:
        pass

    def grid_callback(self, grid) -> None:
        pass

    def register_for_loop_callback(self) -> ForLoopCallbacks:
        return ForLoopCallbacks()

    def finalize(self) -> list:
        return []

    def pre_warmup_callback(self, jit_fn, *args, **kwargs) -> bool:
        return False

    def post_warmup_callback(self, jit_fn, ret) -> None:
        pass


def _unpatch() -> None:
    # triton-viz leaves its hooks in place where setting them raises half-way (a kernel that cannot see triton.language).
    registry = OPERATION_REGISTRY["triton"]
    for namespace, names in registry.namespaces.items():
        for name in names:
            if isinstance(getattr(namespace, name), PatchOp):
                unpatch_op(namespace, name, "triton")
    unpatch_lang("triton")
    _leave_loops_alone()


def _leave_loops_alone() -> None:
    # triton-viz rewrites loops, of which a trace needs nothing, and a rewritten one asks for a name that only the traced
    # kernel's own module has: not another module's device function (tl.rand's has a loop), nor a kernel that is interpreted
    # for the first time after the trace. Its rewriting stays behind, as the interpreter has none that could be put back.
    unpatch_for_loop()
    if interpreter.ASTTransformer.__dict__.get("visit_For") is triton_viz_visit_For:
        del interpreter.ASTTransformer.visit_For


#: Every way to a kernel ends in one of these, also one through a list, a module or an attribute.
_RUN = {owner: owner.run for owner in (JITFunction, InterpretedFunction, Autotuner)}
#: A kernel calls another function by this one, and so does who forgets the grid.
_CALL = InterpretedFunction.__call__


@contextmanager
def _intercepted(recorder: _Recorder) -> Iterator[None]:
    """Send launches to `recorder`, and have `vitcourse.runtime` say that kernels run in the interpreter."""

    def run(kernel, *args, grid, warmup, **kwargs):
        if not warmup:
            recorder.launch(kernel, args, grid, kwargs)

    def call(function, *args, **kwargs):
        if not recorder.launching:  # the interpreter would leave triton.language changed behind it
            raise RuntimeError(f"{function.__name__} is called like a function, without a grid")
        return _CALL(function, *args, **kwargs)

    def run_first_configuration(tuner, *args, **kwargs):
        config = tuner.configs[0]
        if config.pre_hook is not None:
            config.pre_hook({**dict(zip(tuner.arg_names, args)), **kwargs, **config.all_kwargs()})
        return tuner.fn.run(*args, **kwargs, **config.all_kwargs())

    where = {"DEVICE": torch.device("cpu"), "INTERPRETER": True, "DTYPES": (torch.float32, torch.float16)}
    before = {name: getattr(runtime, name) for name in where}
    # The package's launchers have a copy, by which they choose their blocks.
    copies = [module for name, module in sys.modules.items() if name.startswith(f"{kernels.__name__}.")]
    copies = [(module, module.INTERPRETER) for module in copies if hasattr(module, "INTERPRETER")]
    try:
        for name, value in where.items():
            setattr(runtime, name, value)
        for module, _ in copies:
            module.INTERPRETER = True
        JITFunction.run = InterpretedFunction.run = run
        InterpretedFunction.__call__ = call
        Autotuner.run = run_first_configuration
        yield
    finally:
        for owner, original in _RUN.items():
            owner.run = original
        InterpretedFunction.__call__ = _CALL
        for name, value in before.items():
            setattr(runtime, name, value)
        for module, value in copies:
            module.INTERPRETER = value
