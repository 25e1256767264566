"""The programs that the posts quote: they run, they are right, and the posts quote them as they are."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vitcourse import runtime

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = REPOSITORY / "examples"
POSTS = sorted((REPOSITORY / "posts").glob("*.md"))


def test_the_batched_product_in_triton() -> None:
    result = subprocess.run([sys.executable, EXAMPLES / "matmul_batch.py"], capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (0, "3 products of 37 x 29 x 50, largest error 0\n"), result.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vector_add", "1000003 elements in 3907 blocks of 256 threads, 0 wrong\n"),
        ("matmul_batch", "3 products of 37 x 29 x 50, largest error 0\n"),
    ],
)
def test_the_programs_in_cuda(name: str, told: str, tmp_path: Path) -> None:
    program = tmp_path / name
    compiled = subprocess.run(
        ["nvcc", "-O2", "-o", program, EXAMPLES / f"{name}.cu"], capture_output=True, text=True, timeout=300
    )
    assert compiled.returncode == 0, compiled.stderr
    if runtime.DEVICE.type == "cuda":
        result = subprocess.run([program], capture_output=True, text=True, timeout=60)
        assert (result.returncode, result.stdout) == (0, told), result.stderr


def quotable(file: Path) -> set[str]:
    """Every run of lines of a program, as a post may quote it: what stands between begin and end marks."""
    text = file.read_text(encoding="utf-8")
    parts = re.findall(r"^\s*(?://|#) \w+: begin\n(.*?)^\s*(?://|#) \w+: end\n", text, re.MULTILINE | re.DOTALL)
    return {"\n".join(line.strip() for line in part.strip().splitlines()) for part in parts}


@pytest.mark.parametrize("post", POSTS, ids=lambda post: post.stem)
def test_a_post_quotes_programs_as_they_are(post: Path) -> None:
    """A code block after a line `<!-- from examples/NAME -->` is a marked part of that program, but for its indentation."""
    text = post.read_text(encoding="utf-8")
    quotes = re.findall(r"^<!-- from (examples/\S+) -->\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(quotes) == text.count("<!-- from examples/")
    for name, code in quotes:
        assert "\n".join(line.strip() for line in code.strip().splitlines()) in quotable(REPOSITORY / name), f"{name}:\n{code}"


@pytest.mark.parametrize("post", POSTS, ids=lambda post: post.stem)
def test_a_post_links_to_what_is_there_and_describes_its_figures(post: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", post.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    missing = [link for link in links if "://" not in link and not (post.parent / link).exists()]
    assert links and not missing
    for image in re.findall(r"<img [^>]+>", text):
        assert len(re.search(r'alt="([^"]+)"', image)[1]) > 60
        light = re.search(r'src="(.+?)[.]png"', image)[1]
        assert f'srcset="{light}-dark.png"' in text


def test_the_table_of_gpus_is_what_the_program_writes() -> None:
    code = "import draw, pathlib; post = pathlib.Path('what_is_inside_a_gpu.md').read_text(); print(draw.fill(post) == post)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=REPOSITORY / "posts")
    assert result.stdout == "True\n", result.stderr
