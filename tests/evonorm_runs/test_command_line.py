"""What a tool does when the reader of its output ends, as `head` does."""

from __future__ import annotations

import subprocess
import sys

import pytest

TOOL = """
import sys
from evonorm_runs.command_line import run_tool

@run_tool("tool")
def main():
    {body}
    return 0

sys.exit(main())
"""


@pytest.mark.parametrize("body", ["print('x' * 300_000)", "print('short')"])
def test_a_tool_ends_without_a_word_when_nobody_reads_it(body):
    run = [sys.executable, "-c", TOOL.format(body=body)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_another_broken_pipe_keeps_its_traceback():
    run = [sys.executable, "-c", TOOL.format(body="raise BrokenPipeError('of a worker')")]
    found = subprocess.run(run, capture_output=True, text=True)
    assert found.returncode == 1 and "BrokenPipeError: of a worker" in found.stderr
