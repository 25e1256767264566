"""Answers to the exercises of lesson 15: wrong ones, each with a pattern that its verdict has to match, and right ones."""

import copy
import math

import numpy as np
import torch

from vitcourse.teach import faults


def _endless(*arguments):
    while True:
        pass


def _raises(*arguments):
    return 1 / 0


# ---- relative_error ---------------------------------------------------------------------------------------------------------


def _at_zero(difference):
    return 0.0 if difference == 0 else difference * math.inf  # a NaN stays one


def relative_error(output, truth):
    output, truth = output.double().cpu(), truth.double().cpu()
    difference, size = (output - truth).norm().item(), truth.norm().item()
    return difference / size if size > 0 else _at_zero(difference)


def relative_error_that_keeps_nan(output, truth):
    """Unlike the published one, NaN where the truth is zero and the output holds a NaN."""
    output, truth = output.double().cpu(), truth.double().cpu()
    difference, size = (output - truth).norm().item(), truth.norm().item()
    if size == 0:
        return 0.0 if difference == 0 else difference * float("inf")
    return difference / size


def relative_error_in_numpy(output, truth):
    output, truth = (tensor.double().cpu().numpy().ravel() for tensor in (output, truth))
    difference = np.sqrt(((output - truth) ** 2).sum())
    if not truth.any():
        return np.float64(_at_zero(difference))
    return difference / np.linalg.norm(truth)


def relative_error_by_mean_squares(output, truth):
    output, truth = output.to("cpu", torch.float64), truth.to("cpu", torch.float64)
    if torch.equal(output, truth):
        return torch.tensor(0.0)
    return ((output - truth).square().mean() / truth.square().mean()).sqrt()


def wide(formula, at_zero=None):
    """An answer in float64 that treats NaN and zeros rightly, or zeros as `at_zero` does."""

    def function(output, truth):
        output, truth = output.double().cpu(), truth.double().cpu()
        if not truth.any():
            return (at_zero or relative_error)(output, truth)
        return float(formula(output, truth))

    return function


def only(formula):
    """The formula alone, nothing converted."""
    return lambda output, truth: formula(output, truth).item()


def in_type(dtype):
    def function(output, truth):
        output, truth = output.to(dtype), truth.to(dtype)
        difference, size = (output - truth).norm().item(), truth.norm().item()
        return difference / size if size > 0 else float("inf") if difference > 0 else 0.0

    return function


@np.errstate(over="ignore", invalid="ignore")
def in_numpy(output, truth):
    return float(np.linalg.norm(output.numpy() - truth.numpy()) / np.linalg.norm(truth.numpy()))


def changes_output(output, truth):
    result = relative_error(output, truth)
    output -= truth
    return result


def loops(output, truth):
    return math.sqrt(sum((o - t) ** 2 for o, t in zip(output, truth))) / math.sqrt(sum(t**2 for t in truth))


def divides_by_zero(output, truth):
    output, truth = output.double().cpu(), truth.double().cpu()
    return (output - truth).norm().item() / truth.norm().item()


def returns_only_where_truth_is_not_zero(output, truth):
    if truth.any():
        return relative_error(output, truth)


def without_nan(output, truth):
    kept = ~output.isnan().cpu()
    return relative_error(output.cpu()[kept], truth.cpu()[kept])


# ---- first_divergence -------------------------------------------------------------------------------------------------------


def first_divergence(rows, floor):
    largest = 0.0
    for name, error, peer_error in rows:
        largest = max(largest, peer_error)
        if not error <= max(2 * largest, floor):
            return name
    return None


def first_divergence_by_prefixes(rows, floor):
    for index in range(len(rows)):
        name, error, _ = rows[index]
        if math.isnan(error) or error > max([floor] + [2 * row[2] for row in rows[: index + 1]]):
            return name


def first_divergence_by_next(rows, floor):
    peaks = np.maximum.accumulate([row[2] for row in rows]) if rows else []
    return next((row[0] for row, peak in zip(rows, peaks) if not row[1] <= max(2 * peak, floor)), None)


