"""Print every requirement of pyproject.toml at the lowest version its range allows, one a line, for ``pip install``."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
for requirement in (*project["dependencies"], *extras["remote"], *extras["hub"], *extras["notebooks"], *extras["test"]):
    if not requirement.startswith(project["name"]):
        print(re.sub(r">=([^,]+).*", r"==\1", requirement))
