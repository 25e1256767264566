"""The lessons: how they are stored, where their links lead, that they show what is stored, and accept every published solution.

Each is run as it is shipped, by nbval, and with its solutions in place of its stubs. Further down, small notebooks with one
thing wrong each show that nbval, the recorder and its list of problems see it.
"""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from vitcourse.teach import record

NOTEBOOKS = sorted((record.REPOSITORY / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


# Every lesson


@each_notebook
def test_is_stored_in_canonical_form(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == record.to_text(record.canonical(record.read(path)))
    nbformat.validate(record.read(path))


@each_notebook
def test_has_no_problems(path: Path) -> None:
    assert record.problems(record.read(path)) == []


@each_notebook
def test_links_within_the_repository_lead_somewhere(path: Path) -> None:
    assert broken_links(record.read(path), path.parent) == []


@each_notebook
def test_every_cell_shows_what_is_stored(path: Path) -> None:
    assert_shows_what_is_stored(path)


@each_notebook
def test_every_solution_is_right(path: Path, tmp_path: Path) -> None:
    assert_solved(record.read(path), beside_the_package(tmp_path))


def this_package() -> dict[str, str]:
    """What finds this repository's package, installed or not."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(record.REPOSITORY), os.environ.get("PYTHONPATH")]))}


def assert_shows_what_is_stored(path: Path) -> None:
    """Run the notebook by nbval in a process of its own, one notebook a test: so all tests share the workers of one run."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--nbval-lax", path.name]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(command, cwd=path.parent, env=outside | this_package(), capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def broken_links(notebook: NotebookNode, folder: Path) -> list[str]:
    """The targets of links and pictures in the notebook's Markdown that are no file of the repository."""
    broken = []
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", cell.source, flags=re.MULTILINE | re.DOTALL)
        targets = re.findall(r"\]\(\s*<?([^)\s>]+)", prose) + re.findall(r"""\b(?:src|href)\s*=\s*["']([^"']+)""", prose)
        for target in targets:
            if re.match(r"[a-z][a-z+.-]*:|#", target):  # elsewhere (https:, mailto:, attachment:), or in this notebook
                continue
            file = (folder / unquote(target.partition("#")[0])).resolve()
            if not file.exists() or not file.is_relative_to(record.REPOSITORY):
                broken.append(target)
    return broken


def beside_the_package(tmp_path: Path) -> Path:
    """A folder for a notebook to run in that leaves the repository alone and sees the same files around it."""
    for entry in record.REPOSITORY.iterdir():
        if entry.name != "notebooks" and not entry.name.startswith("."):
            (tmp_path / entry.name).symlink_to(entry)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for entry in (record.REPOSITORY / "notebooks").glob("*"):
        if entry.suffix != ".ipynb" and not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    return folder


def comparable(cell: NotebookNode) -> list[tuple]:
    """A cell's outputs without pictures, which no test compares."""
    kept = []
    for output in cell.outputs:
        data = sorted((kind, text) for kind, text in output.get("data", {}).items() if not kind.startswith("image/"))
        kept.append((*map(output.get, ("output_type", "name", "text", "ename", "evalue")), *data))
    return kept


def assert_solved(notebook: NotebookNode, folder: Path) -> None:
    """Run the notebook with its solutions: every check says right, all other compared cells say what is stored."""
    stored = record.canonical(notebook)
    solved = record.execute(record.solve(stored), folder, seconds=300, skip="nbval-skip", **this_package())
    solved = record.canonical(solved)
    checks = {cell.id: name for name, cell in record.parts(stored, "check")}
    wrong = []
    for before, after in zip(stored.cells, solved.cells, strict=True):
        if before.id in checks and not record.output_text(after).startswith(record.SOLVED):
            wrong.append(f"the solution of {checks[before.id]} is refused: {record.output_text(after)}")
        compared = "nbval-check-output" in record.tags(before) and "nbval-skip" not in record.tags(before)
        if compared and before.id not in checks and comparable(before) != comparable(after):
            wrong.append(f"cell {before.id} shows {record.output_text(after)!r}; stored: {record.output_text(before)!r}")
    assert not wrong, "\n".join(wrong)


# The recorder, on a small lesson

STUB = "def double(x):\n    ...  # your line here"
CHECK = 'print("Right." if double(2) == 4 else "Not attempted yet." if double(2) is None else "Wrong.", "Two cases.")'
SOLUTION = "<details><summary>Solution</summary>\n\n```python\ndef double(x):\n    return 2 * x\n```\n</details>"


def tagged(cell: NotebookNode, *tags: str) -> NotebookNode:
    cell.metadata["tags"] = list(tags)
    return cell


def lesson() -> NotebookNode:
    """A lesson of one exercise, as an author writes it: never run."""
    return new_notebook(
        cells=[
            new_markdown_cell("# Doubling\n\nIts [license](../LICENSE)."),
            tagged(new_code_cell("print(1)\nprint(2)\n3"), "nbval-check-output"),
            tagged(new_code_cell("1 / 0"), "raises-exception"),
            tagged(new_code_cell(STUB), "exercise-double"),
            tagged(new_code_cell(CHECK), "check-double", "nbval-check-output"),
            tagged(new_markdown_cell("<details><summary>Hint</summary>\nTwice.\n</details>"), "hint-double"),
            tagged(new_markdown_cell(SOLUTION), "solution-double"),
            new_code_cell('import os\nprint(os.environ.get("VITCOURSE_RECORD"), os.path.basename(os.getcwd()))'),
        ]
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    """That lesson recorded, as it is read back from its file."""
    path = tmp_path_factory.mktemp("lessons") / "lesson.ipynb"
    nbformat.write(lesson(), path)
    assert record.main([str(path)]) == 0
    assert [file.name for file in path.parent.iterdir()] == ["lesson.ipynb"], "nothing else is left there"
    notebook = record.read(path)
    assert path.read_text() == record.to_text(record.canonical(notebook))
    return notebook


def test_a_recording(recorded: NotebookNode) -> None:
    assert record.problems(recorded) == []
    nbformat.validate(recorded)
    code = [cell for cell in recorded.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4, 5]
    assert [record.output_text(cell) for cell in code[:2]] == ["1\n2\n3\n", "ZeroDivisionError: division by zero\n"]
    assert len(code[0].outputs) == 2, "what was printed is one output, the value another"
    assert record.output_text(code[3]) == "Not attempted yet. Two cases.\n"
    assert record.output_text(code[4]).startswith("1 lessons"), "the kernel runs in the notebook's folder and knows why"
    assert set(recorded.metadata) == {"kernelspec", "language_info", "vitcourse"}
    assert set(recorded.metadata.vitcourse) == set(record.STAMP) and all(recorded.metadata.vitcourse.values())
    assert all(set(cell.metadata) <= {"tags"} for cell in recorded.cells), "no times of execution"


def test_the_file_is_jupyters_own(recorded: NotebookNode, tmp_path: Path) -> None:
    """Saved again by Jupyter it does not change: no noise in a diff."""
    nbformat.write(recorded, tmp_path / "again.ipynb")
    assert (tmp_path / "again.ipynb").read_text(encoding="utf-8") == record.to_text(recorded)


def test_a_solved_lesson(recorded: NotebookNode, tmp_path: Path) -> None:
    assert_solved(recorded, tmp_path)


def test_a_wrong_solution_and_a_changed_output_are_seen(recorded: NotebookNode, tmp_path: Path) -> None:
    wrong = copy.deepcopy(recorded)
    wrong.cells[6].source = SOLUTION.replace("2 * x", "3 * x")
    wrong.cells[1].outputs[0].text = "1\n3\n"
    with pytest.raises(AssertionError) as caught:
        assert_solved(wrong, tmp_path)
    assert "solution of double is refused: Wrong" in str(caught.value) and "'1\\n3\\n3\\n'" in str(caught.value)


def test_nbval_sees_an_output_that_changed_and_a_cell_that_fails(recorded: NotebookNode, tmp_path: Path) -> None:
    path = tmp_path / "lesson.ipynb"
    nbformat.write(recorded, path)
    assert_shows_what_is_stored(path)
    for number, change in ((1, {"outputs": [new_output("stream", text="1\n3\n3\n")]}), (3, {"source": "nowhere"})):
        wrong = copy.deepcopy(recorded)
        wrong.cells[number].update(change)
        nbformat.write(wrong, path)
        with pytest.raises(AssertionError, match=r"[12] failed"):
            assert_shows_what_is_stored(path)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("x = 1\nraise KeyError(x)", "KeyError"),
        ("import sys\nprint('careful', file=sys.stderr)", "wrote to stderr"),
        ("import os\nos._exit(1)", "died"),
    ],
    ids=["raises", "stderr", "dead kernel"],
)
def test_a_lesson_that_fails_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, told: str) -> None:
    notebook = lesson()
    notebook.cells[2] = new_code_cell(source)
    path = tmp_path / "lesson.ipynb"
    nbformat.write(notebook, path)
    before = path.read_bytes()
    assert record.main([str(path)]) == 1
    error = capsys.readouterr().err
    assert "cell 2" in error and told in error and str(path) in error and "\x1b" not in error
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_problems_are_told_after_a_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lesson.ipynb"
    nbformat.write(new_notebook(cells=[tagged(new_code_cell("1"), "nbval-chek-output")]), path)
    assert record.main([str(path)]) == 1
    assert "unknown tag nbval-chek-output" in capsys.readouterr().out
    assert record.read(path).metadata.vitcourse, "written, so that its author can look"


def test_no_notebook_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "REPOSITORY", tmp_path)
    assert record.main([]) == 1 and "no notebook" in capsys.readouterr().err
    assert record.main([str(tmp_path / "missing.ipynb")]) == 1 and "cannot be read" in capsys.readouterr().err


