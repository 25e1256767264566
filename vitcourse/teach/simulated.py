"""Stand-ins that run on any machine: a GPU that keeps its own time, and a recording that replays PyTorch's operators.

    gpu = simulated.GPU()
    gpu.run()          # launches a forward pass, and returns while the GPU is at work
    gpu.synchronize()  # waits for it
    gpu.clock()        # milliseconds, simulated

Nothing is timed here: the same calls give the same numbers on every machine.
"""

from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class GPU:
    """A GPU, and the host that launches its work. Times are in milliseconds.

    launch_ms: what the host takes to launch the kernels of a forward pass. The GPU begins with the first of them at once.
    gpu_ms: what the GPU takes for them where their inputs are not in its L2 cache.
    cached: what part of gpu_ms is left where they are, which is after every call that no flush() follows.
    slow_calls: so many calls at the start take COMPILE_MS longer, on the host.
    spread: 0.1 for calls that take 0.9 to 1.1 times as long, evenly.
    disturbed: every so-many-th call takes ten times as long, for another process has the machine. 0 for never.
    seed: which calls these are.

    `calls` and `reads` count what was launched, and how often the clock was read.
    """

    launch_ms: float = 0.5
    gpu_ms: float = 2.0
    cached: float = 0.6
    slow_calls: int = 3
    spread: float = 0.1
    disturbed: int = 9
    seed: int = 0

    COMPILE_MS = 100.0
    FLUSH_MS = 0.4
    #: What synchronize() costs the host, besides the wait.
    SYNCHRONIZE_MS = 0.01

    def __post_init__(self):
        self.calls = self.reads = 0
        self._now = self._busy_until = 0.0  # of the host, and of the GPU
        self._in_cache = False

    @property
    def truth_ms(self) -> float:
        """The median of what a caller waits for one call, launch and GPU: warmed up, with an empty cache."""
        return max(self.launch_ms, self.gpu_ms)

    def run(self) -> None:
        """Launch one forward pass. The GPU may still be at it, or at an earlier one, when this returns."""
        self.calls += 1
        # Multiples of the golden ratio lie evenly between 0 and 1, however many there are.
        factor = 1 + self.spread * (2 * ((self.calls + self.seed) * 0.618034 % 1) - 1)
        if self.disturbed and (self.calls + self.seed) % self.disturbed == 0:
            factor *= 10
        if self.calls <= self.slow_calls:
            self._now += self.COMPILE_MS
        start = max(self._now, self._busy_until)
        self._now += factor * self.launch_ms
        # Not done before the last kernel is launched.
        self._busy_until = max(start + factor * self.gpu_ms * (self.cached if self._in_cache else 1), self._now)
        self._in_cache = True

    def flush(self) -> None:
        """Empty the L2 cache, by writing to other memory: FLUSH_MS of work for the GPU, launched like any other."""
        self._busy_until = max(self._now, self._busy_until) + self.FLUSH_MS
        self._in_cache = False

    def synchronize(self) -> None:
        """Wait until the GPU has done everything that was launched."""
        self._now = max(self._now, self._busy_until) + self.SYNCHRONIZE_MS

    def clock(self) -> float:
        """The host's clock."""
        self.reads += 1
        return self._now


class Recording(TorchDispatchMode):
    """For a CUDA graph: PyTorch's operators that run inside of `with recording:`, to be run again on the very same tensors.

    As with a graph, the tensors' addresses are what is recorded: a replay reads what its inputs hold by then, and
    overwrites what it wrote before. Unlike with a graph, the operators run while they are recorded, and a replay takes as
    long as they do. A Triton kernel is replayed where an operator launches it, as this package's do.
    """

    def __init__(self):
        super().__init__()
        self.calls: list[tuple] = []  # operator, arguments, keyword arguments, result
        self.replays = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Run the operators again. Raises RuntimeError where none were recorded."""
        if not self.calls:
            raise RuntimeError("Recording.replay: nothing was recorded; run the model inside of `with recording:` first")
        self.replays += 1
        for operator, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(operator(*args, **kwargs))):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)