def walk(fine=None, take="first", none=None, largest_after=False):
    """A loop over the rows. fine(error, largest, floor, this row's peer error)."""

    def function(rows, floor):
        found, largest = [], 0.0
        for index, (name, error, peer_error) in enumerate(rows):
            if not largest_after:
                largest = max(largest, peer_error)
            if not (fine or (lambda e, m, f, p: e <= max(2 * m, f)))(error, largest, floor, peer_error):
                found.append((name, error, index))
            largest = max(largest, peer_error)
        if not found:
            return none
        if take == "largest":
            return max(found, key=lambda row: row[1])[0]
        if take == "index":
            return found[0][2]
        if take == "all":
            return [name for name, _, _ in found]
        if take == "row":
            return rows[found[0][2]]
        if take == "before":
            return rows[max(found[0][2] - 1, 0)][0]
        return found[0 if take == "first" else -1][0]

    return function


def largest_of_all(rows, floor):
    limit = max(2 * max((row[2] for row in rows), default=0), floor)
    return next((name for name, error, _ in rows if not error <= limit), None)


def sum_of_peers(rows, floor):
    total = 0.0
    for name, error, peer_error in rows:
        total += peer_error
        if not error <= max(2 * total, floor):
            return name


def first_row_only(rows, floor):
    for name, error, peer_error in rows:
        return name if not error <= max(2 * peer_error, floor) else None


def row_before_as_well(rows, floor):
    before = 0.0
    for name, error, peer_error in rows:
        if not error <= max(2 * before, 2 * peer_error, floor):
            return name
        before = peer_error


def pops_rows(rows, floor):
    largest = 0.0
    while rows:
        name, error, peer_error = rows.pop(0)
        largest = max(largest, peer_error)
        if not error <= max(2 * largest, floor):
            return name


def largest_over_all_rows_empty(rows, floor):
    largest = max(row[2] for row in rows[:1])
    for name, error, peer_error in rows:
        largest = max(largest, peer_error)
        if not error <= max(2 * largest, floor):
            return name


def first_peer_for_all(rows, floor):
    return next((name for name, error, _ in rows if not error <= max(2 * rows[0][2], floor)), None)


def errors_exchanged(rows, floor):
    return first_divergence([(name, theirs, ours) for name, ours, theirs in rows], floor)


# ---- layer_outputs ----------------------------------------------------------------------------------------------------------


def layer_outputs(model, pixel_values, names):
    outputs, hooks = {}, []

    def keep(name):
        def hook(module, inputs, output):
            outputs[name] = (output[0] if isinstance(output, tuple) else output).detach().clone()

        return hook

    modules = dict(model.named_modules())
    try:
        hooks += [modules[name].register_forward_hook(keep(name)) for name in names]
        with torch.no_grad():
            model(pixel_values)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def layer_outputs_by_default_argument(model, pixel_values, names):
    from contextlib import ExitStack

    outputs = {}
    with ExitStack() as stack, torch.inference_mode():
        for name in names:

            def hook(module, inputs, output, name=name):
                outputs.update({name: torch.clone(output[0] if isinstance(output, tuple) else output)})

            stack.enter_context(model.get_submodule(name).register_forward_hook(hook))
        model(pixel_values)
    return outputs


def layer_outputs_of_a_copy(model, pixel_values, names):
    """The original never has a hook."""
    return layer_outputs(copy.deepcopy(model), pixel_values, names)


def layer_outputs_by_module(model, pixel_values, names):
    name_of, outputs = {module: name for name, module in model.named_modules() if name in set(names)}, {}

    def hook(module, inputs, output):
        while isinstance(output, tuple):
            output = output[0]
        outputs[name_of[module]] = output.clone()
        return None

    handles = [module.register_forward_hook(hook) for module in name_of]
    try:
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        model(pixel_values)
    finally:
        torch.set_grad_enabled(before)
        [handle.remove() for handle in handles]
    return outputs


