"""Record the course: run notebooks from the top and store what they show, always in the same form.

    python -m vitcourse.teach.record [NOTEBOOK...]        default: every notebook in notebooks/

A notebook is written back only where every cell ran: a cell that raises (unless tagged `raises-exception`) or that writes
to stderr is told, the file stays as it was, and the exit status is 1. What `problems` finds is told too, with exit status 1,
once the notebook is written. The kernel sees VITCOURSE_RECORD=1.

Tags of cells:

    nbval-check-output   the output does not depend on machine or luck: tests compare it
    nbval-skip           tests do not run it; a recording does
    raises-exception     ends in an exception, which is shown
    long                 may have more lines than `LONGEST`
    exercise-NAME        an exercise's stub, code that runs as shipped
    check-NAME           its check, code that shows a verdict; tagged `nbval-check-output` as well
    hint-NAME            a hint, Markdown folded in <details>
    solution-NAME        its solution, Markdown with one ```python block folded in <details>, which stands for the stub
"""

import argparse
import ast
import copy
import datetime
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import torch
import triton
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError
from nbformat import NotebookNode

from .. import runtime

REPOSITORY = Path(__file__).resolve().parents[2]

#: Lines of code in one cell that is meant to be read.
LONGEST = 25

#: Seconds that one cell may run.
SECONDS = 1800

TAGS = ("nbval-check-output", "nbval-skip", "raises-exception", "long")
PARTS = {"exercise": "code", "check": "code", "hint": "markdown", "solution": "markdown"}
STAMP = ("recorded_on", "torch", "triton", "date")
#: What cells keep of their metadata: not what an editor noted of the last session.
KEPT_METADATA = ("tags", "jupyter", "editable", "deletable")
#: How the verdict on an exercise begins as shipped. (A bug to find is a wrong answer as it stands.)
UNSOLVED = ("Not attempted yet", "Wrong")
SOLVED = "Right."

