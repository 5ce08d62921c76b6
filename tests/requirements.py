"""Print what the tests need, one a line: ``low`` for the lowest version of each range, ``high`` for the ranges."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
needed = [
    *project["dependencies"],
    *(each for name in ("remote", "hub", "export", "notebooks", "test") for each in extras[name]),
]
for requirement in needed:
    if not requirement.startswith(project["name"]):
        print(re.sub(r">=([^,]+).*", r"==\1", requirement) if sys.argv[1] == "low" else requirement)
