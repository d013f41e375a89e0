"""Who may import whom, and what importing a module must not load. `FLOORS` is the table of the design: change both together."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (  # notebook, the numbers it may import
    ("00_core", ""),
    ("01_config", "00"),
    ("02_plot", "00-01"),
    ("03_ui", "00-02"),
    ("04_images", "00-03"),
    ("05_shapes", "00-03"),
    ("06_geometry", "00-05"),
    ("07_targets", "00-06"),
    ("08_frames", "00-05"),
    ("10_data", "00-08"),
    ("11_formats", "00-10"),
    ("12_audit", "00-11"),
    ("13_annotate", "00-11"),
    ("14_scenes", "00-10"),
    ("15_clips", "00-10"),
    ("16_writers", "00-11 17-19"),
    ("17_coco", "00-11"),
    ("18_sidecars", "00-11"),
    ("19_tables", "00-11"),
    ("19_recipes", "00-07"),
    ("20_augment", "00-08 10 19"),
    ("21_preview", "00-20"),
    ("22_browse", "00-20"),
    ("30_layers", "00-08"),
    ("31_models", "00-08 30"),
    ("32_transfer", "00-08 30-31"),
    ("33_heads", "00-08 30-32"),
    ("34_designer", "00-08 10 30-33"),
    ("40_tasks", "00-08 10 30-33"),
    ("41_detection", "00-08 10 30-33 40"),
    ("42_segmentation", "00-08 10 30-33 40"),
    ("43_generation", "00-08 10 30-33 40"),
    ("44_video", "00-08 10 30-33 40"),
    ("50_train", "00-08 10 20 40"),
    ("51_experiment", "00-50"),
    ("52_distributed", "00-51"),
    ("53_control", "00-51"),
    ("54_rates", "00-53"),
    ("55_monitor", "00-54"),
    ("70_evaluate", "00-08 10 40-44"),
    ("71_explain", "00-08 10 40"),
    ("72_boxes", "00-08 10 40-44"),
    ("73_masks", "00-08 10 40-44"),
    ("74_samples", "00-08 10 40-44"),
    ("75_review", "00-08 10 40-53 70"),
    ("76_gallery", "00-08 10 40-53 70 72-75"),
    ("77_insight", "00-08 10 40-53 70-71"),
    ("78_history", "00-08 10 40-53 70-71 77"),
    ("80_artefact", "00-08 31 40-44"),
    ("81_export", "00-08 31 40-44 80"),
    ("82_compress", "00-08 10 50-51 70 80-81"),
    ("83_serve", "00-08 80-81"),
    ("85_robust", "00-08 10 20 40-51 70"),
    ("86_privacy", "00-08 10 20 40-51 70"),
    ("87_pipeline", "00-86"),
    ("88_tune", "00-87"),
    ("90_studio", "00-89"),
    ("91_cli", "00-90"),
    ("92_main", "91"),
)


def module_of(notebook: str) -> str:
    "The module that a notebook exports: its name without the number, but for the one that `python -m cnnbench` runs."
    return "__main__" if notebook == "92_main" else notebook.partition("_")[2]


NUMBERS = {module_of(notebook): int(notebook[:2]) for notebook, _ in FLOORS}
ALLOWED = {
    module_of(notebook): {number for span in spans.split() for number in range(int(span[:2]), int(span[-2:]) + 1)}
    for notebook, spans in FLOORS
}
GENERATED = {"__init__", "_modidx"}  # nbdev writes these; they import nothing of ours
SLOW = (
    "plotly", "ipywidgets", "torchmetrics", "captum", "onnx", "onnxruntime", "onnxscript", "sklearn", "tyro", "tqdm", "matplotlib", "pandas",
)
WIDGETS = "ui"  # is made of widgets through and through; panels import it where they are built
DRAWING = {"plotly": ("plot", "_figure"), "ipywidgets": ("ui", "_panel")}  # package: the module that may, the functions that may
MODULES = sorted(path.stem for path in (ROOT / "cnnbench").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))


@dataclass(frozen=True)
class Import:
    target: str  # dotted: what is imported, a name taken `from` it included
    line: int
    functions: tuple[str, ...]  # the functions around it, outermost first
    typing: bool  # only type checkers see it


def imports(node: ast.AST, functions: tuple[str, ...] = (), typing: bool = False) -> Iterator[Import]:
    "Every import below `node`, wherever it stands; relative ones as absolute."
    if isinstance(node, ast.Import):
        for alias in node.names: yield Import(alias.name, node.lineno, functions, typing)
    elif isinstance(node, ast.ImportFrom):
        module = ".".join(filter(None, ["cnnbench" if node.level else "", node.module]))
        for alias in node.names: yield Import(f"{module}.{alias.name}", node.lineno, functions, typing)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args and isinstance(node.args[0], ast.Constant):
        yield Import(str(node.args[0].value), node.lineno, functions, typing)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef): functions = (*functions, node.name)
    for name, value in ast.iter_fields(node):
        checked = typing or (isinstance(node, ast.If) and name == "body" and ast.unparse(node.test).endswith("TYPE_CHECKING"))
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST): yield from imports(child, functions, checked)


def faults(module: str, source: str) -> list[str]:
    "What in a module's source breaks the table or the rules for slow packages: a sentence each, with its line."
    found = []
    if module not in NUMBERS and module not in GENERATED: found.append(f"{module} has no row in FLOORS")
    for seen in imports(ast.parse(source)):
        where, (package, *rest) = f"{module}.py:{seen.line}", seen.target.split(".")
        own = rest[0] if package == "cnnbench" and rest else ""
        if own and own != "__version__":
            allowed = {name for name in NUMBERS if NUMBERS[name] in ALLOWED.get(module, ())}
            if own not in NUMBERS: found.append(f"{where} imports {seen.target}, which has no row in FLOORS")
            elif own not in allowed: found.append(f"{where} imports {own}, which does not stand below it")
        if own == WIDGETS and not seen.typing and not any(name.endswith("_panel") for name in seen.functions):
            found.append(f"{where} imports {own} outside of functions named *_panel")
        if package == "cnnbench" and not rest: found.append(f"{where} imports the whole package: name the module")
        if package in DRAWING and not seen.typing:
            only_module, suffix = DRAWING[package]
            if module != only_module and not any(name.endswith(suffix) for name in seen.functions):
                found.append(f"{where} imports {package} outside of {only_module} and functions named *{suffix}")
        if package in SLOW and not seen.functions and not seen.typing and (module, package) != (WIDGETS, "ipywidgets"):
            found.append(f"{where} imports {package} at the top: it is slow, import it where it is used")
    return found


@pytest.mark.check
@pytest.mark.parametrize("module", MODULES)
def test_module_keeps_to_its_floor(module):
    source = (ROOT / "cnnbench" / f"{module}.py").read_text("utf-8")
    assert not faults(module, source), "\n".join(faults(module, source))


@pytest.mark.check
def test_the_package_is_flat():
    assert not [path for path in (ROOT / "cnnbench").rglob("*.py") if path.parent.name != "cnnbench"]


@pytest.mark.check
@pytest.mark.parametrize(("module", "source", "fault"), [
    ("core", "from cnnbench.config import span", "imports config, which does not stand below it"),
    ("core", "def f():\n    from .data import Batch", "core.py:2 imports data"),
    ("core", "from . import data", "imports data"),
    ("core", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import cnnbench.train", "core.py:3 imports train"),
    ("core", "import importlib\nimportlib.import_module('cnnbench.plot')", "imports plot"),
    ("core", "import cnnbench", "name the module"),
    ("detection", "from cnnbench.segmentation import Segmentation", "imports segmentation, which does not stand below it"),
    ("evaluate", "from cnnbench.explain import explain", "imports explain"),
    ("models", "class A:\n    def f(self):\n        from cnnbench.tasks import make_task", "imports tasks"),
    ("models", "from cnnbench.helpers import thing", "has no row"),
    ("helpers", "x = 1", "has no row"),
    ("__init__", "from .core import UsageError", "imports core"),
    ("__main__", "from cnnbench.train import train", "imports train"),
    ("plot", "import plotly.graph_objects as go", "at the top"),
    ("evaluate", "def curve():\n    import plotly.graph_objects as go", "outside of plot"),
    ("evaluate", "def curve_figure():\n    import ipywidgets", "outside of ui"),
    ("evaluate", "from .ui import Store", "outside of functions named *_panel"),
    ("ui", "import plotly.graph_objects as go", "at the top"),
    ("evaluate", "from torchmetrics import Accuracy", "at the top"),
    ("evaluate", "if True:\n    import sklearn.metrics", "at the top"),
])
def test_the_checker_sees_what_breaks_the_rules(module, source, fault):
    assert any(fault in sentence for sentence in faults(module, source)), faults(module, source)


@pytest.mark.check
@pytest.mark.parametrize(("module", "source"), [
    ("config", "from cnnbench.core import UsageError\nfrom .core import look_up\nfrom cnnbench import __version__"),
    ("detection", "from .tasks import Predictions\nfrom .transfer import freeze"),
    ("pipeline", "def run():\n    from cnnbench.explain import explain"),
    ("__main__", "from cnnbench.cli import main"),
    ("plot", "def figure():\n    import plotly.graph_objects as go"),
    ("evaluate", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import plotly.graph_objects as go"),
    ("evaluate", "def curve_figure():\n    def draw():\n        from plotly import graph_objects"),
    ("evaluate", "def f():\n    import torchmetrics"),
])
def test_the_checker_lets_pass_what_keeps_them(module, source):
    assert faults(module, source) == []


@pytest.mark.check
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_exports_the_module_of_its_name(notebook):
    assert notebook.stem in [name for name, _ in FLOORS], f"{notebook.name} has no row in FLOORS"
    cells = ["".join(cell["source"]) for cell in json.loads(notebook.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    named = [line.split()[-1] for source in cells for line in source.splitlines() if line.startswith("#| default_exp")]
    assert named == [module_of(notebook.stem)]


@pytest.mark.check
def test_every_module_has_its_notebook():
    assert set(MODULES) - GENERATED == {module_of(notebook.stem) for notebook in NOTEBOOKS}


LOADED_BY_IMPORT = """
import importlib, os, sys
import torch, torchvision, cv2, PIL.Image  # every module may stand on these
slow = sys.argv[1].split(",")
print("before:", *[name for name in slow if name in sys.modules])
for module in sys.argv[2:]:
    child = os.fork()  # a process of its own for each, without paying for torch each time
    if child == 0:
        status = 1
        try:
            importlib.import_module(f"cnnbench.{module}")
            print(f"{module}:", *[name for name in slow if name in sys.modules], flush=True)
            status = 0
        except Exception as error: print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally: os._exit(status)
    if os.waitpid(child, 0)[1]: sys.exit(f"cnnbench.{module} cannot be imported alone")
"""


def loaded_by_import(modules: list[str], packages: tuple[str, ...]) -> dict[str, set[str]]:
    "Which of `packages` each module brings in, imported alone, beyond what torch loads by itself."
    command = [sys.executable, "-c", LOADED_BY_IMPORT, ",".join(packages), *modules]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = {line.partition(":")[0]: set(line.partition(":")[2].split()) for line in done.stdout.splitlines()}
    assert set(loaded) == {"before", *modules}
    before = loaded.pop("before")
    return {module: names - before for module, names in loaded.items()}


@pytest.mark.check
def test_importing_a_module_loads_nothing_slow():
    loaded = loaded_by_import([module for module in MODULES if module not in ("__main__", WIDGETS)], SLOW)
    assert {module: names for module, names in loaded.items() if names} == {}


@pytest.mark.check
def test_what_importing_loads_is_seen():
    assert loaded_by_import(["config"], ("cnnbench.core", "plotly")) == {"config": {"cnnbench.core"}}
