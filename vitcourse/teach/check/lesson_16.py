"""The checks of lesson 16: busy and idle time in a trace, an honest timer, a replayed graph, and a norm folded into a product."""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

from .. import simulated
from .. import trace as tracing
from . import judge as judging
from .judge import (
    NO_FUNCTION,
    NOT_ATTEMPTED,
    NotAttempted,
    Verdict,
    Wrong,
    _answer_to,
    _describe,
    _exception_hint,
    _readers_line,
    draw,
    judge_plain,
    number,
    type_name,
)


def _judged(function: Callable, attempt: Callable[[Callable], None], tried: str) -> Verdict:
    """The verdict on a function, where `attempt(function)` raises Wrong or NotAttempted if there is something to say."""
    if function is None or function is ...:
        return NOT_ATTEMPTED
    if not callable(function):
        return NO_FUNCTION
    try:
        attempt(function)
    except NotAttempted:
        return NOT_ATTEMPTED
    except Wrong as wrong:
        return Verdict("wrong", wrong.message, wrong.hint)
    return Verdict("right", f"Tried: {tried}.")


def _called(function: Callable, *arguments, first: bool = False, hints: dict[str, str] | None = None, counted: Any = None) -> Any:
    """What the function returns; raises Wrong or NotAttempted.

    hints: by words of an exception's message. counted: what has `calls`, which a stub makes none of.
    """
    try:
        with tracing.time_limit(judging.SECONDS):
            result = function(*arguments)
    except (Exception, SystemExit) as error:
        hint = next((hint for words, hint in (hints or {}).items() if words in str(error)), "")
        raise _answer_to(error, first, hint=hint) from None
    if result is None or result is ...:
        if first and not getattr(counted, "calls", 0) and judging.is_stub(function):
            raise NotAttempted
        raise Wrong("Your function returned nothing.", "Does every branch of it, and of a function within it, end in a return?")
    return result


# ---- Busy and idle ----------------------------------------------------------------------------------------------------------

Events = list[tuple[str, float, float]]

_NOTHING = ("what stands for None",)


def _by_start(events: Events) -> Events:
    return sorted(events, key=lambda event: event[1:])


def _busy(order: Callable = _by_start, extend: Callable = max, closed: bool = True) -> Callable[[Events], float]:
    """The busy time, by a sweep. What a mistake replaces: the order; `extend`, which gives the end of what runs together, of
    the one so far and the next; closed, whether what runs when the sweep ends is added."""

    def sweep(events: Events) -> float:
        busy = begun = reached = 0
        for _, start, end in order(events):
            if start > reached:
                busy, begun, reached = busy + reached - begun, start, end
            else:
                reached = extend(reached, end)
        return busy + closed * (reached - begun)

    return sweep


def _total(events: Events) -> float:
    return sum(end - start for _, start, end in events)


def _span(events: Events) -> float:
    return max(end for *_, end in events) - min(start for _, start, _ in events) if events else 0


def _gaps(events: Events, least: float = -math.inf) -> float:
    """From each kernel's end to the next one's start, in the order of the starts."""
    return sum(max(least, after[1] - before[2]) for before, after in itertools.pairwise(_by_start(events)))


def _idle(events: Events) -> float:
    return _span(events) - _busy()(events)


_NOT_SORTED = "The list is in no order: sort by the start, then a kernel begins within what has run so far, or after it."
_ADJACENT = "The kernel before is not all that ran before: measure a gap from the largest end so far."
_SWAPPED = "They are the wrong way round: busy first, then idle."
_FRACTIONS = "Times have fractions of a microsecond: round nothing."

