"""The look of the workbench as a web page (`app.py FOLDER`): Voila's own, with its signs from an installed package, not from the network."""

import shutil
import sys
from importlib.resources import files
from pathlib import Path

NETWORK = "https://cdn.jsdelivr.net/npm/@fortawesome/fontawesome-free@^5/"
PAGE = """{%- extends 'voila/templates/lab/index.html.j2' -%}
{%- block notebook_css -%}
{{ super() | replace('NETWORK', resources.base_url ~ 'voila/templates/workbench/static/') }}
{%- endblock notebook_css -%}
"""


def write_template(folder: Path) -> None:
    "Write the template `workbench` into a folder of Voila's templates."
    signs = files("fontawesomefree") / "static" / "fontawesomefree"
    for name in ("css", "webfonts"): shutil.copytree(str(signs / name), folder / "workbench" / "static" / name, dirs_exist_ok=True)
    (folder / "workbench" / "conf.json").write_text('{"base_template": "lab"}\n')
    (folder / "workbench" / "index.html.j2").write_text(PAGE.replace("NETWORK", NETWORK))


if __name__ == "__main__": write_template(Path(sys.argv[1]))
