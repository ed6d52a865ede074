"""Where a setting's value comes from, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from app.settings import PREFIX, SECRETS, Settings, SettingsError, is_loopback, load, unknown_variables


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


# What makes a key of a letter.
LONG = "-bcdefgh-01234567"

# Of each setting: as text, and what it becomes; for the file, the environment and a flag.
VALUES = {
    "models": [("a", Path("a")), ("b", Path("b")), ("c", Path("c"))],
    "host": [("127.0.0.2", "127.0.0.2"), ("::1", "::1"), ("localhost", "localhost")],
    "port": [("1", 1), ("0", 0), ("65535", 65535)],
    "allow_public": [("true", True), ("0", False), ("yes", True)],
    "allowed_hosts": [("a.example", "a.example"), ("*.b,c", "*.b,c"), ("d", "d")],
    "api_key": [
        ("a" + LONG, SecretStr("a" + LONG)),
        ("b" + LONG, SecretStr("b" + LONG)),
        ("c" + LONG, SecretStr("c" + LONG)),
    ],
    "api_keys_file": [("a", Path("a")), ("b", Path("b")), ("c", Path("c"))],
    "management": [("true", True), ("0", False), ("yes", True)],
    "management_host": [("127.0.0.2", "127.0.0.2"), ("::1", "::1"), ("localhost", "localhost")],
    "management_port": [("1", 1), ("0", 0), ("65535", 65535)],
    "metrics": [("false", False), ("1", True), ("no", False)],
    "metrics_host": [("127.0.0.2", "127.0.0.2"), ("::1", "::1"), ("localhost", "localhost")],
    "metrics_port": [("1", 1), ("0", 0), ("65535", 65535)],
    "versions": [("all", "all"), ("latest:2", "latest:2"), ("m=1,2", "m=1,2")],
    "poll": [("0.5", 0.5), ("2", 2.0), ("0", 0.0)],
    "device": [("cuda", "cuda"), ("cuda:1", "cuda:1"), ("auto", "auto")],
    "dtype": [("float16", "float16"), ("bfloat16", "bfloat16"), ("float64", "float64")],
    "threads": [("1", 1), ("2", 2), ("3", 3)],
    "compile": [("false", False), ("true", True), ("false", False)],
    "precision": [("bfloat16", "bfloat16"), ("float32", "float32"), ("bfloat16", "bfloat16")],
    "tf32": [("false", False), ("true", True), ("false", False)],
    "cache_dir": [("a", Path("a")), ("b", Path("b")), ("c", Path("c"))],
    "default_model": [("a", "a"), ("b", "b"), ("c", "c")],
    "max_batch": [("1", 1), ("2", 2), ("3", 3)],
    "max_queue": [("1", 1), ("2", 2), ("3", 3)],
    "max_inflated_body": [("1024", 1024), ("2048", 2048), ("4096", 4096)],
    "max_perturbed_members": [("0", 0), ("2", 2), ("3", 3)],
    "max_perturbed_bytes": [("1024", 1024), ("2048", 2048), ("4096", 4096)],
    "perturbation_cache": [("0", 0), ("2", 2), ("3", 3)],
    "allow_weights": [("true", True), ("0", False), ("yes", True)],
    "max_weights": [("1024", 1024), ("2048", 2048), ("4096", 4096)],
    "max_bodies": [("33554432", 2**25), ("67108864", 2**26), ("134217728", 2**27)],
    "max_body": [("1024", 1024), ("2048", 2048), ("4096", 4096)],
    "body_timeout": [("0.5", 0.5), ("2", 2.0), ("3", 3.0)],
    "max_delay": [("0.5", 0.5), ("2", 2.0), ("3", 3.0)],
    "default_timeout": [("0.5", 0.5), ("2", 2.0), ("3", 3.0)],
    "engine_timeout": [("0.5", 0.5), ("2", 2.0), ("3", 3.0)],
    "head_timeout": [("0.5", 0.5), ("2", 2.0), ("3", 3.0)],
    "idle_timeout": [("0.5", 0.5), ("2", 2.0), ("3", 3.0)],
    "answer_timeout": [("0.5", 0.5), ("2", 2.0), ("3", 3.0)],
    "max_connections": [("1", 1), ("2", 2), ("3", 3)],
    "adaptation": [("true", True), ("0", False), ("yes", True)],
    "adaptation_steps": [("1", 1), ("2", 2), ("3", 3)],
    "adaptation_examples": [("1", 1), ("2", 2), ("3", 3)],
    "adaptation_seconds": [("0.5", 0.5), ("2", 2.0), ("3", 3.0)],
    "adaptation_memory": [("1024", 1024), ("2048", 2048), ("4096", 4096)],
    "adapted_models": [("0", 0), ("2", 2), ("3", 3)],
    "adapted_memory": [("0", 0), ("2", 2), ("3", 3)],
    "adapted_seconds": [("0.5", 0.5), ("2", 2.0), ("3", 3.0)],
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
        ("management_port", "65536", "less than or equal to 65535"),
        ("metrics_port", "x", "valid integer"),
        ("head_timeout", "0", "greater than 0"),
        ("idle_timeout", "-1", "greater than 0"),
        ("answer_timeout", "x", "valid number"),
        ("max_connections", "0", "greater than or equal to 1"),
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


@pytest.mark.parametrize("given", [{"api_key": "a" + LONG}, {"api_keys_file": "keys"}])
def test_with_a_key_others_may_reach_it(given):
    assert not load({}).has_key
    made = load({"host": "0.0.0.0", **given})
    assert (made.has_key, made.allow_public) == (True, False)


@pytest.mark.parametrize("name", ["management", "metrics"])
def test_no_port_of_its_own_is_public_unless_it_is_meant(name):
    public = {f"{name}_host": "0.0.0.0", "management": "1"}
    # Without a port of its own, the address is of no meaning.
    assert load(public).port == 8000
    with pytest.raises(SettingsError, match=r"host '0\.0\.0\.0' can be reached from other machines and no key"):
        load({**public, f"{name}_port": "1"})
    assert load({**public, f"{name}_port": "1", "api_key": "a" + LONG}).has_key
    assert load({f"{name}_port": "1"}).host == "127.0.0.1"


def test_management_that_others_reach_needs_a_key_whatever_is_in_front_of_it():
    public = {"host": "0.0.0.0", "allow_public": "1", "management": "1"}
    with pytest.raises(SettingsError, match=r"management on host '0\.0\.0\.0' needs a key, --allow-public or not"):
        load(public)
    assert load({**public, "api_key": "a" + LONG}).management
    assert load({**public, "management_port": "1", "management_host": "127.0.0.1"}).management
    assert load({"management": "1"}).management


@pytest.mark.parametrize("names", ["models.example.com", "localhost, *.internal", "Models.LOCALHOST.example"])
def test_management_needs_a_key_where_others_ask_on_its_port(names):
    behind = {"management": "1", "allowed_hosts": names}
    with pytest.raises(SettingsError, match=r"^management needs a key where others ask under the name '\S+'") as no:
        load(behind)
    assert "--management-port" in str(no.value)
    with pytest.raises(SettingsError, match=r"^management needs a key"):
        load({**behind, "metrics_port": "1"})
    assert load({**behind, "api_key": "a" + LONG}).management
    assert load({**behind, "management_port": "1"}).host_names("management") == ()
    with pytest.raises(SettingsError, match=r"management on host '0\.0\.0\.0' needs a key"):
        load({**behind, "management_port": "1", "management_host": "0.0.0.0", "allow_public": "1"})


def test_names_of_this_machine_alone_let_nobody_else_manage():
    assert load({"management": "1", "allowed_hosts": "App.localhost, 127.0.0.2, ::1, *.localhost, "}).management


def test_ports_that_are_fixed_differ():
    with pytest.raises(SettingsError, match=r"^port, metrics-port must differ, however: 7, 7$"):
        load({"port": "7", "metrics_port": "7"})
    with pytest.raises(SettingsError, match=r"^management-port, metrics-port must differ"):
        load({"port": "0", "metrics_port": "7", "management_port": "7"})
    assert load({"port": "7", "metrics_port": "7", "metrics": "0"}).port == 7
    assert load({"port": "0", "metrics_port": "0", "management_port": "0"}).port == 0


@pytest.mark.parametrize("key", ["short", "a" * 40, "with a space " + LONG, "ä" + LONG, "x" * 1000])
def test_a_weak_key_is_refused_and_not_shown(key, monkeypatch, tmp_path):
    monkeypatch.setenv("ENSEMBLED_API_KEY", key)
    with pytest.raises(SettingsError, match=r"^ENSEMBLED_API_KEY: a key ") as refused:
        load({})
    assert key not in str(refused.value)
    monkeypatch.delenv("ENSEMBLED_API_KEY")
    (tmp_path / "a.toml").write_text(f"api-key = '{key}'")
    with pytest.raises(SettingsError, match=r"a\.toml, api_key: a key ") as refused:
        load({}, tmp_path / "a.toml")
    assert key not in str(refused.value)


def test_a_key_is_never_shown(monkeypatch):
    key = "a" + LONG
    monkeypatch.setenv("ENSEMBLED_API_KEY", key)
    made = load({})
    assert made.api_key.get_secret_value() == key
    for shown in (str(made), repr(made), str(made.model_dump()), made.model_dump_json()):
        assert LONG not in shown
    monkeypatch.setenv("ENSEMBLED_PORT", "x")
    with pytest.raises(SettingsError) as refused:
        load({})
    assert LONG not in str(refused.value)
    with pytest.raises(ValueError, match="port") as direct:
        Settings(api_key=key, port="x")
    assert LONG not in str(direct.value)
    assert {"api_key"} == SECRETS


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ENSEMBLED_PROT", "; is ENSEMBLED_PORT meant?"),
        ("ENSEMBLED_APIKEY", "; is ENSEMBLED_API_KEY meant?"),
        ("ENSEMBLED_MAX_QEUE", "; is ENSEMBLED_MAX_QUEUE meant?"),
        ("ENSEMBLED_CONFG", "; is ENSEMBLED_CONFIG meant?"),
        ("ENSEMBLED_ZZZZZZZZZZZZZZZZZZZZ", ""),
    ],
)
def test_a_variable_that_is_no_setting_is_named_with_what_is_meant(name, meant):
    assert unknown_variables({name: "secret", "OTHER": "1"}) == [f"{name} is no setting and does nothing{meant}"]


def test_variables_that_are_read_are_no_typing_errors():
    known = {f"{PREFIX}{name.upper()}": "" for name in Settings.model_fields}
    assert unknown_variables(known | {"ENSEMBLED_CONFIG": "a", "ENSEMBLED_MODELS_DIR": "b", "PATH": "c"}) == []


def test_what_kubernetes_says_of_a_service_of_this_name_is_no_setting(monkeypatch):
    said = {
        "ENSEMBLED_SERVICE_HOST": "10.0.0.1",
        "ENSEMBLED_SERVICE_PORT": "8000",
        "ENSEMBLED_SERVICE_PORT_HTTP": "8000",
        "ENSEMBLED_PORT": "tcp://10.0.0.1:8000",
        "ENSEMBLED_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "ENSEMBLED_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert load({}) == Settings()
    assert unknown_variables(said) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_leave(host):
    assert is_loopback(host)
    assert load({"host": host}).host == host


def test_settings_do_not_change():
    with pytest.raises(ValueError, match=r"frozen"):
        Settings().port = 1


def test_all_bodies_together_may_hold_what_one_may():
    with pytest.raises(SettingsError, match=r"max-bodies \(2048\) must be at least max-body \(16777216\)"):
        load({"max_bodies": "2048"})
    assert load({"max_bodies": "2048", "max_body": "2048"}).max_bodies == 2048
