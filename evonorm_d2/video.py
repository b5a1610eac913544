"""Predictions on a video, drawn by Detectron2's VideoVisualizer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from detectron2.structures import Instances
from detectron2.utils.video_visualizer import VideoVisualizer

from evonorm_runs.errors import UserError

from .checkpoint import kept_random_state
from .predict import RunPredictor

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
CODEC = "mp4v"  # MPEG-4: the packages of OpenCV can't write H.264


def is_video(path: Path) -> bool:
    """Whether the name is that of a video."""
    return path.suffix.lower() in SUFFIXES


def predict_video(
    predictor: RunPredictor, path: Path, output: Path, threshold: float
) -> Iterator[Instances]:
    """Write a copy of a video with the objects of at least this score, an .mp4.

    An object keeps its colour from frame to frame, as far as the visualizer recognises it.

    Yields:
        the objects of each frame, on the CPU. The file is there after the last one.

    Raises:
        UserError: the video can't be read, or the file not be written.
    """
    video = cv2.VideoCapture(str(path))
    read, frame = video.read()
    if not read:
        raise UserError(f"{path}: OpenCV can't read a frame of it")
    partial = output.with_name(f"{output.stem}.partial.mp4")
    size = frame.shape[1], frame.shape[0]
    rate = video.get(cv2.CAP_PROP_FPS) or 25.0
    writer = cv2.VideoWriter(str(partial), cv2.VideoWriter_fourcc(*CODEC), rate, size)
    if not writer.isOpened():
        raise UserError(f"{output}: OpenCV can't write it")
    visualizer = VideoVisualizer(predictor.metadata)
    try:
        while read:
            found = predictor.predict(frame, threshold)
            with kept_random_state():
                np.random.seed(0)  # for the visualizer's colours
                drawn = visualizer.draw_instance_predictions(frame[:, :, ::-1], found).get_image()
            writer.write(np.ascontiguousarray(drawn[:, :, ::-1]))
            yield found
            read, frame = video.read()
    finally:
        video.release()
        writer.release()
    os.replace(partial, output)
