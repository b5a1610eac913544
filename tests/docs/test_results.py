"""docs/results.md shows what the reproductions' files hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evonorm_repro.present import as_table
from evonorm_repro.tables import TABLES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(p.name[:6] for p in DOCS.glob("results/*_small.json")))
def test_the_page_has_the_table_of_the_file(name):
    results = json.loads((DOCS / f"results/{name}_small.json").read_text())
    experiment = TABLES[name]("small", TABLES[name].models[0])
    assert results["title"] == experiment.title
    assert {row["layer"] for row in results["rows"]} == set(experiment.norms)
    assert all(row["seeds"] == [0, 1, 2] and not row["failed"] for row in results["rows"])
    page = (DOCS / "results.md").read_text()
    table = as_table(experiment, results)
    for cells in (table["columns"], *table["rows"]):
        assert "| " + " | ".join(cell.strip() for cell in cells) + " |" in page
    for note in table["notes"]:
        assert note.strip() in page
