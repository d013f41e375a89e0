"""The documentation site (`pages.py docs`) and README.md (`pages.py readme`), both made from the notebooks.

The notebooks go through nbdev's processing into _proc (exported code becomes reference entries), from there through Quarto where it is
installed and smalldocs where not into _docs, and a last pass makes the pages read offline. nbdev's own commands would install Quarto.
"""

import base64
import html
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"^\d+[a-z]?_")  # what the site drops from a notebook's name
DIRECTIVE = re.compile(r"^#\|\s*(.*?)\s*\n?$", re.MULTILINE)
HIDDEN = {"hide", "export", "exporti", "exports", "include: false"}
PICTURES = {"image/png": "png", "image/jpeg": "jpg"}


def prepare() -> Path:
    "The folder _proc with every notebook as the site shows it, made anew."
    import fastcore.docments
    from nbdev.config import get_config
    from nbdev.serve import proc_nbs

    def signature(symbol, **options):
        # Plotly and ipywidgets are annotated through TYPE_CHECKING only: such names cannot be evaluated, and are shown as written.
        try: return inspect.signature(symbol, **options)
        except NameError: return inspect.signature(symbol)

    fastcore.docments.signature = signature
    shutil.rmtree("_proc", ignore_errors=True)
    prepared = Path(proc_nbs("nbs", n_workers=0))  # in this process; a relative path, since nbdev skips any with a dotted part
    settings = get_config()
    host = settings.doc_host + settings.doc_baseurl
    for page in prepared.rglob("*.ipynb"):
        notebook = json.loads(page.read_text("utf-8").replace(f"{host}/", ""))
        original = json.loads((Path("nbs") / page.relative_to(prepared)).read_text("utf-8"))
        notebook["cells"] = in_order(with_opening(notebook["cells"], original["cells"]))
        page.write_text(json.dumps(notebook), "utf-8")
    return prepared


def with_opening(cells: list[dict], original: list[dict]) -> list[dict]:
    "`cells` with what stands under the title, which nbdev drops with the title's own cell: it keeps only title and subtitle."
    first = next((cell for cell in original if cell["cell_type"] == "markdown"), None)
    text = re.sub(r"^(#|>) .*\n*", "", "".join(first["source"]) if first else "", count=2, flags=re.MULTILINE).strip()
    opening = {"cell_type": "markdown", "id": "opening", "metadata": {}, "source": text}
    return [*cells[:1], opening, *cells[1:]] if text else cells


def in_order(cells: list[dict]) -> list[dict]:
    "`cells` with the reference entries of one exported cell in the order of their definitions: nbdev puts the last one first."
    ordered: list[dict] = []
    start = 0
    for cell in cells:
        entry = re.fullmatch(r"(#\|.*\n)*show_doc\(\w+\)", "".join(cell["source"]))
        ordered.insert(start if entry else len(ordered), cell)
        if not entry: start = len(ordered)
    return ordered