# By which of the two numbers: a hint, and what it is for those who make the mistake.
_BUSY_MISTAKES: dict[str, list[tuple[str, Callable[[Events], float]]]] = {
    "busy": [
        (_SWAPPED, _idle),
        ("Where two kernels overlap, that time is one time: adding the durations counts it twice.", _total),
        ("That is the whole span: take out the gaps, in which no kernel ran.", _span),
        ("A kernel inside another ends before it: the end so far may only grow, max(end so far, end).",
         _busy(extend=lambda reached, end: end)),
        (_NOT_SORTED, _busy(list)),
        ("An event begins with its name, and so does the order of events: sort by the start, key=lambda event: event[1].",
         _busy(sorted)),
        ("Sorted by the end, a long kernel comes after those that it covers: sort by the start.",
         _busy(lambda events: sorted(events, key=lambda event: event[2]))),
        ("What still runs when the loop ends has to be added after it.", _busy(closed=False)),
        *((_ADJACENT, lambda events, least=least: _span(events) - _gaps(events, least)) for least in (0, -math.inf)),
        ("A kernel that runs twice has one name and two events: names play no part here.",
         lambda events: _busy()(list({event[0]: event for event in events}.values()))),
        (_FRACTIONS, lambda events: int(_busy()(events))),
        (_FRACTIONS, lambda events: _busy()([(name, int(start), int(end)) for name, start, end in events])),
    ],
    "idle": [
        ("It is measured from 0: idle time begins with the first kernel's start.",
         lambda events: _idle(events) + min((start for _, start, _ in events), default=0)),
        ("That is the whole span: idle is what busy leaves of it.", _span),
        ("The last in the list need not be the last to end: idle time ends with the largest end.",
         lambda events: _idle(events) - max((end for *_, end in events), default=0) + events[-1][2] if events else 0),
        ("The last to start need not be the last to end: idle time ends with the largest end.", lambda events: _idle(events)
         - max((end for *_, end in events), default=0) + _by_start(events)[-1][2] if events else 0),
        *((_ADJACENT, lambda events, least=least: _gaps(events, least)) for least in (0, -math.inf)),
        ("Durations that overlap are counted twice: idle is the span without busy.",
         lambda events: _span(events) - _total(events)),
    ],
}  # fmt: skip


def busy_and_idle(function: Callable) -> Verdict:
    """Lesson 16: `function(events)`, (busy, idle) in microseconds; an event is (name, start, end), and they may overlap.

    Busy: at least one kernel ran. Idle: none did, between the first start and the last end. (0, 0) for no events.
    """

    @functools.wraps(function)
    def call(events: Events) -> Any:
        given = list(events)
        try:
            result = function(given)
        except (ValueError, IndexError, TypeError, UnboundLocalError) as error:
            hint = "A trace without events has no first start and no last end: answer (0, 0) before you look for them."
            raise Wrong(_describe(error), _exception_hint(error) if events else hint) from None
        if given != events:
            hint = "events.sort() and events.pop() change the caller's list: sorted(events) makes a new one."
            raise Wrong("Your function changed its argument events.", hint)
        return _NOTHING if result is None and len(events) != 1 else result  # a stub returns nothing for the first

    cases = [
        [("a", 2, 5)],
        [],
        [("a", 1, 3), ("b", 4, 9)],
        [("a", 1, 4), ("b", 3, 9)],
        [("a", 1, 3), ("b", 3, 4), ("c", 6, 8)],
        [("a", 1, 9), ("b", 2, 4)],
        [("b", 6, 9), ("a", 1, 4)],
        [("b", 1, 4), ("a", 6, 9)],
        [("a", 1, 9), ("b", 2, 4), ("c", 5, 7), ("d", 12, 13)],
        [("a", 1, 3), ("a", 6, 9), ("b", 11, 12)],
        [("a", 0.5, 1.25), ("b", 1.75, 2.5)],
        [("c", 7, 8), ("b", 1, 6), ("a", 2, 9), ("d", 12, 20), ("e", 13, 13), ("d", 15, 21), ("f", 3, 4)],
    ]
    for _ in range(5):
        starts, lengths = (1 + torch.randperm(800)[:30]).tolist(), torch.randint(40, (30,)).tolist()
        cases.append([(f"kernel {i % 7}", start / 4, (start + lengths[i]) / 4) for i, start in enumerate(starts)])
    for place, (which, reference) in enumerate({"busy": _busy(), "idle": _idle}.items()):

        def normal(result: Any, place: int = place) -> float:
            if not isinstance(result, (tuple, list)) or len(result) != 2:
                kind = "nothing" if result is _NOTHING else f"a {type(result).__name__}"
                raise Wrong(f"Your function returned {kind}.", "In every branch return two numbers: busy, idle.")
            return number(result[place])

        verdict = judge_plain(
            call if callable(function) else function,
            f"{which} of busy_and_idle",
            [(events,) for events in cases],
            reference,
            _BUSY_MISTAKES[which],
            "Draw this trace, a bar a kernel, and go from left to right with the largest end so far: a kernel adds to busy what "
            "lies behind that end. Idle is what busy leaves of the whole span.",
            "one kernel, none, gaps, kernels that touch, overlap and lie inside one another, in any order, two of one name, and "
            "30 drawn at random",
            normal,
        )
        if not verdict:
            break
    return verdict