SOLUTION_CODE = re.compile(r"^```python\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


class RecordingError(RuntimeError):
    """A notebook that cannot be recorded; the message names the cell."""


# The form


def read(path: Path) -> NotebookNode:
    """The notebook at `path`, as it is there. (`nbformat.read` would make up random ids for cells that have none.)"""
    try:
        notebook = nbformat.v4.reads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordingError(f"{path} cannot be read: {error}") from error
    if notebook.get("nbformat") != 4:
        raise RecordingError(f"{path} is in notebook format {notebook.get('nbformat')}; 4 is accepted")
    return notebook


def to_text(notebook: NotebookNode) -> str:
    """What the file of a canonical notebook holds: byte for byte what Jupyter writes when it saves that notebook."""
    return nbformat.v4.writes(notebook).rstrip("\n") + "\n"


def write(notebook: NotebookNode, path: Path) -> None:
    """Write the notebook, whole or not at all."""
    scratch = path.with_suffix(".part")
    scratch.write_text(to_text(notebook), encoding="utf-8")
    scratch.replace(path)


def canonical(notebook: NotebookNode) -> NotebookNode:
    """The notebook in the one form in which the repository keeps it: what it says unchanged, what tools add left out.

    Format 4.5; ids kept where they are there and unique, else told by position; of the metadata the kernel, the language,
    the stamp and the cells' tags; consecutive outputs to one stream as one output.
    """
    taken: set[str] = set()
    cells = []
    for position, cell in enumerate(notebook.cells):
        name = cell.get("id")
        if not name or name in taken:
            name = f"cell-{position:02d}"
            others = {other.get("id") for other in notebook.cells} | taken
            while name in others:
                name += "-b"
        taken.add(name)
        metadata = {key: cell.metadata[key] for key in KEPT_METADATA if cell.get("metadata", {}).get(key)}
        kept = {"cell_type": cell.cell_type, "id": name, "metadata": metadata, "source": cell.source.rstrip()}
        if cell.get("attachments"):
            kept["attachments"] = cell.attachments
        if cell.cell_type == "code":
            kept["execution_count"] = cell.get("execution_count")
            kept["outputs"] = _canonical_outputs(cell.get("outputs", []))
        cells.append(kept)
    stamp = notebook.get("metadata", {}).get("vitcourse")
    metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    if stamp:
        metadata["vitcourse"] = {key: stamp[key] for key in STAMP if key in stamp}
    form = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return nbformat.from_dict(copy.deepcopy(form))


def _canonical_outputs(outputs: list[NotebookNode]) -> list[dict]:
    keys = ("output_type", "name", "text", "data", "execution_count", "metadata", "ename", "evalue", "traceback")
    kept: list[dict] = []
    for output in outputs:
        last = kept[-1] if kept else {}
        if output.output_type == "stream" and last.get("output_type") == "stream" and last["name"] == output.name:
            last["text"] += output.text
        else:
            kept.append({key: output[key] for key in keys if key in output})
    return kept


# What is in it


def tags(cell: NotebookNode) -> list[str]:
    """A cell's tags."""
    return cell.get("metadata", {}).get("tags", [])


def output_text(cell: NotebookNode) -> str:
    """What a code cell shows as text: its streams, and the plain text of everything else."""
    texts = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            texts.append(output.text)
        elif output.output_type == "error":
            texts.append(f"{output.ename}: {output.evalue}\n")
        else:
            texts.append(output.data.get("text/plain", "") + "\n")
    return "".join(texts)


def parts(notebook: NotebookNode, part: str) -> Iterator[tuple[str, NotebookNode]]:
    """(NAME, cell) for every tag `part`-NAME, in order."""
    for cell in notebook.cells:
        for tag in tags(cell):
            if tag.startswith(f"{part}-"):
                yield tag.removeprefix(f"{part}-"), cell


def solution_code(cell: NotebookNode) -> str:
    """The code of a solution's cell. Raises ValueError where it has not exactly one ```python block in <details>."""
    blocks = list(SOLUTION_CODE.finditer(cell.source))
    if len(blocks) != 1:
        raise ValueError(f"has {len(blocks)} ```python blocks; one is expected")
    before, after = cell.source[: blocks[0].start()], cell.source[blocks[0].end() :]
    if before.count("<details") <= before.count("</details>") or "</details>" not in after:
        raise ValueError("its code is not inside <details>...</details>")
    if not before.endswith("\n\n"):
        raise ValueError("needs an empty line before ```python: inside HTML it is not rendered as code without one")
    return blocks[0][1].rstrip()


def solve(notebook: NotebookNode) -> NotebookNode:
    """A copy with every solution's code in place of its stub."""
    solved = copy.deepcopy(notebook)
    solutions = {name: solution_code(cell) for name, cell in parts(solved, "solution")}
    for name, stub in parts(solved, "exercise"):
        if name not in solutions:
            raise ValueError(f"exercise {name} has no cell tagged solution-{name}")
        stub.source = solutions[name]
    return solved


def problems(notebook: NotebookNode) -> list[str]:
    """What is wrong with a recorded notebook, one line each, with the cell's number (from 0) and id."""
    found = []
    if (notebook.get("nbformat"), notebook.get("nbformat_minor")) != (4, 5):
        found.append(f"notebook format {notebook.get('nbformat')}.{notebook.get('nbformat_minor')}; 4.5 is expected")
    stamp = notebook.get("metadata", {}).get("vitcourse", {})
    missing = [key for key in STAMP if not stamp.get(key)]
    if missing:
        found.append(f"the stamp lacks {', '.join(missing)}: it was not recorded by python -m vitcourse.teach.record")
    ids = [cell.get("id") for cell in notebook.cells]
    count = 0
    for position, cell in enumerate(notebook.cells):
        where = f"cell {position} ({cell.get('id')})"
        if ids.count(cell.get("id")) > 1 or not cell.get("id"):
            found.append(f"{where}: its id is not its own")
        for tag in tags(cell):
            part, _, name = tag.partition("-")
            if tag not in TAGS and not (part in PARTS and re.fullmatch(r"[a-z0-9_-]+", name)):
                found.append(f"{where}: unknown tag {tag}")
        if cell.cell_type == "markdown":
            found += [f"{where}: {problem}" for problem in _image_problems(cell.source)]
        elif cell.cell_type == "code":
            count += 1
            found += [f"{where}: {problem}" for problem in _code_problems(cell, count)]
    return [*found, *_exercise_problems(notebook)]


def _code_problems(cell: NotebookNode, count: int) -> Iterator[str]:
    lines = cell.source.rstrip().count("\n") + 1
    if not cell.source.strip():
        yield "empty"
    if lines > LONGEST and "long" not in tags(cell):
        yield f"{lines} lines of code; at most {LONGEST}, or the tag long"
    if cell.get("execution_count") != count:
        yield f"execution count {cell.get('execution_count')}; run from the top it is {count}"
    outputs = cell.get("outputs", [])
    if "nbval-check-output" in tags(cell) and not outputs:
        yield "tagged nbval-check-output, and no output is stored"
    for output in outputs:
        if output.output_type == "error" and "raises-exception" not in tags(cell):
            yield f"a stored error, {output.ename}, and no tag raises-exception"
        if output.output_type == "stream" and output.name == "stderr":
            yield f"stored output on stderr: {output.text.strip().splitlines()[-1:]}"
        for kind in (kind for kind in output.get("data", {}) if kind.startswith("image/")):
            if not _alternative_text(output, kind):
                yield f"a figure ({kind}) without alternative text"
        yield from _image_problems(output.get("data", {}).get("text/html", ""))
        yield from _machine_problems(str(output))


def _alternative_text(output: NotebookNode, kind: str) -> str:
    metadata = output.get("metadata", {})
    own = metadata.get(kind)
    return ((own or {}).get("alt") or metadata.get("alt") or "").strip()


def _image_problems(text: str) -> Iterator[str]:
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"!\[\s*\]\(([^)]*)\)", prose):
        yield f"a picture without alternative text: {target}"
    for element in re.findall(r"<img\b[^>]*>", prose):
        if not re.search(r"""\balt=(["']?)\s*[^"'\s>]""", element):
            yield f"a picture without alternative text: {element[:60]}"


