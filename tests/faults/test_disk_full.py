"""C9: the disk is full, for a while."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults.cluster import Cluster, cluster
from tests.faults.conftest import RATE, missing, seconds
from tests.faults.load import Plan, under_load

SIZE = 160 * 2**20


@contextmanager
def small_disk() -> Iterator[Cluster]:
    """A cluster whose data, but not its log of transactions, lie on a file system of their own. (Where the log finds no
    space, PostgreSQL ends all sessions and recovers: C3.)"""
    if os.geteuid() != 0:
        missing("a file system of its own needs root: C9 was not run")
    with cluster() as made:
        made.server.stop()
        data, whole, log = made.data_dir, made.data_dir.with_name("whole"), made.data_dir.with_name("wal")
        owner = data.stat()
        data.rename(whole)
        (whole / "pg_wal").rename(log)
        data.mkdir(mode=0o700)
        options = f"size={SIZE},mode=0700,uid={owner.st_uid},gid={owner.st_gid}"
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", data], capture_output=True, check=False
        )
        if mounted.returncode:
            missing(f"no tmpfs can be mounted here ({mounted.stderr.decode().strip()}): C9 was not run")
        try:
            subprocess.run(["cp", "-a", f"{whole}/.", data], check=True)
            (data / "pg_wal").symlink_to(log)
            made.server.start()
            yield made
            made.server.stop("immediate")
        finally:
            subprocess.run(["umount", "--lazy", data], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Not a block is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 2**12) * 5:  # the server may remove a file meanwhile
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
        assert shutil.disk_usage(disk).free < 2**16
        yield
    filler.unlink()


def test_everything_goes_on_once_there_is_space_again_on_a_full_disk(figures):
    lasts = seconds(20)
    plan = Plan(tasks=int(RATE * lasts), seconds=lasts)
    with small_disk() as server, under_load(server, server.url, plan, figures("C9 disk full")) as load:
        while load.spawning:
            load.moment(1, 3)
            load.strike()
            with full(server.data_dir):
                load.moment(2, 4)
        found = load.settle()
        found.notes["refused for want of space"] = server.logged("No space left on device")
        said = [hand.log for hand in load.crew.hands]
    assert found.findings == []
    assert "DiskFull 53100" in found.notes["errors that spawners saw, and tried again"]
    assert any("DiskFull" in log for log in said)
