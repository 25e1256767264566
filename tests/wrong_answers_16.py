"""Answers to the exercises of lesson 16: wrong ones, each with a pattern that its verdict has to match, and right ones."""

import itertools
import statistics
import time

import numpy as np
import torch

from vitcourse.teach import simulated


def _raises(*arguments):
    return 1 / 0


# ---- busy_and_idle ----------------------------------------------------------------------------------------------------------


def busy_and_idle(events):
    if not events:
        return 0, 0
    spans = sorted((start, end) for _, start, end in events)
    busy, first = 0, spans[0][0]
    reached = first
    for start, end in spans:
        busy += max(0, end - max(start, reached))
        reached = max(reached, end)
    return busy, reached - first - busy


def busy_by_boundaries(events):
    """Counts how many kernels run: one more at a start, one less at an end."""
    running, before, busy, idle = 0, None, 0.0, 0.0
    for now, step in sorted([(start, 1) for _, start, _ in events] + [(end, -1) for *_, end in events]):
        if before is not None:
            busy, idle = (busy + now - before, idle) if running else (busy, idle + now - before)
        running, before = running + step, now
    return [busy, idle]


def busy_on_a_grid(events):
    """In quarters of a microsecond, on which the check's events happen to lie."""
    if not events:
        return np.float64(0), 0
    times = (np.array([event[1:] for event in events]) * 4).round().astype(int)
    ran = np.zeros(times.max() - times.min(), dtype=bool)
    for start, end in times - times.min():
        ran[start:end] = True
    return ran.sum().item() / 4, (~ran).sum().item() / 4


def swept(key=lambda event: event[1], extend=max, closed=True, ends=None, idle=None, empty=(0, 0), first=None):
    """A sweep that merges what runs together, with one of its parts replaced. key: False for no sorting."""

    def function(events):
        if not events and empty is not None:
            return empty
        order = events if key is False else sorted(events, key=key)
        busy, (_, begun, reached) = 0, order[0]
        for _, start, end in order[1:]:
            if start > reached:
                busy, begun, reached = busy + reached - begun, start, end
            else:
                reached = extend(reached, end)
        busy += (reached - begun) if closed else 0
        last = ends(events, order) if ends else max(end for *_, end in events)
        start = first if first is not None else min(start for _, start, _ in events)
        return busy, idle(events, order) if idle else last - start - busy

    return function


def durations(events):
    busy = sum(end - start for _, start, end in events)
    if not events:
        return 0, 0
    return busy, max(end for *_, end in events) - min(start for _, start, _ in events) - busy


def gaps(also_busy=False):
    def function(events):
        order = sorted(events, key=lambda event: event[1])
        idle = sum(max(0, after[1] - before[2]) for before, after in itertools.pairwise(order))
        busy, right = busy_and_idle(events)
        return (busy + right - idle if also_busy else busy), idle

    return function


def by_name(events):
    return busy_and_idle([(name, *times) for name, times in {name: times for name, *times in events}.items()])


def busy_in_whole_microseconds(events):
    busy = {now for _, start, end in events for now in range(int(start), int(end))}
    return len(busy), max(busy) + 1 - min(busy) - len(busy) if busy else 0


def sorts_in_place(events):
    events.sort(key=lambda event: event[1])
    return busy_and_idle(events)


def no_return_for_none(events):
    if events:
        return busy_and_idle(events)


# ---- time_model -------------------------------------------------------------------------------------------------------------


def time_model(run, machine, calls=20):
    for _ in range(5):
        run()
    times = []
    for _ in range(calls):
        machine.flush()
        machine.synchronize()
        start = machine.clock()
        run()
        machine.synchronize()
        times.append(machine.clock() - start)
    return statistics.median(times)