def _machine_problems(text: str) -> Iterator[str]:
    """A recording is read on other machines: it shows no folder of this one, and no address in memory."""
    for folder in {str(REPOSITORY), str(Path.home()), sys.prefix}:
        if folder != "/" and re.search(rf"(?<![\w.]){re.escape(folder)}/", text):
            yield "the output names a folder of the machine that recorded it"
    address = re.search(r" at 0x[0-9a-f]{6,}>", text)
    if address or "/ipykernel_" in text:
        yield "the output names an address or a temporary file, which differ from run to run"


def _exercise_problems(notebook: NotebookNode) -> Iterator[str]:
    cells = {part: list(parts(notebook, part)) for part in PARTS}
    names = list(dict.fromkeys(name for part in PARTS for name, _ in cells[part]))
    for name in names:
        mine = {part: [cell for other, cell in cells[part] if other == name] for part in PARTS}
        for part in ("exercise", "check", "solution"):
            if len(mine[part]) != 1:
                yield f"exercise {name}: {len(mine[part])} cells tagged {part}-{name}; one is expected"
        for part, kind in PARTS.items():
            for cell in mine[part]:
                if cell.cell_type != kind:
                    yield f"exercise {name}: {part}-{name} is a {cell.cell_type} cell; {kind} is expected"
        for hint in mine["hint"]:
            if "<details" not in hint.source or "</details>" not in hint.source:
                yield f"exercise {name}: a hint that is not folded in <details>"
        for check in mine["check"]:
            if "nbval-check-output" not in tags(check):
                yield f"exercise {name}: check-{name} is not tagged nbval-check-output"
            said = output_text(check)
            if not said.startswith(UNSOLVED):
                yield f"exercise {name}: as shipped its check says {said[:40]!r}; {' or '.join(UNSOLVED)} is expected"
        for solution in mine["solution"]:
            try:
                code = solution_code(solution)
                ast.parse(code)
                if any(code.strip() == stub.source.strip() for stub in mine["exercise"]):
                    yield f"exercise {name}: the stub is the solution"
            except SyntaxError as error:
                yield f"exercise {name}: its solution is no Python: {error.msg}, line {error.lineno}"
            except ValueError as error:
                yield f"exercise {name}: solution-{name} {error}"
        order = [notebook.cells.index(mine[part][0]) for part in ("exercise", "check") if mine[part]]
        if order != sorted(order):
            yield f"exercise {name}: its check comes before its stub"


