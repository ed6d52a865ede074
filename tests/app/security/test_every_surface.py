"""Each surface has an attack in this folder."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.app.security.surfaces import SURFACES


def attacks() -> dict[str, str | None]:
    """Every test of this folder but those of this file, and its docstring."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        if file.name == Path(__file__).name:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[node.name] = ast.get_docstring(node)
    return found


def test_each_surface_is_attacked_and_each_attack_names_its_surface():
    attacked = set()
    for name, text in attacks().items():
        numbers = re.match(r"((?:\d+, )*\d+): ", text or "")
        assert numbers, f"{name}: the docstring begins with the number of a surface"
        attacked |= {int(number) for number in numbers[1].split(", ")}
    assert attacked == SURFACES.keys()
