"""What axe-core says of a page."""

from typing import Any

import pytest


def violations(page: Any) -> list[str]:
    """What axe-core finds wrong with a page for those who cannot see, or use the keyboard alone; and where."""
    pytest.importorskip("axe_playwright_python", reason="axe-core is not installed")
    from axe_playwright_python.sync_playwright import Axe

    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    # Rows are alike, and axe takes the longer the more there are: all of them are most of its time.
    beyond = "(each) => [...each.rows].slice(6).forEach((row) => row.remove())"
    page.evaluate(f"document.querySelectorAll('tbody').forEach({beyond})")
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{each['id']} ({each['impact']}): {node['target']} {node['html'][:120]}"
        for each in found
        for node in each["nodes"][:3]
    ]
