"""examples/classify_folder.py: the table it writes, and what it does with a folder as folders are."""

import csv
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vitcourse.classify import DEFAULT_MODEL, best, load_classifier, probabilities
from vitcourse.data import load_digits_split
from vitcourse.images import load_image, preprocess
from vitcourse.vit import ViT

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "classify_folder.py"
# Names that a careless writer of CSV breaks; in the order in which files are taken.
NAMES = ["0, zero.png", '1 "quoted".PNG', "2\nlines.png", "3.png", "4.jpg", "größe 5.png", "数字.png"]


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("classify_folder", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven digits, one of them cut off, a text file and a folder with an eighth digit."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    _, _, digits, _ = load_digits_split()
    for name, digit in zip([*NAMES, "more/7.png"], digits):
        Image.fromarray(digit).resize((64, 64)).save(folder / name, quality=95)
    cut = folder / "3.png"
    cut.write_bytes(cut.read_bytes()[:150])
    (folder / "notes.txt").write_text("hello\n")
    return folder


@pytest.fixture
def run(script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the script into tmp_path / "results.csv"; its exit status, stdout and stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        try:
            status = script.main(["--out", str(tmp_path / "results.csv"), *map(str, argv)])
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err.replace("\r", "\n")

    return call


def table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def check(rows: list[dict[str, str]], folder: Path, names: list[str], top: int) -> None:
    """That the rows are what `python -m vitcourse classify` computes for the pictures, one after another."""
    assert [(row["file"], row["rank"]) for row in rows] == [(name, str(rank)) for name in names for rank in range(1, top + 1)]
    model, checkpoint = load_classifier(DEFAULT_MODEL)
    expected = [
        pair
        for name in names
        for pair in best(probabilities(model, preprocess([load_image(folder / name)], checkpoint))[0], model.config.id2label, top)
    ]
    assert [row["label"] for row in rows] == [label for label, _ in expected]
    # On a GPU the script runs in half precision if not told otherwise, in which small probabilities may change places.
    tolerance = {"rel": 1e-4} if next(model.parameters()).device.type == "cpu" else {"abs": 0.05}
    assert [float(row["probability"]) for row in rows] == pytest.approx([share for _, share in expected], **tolerance)


READABLE = [name for name in NAMES if name != "3.png"]


def test_a_folder_becomes_a_table(run, folder: Path, tmp_path: Path) -> None:
    status, out, err = run(folder, "--batch-size", "4")  # six readable images: a full batch, and a smaller one
    assert status == 1, "one could not be read"
    assert out == f"6 of 7 images classified: {tmp_path / 'results.csv'}\n"
    assert (tmp_path / "results.csv").read_text().startswith("file,label,probability,rank\n")
    check(table(tmp_path / "results.csv"), folder, READABLE, top=1)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(folder / "3.png") in errors[0] and "damaged or truncated" in errors[0]
    skipped = [line for line in err.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 2 and "more is a folder; --recursive" in skipped[0] and "notes.txt is no image" in skipped[1]
    assert "7/7" in err, "a progress bar that reaches the end, on stderr"


def test_top_three_and_recursive(run, folder: Path, tmp_path: Path) -> None:
    (folder / "3.png").unlink()
    status, out, err = run(folder, "--top", "3", "--recursive", "--dtype", "float32")
    assert status == 0 and out.startswith("7 of 7 ") and "error" not in err
    check(table(tmp_path / "results.csv"), folder, sorted([*READABLE, "more/7.png"]), top=3)


def test_full_batches_go_through_the_graph_in_order(run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, batches = [], []

    def graphed(self, example):
        examples.append(len(example))
        return lambda pixel_values: (batches.append(len(pixel_values)), self(pixel_values))[1]

    monkeypatch.setattr(ViT, "graphed", graphed)
    (folder / "0, zero.png").write_bytes(b"")  # what cannot be read leaves no gap in a batch
    assert run(folder, "--batch-size", "2")[0] == 1
    assert (examples, batches) == ([2], [2, 2, 1])
    assert run(folder, "--batch-size", "100", "--force")[0] == 1
    assert (examples, batches) == ([2, 7], [2, 2, 1, 5]), "no graph is larger than the folder"


def test_a_picture_is_read_when_its_batch_comes(script, run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    monkeypatch.setattr(script, "load_image", lambda file: (events.append("read"), load_image(file))[1])
    monkeypatch.setattr(script, "probabilities", lambda *given: (events.append("run"), probabilities(*given))[1])
    (folder / "3.png").unlink()
    run(folder, "--batch-size", "3")
    assert events == ["read", "read", "read", "run"] * 2


def test_a_table_that_exists_is_kept(run, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    file.write_text("dear to me")
    status, out, err = run(folder)
    assert status == 1 and out == "" and file.read_text() == "dear to me"
    assert err.splitlines()[-1] == f"error: {file} exists; give --force to write over it, or another --out"
    assert run(folder, "--force")[0] == 1 and len(table(file)) == 6


def test_rows_are_there_as_soon_as_they_are_known(
    script, run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def stop(file: Path) -> Image.Image:
        if file.name == "4.jpg":
            seen.extend(table(tmp_path / "results.csv"))  # while the script still has the file open
            raise KeyboardInterrupt
        return load_image(file)

    monkeypatch.setattr(script, "load_image", stop)
    with pytest.raises(KeyboardInterrupt):
        run(folder, "--batch-size", "2")
    assert seen == table(tmp_path / "results.csv") and [row["file"] for row in seen] == READABLE[:2]


@pytest.mark.parametrize("case", ["missing", "a file", "empty", "no images", "no model"])
def test_nothing_to_do_is_told_in_one_line(run, folder: Path, tmp_path: Path, case: str) -> None:
    given, words, reason = folder, [], "holds no images"
    if case == "missing":
        given, reason = folder / "nowhere", "nowhere is no folder"
    elif case == "a file":
        given, reason = folder / "3.png", "3.png is no folder"
    elif case == "empty":
        given = tmp_path / "empty"
        given.mkdir()
    elif case == "no images":
        for name in NAMES:
            (folder / name).unlink()
    else:
        words, reason = ["--model", tmp_path], "has no config.json"
    status, out, err = run(given, *words)
    errors = [line for line in err.splitlines() if not line.startswith("skipped: ")]
    assert status == 1 and out == "" and len(errors) == 1 and errors[0].startswith("error: ") and reason in errors[0]
    assert not (tmp_path / "results.csv").exists(), "no table is begun"


def test_folders_that_cannot_be_read_are_told_and_count(script, run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "link").symlink_to(folder / "more")
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "more":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    (folder / "3.png").unlink()
    status, out, err = run(folder, "--recursive")
    assert status == 1 and f"{len(READABLE)} of {len(READABLE)} images classified" in out
    assert f"error: {folder / 'more'} cannot be read: Permission denied" in err
    assert f"skipped: {folder / 'link'} is a link to a folder" in err


def test_a_missing_place_for_the_table_is_told_before_the_model_is_loaded(script, folder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(script, "load_classifier", lambda *_: pytest.fail("the model was loaded"))
    assert script.main([str(folder), "--out", str(tmp_path / "nowhere" / "t.csv")]) == 1
    assert "nowhere, the folder of --out, is not there" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--top", "0"], ["--batch-size", "none"], ["--dtype", "float8"]], ids=" ".join)
def test_wrong_usage_is_refused(run, folder: Path, words: list[str]) -> None:
    status, out, err = run(*([folder, *words] if words else []))
    assert status == 2 and out == "" and "usage: " in err


@pytest.mark.skipif(os.name == "nt", reason="names of files are text there")
def test_a_name_that_is_no_text_comes_back_as_it_was(run, folder: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.png")
    (folder / "more" / "7.png").rename(folder / "more" / name)
    assert run(folder / "more")[0] == 0
    assert os.fsencode(name) in (tmp_path / "results.csv").read_bytes()


def test_as_a_program_from_another_folder(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "pictures/more"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "1 of 1 images classified: results.csv\n"), done.stderr
    check(table(tmp_path / "results.csv"), folder / "more", ["7.png"], top=1)
    told = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=100).stdout
    assert "exit status" in told and "rank" in told and "as results come" in told