# Running it


def execute(notebook: NotebookNode, folder: Path, *, seconds: int = SECONDS, skip: str = "", **environment: str) -> NotebookNode:
    """A copy, run from the top in a fresh kernel in `folder`. Raises RecordingError, which names the cell that failed.

    skip: a tag whose cells are left out. environment: what the kernel's environment has in addition.
    """
    executed = copy.deepcopy(notebook)
    for cell in executed.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    running = [0]
    client = NotebookClient(
        executed,
        timeout=seconds,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        skip_cells_with_tag=skip,
        on_cell_start=lambda cell, cell_index: running.__setitem__(0, cell_index),
    )
    try:
        client.execute(env=os.environ | environment)
    except (CellControlSignal, DeadKernelError) as error:
        what = str(error)
        if isinstance(error, CellExecutionError):
            what = "\n".join(_plain(error.traceback).rstrip().splitlines()[-8:])
        first = executed.cells[running[0]].source.strip().splitlines()[:1]
        raise RecordingError(f"cell {running[0]} (`{''.join(first)}` ...) failed:\n{what}") from error
    return executed


def _plain(text: str) -> str:
    """Without the escape codes of colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _without_folders(output: NotebookNode) -> None:
    """Take the folders of this machine out of a traceback that is meant to be shown."""
    packages = str(Path(nbformat.__file__).resolve().parents[1])
    for folder in (packages, str(REPOSITORY)):
        output.traceback = [line.replace(f"{folder}/", "") for line in output.traceback]


def record(path: Path) -> NotebookNode:
    """Run the notebook at `path` from the top and write it back, canonical and stamped. Raises RecordingError."""
    notebook = execute(read(path), path.resolve().parent, VITCOURSE_RECORD="1")
    for position, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise RecordingError(f"cell {position} wrote to stderr:\n{_plain(output.text).strip()}")
            if output.output_type == "error":
                _without_folders(output)
    notebook.metadata["vitcourse"] = {
        "recorded_on": "Triton's interpreter on the CPU" if runtime.INTERPRETER else runtime.gpu_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": datetime.date.today().isoformat(),
    }
    notebook = canonical(notebook)
    write(notebook, path)
    return notebook


def main(argv: list[str] | None = None) -> int:
    """Record the notebooks named in `argv`; 0 where all are recorded and nothing is wrong with them."""
    parser = argparse.ArgumentParser(prog="python -m vitcourse.teach.record", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: every one in notebooks/")
    paths = parser.parse_args(argv).notebooks or sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
    if not paths:
        print("error: there is no notebook to record", file=sys.stderr)
    failed = not paths
    for path in paths:
        try:
            found = problems(record(path))
        except RecordingError as error:
            print(f"error: {path} is not recorded: {error}", file=sys.stderr)
            failed = True
            continue
        print(f"{path}: recorded" + (f", with {len(found)} things to mend:" if found else ""), flush=True)
        for problem in found:
            print(f"  {problem}")
        failed |= bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
