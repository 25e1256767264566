"""The exercise checks: every plausible wrong answer is refused with a hint that fits, every right one passes."""

import contextlib
import inspect
import itertools
import math
import os
import re
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import wrong_answers_00
import wrong_answers_01
import wrong_answers_02
import wrong_answers_03
import wrong_answers_04
import wrong_answers_05
import wrong_answers_06
import wrong_answers_07
import wrong_answers_08
import wrong_answers_09
import wrong_answers_10
import wrong_answers_11
import wrong_answers_12
import wrong_answers_13
import wrong_answers_14
import wrong_answers_15
import wrong_answers_16

from vitcourse import kernels, layers, runtime, weights
from vitcourse.teach import check, faults, trace
from vitcourse.teach.check import judge
from vitcourse.vit import ViT, ViTConfig

# ruff: isort: split
import triton
import triton.language as tl
from triton.runtime import interpreter

BANKS = (
    wrong_answers_00,
    wrong_answers_01,
    wrong_answers_02,
    wrong_answers_03,
    wrong_answers_04,
    wrong_answers_05,
    wrong_answers_06,
    wrong_answers_07,
    wrong_answers_08,
    wrong_answers_09,
    wrong_answers_10,
    wrong_answers_11,
    wrong_answers_12,
    wrong_answers_13,
    wrong_answers_14,
    wrong_answers_15,
    wrong_answers_16,
)
RIGHT = {name: answers for bank in BANKS for name, answers in bank.RIGHT.items()}
WRONG = {name: answers for bank in BANKS for name, answers in bank.WRONG.items()}
#: A check that is given what the reader found, and no function.
OF_VALUES = {"faults"}
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def repeatable(request, monkeypatch):
    """The same numbers in every run, others in every test: a check draws new ones for each of a reader's attempts."""
    seed = zlib.crc32(request.node.nodeid.encode())
    torch.manual_seed(seed)
    seeds, generator = itertools.count(seed), np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda *given: generator(*given or (next(seeds),)))


@pytest.fixture(autouse=True)
def nothing_stale():
    wrong_answers_01.STALE.clear()
    wrong_answers_04.STALE.clear()
    wrong_answers_05.STALE.clear()


def _all(bank):
    return [pytest.param(name, index, id=f"{name}-{index}") for name, answers in bank.items() for index in range(len(answers))]


@pytest.mark.parametrize(("name", "index"), _all(RIGHT))
def test_right_answers_pass(name, index):
    verdict = getattr(check, name)(RIGHT[name][index])
    assert verdict.status == "right", verdict
    assert repr(verdict).startswith("Right. Tried: ") and verdict


@pytest.mark.parametrize(("name", "index"), _all(WRONG))
def test_wrong_answers_are_refused_with_a_hint(name, index, monkeypatch):
    answer, pattern = WRONG[name][index]
    if "did not finish" in pattern:
        monkeypatch.setattr(judge, "SECONDS", 1.0)
    verdict = getattr(check, name)(answer)
    assert verdict.status == "wrong" and not verdict, verdict
    text = " ".join(repr(verdict).split())
    if "`" not in pattern:  # the answer's own code, which may stand beside the pattern
        text = re.sub(r"The line: `[^`]*`", "", text)
    assert verdict.hint and re.search(pattern, text), verdict
    assert not re.search(r"0x[0-9a-f]|/tmp|site-packages|Traceback", repr(verdict)), verdict


def test_there_are_enough_wrong_answers():
    assert {name: len(answers) >= 10 for name, answers in WRONG.items()} == dict.fromkeys(RIGHT, True)


def _raising(*arguments):
    raise NotImplementedError


STUBS = [None, ..., lambda *arguments: None, lambda *arguments: ..., _raising]


@pytest.mark.parametrize("name", sorted(set(RIGHT) - OF_VALUES))
@pytest.mark.parametrize("stub", STUBS)
def test_a_stub_is_not_attempted(name, stub):
    verdict = getattr(check, name)(stub)
    assert verdict.status == "not attempted" and repr(verdict).startswith("Not attempted yet.")


def _without_return(*arguments):
    math.hypot(3, 4)


@pytest.mark.parametrize(
    "name",
    ["tile_of", "epilogue_bytes", "merge_attention", "plain_attention", "first_divergence", "load_by_hand", "read_safetensors",
     "busy_and_idle", "resize_positions", "linear"],
)  # fmt: skip
def test_a_forgotten_return_is_told(name):
    verdict = getattr(check, name)(_without_return)
    assert verdict.status == "wrong" and re.search("returned (None|nothing)", repr(verdict)) and "return" in verdict.hint


