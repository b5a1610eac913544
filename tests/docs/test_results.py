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


def test_the_page_has_table_4_of_the_digits():
    """Measured before table 4 in small took the garments."""
    results = json.loads((DOCS / "results/table4_digits.json").read_text())
    page = (DOCS / "results.md").read_text()
    keys = [f"{task}/{ap}" for task in ("bbox", "segm") for ap in ("AP", "AP50", "AP75")]
    for row in results["rows"]:
        cells = [f"{row[key]['mean']:.1f} ± {row[key]['spread']:.1f}" for key in keys]
        assert f"| {row['layer']} | {row['learning rate']} | 3 | {' | '.join(cells)} |" in page