def render(prepared: Path) -> None:
    "Turn _proc into _proc/_docs, by Quarto or by smalldocs."
    if shutil.which("quarto"):
        subprocess.run(["quarto", "render", "--no-execute"], cwd=prepared, check=True)
        return
    command = [sys.executable, "-m", "smalldocs.cli", "render", str(prepared)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    names = "|".join(NUMBER.sub("", page.stem) for page in prepared.rglob("*.ipynb"))  # pages get these names below
    expected = re.compile(rf"output-file is not read|html-math-method is ignored|execute.enabled is ignored|broken link ({names})\.html")
    print("\n".join(line for line in done.stdout.splitlines() if not expected.search(line)))
    if done.returncode: sys.exit(done.returncode)


def mathml(match: re.Match) -> str:
    "A formula as MathML, which browsers draw without any script."
    from latex2mathml.converter import convert

    return convert(html.unescape(match[2]), display="block" if match[1] == "display" else "inline")


def drop_numbers(site: Path) -> None:
    "Rename 10_data.html to data.html, as Quarto does by itself, and every mention of it."
    names = {page.name: NUMBER.sub("", page.name) for page in site.rglob("*.html") if NUMBER.match(page.name)}
    for page in list(site.rglob("*.html")): page.rename(page.with_name(NUMBER.sub("", page.name)))
    if not names: return
    mention = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for file in [file for kind in ("*.html", "*.json", "*.xml") for file in site.rglob(kind)]:
        file.write_text(mention.sub(lambda match: names[match[1]], file.read_text("utf-8")), "utf-8")


def make_offline(site: Path) -> None:
    "Formulas become MathML, and fonts and scripts from other hosts go."
    for page in site.rglob("*.html"):
        text = re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', mathml, page.read_text("utf-8"), flags=re.DOTALL)
        text = re.sub(r'<link[^>]*href="https?://[^"]*katex[^>]*>|<script[^>]*src="https?://[^"]*katex[^>]*></script>', "", text)
        page.write_text(text, "utf-8")
    for sheet in site.rglob("*.css"):
        sheet.write_text(re.sub(r'@import\s*(url\([^)]*//[^)]*\)|"[^"]*//[^"]*"|\'[^\']*//[^\']*\')[^;]*;', "", sheet.read_text("utf-8")), "utf-8")


ELSEWHERE = r"""["']?(?:https?:)?//[^"'\s)>]+"""
LOADS = (
    ("*.html", rf"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc={ELSEWHERE}"),
    ("*.html", rf"<link\b(?![^>]*rel=\W?(?:canonical|license))[^>]*?href={ELSEWHERE}"),
    ("*.css", rf"(?:@import\s*|url\(){ELSEWHERE}"),
)


def loads_from_elsewhere(site: Path) -> list[str]:
    "Whatever a browser would fetch from another host to show a page, each as `file: tag`. Empty for a site that reads offline."
    searched = [(file, pattern) for kind, pattern in LOADS for file in site.rglob(kind)]
    found = [(file, load[0]) for file, pattern in searched for load in re.finditer(pattern, file.read_text("utf-8"))]
    return [f"{file.relative_to(site)}: {load[:160]}" for file, load in found]


def build_docs(target: Path) -> None:
    "Build the whole site into `target`; an error where a page would load something from another host."
    prepared = prepare()
    render(prepared)
    site = prepared / "_docs"
    drop_numbers(site)
    make_offline(site)
    if loads := loads_from_elsewhere(site): sys.exit("These pages would not read offline:\n" + "\n".join(loads))
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(site, target)
    shutil.rmtree(prepared)
    print(f"Open {target / 'index.html'}")


def local_link(match: re.Match) -> str:
    "A relative link of nbs/index.ipynb, as seen from the top level."
    return match[0] if re.match(r"[a-z]+:|#|/", match[2]) else f"{match[1]}nbs/{match[2]}"


def show_output(output: dict, pictures: dict[str, bytes]) -> str:
    "One saved output as Markdown; a picture joins `pictures` and is linked."
    text = output.get("text")
    data = output.get("data", {})
    for kind, suffix in PICTURES.items():
        if kind in data:
            path = f"nbs/images/readme-{len(pictures) + 1}.{suffix}"
            pictures[path] = base64.b64decode("".join(data[kind]))
            return f"![]({path})\n\n"
    if "text/markdown" in data: return "".join(data["text/markdown"]).rstrip() + "\n\n"
    text = text if text is not None and output.get("name") == "stdout" else data.get("text/plain", "")
    return f"```\n{''.join(text).rstrip()}\n```\n\n" if "".join(text).strip() else ""


def make_readme(notebook: Path) -> tuple[str, dict[str, bytes]]:
    "README.md's text, and the pictures that it shows (path from the top level → bytes), from index.ipynb as it is saved."
    text = "<!-- Written by `make readme` from nbs/index.ipynb: edit that. -->\n\n"
    pictures: dict[str, bytes] = {}
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        directives = set(DIRECTIVE.findall(source))
        if not source or directives & HIDDEN or any(directive.startswith("default_exp") for directive in directives): continue
        if cell["cell_type"] == "markdown": text += re.sub(r"(\]\()([^)\s]+)", local_link, source) + "\n\n"
        if cell["cell_type"] != "code": continue
        code = DIRECTIVE.sub("", source).strip()
        if code and "echo: false" not in directives: text += f"```python\n{code}\n```\n\n"
        text += "".join(show_output(output, pictures) for output in cell["outputs"])
    return text.rstrip() + "\n", pictures


def write_readme() -> None:
    "Write README.md and its pictures; old pictures of it go."
    text, pictures = make_readme(Path("nbs/index.ipynb"))
    for old in Path("nbs/images").glob("readme-*"): old.unlink()
    for path, data in pictures.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(data)
    Path("README.md").write_text(text, "utf-8")


if __name__ == "__main__":
    os.chdir(ROOT)
    if sys.argv[1:] == ["docs"]: build_docs(ROOT / "_docs")
    elif sys.argv[1:] == ["readme"]: write_readme()
    else: sys.exit("usage: pages.py docs | readme")
