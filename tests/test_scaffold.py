"""What stands around the notebooks: the top level, the Makefile, README.md, and the site."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP = {"nbs", "cnnbench", "tests", "settings.ini", "_quarto.yml", "README.md", "Makefile", "setup.py", "pyproject.toml", "LICENSE", "CHANGELOG.md"}
TARGETS = ["setup", "run", "test", "lab", "app", "docs", "check", "export", "readme", "bench", "clean"]


def load_pages():
    "The module .ci/pages.py, which builds README.md and the site."
    spec = importlib.util.spec_from_file_location("pages", ROOT / ".ci" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = load_pages()


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    "What `make` with these arguments does in `folder`, untouched by a make around the tests."
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, env=environment)


@pytest.fixture
def bare(tmp_path):
    "A folder as after a fresh clone, with what `make setup` looks at."
    for name in ("Makefile", "settings.ini", "setup.py", "pyproject.toml"): shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.check
def test_top_level_holds_nothing_else():
    listed = subprocess.run(["git", "-c", f"safe.directory={ROOT}", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    visible = {line.partition("/")[0] for line in listed.splitlines() if not line.startswith(".")}
    assert visible == TOP


@pytest.mark.check
def test_quarto_settings_are_one_file():
    link = ROOT / "nbs" / "_quarto.yml"
    assert link.is_symlink() and os.readlink(link) == "../_quarto.yml"
    assert "custom_quarto_yml" not in (ROOT / "settings.ini").read_text("utf-8")


@pytest.mark.check
def test_version_is_one():
    import cnnbench

    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    version = settings["DEFAULT"]["version"]
    assert cnnbench.__version__ == version == metadata.version("cnnbench")
    assert f"## {version}\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.check
def test_ci_can_be_called():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "- run: .ci/run" in (ROOT / ".github" / "workflows" / "test.yml").read_text("utf-8")


@pytest.mark.check
def test_bare_make_lists_every_target():
    lines = make(ROOT).stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["help", *TARGETS]
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.check
@pytest.mark.parametrize("target", [target for target in TARGETS if target != "clean"])
def test_every_target_prepares_the_environment(bare, target):
    assert "-m venv .venv" in make(bare, "-n", target).stdout
    (bare / ".venv").mkdir()
    (bare / ".venv" / ".ready").touch()
    assert "-m venv .venv" not in make(bare, "-n", target).stdout
    os.utime(bare / "settings.ini", (2e9, 2e9))  # a dependency was added
    assert "-m venv .venv" in make(bare, "-n", target).stdout


@pytest.mark.check
@pytest.mark.parametrize("python", ["", "no-such-python", "false"])
def test_too_old_a_python_is_told_in_a_sentence(bare, python):
    done = make(bare, "setup", f"PYTHON={python}")
    assert done.returncode != 0 and "needs Python 3.11 or newer" in done.stderr
    assert not (bare / ".venv").exists()


@pytest.mark.check
def test_readme_is_what_the_index_says():
    text, pictures = pages.make_readme(ROOT / "nbs" / "index.ipynb")
    assert (ROOT / "README.md").read_text("utf-8") == text, "README.md is not what nbs/index.ipynb says: make readme"
    there = {f"nbs/images/{file.name}": file.read_bytes() for file in (ROOT / "nbs" / "images").glob("readme-*")}
    assert there == pictures, "the pictures of README.md are not those of nbs/index.ipynb: make readme"


@pytest.mark.check
def test_readme_takes_what_a_reader_needs(tmp_path):
    from nbformat import v4, write

    picture = v4.new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<picture>"})
    printed = v4.new_output("stream", text="99 %\n")
    cells = [
        v4.new_markdown_cell("# title\n\n[data](10_data.ipynb) [site](https://example.org) [below](#below) ![](images/a.png)"),
        v4.new_code_cell("#| hide\nimport os"),
        v4.new_code_cell("#| export\nx = 1"),
        v4.new_code_cell("run()", outputs=[printed]),
        v4.new_code_cell("#| echo: false\nshow()", outputs=[picture]),
    ]
    write(v4.new_notebook(cells=cells), tmp_path / "index.ipynb")
    text, pictures = pages.make_readme(tmp_path / "index.ipynb")
    assert "[data](nbs/10_data.ipynb) [site](https://example.org) [below](#below) ![](nbs/images/a.png)" in text
    assert text.endswith("```python\nrun()\n```\n\n```\n99 %\n```\n\n![](nbs/images/readme-1.png)\n")
    assert pictures == {"nbs/images/readme-1.png": b"\x89PNG\r\n\x1a\n"}
    assert "import os" not in text and "x = 1" not in text


@pytest.mark.check
@pytest.mark.parametrize(("name", "text", "loads"), [
    ("a.html", '<script defer src="https://cdn.example.org/a.js"></script>', 1),
    ("a.html", "<img src='//example.org/a.png'>", 1),
    ("a.html", '<link rel="stylesheet" href="https://example.org/a.css">', 1),
    ("a.css", "@import url(https://fonts.example.org/css2?a;b);", 1),
    ("a.css", "a { background: url('http://example.org/a.png') }", 1),
    ("a.html", '<a href="https://example.org">x</a><img src="data:image/png;base64,//8="><script src="a.js"></script>', 0),
    ("a.html", '<link rel="canonical" href="https://example.org/a.html"><link href="a.css">', 0),
    ("a.css", "a { background: url(\"data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'\") }", 0),
])
def test_a_load_from_elsewhere_is_seen(tmp_path, name, text, loads):
    (tmp_path / name).write_text(text)
    assert len(pages.loads_from_elsewhere(tmp_path)) == loads


@pytest.mark.check
def test_pages_are_made_to_read_offline(tmp_path):
    formula = r'<p><span class="math display">\[\frac{a}{b} &lt; 1\]</span> and <span class="math inline">\(x^2\)</span></p>'
    katex = '<link rel="stylesheet" href="https://example.org/katex.min.css"><script src="https://example.org/katex.min.js" defer></script>'
    (tmp_path / "10_data.html").write_text(katex + formula)
    (tmp_path / "index.html").write_text('<a href="./10_data.html#batch">data</a>')
    (tmp_path / "theme.css").write_text("@import url(https://fonts.example.org/css2?family=A;300&b);a{color:red}")
    pages.drop_numbers(tmp_path)
    pages.make_offline(tmp_path)
    page = (tmp_path / "data.html").read_text("utf-8")
    assert page.count("<math") == 2 and "<mfrac>" in page and "&lt;" in page.replace("&#x0003C;", "&lt;") and "katex" not in page
    assert (tmp_path / "index.html").read_text("utf-8") == '<a href="./data.html#batch">data</a>'
    assert (tmp_path / "theme.css").read_text("utf-8") == "a{color:red}"
    assert pages.loads_from_elsewhere(tmp_path) == []


def test_site_holds_every_notebook_and_reads_offline(tmp_path):
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", symlinks=True, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    for name in ("settings.ini", "_quarto.yml"): shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run([sys.executable, ".ci/pages.py", "docs"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "_docs"
    notebooks = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
    names = [notebook.stem.partition("_")[2] for notebook in notebooks]
    assert {f"{name}.html" for name in ["index", *names]} <= {page.name for page in site.glob("*.html")}
    index = (site / "index.html").read_text("utf-8")
    listed = re.findall(r'href="(?:\./)?(\w+)\.html"[^>]*>(?:<span[^>]*>)?(\w+)<', index[: index.index("<main")])
    assert [target for target, _ in listed if target in names] == names  # the sidebar, in the order of the pipeline
    for page in site.glob("*.html"):
        for target in re.findall(r'<a[^>]*href="([\w./-]+\.html)(?:#[^"]*)?"', page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
    assert pages.loads_from_elsewhere(site) == []