def test_ids_are_told_by_position_where_they_are_missing_or_taken() -> None:
    notebook = new_notebook(cells=[new_markdown_cell(str(position)) for position in range(5)])
    notebook.cells[0].id, notebook.cells[1].id, notebook.cells[3].id, notebook.cells[4].id = "a", "a", "cell-01", ""
    del notebook.cells[2]["id"]
    ids = [cell.id for cell in record.canonical(notebook).cells]
    assert ids == ["a", "cell-01-b", "cell-02", "cell-01", "cell-04"]
    assert [cell.id for cell in record.canonical(record.canonical(notebook)).cells] == ids


def test_what_tools_add_is_left_out(recorded: NotebookNode) -> None:
    noisy = copy.deepcopy(recorded)
    noisy.nbformat_minor = 4
    noisy.metadata["toc"] = {}
    noisy.metadata.language_info["version"] = "3.11.2"
    noisy.cells[1].metadata["execution"] = {"iopub.status.busy": "2026-01-01"}
    noisy.cells[1].metadata["collapsed"] = False
    noisy.cells[1].outputs[0]["transient"] = {}
    noisy.cells[1].outputs.insert(1, new_output("stream", name="stdout", text="4\n"))
    text = record.to_text(record.canonical(noisy))
    noisy.cells[1].outputs[0].text = "1\n2\n4\n"
    assert not re.search("toc|version|busy|collapsed|transient", text)
    quiet = record.canonical(recorded)
    quiet.cells[1].outputs[0].text = "1\n2\n4\n"
    assert text == record.to_text(quiet), "and the two outputs to one stream are one"


