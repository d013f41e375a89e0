"""Every notebook runs from top to bottom in a fresh kernel, is tidy, and is in step with the library that it exports."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
NOTEBOOKS = sorted(path for path in NBS.rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in path.relative_to(NBS).parts))
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:work|root|home|Users|tmp|private|var/folders)/[\w.-]+")
PICTURES = ("image/png", "image/jpeg")


def named(path: Path) -> str: return str(path.relative_to(NBS).with_suffix(""))


def directives(source: str) -> set[str]: return set(re.findall(r"^#\|\s*([\w]+:?.*?)\s*$", source, flags=re.MULTILINE))


def is_exported(source: str) -> bool: return any(directive.split()[0] in ("export", "exports", "exporti") for directive in directives(source))


def code_of(source: str) -> str:
    "A cell without its directives and magics."
    return re.sub(r"^\s*(#\||%|!).*$", "", source, flags=re.MULTILINE)


def printed(outputs: list[dict]) -> str:
    "Everything that a cell's saved outputs say, pictures apart."
    data = [{kind: value for kind, value in output.get("data", {}).items() if kind not in PICTURES} for output in outputs]
    return json.dumps([[output.get("text"), output.get("traceback")] for output in outputs] + data, ensure_ascii=False)


def shows(outputs: list[dict]) -> bool:
    "Whether the cell shows something that is saved: a value, a picture, a line; widgets live only while their kernel does."
    kinds, live = ("execute_result", "display_data"), "application/vnd.jupyter.widget-view+json"
    values = [output for output in outputs if live not in output.get("data", {})]
    return any(output["output_type"] in kinds or output.get("name") == "stdout" for output in values)


def untidy(notebook: dict) -> list[str]:
    "What is wrong with a notebook as it is saved: a sentence each."
    found = []
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3": found.append("its kernel is not python3")
    if "widgets" in notebook["metadata"]: found.append("it holds the state of widgets: clear it before saving")
    if len(notebook["cells"]) > 60: found.append(f"it has {len(notebook['cells'])} cells, more than 60: split it")
    for number, cell in enumerate(notebook["cells"]):
        source, outputs = "".join(cell["source"]), cell.get("outputs", [])
        if cell["cell_type"] != "code": continue
        tree = ast.parse(code_of(source))
        lines = len([line for line in code_of(source).splitlines() if line.strip()])
        most = 40 if any(isinstance(node, ast.ClassDef) for node in tree.body) else 30
        imports = [isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree)]
        only_imports = all(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body)
        if is_exported(source) and lines > most and not only_imports: found.append(f"cell {number} exports {lines} lines, more than {most}")
        if not is_exported(source) and any(imports) and not only_imports:
            found.append(f"cell {number} mixes imports with other code, which the site's build would run: give the imports a cell of their own")
        if "eval:false" in {directive.replace(" ", "") for directive in directives(source)}: found.append(f"cell {number} is not run (eval: false)")
        if path := MACHINE_PATH.search(printed(outputs)): found.append(f"cell {number}'s output names a path of one machine: {path[0]}")
        if any(output["output_type"] == "error" for output in outputs): found.append(f"cell {number} was saved with an error")
    return found


@pytest.mark.check
@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_notebook_is_tidy(path):
    assert path.stat().st_size < 500_000
    assert untidy(json.loads(path.read_text("utf-8"))) == []


@pytest.mark.check
def test_what_is_untidy_is_seen():
    def cell(source, *outputs): return {"cell_type": "code", "source": source, "outputs": list(outputs)}

    def value(text, kind="text/plain"): return {"output_type": "execute_result", "data": {kind: text}}

    cells = [
        cell("#| export\n" + "x = 1\n" * 31),
        cell("#| export\nclass A:\n" + "    x = 1\n" * 39),  # a class may be longer
        cell("import os\nprint(os)"),
        cell("def f():\n    import os"),
        cell("#| export\ndef f():\n    import os"),
        cell("#| eval: false\n1"),
        cell("#| export\n" + "import os\n" * 31),
        cell("1", value("'/home/me/data.png'")),
        cell("2", value("/tmp/abc", "image/png"), value("'https://example.org/home/page'"), value("data/home/x")),
        cell("3", {"output_type": "error", "traceback": []}),
    ]
    found = untidy({"metadata": {"widgets": {}}, "cells": cells})
    assert [re.sub(r":.*", "", sentence) for sentence in found] == [
        "its kernel is not python3", "it holds the state of widgets", "cell 0 exports 31 lines, more than 30",
        "cell 2 mixes imports with other code, which the site's build would run",
        "cell 3 mixes imports with other code, which the site's build would run",
        "cell 5 is not run (eval", "cell 7's output names a path of one machine", "cell 9 was saved with an error",
    ]
    assert untidy({"metadata": {"kernelspec": {"name": "python3"}}, "cells": cells[4:5] * 61}) == ["it has 61 cells, more than 60: split it"]


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    "A copy of the notebooks, from which nbdev has just written the library, and which it has cleaned."
    copy = tmp_path_factory.mktemp("export") / "project"
    shutil.copytree(NBS, copy / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "_quarto.yml"))
    shutil.copy(ROOT / "settings.ini", copy)
    for command in ("nbdev.doclinks import nbdev_export as command", "nbdev.clean import nbdev_clean as command"):
        subprocess.run([sys.executable, "-c", f"from {command}; command()"], cwd=copy, check=True, timeout=300)
    return copy


@pytest.mark.check
def test_library_is_what_the_notebooks_export(exported):
    ours, fresh = ({path.name: path.read_text("utf-8") for path in (folder / "cnnbench").glob("*.py")} for folder in (ROOT, exported))
    apart = sorted(name for name in ours | fresh if ours.get(name) != fresh.get(name))
    assert apart == [], f"cnnbench/ is not what nbs/ exports: {', '.join(apart)}. Edit the notebook, never the module, then: make export"


@pytest.mark.check
@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_notebook_is_clean(path, exported):
    clean = (exported / path.relative_to(ROOT)).read_text("utf-8")
    assert path.read_text("utf-8") == clean, f"{path.name} holds what changes with every run (counts, ids, metadata). Clean it: make export"


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    "Run all cells in a fresh kernel whose working folder is `folder`. Raises AssertionError with the end of the traceback."
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    try: client.execute()
    except CellExecutionError as error:
        raise AssertionError(re.sub(r"\x1b\[[0-9;]*m", "", str(error))[-3000:]) from None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_notebook_runs(path, tmp_path, monkeypatch):
    if (path.parent / ".notest").exists(): monkeypatch.setenv("CNNBENCH_SMALL", "1")  # the long ones make every training tiny
    notebook = nbformat.read(path, as_version=4)
    saved = [shows(cell.get("outputs", [])) for cell in notebook.cells]
    execute(notebook, tmp_path)
    assert not {file.name for file in tmp_path.iterdir()} - {".hypothesis"}, "it leaves files where it runs: write to a temporary folder"
    unlike = [number for number, cell in enumerate(notebook.cells) if shows(cell.get("outputs", [])) != saved[number]]
    assert not unlike, f"cells {unlike} show something else than what is saved: run the notebook and save it with its outputs"


def test_a_failing_notebook_fails(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1"), nbformat.v4.new_code_cell("assert 1 == 2")])
    with pytest.raises(AssertionError, match="assert 1 == 2"): execute(notebook, tmp_path)
    assert [shows(cell.outputs) for cell in notebook.cells] == [True, False]
