"""What `sanitize.py` makes of pytest's and compute-sanitizer's output. That they run needs a GPU."""

import sanitize

OUTPUT = """========= COMPUTE-SANITIZER
============================= test session starts ==============================
collecting ... collected 3 items

test_kernels.py::test_a[5-float16] PASSED                                [ 33%]
test_kernels.py::test_b[x y] SKIPPED (no bfloat16)                       [ 66%]
test_kernels.py::test_c """


def test_what_passed_is_read_and_a_test_that_was_cut_off_is_not() -> None:
    assert sanitize.read(OUTPUT) == (["test_kernels.py::test_a[5-float16]", "test_kernels.py::test_b[x y]"], [])
    assert (
        sanitize.read("========= ERROR SUMMARY: 0 errors\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors)")[1] == []
    )


def test_a_finding_and_a_failure_are_told() -> None:
    lines = ["========= Invalid __global__ read of size 2 bytes", "========= ERROR SUMMARY: 1 error"]
    assert sanitize.read("\n".join([OUTPUT, *lines]))[1] == lines
    assert sanitize.read("test_kernels.py::test_c FAILED      [ 99%]")[1] == ["test_kernels.py::test_c FAILED      [ 99%]"]


def test_float16_comes_last_and_some_not_at_all() -> None:
    tests = ["t.py::test_x[float16]", "t.py::test_x[bfloat16]", "t.py::test_x[float32]", "t.py::test_a_wrong_shape_is_refused[1]"]
    chosen = sanitize.selected("\n".join([*tests, "4 tests collected"]))
    assert chosen[-1] == tests[0] and sorted(chosen) == sorted(tests[:3])