# ---- An honest timer --------------------------------------------------------------------------------------------------------


def _times(gpu: simulated.GPU, calls: int, warm: int = 4, wait: bool = True, flush: bool = False) -> list[float]:
    """What each of `calls` takes on such a machine. flush: emptying the cache is in that time, as it is not waited for."""
    gpu, times = replace(gpu), []
    for _ in range(warm):
        gpu.run()
    for _ in range(calls):
        gpu.flush()
        if not flush:
            gpu.synchronize()
        start = gpu.clock()
        gpu.run()
        if wait:
            gpu.synchronize()
        times.append(gpu.clock() - start)
    return times


def _backlog(gpu: simulated.GPU, calls: int, warm: int) -> float:
    """The mean of calls that are launched one behind another, with a wait at the end and none after the warm-up."""
    gpu = replace(gpu)
    for _ in range(warm):
        gpu.run()
    start = gpu.clock()
    for _ in range(calls):
        gpu.run()
    gpu.synchronize()
    return (gpu.clock() - start) / calls


# Hints, and the times that call for them, from the machine and the number of calls.
Mistakes = list[tuple[str, Callable[[simulated.GPU, int], list[float]]]]

_TIMER_MISTAKES: Mistakes = [
    ("A launch returns while the GPU is still at work, and this is the launch alone: machine.synchronize() before the clock is "
     "read a second time.", lambda gpu, calls: [gpu.launch_ms]),
    ("Emptying the cache is in your time, and takes the GPU a while: flush, then synchronize, and only then read the clock.",
     lambda gpu, calls: _times(gpu, calls, flush=True)),
    ("The warm-up still runs when your clock starts: machine.synchronize() before you read it a first time.",
     lambda gpu, calls: [_backlog(gpu, calls, warm) for warm in range(1, 11)]),
    ("That is the time of all calls together: return that of one.",
     lambda gpu, calls: [sum(_times(gpu, calls)), calls * _backlog(gpu, calls, 0)]),
    ("The clock tells milliseconds, and so does the answer: convert nothing.",
     lambda gpu, calls: [gpu.truth_ms * 1e3, gpu.truth_ms / 1e3]),
]  # fmt: skip
_MEAN: Mistakes = [
    ("That is a mean, and one call that another process disturbs moves it: take the median, statistics.median(times).",
     lambda gpu, calls: [mean(_times(gpu, calls, warm)) for warm in range(12)]),
]  # fmt: skip
_ONE: Mistakes = [
    (f"That is the {which} of the calls: take the median, statistics.median(times).",
     lambda gpu, calls, of=of: [of(_times(gpu, calls, warm)) for warm in range(12)]) for which, of in (
        ("shortest", min), ("longest", max))
]  # fmt: skip
_UNSORTED: Mistakes = [
    ("That is one of the calls: the median is the middle one once they are in order.",
     lambda gpu, calls: [time for warm in range(12) for time in _times(gpu, calls, warm)]),
]  # fmt: skip