def _not_implemented_by_torch(*arguments):
    return torch.nn.functional.interpolate(torch.randn(1, 1, 4), size=3, mode="bicubic")


@pytest.mark.parametrize(
    "name", ["resize_positions", "cross_entropy", "load_by_hand", "tile_of", "busy_and_idle", "layer_outputs"]
)
def test_what_torch_does_not_implement_is_no_stub(name):
    verdict = getattr(check, name)(_not_implemented_by_torch)
    assert verdict.status == "wrong" and "NotImplementedError" in repr(verdict)


@pytest.mark.parametrize("found", [None, ..., {}, dict.fromkeys(range(1, 9)), {1: ..., 2: ""}])
def test_faults_that_nobody_looked_for_are_not_attempted(found):
    verdict = check.faults(found)
    assert verdict.status == "not attempted" and repr(verdict).startswith("Not attempted yet.")


def test_faults_that_were_found_so_far_are_told():
    places = wrong_answers_15.PLACES
    verdict = check.faults({**dict.fromkeys(places), 1: places[1], 5: places[5]})
    assert verdict.status == "unfinished" and not verdict
    text = " ".join(repr(verdict).split())
    assert text.startswith("Not finished yet. Right so far: 1, 5. Fault 2 has no place yet. Hint: Compare faults.plant(2, model)")
    assert check.faults({8: places[8]}).status == "unfinished"
    assert not set(places.values()) - {places[8]} & set(text.split())
    right = repr(check.faults(places))
    assert all(faults.describe(number) in " ".join(right.split()) for number in places)


def test_the_place_of_a_fault_goes_by_the_model():
    config = ViTConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=7, intermediate_size=8, image_size=16)
    model = ViT(config)
    places = {number: faults.place(number, model) for number in wrong_answers_15.PLACES}
    assert check.faults(places, model) and not check.faults(wrong_answers_15.PLACES, model) and not check.faults(places)


def test_a_global_hook_or_gradients_switched_off_do_not_outlive_the_check():
    for answer in (wrong_answers_15.hooks_on_all_modules, wrong_answers_15.gradients_switched_off):
        assert not check.layer_outputs(answer)
        assert torch.is_grad_enabled() and not torch.nn.modules.module._global_forward_hooks


def test_an_empty_kernel_is_not_attempted():
    assert check.axpy(wrong_answers_01.launch(wrong_answers_01.empty)).status == "not attempted"


def test_a_kernel_that_comes_with_its_loads_and_a_pass_is_not_attempted():
    assert check.linear(wrong_answers_07.by(wrong_answers_07.begun)).status == "not attempted"
    # Without the `pass` somebody has been at it, and left out the store.
    assert check.linear(wrong_answers_07.by(wrong_answers_07.nothing_stored)).status == "wrong"


@pytest.mark.parametrize("name", sorted(wrong_answers_16.WRONG))
def test_an_endless_loop_is_stopped(name, monkeypatch):
    monkeypatch.setattr(judge, "SECONDS", 0.3)

    def endless(*arguments):
        while True:
            pass

    verdict = getattr(check, name)(endless)
    assert verdict.status == "wrong" and "did not finish" in verdict.message and "does not end" in verdict.hint


@pytest.mark.parametrize(("weights", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3)])
def test_what_fold_returns_takes_the_place_of_the_norm(weights, tolerance):
    draw = torch.Generator().manual_seed(0)
    x, (g, h), w, b = (torch.randn(shape, generator=draw).to(weights) for shape in ((8, 64), (2, 64), (16, 64), 16))
    x = x.double() + 100  # rows far from zero, where the sums have to be those of the rounded weight
    folded, bias, sums = (result.double() for result in wrong_answers_16.RIGHT["fold"][0](g, h, w, b))
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    norm = torch.nn.functional.layer_norm(x, (64,), g.double(), h.double())
    truth = torch.nn.functional.linear(norm, w.double(), b.double())

    def error(sums):
        ours = (x @ folded.T - mean * sums) * (variance + 1e-5).rsqrt() + bias
        return ((ours - truth).abs().max() / truth.abs().max()).item()

    assert error(sums) < tolerance
    assert weights == torch.float32 or error((w.double() * g.double()).sum(1)) > 20 * error(sums)


