"""What a classifier takes for what: confusion.json, and a picture of its surest mistakes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from evonorm_runs import distributed
from evonorm_runs.errors import user_errors
from evonorm_runs.files import atomic_write

CONFUSION, SHEET = "confusion.json", "mistakes.png"
SHOWN, COLUMNS = 24, 6  # images of the sheet
SIDE, TEXT = 144, 30  # pixels of an image in it, and of the two lines below


def answers_of(indices: Sequence[int], labels: Tensor, scores: Tensor) -> Tensor:
    """Index, label, answer and its probability for each of n images: float64 (n, 4).

    Args:
        scores: float32 (n, classes).
    """
    index = torch.tensor(indices, device=scores.device)
    columns = index, labels, scores.argmax(1), scores.softmax(1).amax(1)
    return torch.stack([x.double() for x in columns], 1)


def write_mistakes(folder: Path, val_set: Any, answers: Tensor) -> None:
    """Write confusion.json and, if any answer is wrong, mistakes.png; the main process does so.

    confusion.json has "classes", their names; "counts", a list of [label, answer, images]; and
    "wrong", the surest wrong answers, a list of [index, label, answer, probability].

    Args:
        answers: of all images of `val_set`, as :func:`answers_of` gives them.
    """
    if not distributed.is_main():
        return
    pairs, counts = torch.unique(answers[:, 1:3].long(), dim=0, return_counts=True)
    wrong = answers[answers[:, 1] != answers[:, 2]].tolist()
    surest = sorted(wrong, key=lambda row: (-row[3], row[0]))[:SHOWN]
    found = {
        "classes": val_set.classes,
        "counts": torch.cat([pairs, counts[:, None]], 1).tolist(),
        "wrong": [[*map(int, row[:3]), row[3]] for row in surest],
    }
    if surest:
        sheet = draw(val_set, found["wrong"])
        with user_errors(OSError), atomic_write(folder / SHEET) as file:
            sheet.save(file, "PNG")
    with user_errors(OSError), atomic_write(folder / CONFUSION) as file:
        file.write(json.dumps(found, separators=(",", ":")).encode())


def draw(val_set: Any, wrong: list[list[Any]]) -> Image.Image:
    """The images in rows, each over the wrong answer with its probability, and the label."""
    rows = -(-len(wrong) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIDE, rows * (SIDE + TEXT)), "white")
    pen = ImageDraw.Draw(sheet)
    ((images, _),) = val_set.batches([[row[0] for row in wrong]], 0)
    mean, std = (torch.tensor(x)[:, None, None] for x in (val_set.pixel_mean, val_set.pixel_std))
    for i, (image, (_, label, answer, probability)) in enumerate(zip(images, wrong)):
        x, y = i % COLUMNS * SIDE, i // COLUMNS * (SIDE + TEXT)
        pixels = (image * std + mean).clamp(0, 255).round().byte().permute(1, 2, 0)
        picture = Image.fromarray(pixels.numpy())
        enlarged = Image.Resampling.NEAREST if len(pixels) < SIDE else Image.Resampling.BILINEAR
        sheet.paste(picture.resize((SIDE - 4, SIDE - 4), enlarged), (x + 2, y + 2))
        lines = f"{probability:.3f} {val_set.classes[answer]}", f"is {val_set.classes[label]}"
        for line, text in enumerate(lines):
            # The default font has no more than these letters.
            text = text[:24].encode("latin-1", "replace").decode("latin-1")
            pen.text((x + 3, y + SIDE + 13 * line), text, "black")
    return sheet