def time_model_until_it_is_warm(run, machine, calls=20):
    """Warms up for a while, waits twice, and takes the middle by sorting a tensor."""
    until = machine.clock() + 500
    while machine.clock() < until:
        run()
        machine.synchronize()
    times = torch.zeros(calls)
    for index in range(calls):
        machine.synchronize()
        machine.flush()
        machine.synchronize()
        start = machine.clock()
        run()
        machine.synchronize()
        times[index] = machine.clock() - start
    return times.sort().values[calls // 2]


def timed(warm=5, wait_before=True, wait_after=True, flush="before", of=statistics.median, factor=1, clock=None):
    """time_model with one of its steps replaced."""

    def function(run, machine, calls=20):
        read = clock or machine.clock
        for _ in range(warm):
            run()
        if flush == "once":
            machine.flush()
        times = []
        for _ in range(calls):
            if flush == "before":
                machine.flush()
            if wait_before:
                machine.synchronize()
            start = read()
            if flush == "inside":
                machine.flush()
            run()
            if wait_after:
                machine.synchronize()
            times.append(read() - start)
        return of(times) * factor

    return function


def looped(warm=0, wait="end", flush=False, per_call=True):
    """One reading of the clock before all calls, and one after. As it is shipped with wait=""."""

    def function(run, machine, calls=20):
        for _ in range(warm):
            run()
        if wait == "both":
            machine.synchronize()
        start = machine.clock()
        for _ in range(calls):
            if flush:
                machine.flush()
            run()
            if wait == "each":
                machine.synchronize()
        if wait:
            machine.synchronize()
        return (machine.clock() - start) / (calls if per_call else 1)

    return function


# ---- graphed ----------------------------------------------------------------------------------------------------------------


def graphed(model, example, error=ValueError, fits=lambda x, static: x.shape == static.shape):
    static = example.clone()
    recording = simulated.Recording()
    with recording:
        output = model(static)

    def call(x):
        if not fits(x, static):
            raise error(f"recorded for {tuple(static.shape)}, got {tuple(x.shape)}")
        static.copy_(x)
        recording.replay()
        return output.clone()

    return call


def graphed_that_raises_a_type_error(model, example):
    return graphed(model, example, error=TypeError)


def of_another_width(model, example):
    return graphed(model, example, fits=lambda x, static: len(x) == len(static))


class Graphed:
    """Warms up, and runs the model for other shapes."""

    def __init__(self, model, example):
        self.model, self.static, self.recording = model, torch.zeros_like(example), simulated.Recording()
        for _ in range(3):
            model(self.static)
        with torch.no_grad(), self.recording:
            self.output = model(self.static)

    def __call__(self, x):
        if x.shape != self.static.shape:
            return self.model(x)
        self.static[:] = x
        self.recording.replay()
        return self.output * 1


def graphed_by_shape(model, example):
    """Records when it is called, once a shape."""
    made = {}

    def call(x):
        if x.shape not in made:
            made[x.shape] = graphed(model, x)
        return made[x.shape](x)

    return call


def recorded(static="clone", fill="copy", give="clone", order=("fill", "replay"), check=True, once=True):
    """graphed with one of its steps replaced."""

    def function(model, example):
        tensor = example if static == "example" else example.clone()

        def record():
            recording = simulated.Recording()
            with recording:
                output = model(example if static == "other" else tensor)
                return recording, output.clone() if give == "inside" else output

        recording, output = record()
        early = output.clone()

        def call(x):
            nonlocal recording, output, tensor
            if check and x.shape != example.shape:
                raise ValueError
            if not once:
                recording, output = record()
            for step in order:
                if step == "replay":
                    recording.replay()
                elif fill == "copy":
                    tensor.copy_(x)
                elif fill == "rename":
                    tensor = x
                elif fill == "add":
                    tensor.add_(x)
                elif fill == "data":
                    tensor.data = x.data
                elif fill == "set":
                    tensor.set_(x)
            results = {"clone": output.clone, "early": lambda: early, "half": lambda: output[:1].clone(), "none": lambda: None}
            results["double"] = output.double
            return results.get(give, lambda: output)()

        return call

    return function


def writes_to_x(model, example):
    call = graphed(model, example)

    def function(x):
        result = call(x)
        x.zero_()
        return result

    return function


shared = {}


def graphed_in_globals(model, example):
    shared["static"], shared["recording"] = example.clone(), simulated.Recording()
    with shared["recording"]:
        shared["output"] = model(shared["static"])

    def call(x):
        if x.shape != shared["static"].shape:
            raise ValueError
        shared["static"].copy_(x)
        shared["recording"].replay()
        return shared["output"].clone()

    return call


def graphed_in_inference_mode(model, example):
    with torch.inference_mode():
        return graphed(model, example)


def never_recorded(model, example):
    recording = simulated.Recording()
    output = model(example)
    return lambda x: recording.replay() or output.clone()


def first_x_only(model, example):
    calls = []

    def call(x):
        if x.shape != example.shape:
            raise ValueError
        if not calls:
            calls.append(graphed(model, x)(x))
        return calls[0].clone()

    return call


# ---- fold -------------------------------------------------------------------------------------------------------------------


def fold(norm_weight, norm_bias, weight, bias):
    folded_weight = (weight * norm_weight).to(weight.dtype)
    folded_bias = weight.float() @ norm_bias.float()
    if bias is not None:
        folded_bias += bias
    return folded_weight, folded_bias, folded_weight.sum(1, dtype=torch.float32)


def fold_in_float64(norm_weight, norm_bias, weight, bias):
    wide = weight.double() * norm_weight.double()[None, :]
    folded_weight = wide.to(weight.dtype)
    bias = torch.zeros(len(weight)) if bias is None else bias
    folded_bias = (weight.double() * norm_bias.double()).sum(1) + bias.double()
    return [folded_weight, folded_bias.float(), folded_weight.double().sum(1).float()]


def fold_by_linear(norm_weight, norm_bias, weight, bias):
    folded_weight = torch.einsum("nk,k->nk", weight.float(), norm_weight.float()).to(weight.dtype)
    linear = torch.nn.functional.linear
    return (
        folded_weight,
        linear(norm_bias.float(), weight.float(), None if bias is None else bias.float()),
        linear(torch.ones_like(norm_weight).float(), folded_weight.float()),
    )


def fold_where_bias_is_true(norm_weight, norm_bias, weight, bias):
    return fold(norm_weight, norm_bias, weight, bias if bias else None)


def folded(
    scale=lambda w, g: (w * g).to(w.dtype),
    shift=lambda w, h, b, folded: w.float() @ h.float() + b,
    sums=lambda folded, w, g: folded.float().sum(1),
    none=0.0,
    give=lambda *results: results,
):
    """fold with one of its results replaced."""

    def function(norm_weight, norm_bias, weight, bias):
        first = scale(weight, norm_weight)
        bias = none if bias is None else bias
        return give(first, shift(weight, norm_bias, bias, first), sums(first, weight, norm_weight))

    return function


def fold_in_place(norm_weight, norm_bias, weight, bias):
    folded_bias = weight.float() @ norm_bias.float() + (0 if bias is None else bias)
    weight *= norm_weight
    return weight, folded_bias, weight.float().sum(1)


def fold_adds_to_bias(norm_weight, norm_bias, weight, bias):
    bias = torch.zeros(len(weight)) if bias is None else bias
    bias += weight.float() @ norm_bias.float()
    return (weight * norm_weight).to(weight.dtype), bias.float(), (weight * norm_weight).to(weight.dtype).float().sum(1)


RIGHT = {
    "busy_and_idle": [busy_and_idle, busy_by_boundaries, busy_on_a_grid],
    "time_model": [time_model, time_model_until_it_is_warm, timed(warm=3, wait_before=True)],
    "graphed": [graphed, Graphed, graphed_by_shape, graphed_that_raises_a_type_error],
    "fold": [fold, fold_in_float64, fold_by_linear],
}

WRONG = {
    "busy_and_idle": [
        (durations, r"busy of .*\('a', 1, 4\), \('b', 3, 9\).* Expected 8, got 9.*counts it twice"),
        (swept(key=False), r"busy of .*\('b', 6, 9\), \('a', 1, 4\).*in no order"),
        (swept(extend=lambda reached, end: end), r"\('a', 1, 9\), \('b', 2, 4\).*got 3.*may only grow"),
        (swept(key=None), "begins with its name"),
        (swept(key=lambda event: event[2]), "Sorted by the end"),
        (swept(first=0), r"idle of .*\('a', 2, 5\).* Expected 0, got 2.*measured from 0"),
        (swept(ends=lambda events, order: order[-1][2]), "idle of .*last to start need not be the last to end"),
        (swept(ends=lambda events, order: events[-1][2]), "idle of .*last in the list need not"),
        (swept(closed=False), "busy of .*('a', 2, 5).*got 0.*when the loop ends"),
        (gaps(), "idle of .*measure a gap from the largest end so far"),
        (gaps(also_busy=True), "busy of .*measure a gap from the largest end so far"),
        (by_name, "names play no part"),
        (lambda events: busy_and_idle(events)[::-1], "wrong way round"),
        (lambda events: (sum(busy_and_idle(events)), 0), "take out the gaps"),
        (lambda events: (busy_and_idle(events)[0], sum(busy_and_idle(events))), "idle is what busy leaves"),
        (swept(idle=lambda events, order: durations(events)[1]), "idle of .*overlap are counted twice"),
        (busy_in_whole_microseconds, r"busy of .*\('a', 0.5, 1.25\).*got 2.*round nothing"),
        (lambda events: tuple(map(int, busy_and_idle(events))), "fractions of a microsecond: round nothing"),
        (swept(empty=None), r"busy_and_idle\(\[\]\).*IndexError.*answer \(0, 0\)"),
        (no_return_for_none, r"busy_and_idle\(\[\]\).*returned nothing.*every branch"),
        (sorts_in_place, r"changed its argument events.*sorted\(events\)"),
        (lambda events: busy_and_idle(events)[0], "returned a int.*two numbers"),
        (_raises, "ZeroDivisionError"),
    ],
    "time_model": [
        (looped(wait=""), r"a launch of 0.5 ms, 2 ms on the GPU; calls=5. Expected about 2 ms, got 0.5 ms.*launch alone"),
        (looped(warm=3), "got 2.902 ms.*warm-up still runs"),
        (looped(), "first 3 calls compile.*Calls that compile"),
        (timed(warm=0), "first 3 calls compile.*Calls that compile are among those timed"),
        (timed(warm=1, of=statistics.mean), "first 3 calls compile.*Calls that compile are among those timed"),
        (looped(warm=5, wait="both"), "inputs are in the cache; calls=5. Expected about 2 ms, got 1.2.*before each timed call"),
        (timed(flush=""), "inputs are in the cache.*got 1.21 ms.*before each timed call"),
        (timed(flush="once"), "inputs are in the cache.*before each timed call"),
        (timed(flush="inside"), "Expected about 2 ms, got 2.41 ms.*Emptying the cache is in your time"),
        (timed(wait_before=False), "Emptying the cache is in your time"),
        (looped(wait="each", flush=True), "got 2.412 ms.*Emptying the cache is in your time"),
        (timed(of=statistics.mean), "every 9th call is disturbed; calls=20.*That is a mean"),
        (timed(of=max), "every 9th call is disturbed.*That is the longest"),
        (timed(of=min), "differ by up to 30 percent.*That is the shortest"),
        (timed(of=lambda times: times[len(times) // 2]), "differ by up to 30 percent.*once they are in order"),
        (timed(of=sum), "Expected about 2 ms, got 10.05 ms.*time of all calls"),
        (timed(factor=1e3), "tells milliseconds"),
        (timed(of=lambda times: times, factor=1), "returned a list where a number belongs"),
        (timed(clock=time.perf_counter), "never read machine.clock"),
        (lambda run, machine, calls: run() or machine.clock(), "run.. was called 1 times"),
        (lambda run, machine, calls: run(), "returned nothing.*return"),
        (lambda run, machine, calls: machine.run_all(), "AttributeError.*clock.., synchronize.. and flush"),
        (_raises, "ZeroDivisionError"),
    ],
    "graphed": [
        (
            recorded(static="example", order=("replay",), give="output", check=False),
            "first call's.*one for the example.*static.copy_",
        ),
        (recorded(order=("replay",)), "one for the example.*static.copy_"),
        (recorded(fill="rename"), "one for the example.*would only give x a second name"),
        (recorded(static="other"), "one for the example.*the very tensor that the model was recorded with"),
        (recorded(order=("fill",)), "Nothing was replayed"),
        (recorded(give="early"), "one for the example.*copy from before: clone after the replay"),
        (recorded(order=("replay", "fill")), "that of the call before.*First copy x"),
        (recorded(fill="add"), "first call's result is not the model's.*In each call: copy"),
        (first_x_only, "second call's.*is the first call's.*in every call"),
        (recorded(give="output"), "has changed in a later call.*clone"),
        (recorded(give="inside"), "has changed in a later call.*clone"),
        (recorded(static="example"), "caller's example has changed.*example.clone"),
        (recorded(once=False), "recorded anew in a later call"),
        (lambda model, example: model, "model itself ran in a later call"),
        (recorded(check=False), r"takes an x of shape \(1, 4\).*compare x.shape"),
        (of_another_width, r"takes an x of shape \(2, 1\).*compare x.shape"),
        (writes_to_x, "changed x.*not the other way round"),
        (graphed_in_globals, "Of two graphs.*local variables"),
        (graphed_in_inference_mode, "inference tensor.*no_grad"),
        (never_recorded, "RuntimeError: Recording.replay: nothing was recorded.*inside of `with recording:`"),
        (recorded(give="half"), r"first call's result.*Its shape is \(1, 4\), and the model gives \(2, 4\)"),
        (recorded(give="double"), "first call's result.*It is float64, and the model gives float32"),
        (recorded(fill="data"), "lies at another address.*static.copy_"),
        (recorded(fill="set"), "lies at another address.*static.copy_"),
        (recorded(give="none"), "returned nothing.*return"),
        (lambda model, example: model(example), "returned a Tensor.*Return a function"),
        (_raises, "ZeroDivisionError"),
    ],
    "fold": [
        (folded(scale=lambda w, g: (w * g[:, None]).to(w.dtype)), r"shape \(2, 2\); expected \(1, 2\).*rows"),
        (fold_where_bias_is_true, "(?s)Boolean value of Tensor.*is not None"),
        (folded(scale=lambda w, g: w), r"\[0, 0\]: expected 8, got 2.*norm_weight is not in it"),
        (folded(scale=lambda w, g: (w * g).to(w.dtype).T, sums=lambda f, w, g: f.float().sum(0)), "It is transposed"),
        (folded(scale=lambda w, g: w.float() * g.float()), "wrong type: float32; expected float16.*the weight's type"),
        (
            folded(shift=lambda w, h, b, f: b + 0 * w[:, 0].float()),
            r"folded_bias\[0\]: expected 87, got 7.*norm_bias is not in it",
        ),
        (folded(shift=lambda w, h, b, f: b + h.float()), r"shape \(2,\); expected \(1,\).*goes through weight"),
        (folded(shift=lambda w, h, b, f: w.float() @ h.float()), "bias is not in it"),
        (folded(shift=lambda w, h, b, f: f.float() @ h.float() + b), "after it has scaled.*weight as it was"),
        (folded(shift=lambda w, h, b, f: h.float() @ w.float() + b), "RuntimeError.*one a column"),
        (
            folded(shift=lambda w, h, b, f: w @ h.to(w.dtype) + b),
            "in float16.*First wrong element: folded_bias.*before you multiply",
        ),
        (folded(shift=lambda w, h, b, f: (w @ h.to(w.dtype)).float() + b), r"folded_bias\[0\].*before you multiply"),
        (folded(shift=lambda w, h, b, f: w.float() @ h + b), "(same dtype|scalar type).*convert both"),
        (folded(none=None), "bias=None.*TypeError.*bias may be None"),
        (folded(sums=lambda f, w, g: w.float().sum(1)), r"column_sums\[0\]: expected 23, got 5.*the weight as it was"),
        (folded(sums=lambda f, w, g: f.float().sum(0)), r"column_sums has shape \(2,\).*wrong axis"),
        (folded(sums=lambda f, w, g: f.float().sum(-1, keepdim=True)), r"shape \(1, 1\); expected \(1,\).*shape \(N,\)"),
        (folded(sums=lambda f, w, g: f.float().sum()), r"shape \(\).*one sum for all"),
        (folded(sums=lambda f, w, g: -f.float().sum(1)), "minus sign"),
        (folded(sums=lambda f, w, g: f.sum(1)), r"float16.*column_sums.*rounded to the weight's type.*float\(\).sum"),
        (
            folded(sums=lambda f, w, g: f.sum(1).float()),
            r"column_sums\[0\]: expected 8.0087891, got 8.0078125.*rounded to the weight's type",
        ),
        (folded(sums=lambda f, w, g: (w.float() * g.float()).sum(1)), r"in float16.*column_sums\[0\].*rows lie far from zero"),
        (folded(sums=lambda f, w, g: w.float() @ g.float()), "float16.*rows lie far from zero"),
        (folded(sums=lambda f, w, g: f.double().sum(1)), "wrong type: float64; expected float32"),
        (fold_in_place, "changed its argument weight"),
        (fold_adds_to_bias, "changed its argument bias"),
        (folded(give=lambda a, b, c: (b, a, c)), r"folded_weight has shape \(1,\).*shape \(N, K\)"),
        (_raises, "ZeroDivisionError"),
    ],
}
