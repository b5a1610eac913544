"""What the tests of the tools share."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch


@pytest.fixture
def call(request, capsys, monkeypatch):
    """call(*arguments): status, stdout and stderr of the tool that the file is named after.

    Number of threads and flags are afterwards as they were before.
    """
    own = importlib.import_module(request.module.__name__.rpartition("test_")[2])
    threads = torch.get_num_threads()

    def run(*arguments, tool=own):
        monkeypatch.setattr(sys, "argv", [f"{tool.__name__}.py", *map(str, arguments)])
        try:
            status = tool.main()
        except SystemExit as stop:  # argparse
            status = stop.code
        return status, *capsys.readouterr()

    yield run
    torch.set_num_threads(threads)
