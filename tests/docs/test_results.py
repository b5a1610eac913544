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
    "table5": {"LN-ReLU", "PixelNorm-ReLU"},
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


def test_the_page_has_the_earlier_table_4():
    page = (DOCS / "results.md").read_text()
    for row in json.loads((DOCS / "results/table4_digits.json").read_text())["rows"]:
        figures = [row[f"{t}/{ap}"] for t in ("bbox", "segm") for ap in ("AP", "AP50", "AP75")]
        cells = " | ".join(f"{x['mean']:.1f} ± {x['spread']:.1f}" for x in figures)
        assert f"| {row['layer']} | {row['learning rate']} | 3 | {cells} |" in page


def test_the_page_has_the_accuracies_at_high_rates():
    rows = json.loads((DOCS / "results/rates_classifier.json").read_text())["rows"]
    page = (DOCS / "results.md").read_text()
    found = {(row["layer"], row["rate"]): row["accuracy"] for row in rows}
    for layer in {layer for layer, _ in found}:
        cells = [
            ", ".join("failed" if x is None else f"{x:.1f}" for x in found.get((layer, rate), ()))
            for rate in (1, 2, 4, 8)
        ]
        assert f"| `{layer}` | {' | '.join(cells)} |" in page
    centred = "(x - mean_b(x)) / max(std_b(x), v1 * x + std_i(x))"
    values = [x for (layer, _), three in found.items() if layer == centred for x in three]
    assert f"has {min(values):.1f} to {max(values):.1f} % in all twelve runs" in page
    assert len(values) == 12
    centred = "(x - mean_g(x)) * sigmoid(v1 * x) / std_g(x)"
    values = [x for rate in (2, 4) for x in found[centred, rate]]
    assert f"has {min(values):.1f} to {max(values):.1f} % at twice and four times" in page
    assert f"more than {max(found['EvoNormS0', 4]):.1f} %" in page
    rows = json.loads((DOCS / "results/rates_detection.json").read_text())["rows"]
    box = {(row["layer"], row["rate"]): f"{row['box AP'] or 0:.1f}" for row in rows}
    gated = "x * sigmoid(v1 * x / std_g(x)) / std_g(x)"
    assert f"S0 less the mean has {box[centred, 2]} box AP" in page
    assert f"value {box[gated, 2]}, GN-Swish {box['GN-Swish', 2]} and GN-ReLU" in page
    assert f"GN-ReLU {box['GN-ReLU', 2]}." in page and box["EvoNormS0", 2] == "0.0"
    assert f"has {box['EvoNormS0', 1]}, and less the mean {box[centred, 1]}." in page
    gate = found["x * sigmoid(v1 * x / std_g(x)) / std_g(x)", 8]
    assert f"to {sum(gate) / 3:.1f} % in the\n  mean" in page