def hooked(
    hook=None, modules=None, keep=None, remove="finally", gradients=False, before=None, after=None, finish=None, swallow=False
):
    """A way to write layer_outputs. hook(outputs, name, output, inputs): what one does; keep: what it stores of the output."""

    def first(output):
        return output[0] if isinstance(output, tuple) else output

    keep = keep or (lambda output: first(output).detach().clone())

    def store(outputs, name, output, inputs):
        outputs[name] = keep(output)

    def function(model, pixel_values, names):
        outputs, handles = {}, []
        found = modules(model) if modules else dict(model.named_modules())

        def make(name):
            return lambda module, inputs, output: (hook or store)(outputs, name, output, inputs)

        def clean():
            for handle in handles:
                handle.remove()

        (before or (lambda *_: None))(model, pixel_values, names)
        for name in names:
            if name in found:
                handles.append(found[name].register_forward_hook(make(name)))
        try:
            with torch.set_grad_enabled(gradients):
                model(pixel_values)
        except RuntimeError:
            if remove == "finally":
                clean()
            if not swallow:
                raise
        if remove:
            clean()
        (after or (lambda *_: None))(model, pixel_values, names)
        return finish(outputs, names) if finish else outputs

    return function


def late_binding(model, pixel_values, names):
    outputs, handles, modules = {}, [], dict(model.named_modules())
    for name in names:
        handles.append(modules[name].register_forward_hook(lambda m, i, o: outputs.__setitem__(name, o.detach().clone())))  # noqa: B023
    with torch.no_grad():
        model(pixel_values)
    for handle in handles:
        handle.remove()
    return outputs


def late_binding_into_all(model, pixel_values, names):
    outputs = dict.fromkeys(names)

    def hook(module, inputs, output):
        for name in names:
            outputs[name] = output.detach().clone()

    handles = [dict(model.named_modules())[name].register_forward_hook(hook) for name in names]
    with torch.no_grad():
        model(pixel_values)
    for handle in handles:
        handle.remove()
    return outputs


def pre_hooks(model, pixel_values, names):
    outputs, handles, modules = {}, [], dict(model.named_modules())

    def keep(name):
        def hook(module, inputs):
            outputs[name] = inputs[0].clone()

        return hook

    for name in names:
        handles.append(modules[name].register_forward_pre_hook(keep(name)))
    with torch.no_grad():
        model(pixel_values)
    for handle in handles:
        handle.remove()
    return outputs


def one_run_a_name(model, pixel_values, names):
    outputs = {}
    for name in names:
        outputs.update(layer_outputs(model, pixel_values, [name]))
    return outputs


def returns_the_changed_output(outputs, name, output, inputs):
    outputs[name] = (output[0] if isinstance(output, tuple) else output).detach().clone()
    return outputs[name]


def returns_twice_the_output(outputs, name, output, inputs):
    outputs[name] = output.detach().clone()
    return 2 * output


def prefilled(model, pixel_values, names):
    outputs = dict.fromkeys(names)
    for name, value in layer_outputs(model, pixel_values, names).items():
        outputs[name] = value
    return outputs


def by_getattr(model, pixel_values, names):
    return hooked(modules=lambda model: {name: getattr(model, name) for name in names})(model, pixel_values, names)


def hook_of_two_arguments(model, pixel_values, names):
    handles = [dict(model.named_modules())[name].register_forward_hook(lambda module, output: None) for name in names]
    try:
        model(pixel_values)
    finally:
        for handle in handles:
            handle.remove()


def hooks_on_all_modules(model, pixel_values, names):
    outputs, name_of = {}, {module: name for name, module in model.named_modules()}

    def hook(module, inputs, output):
        if name_of.get(module) in names:
            outputs[name_of[module]] = (output[0] if isinstance(output, tuple) else output).detach().clone()

    torch.nn.modules.module.register_module_forward_hook(hook)
    with torch.no_grad():
        model(pixel_values)
    return outputs


def forwards_replaced(model, pixel_values, names):
    outputs, modules = {}, dict(model.named_modules())

    def wrap(name, forward):
        def wrapped(*inputs):
            output = forward(*inputs)
            outputs[name] = (output[0] if isinstance(output, tuple) else output).detach().clone()
            return output

        return wrapped

    for name in names:
        modules[name].forward = wrap(name, modules[name].forward)
    with torch.no_grad():
        model(pixel_values)
    return outputs


def gradients_switched_off(model, pixel_values, names):
    torch.set_grad_enabled(False)
    return layer_outputs(model, pixel_values, names)