def _machines() -> list[tuple[str, simulated.GPU, int, str, Mistakes]]:
    """Label, machine, calls, the hint where no mistake explains the time, and mistakes that show there. One trouble at a time."""
    quiet, shown = simulated.GPU(cached=1.0, slow_calls=0, spread=0.0, disturbed=0), "a launch of 0.5 ms, 2 ms on the GPU"
    steps = "Step by step: warm up; then for each call flush, synchronize, read the clock, run, synchronize, read it again."
    return [
        (shown, quiet, 5, steps, _TIMER_MISTAKES),
        ("a launch of 3 ms, 1 ms on the GPU", replace(quiet, launch_ms=3.0, gpu_ms=1.0), 5, "Where the host is slower than the "
         "GPU, a caller waits for the host: from before the launch to after machine.synchronize().", _TIMER_MISTAKES),
        (f"{shown}, and the first 3 calls compile", replace(quiet, slow_calls=3), 5,
         "Calls that compile are among those timed: run the model three times or more before, without timing it.", []),
        (f"{shown}, and less where the inputs are in the cache", replace(quiet, cached=0.6), 5, "The call before has left the "
         "inputs in the cache: machine.flush() before each timed call, and only synchronize() between it and the clock.", []),
        (f"{shown}, and every 9th call is disturbed", replace(quiet, disturbed=9), 20,
         "A call that another process disturbed has moved your time: take the median.", [*_MEAN, *_ONE]),
        (f"{shown}, and calls differ by up to 30 percent", replace(quiet, spread=0.3), 20,
         "The median is the middle of the times in order: statistics.median(times).", [*_ONE, *_UNSORTED]),
        *((f"a launch of {launch:g} ms, {work:g} ms on the GPU, and all of these together", simulated.GPU(launch, work, seed=i),
           25, steps, []) for i, (launch, work) in enumerate([(0.5, 2.0), (3.0, 1.0), (0.02, 40.0)])),
    ]  # fmt: skip


#: How far from the truth a time may be, as a part of it: how far a median of 20 calls lies. And two synchronizations more.
_BAND = 0.05


def time_model(function: Callable) -> Verdict:
    """Lesson 16: `function(run, machine, calls)`, the median time of one call on a `simulated.GPU`, in milliseconds.

    From before its launch until the GPU is done, which is what a caller waits for: warmed up, and each call with an empty
    cache. One wait behind all of the calls is refused: what it gives is a mean, of calls that find their inputs in the cache.
    """

    def attempt(function: Callable) -> None:
        for index, (label, machine, calls, fallback, mistakes) in enumerate(_machines()):
            gpu, truth = replace(machine), machine.truth_ms
            try:
                words = {"has no attribute": "A machine has clock(), synchronize() and flush(); run is a function of its own."}
                result = number(_called(function, gpu.run, gpu, calls, first=not index, hints=words, counted=gpu))
                if not gpu.reads:
                    raise Wrong("Your function never read machine.clock().", "No other clock knows the time of a simulated GPU.")
                if gpu.calls < calls:
                    raise Wrong(f"run() was called {gpu.calls} times.", "Time as many calls as the argument `calls` says.")
                if -_BAND * truth <= result - truth <= _BAND * truth + 2 * gpu.SYNCHRONIZE_MS:
                    continue
                explained = (
                    hint
                    for hint, gives in mistakes
                    for value in gives(machine, calls)
                    if math.isclose(result, value, rel_tol=0.01)
                )
                raise Wrong(f"Expected about {truth:g} ms, got {result:.4g} ms.", next(explained, fallback))
            except Wrong as wrong:
                raise Wrong(f"Smallest failing case: {label}; calls={calls}.\n{wrong.message}", wrong.hint) from None

    tried = "simulated machines that wait for the GPU or for the host, that compile first, whose cache helps, that are disturbed"
    return _judged(function, attempt, f"{tried}, whose calls differ, and all of it together")


# ---- A graph's replay -------------------------------------------------------------------------------------------------------


