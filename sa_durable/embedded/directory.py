"""The temporary directory of a private server. A lock on the directory shows that its owner is alive."""

import fcntl
import os
import pwd
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX, SUFFIX = "sa-durable-", ".pg"
SOCKET_PATH_BYTES = 103  # the limit on macOS; on Linux it is 107

liveness_descriptors: set[int] = set()
"""Descriptors that show other processes that we are alive: locks on directories, and pipes to keepers.

While another process has a copy of one, we seem alive. So no child may keep a copy: exec closes them (PEP
446), and `_close_in_child` closes them in a child that is made by fork alone, as multiprocessing does.
"""


def _close_in_child() -> None:
    for descriptor in liveness_descriptors:
        os.close(descriptor)
    liveness_descriptors.clear()


os.register_at_fork(after_in_child=_close_in_child)


def close(descriptor: int) -> None:
    """Close one of the liveness descriptors, unless it is closed already."""
    if descriptor in liveness_descriptors:
        liveness_descriptors.remove(descriptor)
        os.close(descriptor)


def create(user: pwd.struct_passwd | None) -> tuple[Path, int]:
    """Create a private directory, and a lock on it that ends with this process.

    Directories of dead owners are removed.

    systemd-tmpfiles respects this kind of lock too: it never removes the directory as too old.
    """
    base = _base(user)
    _remove_stale(base, user)
    # Other processes' _remove_stale can't find the directory before the last line renames it. It is locked by
    # then.
    fresh = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    lock = os.open(fresh, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    liveness_descriptors.add(lock)
    return fresh.rename(fresh.with_name(fresh.name + SUFFIX)), lock


def _base(user: pwd.struct_passwd | None) -> Path:
    """Return TMPDIR, or /tmp if the path of a socket would be too long there or `user` can't enter it."""
    base = Path(tempfile.gettempdir()).resolve()
    socket = base / f"{PREFIX}12345678{SUFFIX}" / ".s.PGSQL.65535"
    # A comma in a URL separates two hosts.
    if len(os.fsencode(socket)) > SOCKET_PATH_BYTES or "," in str(base):
        return Path("/tmp")  # noqa: S108 - mkdtemp creates a private directory with a random name
    if user is not None and not all(path.stat().st_mode & 0o001 for path in (base, *base.parents)):
        return Path("/tmp")  # noqa: S108 - as above
    return base


def _remove_stale(base: Path, user: pwd.struct_passwd | None) -> None:
    """Remove directories whose owner has ended, and whose keeper was killed too or had no server to stop.

    A directory that is not locked is stale. Nothing depends on a stored process id, which another process
    could have by now. If the directory's server still runs, it notices within a minute that postmaster.pid is
    missing, and stops.
    """
    owners = {os.geteuid()} if user is None else {os.geteuid(), user.pw_uid}
    for stale in base.glob(f"{PREFIX}*{SUFFIX}"):
        with suppress(OSError):  # it belongs to another user, or is locked, or is being removed
            if stale.lstat().st_uid not in owners:
                continue
            descriptor = os.open(stale, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stale, ignore_errors=True)
            finally:
                os.close(descriptor)