def freezes(model, pixel_values, names):
    model.requires_grad_(False)
    return hooked(gradients=True, keep=lambda output: (output[0] if isinstance(output, tuple) else output).clone())(
        model, pixel_values, names
    )


def returns_nothing(model, pixel_values, names):
    layer_outputs(model, pixel_values, names)


def surplus_names(model, pixel_values, names):
    return layer_outputs(model, pixel_values, [name for name, _ in model.named_modules() if name])


def only_the_last_part_of_the_name(model, pixel_values, names):
    return {name.rsplit(".", 1)[-1]: value for name, value in layer_outputs(model, pixel_values, names).items()}


def _first(output):
    return output[0] if isinstance(output, tuple) else output


def _zero_weights(model, pixel_values, names):
    with torch.no_grad():
        next(model.parameters()).zero_()


# ---- faults -----------------------------------------------------------------------------------------------------------------

#: Places in the digits model, which has two blocks.
PLACES = {
    1: "blocks.0.attention.qkv",
    2: "blocks.1.attention",
    3: "blocks.0.attention.attended",
    4: "blocks.1.norm2",
    5: "embeddings",
    6: "blocks.0.mlp.fc1",
    7: "blocks.1.attention.attended",
    8: "blocks.0.mlp",
}


def but(**changes):
    """The right places but for these: but(_3="norm")."""
    return {**PLACES, **{int(number[1:]): place for number, place in changes.items()}}


RIGHT = {
    "relative_error": [
        relative_error,
        relative_error_that_keeps_nan,
        relative_error_in_numpy,
        relative_error_by_mean_squares,
    ],
    "first_divergence": [first_divergence, first_divergence_by_prefixes, first_divergence_by_next],
    "layer_outputs": [layer_outputs, layer_outputs_by_default_argument, layer_outputs_of_a_copy, layer_outputs_by_module],
    "faults": [
        PLACES,
        dict(reversed(PLACES.items())),
        but(_2="blocks.1.attention.output", _5="patch_embedding", _8=" blocks.0.mlp.fc2 "),
    ],
}


def norms(answer):
    """answer(output, truth, ||output - truth||, ||truth||), of tensors in float64."""

    def relative_error(output, truth):
        o, t = output.double().cpu(), truth.double().cpu()
        return answer(o, t, (o - t).norm().item(), t.norm().item())

    return relative_error