class _Layers(torch.nn.Module):
    """Two layers. calls: how often it ran; recordings: those under which it did; recorded: the input then, and its address."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (torch.nn.Parameter(draw(12, torch.float32).view(4, 3), False) for _ in range(2))
        self.calls, self.recordings, self.recorded = 0, [], []

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.first) @ self.second.T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if isinstance(mode := _get_current_dispatch_mode(), simulated.Recording):
            self.recordings.append(mode)
            self.recorded.append((x, x.data_ptr()))
        return self.compute(x)


def graphed(function: Callable) -> Verdict:
    """Lesson 16: `function(model, example)`, a function call(x) that replays a `simulated.Recording` of the model.

    Each result is the model's for x, in a tensor of its own; example and x stay as they are; the model runs no more. For an
    x of another shape: a ValueError, or what the model itself gives.
    """
    tried = "three calls and their results afterwards, the example, inputs of other shapes, and two models in turn"
    return _judged(function, _try_graphs, tried)


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and torch.allclose(one.cpu().double(), other.double(), rtol=1e-5, atol=1e-6)


_RECORDING_HINTS = {
    "nothing was recorded": "Run the model inside of `with recording:`, before the first replay.",
    "nference tensor": "Tensors made in inference mode cannot be written to outside of it: use torch.no_grad().",
}


def _try_graphs(function: Callable) -> None:
    """Raises Wrong or NotAttempted."""
    model, example, *inputs = _Layers(), *(draw(8, torch.float32, scale=0.3).view(2, 4) for _ in range(4))
    given = example.clone()
    call = _called(function, model, given, first=True, hints=_RECORDING_HINTS, counted=model)
    if not callable(call):
        raise Wrong(f"Your function returned a {type(call).__name__}.", "Return a function of x, call itself and not a result.")
    results, kept, passes, copies = [], [], [], [x.clone() for x in inputs]
    for x in copies:
        results.append(_called(call, x, hints=_RECORDING_HINTS))
        if not isinstance(results[-1], torch.Tensor):
            raise Wrong(f"call(x) returned a {type(results[-1]).__name__}.", "Return what the model gave, a tensor.")
        kept.append(results[-1].detach().clone())
        passes.append(model.calls)
    if any(x.data_ptr() != address for x, address in model.recorded):
        hint = "A graph reads the address that it was recorded with: write x there, static.copy_(x). .data and set_ go elsewhere."
        raise Wrong("The recorded input lies at another address than when it was recorded.", hint)
    _compare(kept, [model.compute(x) for x in inputs], model.compute(example), model)
    if any(not torch.equal(result, then) for result, then in zip(results, kept)):
        hint = "Every replay writes to the same tensors: hand out a copy of the output, clone(), made after the replay."
        raise Wrong("The first call's result was right, and has changed in a later call.", hint)
    if not torch.equal(given, example):
        hint = "The tensor that x is copied into belongs to the graph alone: record with example.clone()."
        raise Wrong("The caller's example has changed: it holds what x held.", hint)
    if passes[-1] > passes[0] and len(model.recordings) > 1:
        raise Wrong("The model was recorded anew in a later call.", "Record once, outside of call: inside, only replay.")
    if passes[-1] > passes[0]:
        raise Wrong("The model itself ran in a later call.", "Inside of call, replay what was recorded: that is what saves time.")
    if any(not torch.equal(x, copy) for x, copy in zip(inputs, copies)):
        raise Wrong("Your function changed x.", "x is copied into the recorded input, not the other way round.")
    for shape in ((1, 4), (4,), (2, 1), (4, 2)):
        x = draw(math.prod(shape), torch.float32).view(shape)
        try:
            with tracing.time_limit(judging.SECONDS):
                result = call(x.clone())
        except (ValueError, RuntimeError, AssertionError):  # refused, with whatever raises it
            continue
        except (Exception, SystemExit) as error:
            if _readers_line(error).startswith("raise"):  # refused as well
                continue
            raise _answer_to(error, False) from None
        right = model.compute(x) if shape[-1] == 4 else None  # the model itself takes rows of 4 only
        if not isinstance(result, torch.Tensor) or right is None or not _near(result, right):
            hint = "copy_ broadcasts where the shapes allow it: compare x.shape with the recorded one, and raise a ValueError."
            raise Wrong(f"Recorded for shape (2, 4), call takes an x of shape {shape} and gives a wrong result.", hint)
    models = [_Layers(), _Layers()]
    calls = [_called(function, one, example.clone()) for one in models]
    for one, call in zip(models, calls):
        if not _near(_called(call, inputs[0].clone()), one.compute(inputs[0])):
            hint = "What was recorded belongs into local variables of your function, new ones in each call of it."
            raise Wrong("Of two graphs, made one after the other, the first gives the second's answer.", hint)


def _compare(kept: list[torch.Tensor], truths: list[torch.Tensor], stale: torch.Tensor, model: _Layers) -> None:
    """Raises Wrong for the first result that is wrong. stale: what the model gives for the example."""
    index = next((index for index, result in enumerate(kept) if not _near(result, truths[index])), None)
    if index is None:
        return
    message = f"Smallest failing case: the {('first', 'second', 'third')[index]} call's result is not the model's for its x."
    hint = "In each call: copy x into the recorded input, replay, and return a copy of the recorded output."
    if kept[index].shape != truths[index].shape:
        hint = f"Its shape is {tuple(kept[index].shape)}, and the model gives {tuple(truths[index].shape)}."
    elif kept[index].dtype != truths[index].dtype:
        hint = f"It is {type_name(kept[index].dtype)}, and the model gives {type_name(truths[index].dtype)}: return a plain copy."
    elif all(_near(result, stale) for result in kept):
        message += " It is the one for the example."
        results = [leaf for recording in model.recordings for *_, result in recording.calls for leaf in tree_leaves(result)]
        if not any(recording.replays for recording in model.recordings):
            hint = "Nothing was replayed: recording.replay() runs the operators again."
        elif any(_near(tensor, truths[-1]) for tensor in results):
            hint = "The graph computed the right thing, and you return a copy from before: clone after the replay."
        else:
            hint = (
                "A replay reads the very tensor that the model was recorded with, and x is another: write x into that one, "
                "static.copy_(x), where static = x would only give x a second name."
            )
    elif all(_near(result, before) for result, before in zip(kept, [stale, *truths])):
        message, hint = f"{message} It is that of the call before.", "First copy x into the recorded input, then replay."
    elif all(_near(result, kept[0]) for result in kept):
        message, hint = f"{message} It is the first call's.", "Copy x into the recorded input and replay in every call."
    raise Wrong(message, hint)


# ---- A norm folded into a product -------------------------------------------------------------------------------------------


@dataclass
class _Layer:
    """What is folded. label: how a verdict names it; shown: its numbers are fixed, and a verdict tells them."""

    label: str
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    shown: bool = False

    @property
    def arguments(self) -> dict[str, torch.Tensor | None]:
        return {name: getattr(self, name) for name in ("norm_weight", "norm_bias", "weight", "bias")}


def _layers() -> list[_Layer]:
    def fixed(norm_weight, norm_bias, weight, bias):
        given = {"norm_weight": norm_weight, "norm_bias": norm_bias, "weight": weight, "bias": bias}
        label = ", ".join(f"{name}={values}" for name, values in given.items())
        return _Layer(label, *(values and torch.tensor(values, dtype=torch.float32) for values in given.values()), shown=True)

    def drawn(rows, columns, dtype, norm_dtype, bias=True):
        label = f"weight of shape ({rows}, {columns}) in {type_name(dtype)}, the norm in {type_name(norm_dtype)}"
        # Every other column, so not contiguous.
        weight = draw(rows * columns * 2, dtype).view(rows, -1)[:, ::2]
        norm = draw(columns, norm_dtype), draw(columns, norm_dtype)
        return _Layer(label + (", bias=None" if not bias else ""), *norm, weight, draw(rows, dtype) if bias else None)

    # Products of these need more digits than float16 has.
    odd = torch.tensor([1.6669921875, 1.3330078125, 1.5009765625, 1.0947265625]).half()
    label = "norm_weight, norm_bias and the one row of weight [1.667, 1.333, 1.501, 1.0947] in float16, bias=[0.5]"
    return [
        fixed([4, 5], [10, 20], [[2, 3]], [7]),
        fixed([2, 7], [10, 30], [[1, 2], [3, 5]], [100, 200]),
        fixed([2, 7], [10, 30], [[1, 2], [3, 5]], None),
        _Layer(label, odd, odd, odd[None], torch.tensor([0.5]).half(), shown=True),
        drawn(5, 7, torch.float32, torch.float32),
        drawn(7, 24, torch.bfloat16, torch.bfloat16),
        drawn(6, 40, torch.float16, torch.float32),
        drawn(9, 64, torch.float16, torch.float16, bias=False),
        drawn(33, 192, torch.float16, torch.float16),
    ]


# By result: hints, and what gives it from norm_weight g, norm_bias h, weight w and bias b, 0.0 for None. In float64, but for
# those that round on the way, which come after the ... and compute in the types they are given.
_FOLD_MISTAKES: dict[str, list] = {
    "folded_weight": [
        ("norm_weight has a number for each column of weight: weight * norm_weight scales columns, norm_weight[:, None] rows.",
         lambda g, h, w, b: w * g[:, None]),
        ("norm_weight is not in it: weight * norm_weight.", lambda g, h, w, b: w),
        ("It is transposed: like weight it is (N, K).", lambda g, h, w, b: (w * g).T),
    ],
    "folded_bias": [
        ("norm_bias is not in it: what the norm adds to its channels goes through weight, too: weight @ norm_bias.",
         lambda g, h, w, b: b + 0 * w[:, 0]),
        ("What the norm adds to its channels goes through weight: weight @ norm_bias, a number an output.",
         lambda g, h, w, b: b + h),
        ("bias is not in it: bias + weight @ norm_bias.", lambda g, h, w, b: w @ h),
        ("The norm adds norm_bias after it has scaled: weight @ norm_bias, with the weight as it was.",
         lambda g, h, w, b: b + (w * g) @ h),
        ...,
        ("It was rounded to the weight's type on the way: convert weight and norm_bias with .float() before you multiply.",
         lambda g, h, w, b: b + w @ h.to(w.dtype)),
        ("It was rounded to the weight's type on the way: convert weight and norm_bias with .float() before you multiply.",
         lambda g, h, w, b: (w @ h.to(w.dtype)).float() + b),
    ],
    "column_sums": [
        ("These are sums of the weight as it was: the mean is multiplied with the folded one.", lambda g, h, w, b: w.sum(1)),
        ("These are sums along the wrong axis: one for each output, over the K inputs, sum(1).",
         lambda g, h, w, b: (w * g).sum(0)),
        ("That is one sum for all: one for each output is asked for, sum(1).", lambda g, h, w, b: (w * g).sum()),
        ("The minus sign is in the formula already.", lambda g, h, w, b: -(w * g).sum(1)),
        ...,
        ("The product multiplies with the rounded weight, and these are sums of the one before rounding. Where rows lie far from "
         "zero, mean times the difference is left over: sum folded_weight as you return it.",
         lambda g, h, w, b: (w.float() * g.float()).sum(1)),
        ("They were rounded to the weight's type: convert first, folded_weight.float().sum(1).",
         lambda g, h, w, b: (w * g).to(w.dtype).sum(1)),
    ],
}  # fmt: skip
_FOLDED = {
    "folded_weight": "folded_weight[n, k] is weight[n, k] * norm_weight[k], in the weight's type: shape (N, K).",
    "folded_bias": "folded_bias[n] is bias[n] plus the sum over k of weight[n, k] * norm_bias[k], in float32: shape (N,).",
    "column_sums": "column_sums[n] is the sum over k of folded_weight[n, k] as it is returned, in float32: shape (N,).",
}

Answers = list[tuple[_Layer, dict[str, torch.Tensor]]]


def fold(function: Callable) -> Verdict:
    """Lesson 16: `function(norm_weight, norm_bias, weight, bias)`, a layer norm folded into the linear layer behind it.

    Returns (folded_weight, folded_bias, column_sums): weight * norm_weight, (N, K) in the weight's type; bias + weight @
    norm_bias, (N,) in float32; and the sums of folded_weight's rows, as it was rounded, (N,) in float32. bias may be None.
    """

    def attempt(function: Callable) -> None:
        answers: Answers = []
        failing = None  # the first case that is wrong: which result, and the message
        for layer in _layers():
            label = f"Smallest failing case: {layer.label}."
            try:
                answers.append((layer, _folded(function, layer, first=not answers)))
            except Wrong as wrong:
                if failing is None:
                    raise Wrong(f"{label}\n{wrong.message}", wrong.hint) from None
                break
            if failing is None and (found := _first_wrong(*answers[-1])):
                failing = found[0], f"{label}\n{found[1]}"
        if failing:
            raise Wrong(failing[1], _fold_hint(failing[0], answers))

    tried = "one output, square and not, with and without a bias, weights in float32, bfloat16 and float16, the norm in float32"
    return _judged(function, attempt, f"{tried} beside them, and a weight that is not contiguous")


def _folded(function: Callable, layer: _Layer, first: bool) -> dict[str, torch.Tensor]:
    """What the function returns, by name; raises Wrong or NotAttempted."""
    given = {name: tensor if tensor is None else tensor.clone() for name, tensor in layer.arguments.items()}
    hints = {
        "None": "bias may be None, and the folded bias is weight @ norm_bias then.",
        # PyTorch 2.13 says "dtype", and 2.11 "scalar type".
        **dict.fromkeys(("dtype", "scalar type"), "A product takes two tensors of one type: convert both with .float() first."),
        **dict.fromkeys(
            ("size", "shape"), "weight is (N, K); norm_weight and norm_bias have K numbers, one a column; bias has N."
        ),
    }
    result = _called(function, *given.values(), first=first, hints=hints)
    for name, tensor in layer.arguments.items():
        if tensor is not None and not torch.equal(tensor, given[name]):
            raise Wrong(f"Your function changed its argument {name}.", "The model keeps its weights: *= and += write into them.")
    if not isinstance(result, (tuple, list)) or len(result) != 3 or not all(isinstance(t, torch.Tensor) for t in result):
        raise Wrong(f"Your function returned a {type(result).__name__}.", f"Return three tensors: {', '.join(_FOLDED)}.")
    return {name: tensor.detach() for name, tensor in zip(_FOLDED, result)}


def _within(got: torch.Tensor, expected: torch.Tensor, tolerance: torch.Tensor) -> bool:
    return got.shape == expected.shape and bool(((got.double() - expected).abs() <= tolerance).all())


def _first_wrong(layer: _Layer, results: dict[str, torch.Tensor]) -> tuple[str, str] | None:
    """The name of the first result that is wrong, and what is wrong with it."""
    g, h, w = (tensor.double() for tensor in (layer.norm_weight, layer.norm_bias, layer.weight))
    bias, folded = torch.zeros(len(w)) if layer.bias is None else layer.bias.double(), results["folded_weight"].double()
    # Off by a rounding of the weight, or by a few of float32 of a sum's terms. The sums are of what was returned.
    few = 8 * torch.finfo(torch.float32).eps
    expected = {
        "folded_weight": (w * g, torch.finfo(layer.weight.dtype).eps * (w * g).abs()),
        "folded_bias": (bias + w @ h, few * ((w * h).abs().sum(1) + bias.abs())),
        "column_sums": (folded.sum(-1), few * folded.abs().sum(-1)),
    }
    for name, (truth, tolerance) in expected.items():
        got, dtype = results[name], layer.weight.dtype if name == "folded_weight" else torch.float32
        if got.shape != truth.shape:
            return name, f"{name} has shape {tuple(got.shape)}; expected {tuple(truth.shape)}."
        if not _within(got, truth, tolerance):
            place = tuple(((got.double() - truth).abs() <= tolerance).logical_not().nonzero()[0].tolist())
            values = f": expected {truth[place]:.8g}, got {got[place]:.8g}" if layer.shown else ""
            return name, f"First wrong element: {name}[{', '.join(map(str, place))}]{values}."
        if got.dtype != dtype:
            return name, f"{name} has the wrong type: {type_name(got.dtype)}; expected {type_name(dtype)}."
    return None


def _fold_hint(name: str, answers: Answers) -> str:
    """The hint of the mistake that gives this result in every case."""

    def explains(formula: Callable, wide: bool) -> bool:
        for layer, results in answers:
            terms = [0.0 if t is None else t.double() if wide else t for t in layer.arguments.values()]
            try:
                value, largest = formula(*terms).double(), formula(*map(abs, terms)).abs().max()
            except (RuntimeError, IndexError):
                return False
            # Formulas differ by more than a few roundings of the weight's type; ways to round, by more than float32's. Of
            # magnitudes, for a sum whose terms cancel is rounded as they are.
            unit = torch.finfo(layer.weight.dtype if wide else torch.float32).eps
            if not _within(results[name], value, 8 * unit * largest):
                return False
        return True

    wide = True
    for mistake in _FOLD_MISTAKES[name]:
        if mistake is ...:
            wide = False
        elif explains(mistake[1], wide):
            return mistake[0]
    return _FOLDED[name]
