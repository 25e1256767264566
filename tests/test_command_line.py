"""`python -m vitcourse`: what it prints, and that bad input ends in one clear line and a non-zero exit status.

Nearly all run in this process, through `main(argv)`: starting Python and importing PyTorch takes seconds.
"""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vitcourse import runtime
from vitcourse.__main__ import COMMANDS, main
from vitcourse.classify import DEFAULT_MODEL, best, probabilities
from vitcourse.data import load_digits_split
from vitcourse.vit import ViTConfig

REPOSITORY = Path(__file__).resolve().parent.parent
interpreter_only = pytest.mark.skipif(not runtime.INTERPRETER, reason="a GPU has bfloat16: nothing to refuse")


@pytest.fixture
def digits(tmp_path: Path) -> list[str]:
    """Four held-out digits as picture files, larger than the model's input, named by their labels."""
    _, _, images, labels = load_digits_split()
    files = []
    for index in range(4):
        file = tmp_path / f"{index}-is-{labels[index]}.png"
        Image.fromarray(images[index]).resize((64, 64)).save(file)
        files.append(str(file))
    return files


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line; its exit status, stdout and stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        try:
            status = main([str(word) for word in argv])
        except SystemExit as stop:  # how argparse ends on wrong usage
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def error_line(status: int, out: str, err: str) -> str:
    """The one line of an error, after checks that it is all there is."""
    assert status != 0 and "Traceback" not in err
    assert out == "", "a failed command printed results"
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def results(out: str) -> dict[str, list[tuple[float, str]]]:
    """What classify printed: each picture's (percent, label), in order."""
    found: dict[str, list[tuple[float, str]]] = {}
    path = ""
    for line in out.splitlines():
        match = re.fullmatch(r" +([\d.]+) %  (.+)", line)
        if match:
            found[path].append((float(match[1]), match[2]))
        else:
            path = line
            found[path] = []
    return found


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the embedded model whose configuration and tensors can be changed."""

    def copy(config: dict | None = None, change: Callable[[dict], None] | None = None) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(DEFAULT_MODEL, folder)
        if config:
            file = folder / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | config))
        if change:
            tensors = load_file(folder / "model.safetensors")
            change(tensors)
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return copy


# What it does


def test_without_a_command_it_prints_help(run) -> None:
    status, out, _ = run()
    assert status == 0
    assert all(re.search(rf"^\s+{name}\s", out, re.MULTILINE) for name in COMMANDS)


def test_classify_finds_the_digits(run, digits: list[str]) -> None:
    status, out, err = run("classify", *digits, "--batch-size", "3", "--top", "2")
    found = results(out)
    assert status == 0 and "error" not in err
    assert list(found) == digits, "every picture once, in the order given"
    for path, labels in found.items():
        assert len(labels) == 2 and labels[0][1] == Path(path).stem[-1]
        assert 50 < labels[0][0] <= 100 and labels[0][0] > labels[1][0] > 0
    assert "4/4" in err, "a progress bar that reaches the end, on stderr"


def test_classify_agrees_with_hugging_face(run, digits: list[str]) -> None:
    from transformers import ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    status, out, err = run("classify", digits[0], "--top", "99")
    assert status == 0 and err == "", "no progress bar for one picture"
    pixel_values = ViTImageProcessorPil.from_pretrained(DEFAULT_MODEL)(
        Image.open(digits[0]).convert("RGB"), return_tensors="pt"
    ).pixel_values
    with torch.inference_mode():
        shares = ViTForImageClassification.from_pretrained(DEFAULT_MODEL).eval()(pixel_values).logits.softmax(-1)[0]
    labels = results(out)[digits[0]]
    assert len(labels) == 10, "more labels asked for than there are"
    for percent, label in labels:
        assert percent == pytest.approx(100 * shares[int(label)].item(), abs=0.0051)


def test_a_deit_is_classified_with_and_verified(run, digits: list[str], tmp_path: Path) -> None:
    import transformers
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

    torch.manual_seed(0)
    config = transformers.DeiTConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=3, intermediate_size=96, image_size=16, patch_size=8,
        num_labels=10, initializer_range=0.3,
    )  # fmt: skip
    theirs = transformers.DeiTForImageClassificationWithTeacher(config).eval()
    folder = tmp_path / "deit"
    theirs.save_pretrained(folder)
    processor = DeiTImageProcessorPil(size={"height": 18, "width": 18}, crop_size={"height": 16, "width": 16})
    processor.save_pretrained(folder)
    status, out, _ = run("classify", digits[0], "--model", folder, "--top", 10)
    assert status == 0
    with torch.inference_mode():
        pixel_values = processor([Image.open(digits[0]).convert("RGB")], return_tensors="pt")["pixel_values"]
        expected = 100 * theirs(pixel_values).logits[0].softmax(-1)
    found = results(out)[digits[0]]
    assert len(found) == 10 and found[0][0] > 11
    for percent, label in found:
        assert abs(percent - expected[config.label2id[label]].item()) < 0.006
    status, out, _ = run("verify", "--model", folder, "--image", digits[0])
    assert status == 0 and "All 4 layers agree with Hugging Face." in out


def test_verify_by_parts(run) -> None:
    status, out, _ = run("verify", "--parts")
    assert status == 0 and "All 17 layers agree with Hugging Face." in out and "blocks.1.attention.qkv" in out


def test_classify_in_float16(run, digits: list[str]) -> None:
    status, out, _ = run("classify", digits[2], "--dtype", "float16")
    assert status == 0 and results(out)[digits[2]][0][1] == Path(digits[2]).stem[-1]


def test_grey_transparent_and_very_large_pictures_are_classified(run, digits: list[str], tmp_path: Path) -> None:
    digit = Image.open(digits[2])
    wide = digit.resize((5000, 5000))
    wide.save(tmp_path / "large.jpg")
    Image.fromarray(np.asarray(digit).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    see_through = Image.new("RGBA", digit.size, (255, 255, 255, 0))  # white ink on black, where ink is what is transparent
    see_through.putdata([(0, 0, 0, 255 - ink) for ink in digit.get_flattened_data()])
    see_through.save(tmp_path / "transparent.png")
    files = [tmp_path / name for name in ("large.jpg", "deep.png", "transparent.png")]
    status, out, _ = run("classify", *files, "--top", "1")
    assert status == 0
    assert [labels[0][1] for labels in results(out).values()] == [Path(digits[2]).stem[-1]] * 3


def test_the_tour_on_digits(run) -> None:
    status, out, _ = run("run", "--model", "", "--image", "")  # how `make run` passes on what was not given
    assert status == 0
    assert runtime.describe() in out and "make lab" in out and "MODEL=" in out
    accuracy = float(re.search(r"Accuracy on all 397: ([\d.]+) %", out)[1])
    assert accuracy >= 97
    assert "█" in out or "#" in out
    assert re.search(r"^logits .* ok ", out, re.MULTILINE) and "agree with Hugging Face" in out


def test_the_tour_on_a_picture(run, digits: list[str]) -> None:
    status, out, _ = run("run", "--model", DEFAULT_MODEL, "--image", digits[1])
    assert status == 0
    first = re.search(r"^ +[\d.]+ %  (\d)$", out, re.MULTILINE)
    assert first and first[1] == Path(digits[1]).stem[-1]
    assert re.search(r"^logits +1x10 ", out, re.MULTILINE), "the table is of this picture"


def test_the_tour_fails_where_a_layer_diverges(run, digits: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from vitcourse.layers import Block

    right = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, first=None: right(self, x, first) * 1.001)
    status, out, _ = run("run", "--image", digits[1])
    assert status == 1 and "First to diverge: block 0" in out


def test_drawing_falls_back_to_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitcourse import demo

    class Terminal:
        encoding = "ascii"

    monkeypatch.setattr(sys, "stdout", Terminal())
    shades = demo._shades()
    monkeypatch.undo()
    assert shades.isascii()
    ramp = np.array([[0, 60, 110, 160, 255]], np.uint8)
    assert demo.draw_digit(ramp, shades) == ["".join(shade * 2 for shade in shades)]


# Bad pictures


def test_one_bad_picture_does_not_stop_the_others(run, digits: list[str], tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt.png"
    corrupt.write_bytes(Path(digits[0]).read_bytes()[:100])
    paths = [digits[0], str(corrupt), digits[1], str(tmp_path / "missing.png"), digits[2]]
    status, out, err = run("classify", *paths, "--batch-size", "2")
    assert status == 1
    assert list(results(out)) == digits[:3]
    errors = re.findall(r"^error: (.*)$", err.replace("\r", "\n"), re.MULTILINE)
    assert len(errors) == 2 and "corrupt.png" in errors[0] and "missing.png" in errors[1]


@pytest.mark.parametrize("command", [["classify"], ["run", "--image"], ["verify", "--image"]], ids=lambda words: words[0])
@pytest.mark.parametrize("case", ["missing", "folder", "text", "truncated", "too large"])
def test_a_bad_picture_is_refused(run, digits: list[str], tmp_path: Path, command: list[str], case: str) -> None:
    from test_images import png_header

    picture = tmp_path / "picture.png"
    if case == "folder":
        picture.mkdir()
    elif case != "missing":
        contents = {
            "text": b"hello\n",
            "truncated": Path(digits[0]).read_bytes()[:150],
            "too large": png_header(60_000, 60_000),
        }
        picture.write_bytes(contents[case])
    reason = {"missing": "no such file", "text": "no image", "too large": "limit"}.get(case, case)
    line = error_line(*run(*command, picture))
    assert str(picture) in line and reason in line


# Bad checkpoints


@pytest.mark.parametrize("command", ["classify", "verify", "run"])
@pytest.mark.parametrize(
    "case",
    ["empty folder", "no weights", "no config", "pickle", "file", "other model", "broken json", "damaged weights"],
)
def test_a_bad_checkpoint_is_refused(run, digits: list[str], model_folder, command: str, case: str) -> None:
    folder = model_folder({"model_type": "bert"} if case == "other model" else None)
    weights = folder / "model.safetensors"
    model, reason = folder, ""
    if case == "empty folder":
        for file in folder.iterdir():
            file.unlink()
        reason = "has no config.json"
    elif case == "no config":
        (folder / "config.json").unlink()
        reason = "has no config.json"
    elif case == "no weights":
        weights.unlink()
        reason = "has no model.safetensors"
    elif case == "pickle":
        weights.unlink()
        torch.save({"malice": torch.zeros(1)}, folder / "pytorch_model.bin")
        reason = "pickle"
    elif case == "file":
        model, reason = weights, "is a file"
    elif case == "other model":
        reason = '"bert"'
    elif case == "broken json":
        (folder / "config.json").write_text("{")
        reason = "cannot be read"
    elif case == "damaged weights":
        weights.write_bytes(weights.read_bytes()[:1000])
        reason = "damaged"
    before = sorted(folder.iterdir())
    pictures = [digits[0]] if command == "classify" else []
    status, _, err = run(command, *pictures, "--model", model)
    # verify and run say first where kernels run
    assert reason in error_line(status, "", err) and str(model) in err
    assert sorted(folder.iterdir()) == before, "nothing is written"


@pytest.mark.parametrize("case", ["missing", "surplus", "misshapen"])
def test_weights_that_do_not_fit_are_listed(run, digits: list[str], model_folder, case: str) -> None:
    name = "vit.encoder.layer.1.output.dense.bias"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        if case == "missing":
            del tensors[name]
        elif case == "surplus":
            tensors["vit.encoder.layer.1.extra.weight"] = torch.zeros(3)
        else:
            tensors[name] = torch.zeros(63)

    line = error_line(*run("classify", digits[0], "--model", model_folder(None, change)))
    assert "encoder.layer.1." in line
    assert {"missing": "missing", "surplus": "not expected", "misshapen": "(63,) and should be (64,)"}[case] in line


def test_a_model_with_no_classifier_is_refused(run, digits: list[str], model_folder) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["classifier.weight"], tensors["classifier.bias"]

    folder = model_folder({"architectures": ["ViTModel"]}, change)
    assert "no classifier" in error_line(*run("classify", digits[0], "--model", folder))


def test_output_that_is_not_finite_is_refused(run, digits: list[str], model_folder) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["classifier.weight"][3] = float("nan")

    assert "not finite" in error_line(*run("classify", digits[0], "--model", model_folder(None, change)))


def test_settings_that_do_not_fit_the_model_are_refused(run, digits: list[str], model_folder) -> None:
    folder = model_folder()
    (folder / "preprocessor_config.json").write_text('{"size": 224}')
    line = error_line(*run("classify", digits[0], "--model", folder))
    assert "(3, 224, 224)" in line and "(3, 8, 8)" in line


def test_a_name_that_is_no_id_and_no_folder_is_refused(run, digits: list[str]) -> None:
    line = error_line(*run("classify", digits[0], "--model", "no/such/folder"))
    assert "no/such/folder" in line


# Bad usage


@interpreter_only
@pytest.mark.parametrize("command", ["classify", "verify"])
def test_bfloat16_in_the_interpreter_is_refused(run, digits: list[str], command: str) -> None:
    pictures = [digits[0]] if command == "classify" else []
    line = error_line(*run(command, *pictures, "--dtype", "bfloat16"))
    assert "bfloat16" in line and "interpreter" in line and "NumPy" in line


@pytest.mark.parametrize(
    "words",
    [
        ["classify"],
        ["classify", "x.png", "--top", "0"],
        ["classify", "x.png", "--batch-size", "-1"],
        ["classify", "x.png", "--batch-size", "many"],
        ["classify", "x.png", "--dtype", "float8"],
        ["verify", "--seed", "-1"],
        ["verify", "--seed", str(2**64)],
        ["paint"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_refused(run, words: list[str]) -> None:
    status, out, err = run(*words)
    assert status == 2 and out == ""
    assert "usage: python -m vitcourse" in err and "error: " in err.splitlines()[-1] + err and "Traceback" not in err


# Of this file's own functions


def test_best_falls_and_names() -> None:
    shares = torch.tensor([0.1, 0.6, 0.3])
    found = best(shares, {0: "a", 1: "b"}, 5)
    assert [label for label, _ in found] == ["b", "label 2", "a"]
    assert [value for _, value in found] == pytest.approx([0.6, 0.3, 0.1])


def test_probabilities_sum_to_one_where_labels_exclude_each_other() -> None:
    class Model(torch.nn.Linear):
        config = ViTConfig()

    model, pixel_values = Model(4, 3, device=runtime.DEVICE, dtype=torch.float16), torch.randn(5, 4)
    shares = probabilities(model, pixel_values)
    assert shares.shape == (5, 3) and shares.dtype == torch.float32 and shares.device.type == "cpu"
    torch.testing.assert_close(shares.sum(-1), torch.ones(5))
    with torch.inference_mode():
        logits = model(pixel_values.to(runtime.DEVICE, torch.float16)).float().cpu()
    model.config = ViTConfig(problem_type="multi_label_classification")
    torch.testing.assert_close(probabilities(model, pixel_values), logits.sigmoid())
    one = Model(4, 1, device=runtime.DEVICE)
    assert 0 < probabilities(one, pixel_values).std(), "the only label of a model is not certain"


# Whole processes


def python_m(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vitcourse", *words],
        cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


def test_an_unreachable_hub_is_told_with_the_way_out(digits: list[str], tmp_path: Path) -> None:
    # A port on which nothing listens, and an empty cache. Hub settings are read at import: hence a process of its own.
    done = python_m(
        "classify",
        digits[0],
        "--model",
        "google/vit-base-patch16-224",
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HOME=str(tmp_path / "hf"),
    )
    line = error_line(done.returncode, done.stdout, done.stderr)
    assert "google/vit-base-patch16-224" in line and "could not be reached" in line and "folder" in line


class Hub(http.server.BaseHTTPRequestHandler):
    """One model, "someone/digits", as the Hugging Face hub serves it; what is asked for is kept in `asked`."""

    commit = "0123456789abcdef0123456789abcdef01234567"
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        file = Path(DEFAULT_MODEL) / self.path.rpartition("/")[2]
        if self.path.startswith("/api/models/someone/digits"):
            files = sorted(Path(DEFAULT_MODEL).glob("*.*"))
            tree = [{"type": "file", "path": each.name, "size": each.stat().st_size, "oid": each.name} for each in files]
            about = {"id": "someone/digits", "sha": self.commit, "siblings": [{"rfilename": each.name} for each in files]}
            self.answer(json.dumps(tree if "/tree/" in self.path else about).encode())
        elif self.path.startswith("/someone/digits/resolve/") and file.is_file():
            self.answer(file.read_bytes(), ETag=f'"{file.name}"', **{"X-Repo-Commit": self.commit})
        else:
            self.answer(b"", 404, **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_model_comes_from_the_hub_once(run, digits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hub, "asked", [], raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    try:
        first = python_m("classify", digits[0], "--model", "someone/digits", **hub)
        unknown = python_m("classify", digits[0], "--model", "someone/else", **hub)
    finally:
        server.shutdown()
        server.server_close()
    _, expected, _ = run("classify", digits[0])
    assert (first.returncode, first.stdout) == (0, expected), first.stderr
    assert "no public model someone/else" in error_line(unknown.returncode, unknown.stdout, unknown.stderr)
    loaded = {path.rpartition("/")[2] for path in Hub.asked if path.startswith("GET /someone/digits")}
    assert loaded == {"config.json", "preprocessor_config.json", "model.safetensors"}
    again = python_m("classify", digits[0], "--model", "someone/digits", **hub)  # the hub is gone, its files are here
    assert (again.returncode, again.stdout) == (0, expected)


def test_the_offline_mode_is_told_with_the_way_out(run, digits: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    line = error_line(*run("classify", digits[0], "--model", "nobody/no-such-model-of-ours"))
    assert "could not be reached" in line and "folder" in line


def test_a_closed_pipe_ends_quietly(digits: list[str]) -> None:
    command = [sys.executable, "-m", "vitcourse", "classify", digits[0]]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=100) == 1 and err == ""
