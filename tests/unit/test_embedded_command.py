import os
import pwd
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sa_durable
from sa_durable.embedded import programs
from sa_durable.embedded.__main__ import STOP_SIGNALS, main
from sa_durable.embedded.server import URL_VARIABLE
from tests.children import read_line
from tests.embedding import (
    FOUND,
    REPOSITORY,
    alive,
    ask,
    command,
    home_of,
    open_directory,
    postmaster_of,
    without_url,
)
from tests.waiting import wait_until


def test_a_command_gets_the_url_and_its_status_is_passed_on():
    script = "from os import environ as e; print(e['SA_DURABLE_DATABASE_URL']); print(e['DATABASE_URL']); input(); exit(7)"
    with command("--", sys.executable, "-c", script, stdin=subprocess.PIPE) as process:
        url = read_line(process)
        assert read_line(process) == url
        assert ask(url, "select 1") == 1
        process.communicate("\n", timeout=60)
        assert process.returncode == 7
        assert not home_of(url).exists()


def test_signals_are_forwarded_to_the_command(server_url):
    script = """
import os, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupted\\n"))  # print may be interrupted itself
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print("ready", flush=True)
while True:
    time.sleep(0.05)  # pause() would miss what comes just before it
"""
    options = {"env": without_url(**{URL_VARIABLE: server_url}), "start_new_session": True}  # no terminal
    with command("--", sys.executable, "-c", script, **options) as process:
        assert read_line(process) == "ready"
        process.send_signal(signal.SIGINT)
        assert read_line(process) == "interrupted"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 5


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["sh", "-c", "kill -9 $$"], 137), (["/nowhere/command"], 127), (["/"], 126)],
    ids=["killed", "not found", "not executable"],
)
def test_a_command_without_a_status_gets_the_one_of_a_shell(server_url, monkeypatch, arguments, status):
    monkeypatch.setenv(URL_VARIABLE, server_url)
    handlers = [(number, signal.getsignal(number)) for number in STOP_SIGNALS]
    try:
        assert main(["--", *arguments]) == status
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)


def test_without_programs_the_command_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(programs, "_candidates", list)
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    monkeypatch.delenv(programs.BIN_VARIABLE, raising=False)
    assert main(["--", "true"]) == 2
    said = capsys.readouterr().err
    assert 'pip install "sa-durable[embedded]"' in said
    assert "install the PostgreSQL server" in said
    assert programs.BIN_VARIABLE in said
    assert URL_VARIABLE in said


def test_after_a_kill_9_neither_server_nor_directory_stays_behind():
    with command() as process:
        url = read_line(process)
        postmaster = postmaster_of(url)
        assert ask(url, "select 1") == 1
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    wait_until(lambda: not home_of(url).exists())
    wait_until(
        lambda: not alive(postmaster)
    )  # another process that starts a server may sweep the directory sooner


def test_nothing_stays_behind_if_we_are_killed_before_there_is_a_server():
    with open_directory() as place, command(env=without_url(TMPDIR=str(place))) as process:
        wait_until(lambda: list(place.glob("*/data/base")))
        process.kill()
        process.wait()
        wait_until(lambda: not list(place.iterdir()))


def test_a_forked_child_neither_stops_nor_keeps_its_parents_server():
    script = """
import os, signal
from sa_durable.embedded import postgres
with postgres(environ={}) as server:
    if os.fork() == 0:
        raise SystemExit  # out of the block
    os.wait()
    if (child := os.fork()) == 0:
        signal.pause()
    print(server.url, server.pid, child, flush=True)
    signal.pause()
"""
    run = [sys.executable, "-c", script]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        url, postmaster, child = read_line(process).split()
        try:
            assert ask(url, "select 1") == 1
            process.kill()
            wait_until(lambda: not home_of(url).exists())
            wait_until(lambda: not alive(int(postmaster)))
            assert alive(int(child))
        finally:
            process.kill()
            os.kill(int(child), signal.SIGKILL)


def test_an_ordinary_user_starts_a_server_as_itself():
    python, bin_dir, user = sys.executable, FOUND[0], {}
    if os.geteuid() == 0:  # be somebody else, with a Python and a PostgreSQL which that user can run
        nobody = pwd.getpwnam("nobody")
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        python = next((path for path in (python, "/usr/bin/python3") if _can_run(path, user)), None)
        bin_dir = next((path for path in FOUND if programs._runs(path, nobody)), None)
        if python is None or bin_dir is None:
            pytest.skip("user `nobody` can run no Python or no PostgreSQL here")
    with open_directory() as place:
        package = Path(sa_durable.__file__).parent
        copy = place / "sa_durable"  # in case that user can't read this one either
        shutil.copytree(package / "embedded", copy / "embedded")
        shutil.copy(package / "errors.py", copy)
        (copy / "__init__.py").touch()
        with command("--bin-dir", str(bin_dir), python=python, cwd=place, **user) as process:
            url = read_line(process)
            assert ask(url, "select 1") == 1
            assert home_of(url).stat().st_uid == user.get("user", os.geteuid())
            process.terminate()
            assert process.wait(60) == 0
            assert not home_of(url).exists()


def _can_run(python: str, user: dict[str, object]) -> bool:
    try:
        code = "import sys; sys.exit(sys.version_info < (3, 11))"
        return subprocess.run([python, "-c", code], check=False, cwd="/", **user).returncode == 0
    except OSError:
        return False