WRONG = {
    "relative_error": [
        (
            norms(lambda o, t, d, n: 0.0 if torch.allclose(o, t) else d / n if n else _at_zero(d)),
            "nothing nearly equal is",
        ),
        (norms(lambda o, t, d, n: (0.0 if d < 1e-6 else math.inf) if n < 1e-6 else d / n), "1e-20.*norm is exactly 0"),
        (norms(lambda o, t, d, n: round(d / n, 12) if n else _at_zero(d)), "1e-7.*nothing is rounded"),
        (
            norms(lambda o, t, d, n: d / n if n and o.norm() else 0.0 if torch.equal(o, t) else d * math.inf),
            r"\[0\.0, 0\.0\], \[3\.0, 4\.0\].*an output of zeros",
        ),
        (norms(lambda o, t, d, n: d / n if n > 0 else math.inf if d > 0 else 0.0), r"\[nan, 0\.0\].*A NaN is a NaN"),
        (
            wide(lambda o, t: (o - t).abs().max() / t.abs().max()),
            r"\[3\.0, 14\.0\].*got 0\.4.*largest difference alone",
        ),
        (wide(lambda o, t: (o - t).abs().max() / t.norm()), "largest difference alone"),
        (lambda o, t: (o - t).abs().max().item(), r"\[5\.0\], \[2\.0\].*Expected 1\.5, got 3.*largest difference alone"),
        (lambda o, t: ((o - t).abs() / t.abs()).max().item(), "near zero would rule"),
        (lambda o, t: ((o - t).abs() / t.abs()).mean().item(), "near zero would rule"),
        (lambda o, t: ((o - t).abs().mean() / t.abs().mean()).item(), "means or sums of magnitudes"),
        (lambda o, t: (o - t).abs().mean().item(), "means or sums of magnitudes"),
        (lambda o, t: (torch.norm(o - t, p=1) / torch.norm(t, p=1)).item(), "means or sums of magnitudes"),
        (lambda o, t: (o - t).norm().item(), r"Expected 1\.5, got 3\..*not divided by the truth's norm"),
        (only(lambda o, t: (o - t).norm() / o.norm()), r"Expected 1\.5, got 0\.6\..*divided by the output's norm"),
        (only(lambda o, t: 2 * (o - t).norm() / (o.norm() + t.norm())), "not against both"),
        (only(lambda o, t: (o - t).norm() / torch.maximum(o.norm(), t.norm())), "not against both"),
        (only(lambda o, t: t.norm() / (o - t).norm()), "upside down"),
        (wide(lambda o, t: (o - t).square().sum() / t.square().sum()), r"Expected 1\.5, got 2\.25.*its square"),
        (wide(lambda o, t: (o - t).square().sum() / t.norm()), "Only one of the two norms"),
        (only(lambda o, t: (o - t).norm() / (t**2).sum()), "Only one of the two norms"),
        (wide(lambda o, t: ((o - t).norm(dim=-1) / t.norm(dim=-1)).mean()), r"\[\[9\.0, .*mean over rows"),
        (wide(lambda o, t: ((o - t).norm(dim=-1) / t.norm(dim=-1)).max()), "worst row"),
        (wide(lambda o, t: ((o - t).norm(dim=-1) / t.norm(dim=-1)).sum()), "sum over rows"),
        (lambda o, t: (o - t).norm(dim=-1) / t.norm(dim=-1), "returned a Tensor where a number belongs"),
        (wide(lambda o, t: (o - t).sum() / t.sum()), r"\[1\.0\], \[4\.0\].*Expected 0\.75, got -0\.75.*opposite sign"),
        (wide(lambda o, t: (o - t).sum().abs() / t.sum().abs()), r"\[3\.0, 14\.0\].*got 0\.7.*opposite sign"),
        (
            wide(lambda o, t: (o - t).max() / t.abs().max()),
            "got -0.75.*below the truth the difference",
        ),
        (wide(lambda o, t: (o - t).max() / t.max()), "below the truth the difference is negative"),
        (wide(lambda o, t: (o - t).norm() / t.norm() / o.numel()), "number of elements belongs in both"),
        (wide(lambda o, t: (o - t).norm() / o.numel()), "number of elements belongs in both"),
        (wide(lambda o, t: (o - t).norm() / o.numel() ** 0.5 / t.norm()), "number of elements belongs in both"),
        (lambda o, t: torch.nn.functional.mse_loss(o, t).sqrt().item(), "root of the mean square"),
        (lambda o, t: torch.nn.functional.mse_loss(o, t).item(), "mean of the squared differences"),
        (wide(lambda o, t: (o.norm() - t.norm()).abs() / t.norm()), "Subtract first"),
        (wide(lambda o, t: torch.linalg.norm(o - t, 2) / torch.linalg.norm(t, 2)), r"\[\[9\.0, .*largest singular value"),
        (wide(lambda o, t: 100 * (o - t).norm() / t.norm()), "in percent"),
        (wide(lambda o, t: (o - t).norm() / (t.norm() + 1e-6)), "in float32.*Nothing is added to the divisor"),
        (
            wide(lambda o, t: (o - t).norm() / (t.norm() + 1e-12), only(lambda o, t: o.norm() / 1e-12)),
            "1e-20.*Nothing is added to the divisor",
        ),
        (
            only(lambda o, t: (o - t).norm() / t.norm()),
            r"\[0\.1\] and \[0\.3\] in float32.*in the types that the tensors have",
        ),
        (in_type(torch.float32), r"\[0\.1\] and \[0\.3\] in float32.*computed in float32"),
        (in_type(torch.float16), "computed in float16"),
        (in_type(torch.bfloat16), "computed in bfloat16"),
        (lambda o, t: ((o - t).double().norm() / t.double().norm()).item(), "rounded before it was converted"),
        (lambda o, t: relative_error(o.numpy(), t.numpy()), "AttributeError"),
        (in_numpy, "in float32.*rounding did not show"),
        (lambda o, t: relative_error(o.double().view(-1), t.double().view(-1)), "not contiguous.*RuntimeError: view size"),
        (lambda o, t: relative_error(o.nan_to_num(), t), r"\[nan, 1\.0\].*Expected nan, got.*passes for a good result"),
        (without_nan, "passes for a good result"),
        (lambda o, t: relative_error(t.cpu() + (o.double() - t.to(o.device)).cpu().nan_to_num(), t), "passes for a good result"),
        (divides_by_zero, r"\[0\.0, 0\.0\], \[0\.0, 0\.0\].*ZeroDivisionError.*truth of zeros has norm 0"),
        (
            wide(lambda o, t: (o - t).norm() / t.norm(), only(lambda o, t: (o - t).norm() / t.norm())),
            r"Expected 0, got nan.*agree: the error is 0",
        ),
        (wide(lambda o, t: (o - t).norm() / t.norm(), lambda o, t: math.inf), "agree: the error is 0"),
        (
            wide(lambda o, t: (o - t).norm() / t.norm(), lambda o, t: 0.0),
            r"\[3\.0, 4\.0\].*Expected inf, got 0\..*no tolerance fits",
        ),
        (wide(lambda o, t: (o - t).norm() / t.norm(), only(lambda o, t: o.norm())), "no tolerance fits"),
        (returns_only_where_truth_is_not_zero, "returned nothing.*every branch"),
        (changes_output, "changed its argument output"),
        (loops, r"\[\[9\.0, .*Your code raised .*The line: `return math.sqrt"),
        (lambda o, t: f"{relative_error(o, t):.1%}", "returned a str"),
        (lambda o: 0.0, "TypeError.*arguments"),
        (lambda o, t: 1.5, r"\[1\.0\], \[4\.0\].*Expected 0\.75, got 1\.5"),
        (_endless, "did not finish"),
    ],
    "first_divergence": [
        (lambda rows, floor: first_divergence([(name, error, error) for name, error, _ in rows], floor), "excuse themselves"),
        (walk(lambda e, m, f, p: e <= max(2 * p, f)), "'b', 3.0, 0.5.*Expected None, got 'b'.*yours takes this row's alone"),
        (walk(lambda e, m, f, p: not e > max(2 * m, f)), r"nan.*Expected 'a', got None.*A NaN compares as False"),
        (walk(lambda e, m, f, p: not e > max(2 * p, f)), "'b', 3.0, 0.5.*yours takes this row's alone"),
        (walk(lambda e, m, f, p: not (e > 2 * m or e > f)), "larger of the two counts, not the smaller"),
        (
            walk(lambda e, m, f, p: not e >= max(2 * m, f)),
            "2.0, 1.0.*A NaN compares as False.*equal to its tolerance",
        ),
        (walk(lambda e, m, f, p: e < max(2 * m, f)), "equal to its tolerance is fine: <=, not <"),
        (walk(lambda e, m, f, p: e <= 2 * m + f), "larger of the two counts, not their sum"),
        (walk(lambda e, m, f, p: e <= min(2 * m, f)), "larger of the two counts, not the smaller"),
        (walk(lambda e, m, f, p: e <= 2 * m), "floor was left out"),
        (walk(lambda e, m, f, p: e <= f), "peer's error was left out"),
        (walk(lambda e, m, f, p: e <= max(m, f)), "yours allows it once"),
        (walk(lambda e, m, f, p: e <= max(3 * m, f)), "three times"),
        (walk(lambda e, m, f, p: e <= 2 * max(m, f)), "the floor is not"),
        (walk(take="last"), "Expected 'b', got 'c'.*last row that is off"),
        (walk(take="largest"), "Expected 'b', got 'c'.*largest error"),
        (walk(take="before"), "That is the row before"),
        (lambda rows, floor: max(rows, key=lambda row: row[1])[0] if rows else None, "1.0, 1.0.*largest error"),
        (largest_of_all, "Expected 'a', got None.*excuse it with later ones"),
        (walk(largest_after=True), "own peer error counts as well"),
        (first_peer_for_all, r"yours takes the first row's for all"),
        (sum_of_peers, "largest peer error so far, not their sum"),
        (first_row_only, "'b', 5.0.*Only the first row"),
        (row_before_as_well, "looks one row back"),
        (errors_exchanged, "two errors are exchanged"),
        (walk(lambda e, m, f, p: not e <= max(2 * m, f)), "wrong way round"),
        (walk(lambda e, m, f, p: not math.isnan(e)), "first row with a NaN"),
        (walk(lambda e, m, f, p: e <= max(2 * m, f) or math.isinf(e)), "infinite error is not fine"),
        (walk(none=""), "Expected None, got ''.*not an empty text"),
        (walk(none="None"), "not the text 'None'"),
        (walk(none=False), "returned a bool"),
        (walk(take="index"), "returned an int.*not its number"),
        (walk(take="all"), "returned a list.*the name alone"),
        (walk(take="row"), "returned a tuple.*the name alone"),
        (lambda rows, floor: first_divergence(rows, floor) or (rows[-1][0] if rows else None), "not the last row's name"),
        (lambda rows, floor: "a", "Expected None, got 'a'"),
        (pops_rows, "changed its argument rows"),
        (largest_over_all_rows_empty, r"first_divergence\(\[\], 1\).*ValueError"),
        (lambda rows: None, "TypeError.*arguments"),
        (_raises, "ZeroDivisionError"),
        (_endless, "did not finish"),
    ],
    "layer_outputs": [
        (late_binding, "two layers.*missing: 'first'.*share one variable"),
        (late_binding_into_all, "First wrong output: 'first'.*share one variable"),
        (hooked(keep=lambda output: _first(output).detach().double()), "First wrong output: 'first'"),
        (hooked(remove=None), "two layers.*'first' has a hook left.*returns a handle"),
        (hooked(remove="end"), r"raises in its second layer.*'first' has a hook left.*in a finally"),
        (hooked(keep=lambda output: _first(output).detach()), "in place.*First wrong output: 'first'.*keep a copy, clone"),
        (
            hooked(gradients=True, keep=lambda output: _first(output).clone()),
            r"'first' carries a gradient's history.*no_grad",
        ),
        (pre_hooks, "two layers.*First wrong output: 'first'.*what went into the module"),
        (hooked(keep=lambda output: output), "returns a tuple.*'first' has a value of type tuple.*first element"),
        (
            hooked(keep=lambda output: output.detach().clone()),
            "returns a tuple.*AttributeError.*tuple, keep its first",
        ),
        (
            hooked(lambda outputs, name, output, inputs: outputs.update({name: inputs})),
            "value of type tuple.*A hook is given the inputs",
        ),
        (hooked(returns_the_changed_output), "two layers.*puts another tensor.*takes the place"),
        (hooked(returns_twice_the_output), "First wrong output: 'second'.*takes the place of the module's output"),
        (prefilled, "asked for in another order.*ran in the order 'first', 'second', 'third'; your names.*'third', 'first'"),
        (
            hooked(modules=lambda model: {n: m for n, m in model.named_modules() if not list(m.children())}),
            "layers within it.*missing: 'block'.*holds others has an output",
        ),
        (hooked(modules=lambda model: dict(model.named_children())), "layers within it.*missing: 'block.first'.*name with dots"),
        (
            lambda model, x, names: hooked(modules=lambda m: {n: dict(m.named_children())[n] for n in names})(model, x, names),
            "layers within it.*KeyError.*named_modules",
        ),
        (by_getattr, r"AttributeError.*name with dots is a path"),
        (one_run_a_name, "two layers.*ran the model 2 times"),
        (hooked(before=lambda model, x, names: model(x)), "ran the model 2 times"),
        (hooked(before=lambda model, x, names: model.eval()), "training mode, but.*The model is in another mode"),
        (hooked(before=lambda model, x, names: model.eval(), after=lambda model, x, names: model.train()), "another mode"),
        (
            hooked(
                before=lambda m, x, names: (setattr(m, "was", m.training), m.eval()), after=lambda m, x, names: m.train(m.was)
            ),
            "training mode, but for one.*'first' is in another mode",
        ),
        (hooked(swallow=True), "raises in its second layer.*exception did not come out"),
        (hook_of_two_arguments, "TypeError.*three arguments"),
        (hooks_on_all_modules, "hook on all modules is still there"),
        (forwards_replaced, "The forward of 'first' was replaced"),
        (gradients_switched_off, "Gradients are switched off"),
        (freezes, "parameters need gradients no more"),
        (returns_nothing, "returned nothing.*dictionary that the hooks"),
        (surplus_names, "three layers, of which two.*'second', which was not asked for"),
        (only_the_last_part_of_the_name, "layers within it.*missing: 'block.first'. It has 'first'.*all their dots"),
        (hooked(finish=lambda outputs, names: list(outputs.values())), "returned a list"),
        (
            hooked(finish=lambda outputs, names: {i: o for i, o in enumerate(outputs.values())}),
            "key of your dictionary is of type int",
        ),
        (
            hooked(finish=lambda outputs, names: {n: o.shape for n, o in outputs.items()}),
            "'first' has a value of type Size.*Keep the output itself",
        ),
        (hooked(finish=lambda outputs, names: dict(zip(names, outputs.values()))), "another order.*each other's names"),
        (hooked(finish=lambda outputs, names: {n: o.numpy() for n, o in outputs.items()}), "'first' has a value of type ndarray"),
        (
            hooked(finish=lambda outputs, names: {n: o[:1] for n, o in outputs.items()}),
            r"shape is \(1, 4\); expected \(2, 4\)",
        ),
        (
            hooked(finish=lambda outputs, names: {n: o + 1 for n, o in outputs.items()}),
            "First wrong output: 'first'.*third argument",
        ),
        (hooked(finish=lambda outputs, names: {}), "missing: 'first'.*dictionary is empty"),
        (hooked(after=_zero_weights), "changed the model's weights"),
        (hooked(after=lambda model, x, names: x.mul_(2)), "changed its argument pixel_values"),
        (hooked(after=lambda model, x, names: names.sort(reverse=True)), "changed its argument names"),
        (lambda model, x, names: {name: torch.zeros(2, 4) for name in names}, "First wrong output: 'first'.*third"),
        (lambda model, x: {}, "TypeError"),
        (_raises, "ZeroDivisionError"),
        (_endless, "did not finish"),
    ],
    "faults": [
        (
            but(_1="blocks.0.attention"),
            r"2, 3, .*Fault 1: 'blocks.0.attention' is not its place.*earlier row is wrong already",
        ),
        (but(_2="blocks.1.norm1"), "Fault 2: .*still within its tolerance"),
        (but(_3="blocks.0"), "Fault 3: .*a whole block"),
        (but(_3="block 0"), "Fault 3: .*a whole block"),
        (but(_3="blocks.0.attention.output"), "Fault 3: .*earlier row is wrong already"),
        (but(_4="blocks.7.norm2"), "Fault 4: .*no such block: the model has 2, counted from 0"),
        (but(_4="blocks.1.layernorm_after"), "Fault 4: .*Hugging Face's names"),
        (but(_4="vit.layers.1.layernorm_after"), "Fault 4: .*Hugging Face's names"),
        (but(_5="position_embedding"), "Fault 5: .*no such row"),
        (but(_5="logits"), "Fault 5: .*earlier row"),
        (but(_6=3), "Fault 6: a value of type int is not its place.*text such as"),
        (but(_6="the GELU"), "Right so far: 1, 2, 3, 4, 5, 7, 8.*Fault 6: .*no such row"),
        (but(_7="blocks.1.mlp", _8="norm"), "Right so far: 1, 2, 3, 4, 5, 6.*Fault 7: .*earlier row"),
        ({**dict.fromkeys(PLACES), 6: "norm"}, "Right so far: none. Fault 6: 'norm'.*earlier row"),
        (dict.fromkeys(PLACES, "embeddings"), "Right so far: 5. Fault 1: .*still within its tolerance"),
        ({**PLACES, 9: "norm"}, "no fault 9.*numbered, 1 to 8"),
        ({str(number): place for number, place in PLACES.items()}, "no fault '1'"),
        (list(PLACES.values()), "not a dictionary"),
        (faults.plant, "not a dictionary"),
    ],
}