def test_a_keyboard_interrupt_passes_through():
    def interrupted(*arguments):
        raise KeyboardInterrupt

    for name in set(RIGHT) - OF_VALUES:
        with pytest.raises(KeyboardInterrupt):
            getattr(check, name)(interrupted)


def _on_gpu(change):
    """An answer to add that is right on the CPU; on a GPU its inputs or its result go through `change`."""

    def function(x, y):
        result = wrong_answers_01.RIGHT["add"][0](x, y)
        return change(x, result) if x.is_cuda else result

    return function


def _store_past_the_end(x, result):
    result.as_strided((1,), (1,), result.storage_offset() + result.numel()).zero_()
    return result


@pytest.mark.skipif(runtime.DEVICE.type != "cuda", reason="the second pass needs a GPU")
@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda x, result: result.mul_(2), "(?s)size 1 in float32 on the GPU.*First wrong element: index 0 of 1"),
        (lambda x, result: torch.empty_like(x), "(?s)on the GPU.*never stored.*memory before"),
        (lambda x, result: result.double(), "wrong type: float64"),
        (lambda x, result: result.cpu(), "another device"),
        (lambda x, result: x.mul_(2) and None if x.numel() == 1 else result, "changed its input x"),
        (_store_past_the_end, "overwritten"),
        (lambda x, result: x[2].item() and result, "(?s)IndexError.*on the GPU|on the GPU.*IndexError"),
        (lambda x, result: result.add_(1) if x.dtype == torch.bfloat16 else result, "size 1 in bfloat16 on the GPU"),
        (lambda x, result: result.add_(1) if x.numel() > 2_000_000 else result, "size 5000011 in float32 on the GPU"),
    ],
)
def test_the_second_pass_runs_on_the_gpu(change, pattern):
    verdict = check.add(_on_gpu(change))
    assert verdict.status == "wrong" and re.search(pattern, " ".join(repr(verdict).split())), verdict


def test_verdicts_do_not_depend_on_the_random_inputs():
    several = ("parameters", "flops", "resize_positions", "relative_error", "first_divergence", "layer_outputs", "block")
    several = (*several, *wrong_answers_14.WRONG, *wrong_answers_16.WRONG)
    for name in ("add3", "persistent_add", "tiles", "floor_us", "parallel_block", *several):
        for answer, _ in WRONG[name][:6]:
            assert len({repr(getattr(check, name)(answer)) for _ in range(3)}) == 1


def test_a_check_leaves_nothing_behind():
    before = (triton.JITFunction.run, torch.empty_like, runtime.DEVICE, runtime.INTERPRETER, runtime.DTYPES)
    check.add(wrong_answers_01.RIGHT["add"][0])
    for answer, _ in wrong_answers_01.SHARED[:8]:
        check.axpy(answer)
    assert before == (triton.JITFunction.run, torch.empty_like, runtime.DEVICE, runtime.INTERPRETER, runtime.DTYPES)
    x = torch.randn(1000, device=runtime.DEVICE)
    if runtime.INTERPRETER or runtime.DEVICE.type == "cuda":
        assert torch.equal(wrong_answers_01.RIGHT["add"][0](x, x), x + x)


def test_the_check_of_read_safetensors_gives_the_readers_back():
    before = (wrong_answers_14.load_file, safetensors.safe_open, safetensors.torch.load_file, weights.safe_open)
    for answer in (wrong_answers_14.RIGHT["read_safetensors"][0], *(answer for answer, _ in WRONG["read_safetensors"][:4])):
        check.read_safetensors(answer)
    assert before == (wrong_answers_14.load_file, safetensors.safe_open, safetensors.torch.load_file, weights.safe_open)


def test_guards_notice_a_write_on_either_side():
    for index in (-1, 10):
        guards = judge.Guards(torch.device("cpu"))
        tensor = guards.place(torch.zeros(10))
        assert guards.intact()
        tensor.as_strided((1,), (1,), tensor.storage_offset() + index).fill_(0.0)
        assert not guards.intact()


def test_guards_keep_the_strides_of_an_input():
    dense = torch.randn(6, 8)
    for tensor in (
        dense.T,
        dense[:, ::2],
        dense[:, :5],
        dense[:1].expand(4, 8),
        dense[:, :1].expand(6, 3),
        dense[:0],
        dense[0, 0],
    ):
        guards = judge.Guards(torch.device("cpu"))
        placed = guards.place(tensor)
        assert placed.stride() == tensor.stride() and torch.equal(placed, tensor) and guards.intact()
    # What lies between the elements is poison.
    assert guards.place(dense[:, ::2]).as_strided((2,), (1,))[1].isnan()


