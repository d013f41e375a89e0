"""Everything about the package stands in settings.ini, where nbdev reads it too."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
settings = ConfigParser(delimiters=["="])
settings.read(HERE / "settings.ini", encoding="utf-8")
about = settings["DEFAULT"]
readme = HERE / "README.md"

setup(
    name=about["lib_name"],
    version=about["version"],
    description=about["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=about["author"],
    author_email=about["author_email"],
    url=about["git_url"],
    license="Apache-2.0",
    keywords=about["keywords"],
    packages=find_packages(include=["cnnbench", "cnnbench.*"]),
    python_requires=f">={about['min_python']}",
    install_requires=about["requirements"].split(),
    extras_require={"dev": about["dev_requirements"].split()},
    entry_points={
        "console_scripts": about["console_scripts"].split(),
        "nbdev": [f"{about['lib_name']}={about['lib_path']}._modidx:d"],  # lets nbdev link names in prose to their pages
    },
)
