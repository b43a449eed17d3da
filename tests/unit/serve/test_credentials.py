"""Kept keys: each for its own farm, in a file that nobody else reads."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from pipeline.problems import BadInputError
from serve.credentials import Credentials, config_folder, key_for, origin_of
from serve.loopback import is_loopback


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLIPMILL_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("CLIPMILL_KEY", raising=False)
    return tmp_path / "config"


def test_a_key_is_kept_for_its_farm_alone(folder):
    credentials = Credentials()
    credentials.keep("https://farm.example.org/", "one")
    credentials.keep("farm.example.org:8500", "two")
    for url, key in (
        ("https://FARM.example.org:443", "one"),
        ("http://farm.example.org:8500/v1", "two"),
        ("http://farm.example.org", None),
        ("https://farm.example.org:8443", None),
        ("https://farm.example.org.evil.example", None),
    ):
        assert key_for(url) == key, url
    assert credentials.forget("https://farm.example.org")
    assert not credentials.forget("https://farm.example.org")
    assert key_for("https://farm.example.org") is None
    assert key_for("farm.example.org:8500") == "two"


def test_nobody_else_can_read_the_file_or_enter_its_folder(folder):
    Credentials().keep("https://a.example", "one")
    file = Credentials().path
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [one.name for one in folder.iterdir()] == [file.name]


def test_a_file_that_others_could_read_is_not_read(folder):
    Credentials().keep("https://a.example", "secret")
    Credentials().path.chmod(0o644)
    with pytest.raises(BadInputError, match="chmod 600") as refused:
        key_for("https://a.example")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", '{"farms": 3}', "{"])
def test_a_file_of_another_form_is_a_problem_and_no_traceback(folder, text):
    folder.mkdir()
    Credentials().path.write_text(text)
    Credentials().path.chmod(0o600)
    with pytest.raises(BadInputError, match="log in again"):
        key_for("https://a.example")


def test_the_environment_goes_first(folder, monkeypatch):
    Credentials().keep("https://a.example", "kept")
    monkeypatch.setenv("CLIPMILL_KEY", " given\n")
    assert key_for("https://a.example") == key_for("https://b.example") == "given"


def test_where_settings_of_programs_are(monkeypatch, tmp_path):
    monkeypatch.delenv("CLIPMILL_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config_folder() == tmp_path / "clipmill"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config_folder() == tmp_path / ".config" / "clipmill"


@pytest.mark.parametrize(
    "url", ["", "ftp://a.example", "https://user:clipmill_x@a.example", "https://", "http://a:99999", "http://a b:x"]
)
def test_what_is_no_address_is_not_repeated(url):
    with pytest.raises(BadInputError) as refused:
        origin_of(url)
    assert "clipmill_x" not in str(refused.value)


def test_addresses_of_ipv6_and_default_ports():
    assert origin_of("http://[::1]") == "http://[::1]:80"
    assert origin_of("127.0.0.1:8500") == "http://127.0.0.1:8500"


@pytest.mark.parametrize(
    ("host", "found"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True)]
    + [(one, False) for one in ("0.0.0.0", "::", None, "", "10.0.0.1", "farm.example.org", "127.0.0.1.example")],
)
def test_what_only_this_machine_reaches(host, found):
    assert is_loopback(host) is found
