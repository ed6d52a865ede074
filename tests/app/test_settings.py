"""Where a setting's value comes from, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import PREFIX, Settings, SettingsError, is_loopback, load


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


# Of each setting: as text, and what it becomes; for the file, the environment and a flag.
VALUES = {
    "models": [("a", Path("a")), ("b", Path("b")), ("c", Path("c"))],
    "host": [("127.0.0.2", "127.0.0.2"), ("::1", "::1"), ("localhost", "localhost")],
    "port": [("1", 1), ("0", 0), ("65535", 65535)],
    "allow_public": [("true", True), ("0", False), ("yes", True)],
    "versions": [("all", "all"), ("latest:2", "latest:2"), ("m=1,2", "m=1,2")],
    "poll": [("0.5", 0.5), ("2", 2.0), ("0", 0.0)],
    "management": [("true", True), ("0", False), ("yes", True)],
    "device": [("cuda", "cuda"), ("cuda:1", "cuda:1"), ("auto", "auto")],
    "dtype": [("float16", "float16"), ("bfloat16", "bfloat16"), ("float64", "float64")],
    "threads": [("1", 1), ("2", 2), ("3", 3)],
    "compile": [("false", False), ("true", True), ("false", False)],
    "default_model": [("a", "a"), ("b", "b"), ("c", "c")],
    "max_batch": [("1", 1), ("2", 2), ("3", 3)],
    "max_queue": [("1", 1), ("2", 2), ("3", 3)],
    "max_inflated_body": [("1024", 1024), ("2048", 2048), ("4096", 4096)],
    "max_body": [("1024", 1024), ("2048", 2048), ("4096", 4096)],
    "body_timeout": [("0.5", 0.5), ("2", 2.0), ("3", 3.0)],
    "shutdown_timeout": [("0.5", 0.5), ("2", 2.0), ("3", 3.0)],
    "log_level": [("debug", "debug"), ("warning", "warning"), ("error", "error")],
    "log_format": [("json", "json"), ("text", "text"), ("json", "json")],
}


def test_every_setting_is_tried_here():
    assert VALUES.keys() == Settings.model_fields.keys()


@pytest.mark.parametrize("named_by", ["flag", "environment"])
@pytest.mark.parametrize("name", VALUES)
def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(name, named_by, monkeypatch, tmp_path):
    (in_file, file_value), (in_environment, environment_value), (as_flag, flag_value) = VALUES[name]
    default = Settings.model_fields[name].default
    assert getattr(load({}), name) == default
    file = tmp_path / "settings.toml"
    file.write_text(f'{name.replace("_", "-")} = "{in_file}"\n')
    config = file if named_by == "flag" else None
    if config is None:
        monkeypatch.setenv("ENSEMBLED_CONFIG", str(file))
    assert getattr(load({}, config), name) == file_value
    variable = f"{PREFIX}{name.upper()}"
    monkeypatch.setenv(variable, "")
    assert getattr(load({}, config), name) == file_value
    monkeypatch.setenv(variable, in_environment)
    assert getattr(load({}, config), name) == environment_value
    assert getattr(load({name: as_flag}, config), name) == flag_value


def test_the_file_holds_numbers_and_truth_values_too(tmp_path):
    (tmp_path / "a.toml").write_text('port = 7\nallow_public = true\nhost = "0.0.0.0"\nshutdown-timeout = 2.5\n')
    made = load({}, tmp_path / "a.toml")
    assert (made.port, made.allow_public, made.host, made.shutdown_timeout) == (7, True, "0.0.0.0", 2.5)


def test_a_file_that_is_named_by_a_flag_is_the_only_one(monkeypatch, tmp_path):
    (tmp_path / "a.toml").write_text("port = 1\nmax_batch = 1")
    (tmp_path / "b.toml").write_text("port = 2")
    monkeypatch.setenv("ENSEMBLED_CONFIG", str(tmp_path / "a.toml"))
    made = load({}, tmp_path / "b.toml")
    assert (made.port, made.max_batch) == (2, 64)


@pytest.mark.parametrize("name", VALUES)
def test_an_empty_variable_is_as_good_as_none(name, monkeypatch):
    monkeypatch.setenv(f"{PREFIX}{name.upper()}", "")
    monkeypatch.setenv("ENSEMBLED_CONFIG", "")
    assert load({}) == Settings()


def test_other_variables_are_left_alone(monkeypatch):
    monkeypatch.setenv("ENSEMBLED_MODELS_DIR", "x")
    monkeypatch.setenv("PORT", "1")
    assert load({}) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("port", "x", "valid integer"),
        ("port", "65536", "less than or equal to 65535"),
        ("port", "-1", "greater than or equal to 0"),
        ("allow_public", "perhaps", "valid boolean"),
        ("device", "gpu", "must be cpu, cuda, cuda:N or auto"),
        ("device", "cuda:", "must be cpu, cuda, cuda:N or auto"),
        ("device", "cpu\n", "must be cpu, cuda, cuda:N or auto"),
        ("dtype", "int8", "'float32', 'bfloat16', 'float16' or 'float64'"),
        ("threads", "0", "greater than or equal to 1"),
        ("max_batch", "0", "greater than or equal to 1"),
        ("max_batch", "1.5", "valid integer"),
        ("max_queue", "0", "greater than or equal to 1"),
        ("max_body", "10", "greater than or equal to 1024"),
        ("shutdown_timeout", "0", "greater than 0"),
        ("shutdown_timeout", "inf", "less than or equal to 86400"),
        ("shutdown_timeout", "nan", "less than or equal to 86400"),
        ("log_level", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("log_format", "xml", "'json' or 'text'"),
    ],
)
def test_a_wrong_value_is_told_where_it_stands_and_what_would_be_right(name, value, says, monkeypatch, tmp_path):
    ending = f", however: {value!r}$"
    with pytest.raises(SettingsError, match=rf"^--{name.replace('_', '-')}: .*({says}).*{_escaped(ending)}"):
        load({name: value})
    monkeypatch.setenv(f"{PREFIX}{name.upper()}", value)
    with pytest.raises(SettingsError, match=rf"^ENSEMBLED_{name.upper()}: .*({says}).*{_escaped(ending)}"):
        load({})
    monkeypatch.delenv(f"{PREFIX}{name.upper()}")
    if value.isprintable():
        (tmp_path / "my.toml").write_text(f'{name} = "{value}"')
        with pytest.raises(SettingsError, match=rf"^in .*my.toml, {name}: .*({says}).*{_escaped(ending)}"):
            load({}, tmp_path / "my.toml")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\")


def test_each_wrong_setting_has_a_line():
    with pytest.raises(SettingsError) as refused:
        load({"port": "x", "max_batch": "0"})
    assert [line.split(":")[0] for line in str(refused.value).splitlines()] == ["--port", "--max-batch"]


def test_a_setting_that_does_not_exist_is_told_which_do(tmp_path):
    (tmp_path / "a.toml").write_text("prot = 1\n[server]\nport = 2\n")
    with pytest.raises(SettingsError) as refused:
        load({}, tmp_path / "a.toml")
    first, second = str(refused.value).splitlines()
    assert "a.toml, prot: there is no such setting; there are models, host, port" in first
    assert "a.toml, server: there is no such setting" in second


@pytest.mark.parametrize(
    ("content", "says"), [(None, "cannot be read: No such file"), (b"port 1", "is not TOML"), (b"\xff", "is not TOML")]
)
def test_a_file_that_cannot_be_read(tmp_path, content, says):
    if content is not None:
        (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=rf"the settings file .*a.toml {says}"):
        load({}, tmp_path / "a.toml")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", "", "127.0.0.1.example.org", "0"])
def test_an_address_that_others_reach_must_be_meant(host):
    assert not is_loopback(host)
    with pytest.raises(SettingsError, match=r"can be reached from other machines") as refused:
        load({"host": host})
    assert "--allow-public (ENSEMBLED_ALLOW_PUBLIC=1)" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert load({"host": host, "allow_public": "true"}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_leave(host):
    assert is_loopback(host)
    assert load({"host": host}).host == host


def test_settings_do_not_change():
    with pytest.raises(ValueError, match=r"frozen"):
        Settings().port = 1
