"""Readers of child processes expect lines that are cut off in the middle."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from sa_durable.demo.stages import read_counts
from tests.children import ChildEnded, complete_lines, read_error_until, read_line

KILLED_IN_A_LINE = """
import os, signal
os.write({fd}, {text!r})
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_after(text: bytes, fd: int = 1) -> subprocess.Popen[str]:
    script = KILLED_IN_A_LINE.format(fd=fd, text=text)
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"", []),
        (b"1 2\n3 4\n", ["1 2", "3 4"]),
        (b"1 2\n3 4", ["1 2"]),
        (b"1 2\n3", ["1 2"]),
        (b"1 2\n\n3", ["1 2", ""]),
        ("1 2\nä".encode()[:-1], ["1 2"]),
    ],
)
def test_a_line_that_is_cut_off_is_dropped(text, lines):
    with killed_after(text) as process:
        assert list(complete_lines(process.stdout)) == lines


@pytest.mark.parametrize("cut", [b"", b"3", "ä".encode()[:-1]])
def test_a_reader_says_that_the_child_ended(cut):
    with killed_after(b"1 2\n" + cut) as process:
        assert read_line(process) == "1 2"
        with pytest.raises(ChildEnded, match="ended with status -9 before it had printed a whole line"):
            read_line(process)


def test_a_reader_of_errors_says_what_the_child_printed():
    with killed_after(b"starting\nstopping: 1\nlea", fd=2) as process:
        assert read_error_until(process, "stopping") == "starting\nstopping: 1\n"
        with pytest.raises(ChildEnded, match="ended with status -9 without saying 'lease'"):
            read_error_until(process, "lease")


@pytest.mark.parametrize(
    ("output", "counts"),
    [
        ("", []),
        ("1 1\n2 1\n", [(1, 1), (2, 1)]),
        ("1 1\n2", [(1, 1)]),
        ("1 1\n2 ", [(1, 1)]),
        ("9 8\n10 1", [(9, 8)]),  # "10 12" was cut off
    ],
)
def test_the_demo_drops_a_count_that_is_cut_off(output, counts):
    assert list(read_counts(io.StringIO(output))) == counts