# Every problem is found

PICTURE = {"image/png": "iVBORw0KGgo=", "text/plain": "Figure"}


def problem(number: int, expected: str, **changes: object) -> object:
    """A change to one cell of the recorded lesson, and a part of the one problem that has to be told then."""
    return pytest.param(number, changes, expected, id=f"{expected} {number}")


@pytest.mark.parametrize(
    ("number", "changes", "expected"),
    [
        problem(1, "execution count 7; run from the top it is 1", execution_count=7),
        problem(1, "execution count None", execution_count=None),
        problem(2, "a stored error, ZeroDivisionError", tags=[]),
        problem(1, "26 lines of code", source="pass\n" * 26),
        problem(1, "empty", source=" \n"),
        problem(1, "unknown tag skip", tags=["skip"]),
        problem(1, "unknown tag hint-", tags=["hint-"]),
        problem(1, "no output is stored", outputs=[]),
        problem(7, "stored output on stderr", outputs=[new_output("stream", name="stderr", text="careful\n")]),
        problem(7, "(image/png) without alternative text", outputs=[new_output("display_data", PICTURE)]),
        problem(
            7, "(image/png) without alternative text",
            outputs=[new_output("display_data", PICTURE, metadata={"image/png": {"alt": " ", "width": 3}})],
        ),
        problem(7, "without alternative text: <img src", outputs=[new_output("display_data", {"text/html": "<img src=a>"})]),
        problem(
            7, "a folder of the machine", outputs=[new_output("stream", text=f"{record.REPOSITORY}/vitcourse/runtime.py:3\n")]
        ),
        problem(
            7, "differ from run to run", outputs=[new_output("execute_result", {"text/plain": "<object at 0x7f00aa10b2c0>"})]
        ),
        problem(0, "without alternative text: a.png", source="![](a.png)"),
        problem(0, "without alternative text: <img", source='<img alt="" src="a.png">'),
        problem(0, "its id is not its own", id=""),
        problem(3, "0 cells tagged exercise-double", tags=[]),
        problem(4, "0 cells tagged check-double", tags=[]),
        problem(6, "0 cells tagged solution-double", tags=[]),
        problem(7, "2 cells tagged exercise-double", tags=["exercise-double"]),
        problem(0, "check-double is a markdown cell; code is expected", tags=["check-double"]),
        problem(4, "check-double is not tagged nbval-check-output", tags=["check-double"]),
        problem(4, "as shipped its check says 'Right.", outputs=[new_output("stream", text="Right. Two cases.\n")]),
        problem(5, "a hint that is not folded", source="Twice."),
        problem(6, "has 0 ```python blocks", source=SOLUTION.replace("python", "")),
        problem(6, "has 2 ```python blocks", source=SOLUTION + "\n\n```python\n1\n```\n"),
        problem(6, "not inside <details>", source=SOLUTION.replace("<details>", "")),
        problem(6, "not inside <details>", source=SOLUTION.replace("<summary>", "</details><summary>") + "\n"),
        problem(6, "needs an empty line", source=SOLUTION.replace("\n\n", "\n")),
        problem(6, "its solution is no Python", source=SOLUTION.replace("return", "retrun")),
        problem(3, "the stub is the solution", source="def double(x):\n    return 2 * x"),
    ],
)  # fmt: skip
def test_a_problem_is_found(recorded: NotebookNode, number: int, changes: dict, expected: str) -> None:
    notebook = copy.deepcopy(recorded)
    cell = notebook.cells[number]
    for key, value in changes.items():
        if key == "tags":
            cell.metadata["tags"] = value
        else:
            cell[key] = value
    found = record.problems(notebook)
    assert any(expected in line for line in found), found


