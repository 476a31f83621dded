"""The temporary directory of a private server, and the lock that says whose it is."""

import fcntl
import os
import pwd
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX, CLAIMED = "sa-durable-", ".pg"
SOCKET_PATH_BYTES = 103  # macOS; Linux takes 107

# Descriptors that tell others that we live: locks on directories, and pipes to keepers. While anybody else holds a
# copy, we seem alive. exec closes them (PEP 446); a child made by fork alone, as multiprocessing does, closes them
# here.
signs_of_life: set[int] = set()


def _forked() -> None:
    for descriptor in signs_of_life:
        os.close(descriptor)
    signs_of_life.clear()


os.register_at_fork(after_in_child=_forked)


def drop(descriptor: int) -> None:
    """Close a sign of life, unless that is done already."""
    if descriptor in signs_of_life:
        signs_of_life.remove(descriptor)
        os.close(descriptor)


def claim(user: pwd.struct_passwd | None) -> tuple[Path, int]:
    """A new directory, closed to others, and the lock on it that holds for as long as we live.

    systemd-tmpfiles respects this kind of lock too and leaves the directory alone, however old it gets.
    """
    base = _base(user)
    _sweep(base, user)
    # The sweep of another process can't see it before the last line, when it is locked.
    fresh = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    lock = os.open(fresh, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    signs_of_life.add(lock)
    return fresh.rename(fresh.with_name(fresh.name + CLAIMED)), lock


def _base(user: pwd.struct_passwd | None) -> Path:
    """Where temporary files go (TMPDIR), or /tmp, if no socket can be there or `user` couldn't reach it."""
    base = Path(tempfile.gettempdir()).resolve()
    socket = base / f"{PREFIX}12345678{CLAIMED}" / ".s.PGSQL.65535"
    # In a URL, a comma separates two hosts.
    if len(os.fsencode(socket)) > SOCKET_PATH_BYTES or "," in str(base):
        return Path("/tmp")  # noqa: S108 (mkdtemp makes the name, and makes it private)
    if user is not None and not all(path.stat().st_mode & 0o001 for path in (base, *base.parents)):
        return Path("/tmp")  # noqa: S108 - the last resort; what is made there is 0700
    return base


def _sweep(base: Path, user: pwd.struct_passwd | None) -> None:
    """Remove directories whose owner is gone, and whose keeper was killed too or had no server to keep.

    An unlocked directory is such a one: no process id was written down that another process could have by now.
    Should its server still run, it misses its postmaster.pid within a minute and shuts itself down.
    """
    owners = {os.geteuid()} if user is None else {os.geteuid(), user.pw_uid}
    for stale in base.glob(f"{PREFIX}*{CLAIMED}"):
        with suppress(OSError):  # somebody else's, or just being removed
            if stale.lstat().st_uid not in owners:
                continue
            descriptor = os.open(stale, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stale, ignore_errors=True)
            finally:
                os.close(descriptor)
