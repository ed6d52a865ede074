"""The command line as a whole: help, exit statuses, what is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from app import cli
from app.settings import PREFIX, SECRETS, Settings
from app.version import VERSION
from tests.app.support import ROOT, clean_environment, command

COMMANDS = ("serve", "build", "inspect", "predict", "loadtest", "key")


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a command in this process."""
    try:
        status = cli.main(list(map(str, arguments)))
    except SystemExit as end:
        status = end.code
    out = capsys.readouterr()
    return status, out.out, out.err


def test_help_shows_every_command_and_the_whole_way(capsys):
    status, out, err = run(capsys, "--help")
    assert (status, err) == (0, "")
    for name in COMMANDS:
        assert f"ensembled {name}" in out
        assert f"    {name} " in out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_teaches(capsys, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, err = run(capsys, name, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: ensembled {name}")
    assert len(out.splitlines()) > 10
    if name in ("serve", "build", "predict"):
        assert "examples:" in out


def test_help_of_serve_has_a_flag_a_variable_and_the_default_of_every_setting(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    _, out, _ = run(capsys, "serve", "--help")
    for name, field in Settings.model_fields.items():
        if name in SECRETS:
            assert f"--{name.replace('_', '-')} " not in out
            assert f"{PREFIX}{name.upper()}" in out
            continue
        # A long flag's help begins on the next line.
        _, _, after = out.partition(f"\n  --{name.replace('_', '-')}")
        lines = " ".join(after.splitlines()[:2])
        default = "" if field.default is None else f"; default: {field.default}"
        assert f"{field.description} [{PREFIX}{name.upper()}{default}]" in lines


@pytest.mark.parametrize(
    "arguments", [("loadtest", "--help"), ("serve", "--help"), ("--version",), ("serve", "--port", "x"), ("key",)]
)
def test_what_needs_no_pytorch_does_not_import_it(arguments):
    program = (
        "import sys; sys.argv = ['ensembled', *sys.argv[1:]]\n"
        "from app.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT,
                          env=clean_environment(), check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"ensembled {VERSION}\n", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "required: COMMAND"),
        (("fly",), "invalid choice: 'fly'"),
        (("serve", "--nothing"), "unrecognized arguments: --nothing"),
        (("build",), "required: SOURCE, OUT"),
        (("build", "a.py:b", "out", "--task", "fly"), "invalid choice: 'fly'"),
        (("build", "a.py:b", "out", "--members", "many"), "invalid int value: 'many'"),
        (("inspect",), "required: PATH"),
        (("predict", "x"), "required: ROWS"),
        (("serve", "--api-key", "a-key-that-others-see-in-ps"), "unrecognized arguments"),
        (("key", "no name"), "a name is 1 to 64 of the characters"),
    ],
)
def test_wrong_use_is_status_2(capsys, arguments, says):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_an_interrupt_is_status_130(capsys, monkeypatch):
    from app.commands import inspect

    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "main", interrupted)
    assert run(capsys, "inspect", "x") == (130, "", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_to_its_end_is_no_error(unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run([sys.executable, "-m", "app.cli", "key"], stdout=closed, stderr=subprocess.PIPE,
                              text=True, cwd=ROOT, env=clean_environment(PYTHONUNBUFFERED=unbuffered),
                              check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (141, "")


def test_the_installed_command_is_this_one():
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"ensembled {VERSION}\n")