def test_problems_of_the_whole_are_found(recorded: NotebookNode) -> None:
    notebook = copy.deepcopy(recorded)
    del notebook.metadata.vitcourse["torch"]
    notebook.nbformat_minor = 4
    notebook.cells[3], notebook.cells[4] = notebook.cells[4], notebook.cells[3]
    found = "\n".join(record.problems(notebook))
    assert "the stamp lacks torch" in found and "4.5 is expected" in found and "its check comes before its stub" in found
    notebook = copy.deepcopy(recorded)
    notebook.cells[5].id = notebook.cells[0].id
    assert len([line for line in record.problems(notebook) if "its id is not its own" in line]) == 2


def test_what_is_in_order_is_not_told(recorded: NotebookNode) -> None:
    notebook = copy.deepcopy(recorded)
    notebook.cells[0].source = "![a cat](a.png) <img src=a.png alt='a cat'> `<img>`\n```html\n<img src='x.png'>\n```\n"
    notebook.cells[1].source = "pass\n" * 26
    notebook.cells[1].metadata["tags"] = ["long", "nbval-check-output"]
    notebook.cells[7].outputs = [new_output("display_data", PICTURE, metadata={"image/png": {"alt": "two lines"}})]
    notebook.cells[4].outputs = [new_output("stream", text="Wrong. Smallest failing case: 1.\n")]
    assert record.problems(notebook) == []


def test_solve_leaves_the_notebook_and_needs_a_solution(recorded: NotebookNode) -> None:
    before = copy.deepcopy(recorded)
    solved = record.solve(recorded)
    assert recorded == before and solved.cells[3].source == "def double(x):\n    return 2 * x"
    assert [a == b for a, b in zip(solved.cells, recorded.cells)].count(False) == 1
    del before.cells[6].metadata["tags"]
    with pytest.raises(ValueError, match="no cell tagged solution-double"):
        record.solve(before)


def test_broken_links_are_found() -> None:
    text = (
        "[a](../LICENSE) [b](../README.nothing#top) [c](https://example.org) [d](#top) ![e](missing%20picture.png)\n"
        '<a href="../nowhere/">f</a> <img src="../pyproject.toml" alt="g"> `[h](code.md)`\n```\n[i](code.md)\n```\n'
        "[j](../../outside.md) [k](../vitcourse/) [l](attachment:m.png)\n"
    )
    found = broken_links(new_notebook(cells=[new_markdown_cell(text)]), record.REPOSITORY / "notebooks")
    assert sorted(found) == ["../../outside.md", "../README.nothing#top", "../nowhere/", "missing%20picture.png"]