def test_guards_are_put_around_what_a_function_allocates():
    x = torch.zeros(4, 6, dtype=torch.float16).T
    with judge.Guards(torch.device("cpu")) as guards:
        made = [
            torch.empty_like(x),
            x.new_empty(3),
            torch.zeros(2, 3),
            torch.empty(0),
            torch.full((2,), 7.0),
            torch.empty(3, dtype=torch.bool),
        ]
    assert len(guards.buffers) == 5
    assert made[0].shape == x.shape and made[0].stride() == x.stride() and made[0].isnan().all()
    assert made[2].eq(0).all() and made[4].eq(7).all()


# ---- trace ------------------------------------------------------------------------------------------------------------------


def test_a_trace_holds_every_access():
    x, y = torch.randn(1000), torch.randn(1000)
    found = trace.record(wrong_answers_01.launch(MISTAKE="", block=256), 2.0, x, y)
    assert torch.allclose(found.result, 2 * x + y)
    assert [(launch.kernel, launch.grid) for launch in found.launches] == [("vector_kernel", (4, 1, 1))]
    assert found.programs() == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0)]
    assert [(access.kind, access.tensor) for access in found.accesses[:3]] == [
        ("load", "x_ptr"),
        ("load", "y_ptr"),
        ("store", "output_ptr"),
    ]
    last = found.accesses[-1]
    assert last.elements.tolist() == list(range(768, 1000)) and last.masked == 24 and last.itemsize == 4
    assert last.source == "tl.store(output_ptr + offsets, result, mask=mask)"
    assert (found.bytes_read, found.bytes_written) == (8000, 4000)
    owners = found.owners(found.result)
    assert owners.program.tolist() == [i // 256 for i in range(1000)] and not owners.twice.any()
    assert (owners.program == found.owners("output_ptr").program).all()
    assert (found.owners(x).program == -1).all()


def test_lanes_that_nobody_gave_a_value_are_told_and_filled():
    x = torch.randn(20)
    for undefined in (0.0, math.nan):
        found = trace.record(wrong_answers_01.launch(MISTAKE="", block=32), 2.0, x, x.clone(), undefined=undefined)
        assert torch.allclose(found.result, 3 * x)
        assert found.undefined == ["x = tl.load(x_ptr + offsets, mask=mask)", "y = tl.load(y_ptr + offsets, mask=mask)"]
    weight = torch.randn(5, 20)
    found = trace.record(kernels.linear, x[None], weight, undefined=math.nan)
    assert not found.undefined and torch.allclose(found.result, x[None] @ weight.T, atol=1e-5), "every load has an other"


def test_owners_flags_double_stores():
    answer = wrong_answers_01.mistaken("half a block apart", block=256)
    found = trace.record(answer, 1.0, torch.randn(500), torch.randn(500))
    twice = found.owners(found.result).twice
    assert twice[128:256].all() and not twice[:128].any()


def test_an_illegal_access_is_stopped_before_it_happens():
    x = torch.randn(1000)
    with pytest.raises(trace.IllegalAccess, match="element 1000 of x_ptr, which has 1000") as caught:
        trace.record(wrong_answers_01.launch(wrong_answers_01.no_mask_on_load), 1.0, x, x.clone())
    assert caught.value.kind == "load" and caught.value.program == (0, 0, 0)
    assert len(caught.value.trace.launches) == 1 and not caught.value.trace.accesses
    with pytest.raises(trace.IllegalAccess):
        trace.record(wrong_answers_01.launch(wrong_answers_01.wild_pointer), 1.0, x, x.clone())


def test_what_does_not_end_is_stopped():
    def forever():
        while True:
            pass

    with pytest.raises(trace.TookTooLong, match=r"0\.2 seconds"):
        trace.record(forever, seconds=0.2)
    x = torch.randn(8)
    with pytest.raises(trace.TookTooLong, match="100 loads and stores"):
        trace.record(wrong_answers_01.launch(wrong_answers_01.endless), 1.0, x, x.clone(), accesses=100)


@pytest.mark.skipif(not runtime.INTERPRETER and runtime.DEVICE.type != "cuda", reason="kernels do not run here")
def test_launched_names_every_launch_in_order(monkeypatch):
    block = layers.Block(12, 3, 20, "gelu", 1e-12, True).to(runtime.DEVICE)
    x = torch.randn(2, 5, 12, device=runtime.DEVICE)
    before = (triton.JITFunction.run, interpreter.InterpretedFunction.run, triton.runtime.Autotuner.run, runtime._fastest)
    with torch.no_grad():
        names = trace.launched(block, x)
    one, linear, attention = "layer_norm_kernel", "linear_kernel", "attention_kernel"
    names = [name.removeprefix("persistent_") for name in names]  # what a GPU may choose
    assert names == [one, linear, attention, linear, one, linear, linear]

    configs = [triton.Config({"BLOCK": 16}), triton.Config({"BLOCK": 32})]
    tuned = triton.autotune(configs, key=[], do_bench=lambda call, quantiles: [call() or 1.0] * 3)(loop_kernel)
    output = torch.empty_like(x)

    def others():
        wrong_answers_01.RIGHT["add"][0](x, x)  # a reader's
        tuned[(1,)](x, output, x.numel())  # times its two configurations
        kernels.gelu(x)
        runtime._fastest([1, 2, 3], lambda config: kernels.gelu(x))

    monkeypatch.setattr(runtime, "_fastest", lambda configs, launch: [launch(config) for config in configs])
    assert trace.launched(others)[1:] == ["loop_kernel", "gelu_kernel"] and torch.equal(output, 2 * x)
    monkeypatch.undo()
    with pytest.raises(ZeroDivisionError):
        trace.launched(lambda: 1 / 0)
    assert trace.launched(lambda: x + x) == []
    assert before == (
        triton.JITFunction.run, interpreter.InterpretedFunction.run, triton.runtime.Autotuner.run, runtime._fastest
    )  # fmt: skip


def test_a_trace_of_the_packages_own_functions():
    x, weight = torch.randn(5, 12), torch.randn(20, 12)
    found = trace.record(kernels.linear, x, weight)
    assert [launch.kernel for launch in found.launches] == ["linear_kernel"]
    assert torch.allclose(found.result, x @ weight.T, atol=1e-5)
    assert sys.modules["vitcourse.kernels.linear"].INTERPRETER == runtime.INTERPRETER


# ---- With kernels that are compiled for a GPU, as in a process on a machine with one ----------------------------------------

COMPILED = """
import itertools
import re
import numpy
import torch
import wrong_answers_01 as bank
import wrong_answers_02
import wrong_answers_03
import wrong_answers_04
import wrong_answers_05
import wrong_answers_06
import wrong_answers_07
import wrong_answers_08
import wrong_answers_09
import wrong_answers_10
import wrong_answers_11
import wrong_answers_12
import wrong_answers_13
import wrong_answers_14
import wrong_answers_15
import wrong_answers_16
import triton
from vitcourse import runtime
from vitcourse.teach import check
from vitcourse.teach.check import judge
torch.manual_seed(0)  # the same numbers in every run, as in this file's other tests
seeds, generator = itertools.count(), numpy.random.default_rng
numpy.random.default_rng = lambda *given: generator(*given or (next(seeds),))
names = {"add": slice(0, None, 8), "axpy": slice(1, None, 12), "add3": slice(0, None, 2), "persistent_add": slice(0, None, 3)}
for name, chosen in names.items():
    assert getattr(check, name)(bank.RIGHT[name][0]).status == "right", name
    for answer, pattern in bank.WRONG[name][chosen]:
        judge.SECONDS = 2.0 if "did not finish" in pattern else 60.0
        verdict = getattr(check, name)(answer)
        assert verdict.status == "wrong" and re.search(pattern, " ".join(repr(verdict).split())), verdict
        print(repr(verdict))
judge.SECONDS = 60.0
for more in (
    wrong_answers_02, wrong_answers_03, wrong_answers_04, wrong_answers_05,
    wrong_answers_06, wrong_answers_07, wrong_answers_08, wrong_answers_09,
    wrong_answers_10, wrong_answers_11, wrong_answers_12, wrong_answers_13, wrong_answers_14, wrong_answers_15,
    wrong_answers_16,
):
    for name, answers in more.WRONG.items():
        if name == "vit":  # its answers call this package's kernels, and those run where the process runs kernels
            continue
        assert getattr(check, name)(more.RIGHT[name][0]).status == "right", name
        for answer, pattern in answers[:3]:
            verdict = getattr(check, name)(answer)
            assert verdict.status == "wrong" and re.search(pattern, " ".join(repr(verdict).split())), verdict
            print(repr(verdict))

# Only where the interpreter is off. Its patches are gone: the compiler takes a kernel, for a GPU that need not be there.
assert not runtime.INTERPRETER and type(bank.vector_kernel) is triton.JITFunction
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
constants = {"MISTAKE": "", "BLOCK": 256}
pointers = dict.fromkeys(("x_ptr", "y_ptr", "output_ptr"), "*fp32")
signature = {**pointers, "size": "i32", "alpha": "fp32", **dict.fromkeys(constants, "constexpr")}
source = ASTSource(fn=bank.vector_kernel, signature=signature, constexprs=constants)
assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
"""


def test_the_traced_pass_works_on_kernels_compiled_for_a_gpu():
    texts = []
    for interpret, program in (("0", COMPILED), ("1", COMPILED.split("# Only where")[0])):
        environment = {**os.environ, "TRITON_INTERPRET": interpret, "CUDA_VISIBLE_DEVICES": ""}
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    # A notebook recorded on a GPU is compared with a run on a CPU.
    assert texts[0] == texts[1] and texts[0].count("Wrong.") > 15


def test_a_trace_leaves_the_interpreter_as_it_was():
    # triton-viz rewrites loops while it traces; a kernel with a loop that is interpreted first after a trace must not see that.
    x = torch.randn(40)
    for answer in (wrong_answers_01.endless, None):
        with pytest.raises(trace.TookTooLong) if answer else contextlib.nullcontext():
            if answer:
                trace.record(wrong_answers_01.launch(answer), 1.0, x, x.clone(), accesses=100)
            else:
                trace.record(check_loop, x)
        assert "visit_For" not in interpreter.ASTTransformer.__dict__
    traced = check_loop(x) if runtime.INTERPRETER else None
    assert traced is None or torch.equal(traced, 2 * x)


def test_a_loop_runs_with_any_numpy():
    # NumPy 2.2 warns of int() of an array of one element, which Triton 3.6 takes of a loop's bounds, and 2.4 refuses it.
    scope = interpreter._patch_lang(loop_kernel.fn)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert tl.tensor.__index__(SimpleNamespace(handle=SimpleNamespace(data=np.array([3])))) == 3
    finally:
        scope.restore()


def test_the_interpreter_is_spared_no_replacement():
    scope = interpreter._patch_lang(loop_kernel.fn)
    try:
        packages = (tl, tl.tensor, tl.math, tl.core.tensor_descriptor_base)
        assert not [name for one in packages for name, member in inspect.getmembers(one) if tl.core.is_builtin(member)]
    finally:
        scope.restore()
    assert tl.core.is_builtin(tl.load) and tl.core.is_builtin(tl.math.exp)
    kinds = (tl.float16, tl.block_type(tl.int64, [8]), tl.bfloat16, tl.pointer_type(tl.float32))
    assert [str(interpreter._get_np_dtype(kind)) for kind in kinds] == ["float16", "int64", "uint16", "uint64"]


@triton.jit
def transpose_kernel(x_ptr, output_ptr, SIZE: tl.constexpr):
    row = tl.arange(0, SIZE)[:, None]
    column = tl.arange(0, SIZE)[None, :]
    tl.store(output_ptr + row * SIZE + column, tl.trans(tl.load(x_ptr + row * SIZE + column)))


def test_a_traced_kernel_may_transpose():
    x, output = torch.randn(16, 16), torch.empty(16, 16)
    trace.record(lambda: transpose_kernel[(1,)](x, output, SIZE=16))
    assert torch.equal(output, x.T)


@triton.jit
def random_kernel(output_ptr, SIZE: tl.constexpr):
    tl.store(output_ptr + tl.arange(0, SIZE), tl.rand(7, tl.arange(0, SIZE)))


def test_a_traced_kernel_may_call_a_device_function_with_a_loop_from_another_module():
    output = torch.empty(1024)
    trace.record(lambda: random_kernel[(1,)](output, SIZE=1024))
    assert 0 <= output.min() < 0.1 < 0.9 < output.max() < 1


@triton.jit
def loop_kernel(x_ptr, output_ptr, size, BLOCK: tl.constexpr):
    for start in range(0, size, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        tl.store(output_ptr + offsets, 2 * tl.load(x_ptr + offsets, mask=offsets < size), mask=offsets < size)


def check_loop(x):
    output = torch.empty_like(x)
    loop_kernel[(1,)](x, output, x.numel(), BLOCK=16)
    return output
