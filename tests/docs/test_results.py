"""docs/results.md shows what the reproductions' files hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evonorm_repro.present import as_table
from evonorm_repro.tables import TABLES

DOCS = Path(__file__).parents[2] / "docs"
MISSING = {  # not run yet on garments; the page says so
    "table4": {"BN-ReLU", "EvoNormB0", "GN-ReLU+WS", "tanh(v1 * x)"},
}
SEEDS = {"table2": 5, "table3": 5, "table4": 3, "table5": 3}


@pytest.mark.parametrize("name", sorted(p.name[:6] for p in DOCS.glob("results/*_small.json")))
def test_the_page_has_the_table_of_the_file(name):
    results = json.loads((DOCS / f"results/{name}_small.json").read_text())
    experiment = TABLES[name]("small", TABLES[name].models[0])
    assert results["title"] == experiment.title
    layers = set(experiment.norms) - MISSING.get(name, set())
    assert {row["layer"] for row in results["rows"]} == layers
    seeds = list(range(SEEDS[name]))
    assert all(row["seeds"] == seeds and not row["failed"] for row in results["rows"])
    page = (DOCS / "results.md").read_text()
    table = as_table(experiment, results)
    for cells in (table["columns"], *table["rows"]):
        assert "| " + " | ".join(cell.strip() for cell in cells) + " |" in page
    for note in table["notes"]:
        assert note.strip() in page


EARLIER = {  # files that are of an earlier small setting, and the columns and digits that they show
    "table4_digits": ([f"{t}/{ap}" for t in ("bbox", "segm") for ap in ("AP", "AP50", "AP75")], 1),
    "table5_300_steps": (["FID", "IS"], 2),
}


@pytest.mark.parametrize("name", EARLIER)
def test_the_page_has_the_table_of_an_earlier_setting(name):
    keys, digits = EARLIER[name]
    page = (DOCS / "results.md").read_text()
    for row in json.loads((DOCS / f"results/{name}.json").read_text())["rows"]:
        cells = []
        for key in keys:
            mean, spread = (f"{row[key][what]:.{digits}f}" for what in ("mean", "spread"))
            values = sorted(row[key]["values"], reverse=key == "IS")
            both = f" ({values[1]:.2f}/{values[0]:.2f})" if digits == 2 else ""  # median and best
            cells.append(f"{mean} ± {spread}{both}")
        assert f"| {row['layer']} | {row['learning rate']} | 3 | {' | '.join(cells)} |" in page
