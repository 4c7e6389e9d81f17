"""Settings and the model list: what is read, and what stops the start."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.config import ConfigError, Settings, load_settings
from app.models.entries import load_models


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("FRAMEFIT_")]:
        monkeypatch.delenv(name)


def test_the_defaults_serve_this_machine_only() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.api_keys) == ("127.0.0.1", 8000, ())
    url = settings.resolved_database_url
    assert (url.drivername, url.database) == ("sqlite", str(Path("data/framefit.sqlite3").absolute()))


def test_variables_and_arguments_set_fields_arguments_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEFIT_PORT", "9000")
    monkeypatch.setenv("FRAMEFIT_API_KEYS", f"{'a' * 16}, {'b' * 16}")
    settings = load_settings(host="::1")
    assert (settings.host, settings.port) == ("::1", 9000)
    assert settings.api_keys == ("a" * 16, "b" * 16)
    assert "aaaa" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("FRAMEFIT_PORT", "many", "FRAMEFIT_PORT"),
        ("FRAMEFIT_PORT", "70000", "FRAMEFIT_PORT"),
        ("FRAMEFIT_RESERVE_BYTES", "-1", "FRAMEFIT_RESERVE_BYTES"),
        ("FRAMEFIT_CHECKPOINT_SECONDS", "-1", "FRAMEFIT_CHECKPOINT_SECONDS"),
        ("FRAMEFIT_PREEMPT_AFTER_SECONDS", "-1", "FRAMEFIT_PREEMPT_AFTER_SECONDS"),
        ("FRAMEFIT_API_KEYS", "short", "FRAMEFIT_API_KEYS"),
        ("FRAMEFIT_LOG_LEVEL", "loud", "FRAMEFIT_LOG_LEVEL"),
        ("FRAMEFIT_ROOT_PATH", "framefit", "FRAMEFIT_ROOT_PATH: .*must begin with /"),
        ("FRAMEFIT_ROOT_PATH", "//host/x", "FRAMEFIT_ROOT_PATH"),
        ("FRAMEFIT_ROOT_PATH", "/a/../b", "FRAMEFIT_ROOT_PATH"),
        ("FRAMEFIT_DATABASE_PASSWORD", "secret", "FRAMEFIT_DATABASE_PASSWORD is set without"),
        ("FRAMEFIT_PROT", "9000", "did you mean FRAMEFIT_PORT"),
    ],
)
def test_a_bad_variable_stops_the_start_and_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=told):
        load_settings()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_variable_is_an_absent_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"FRAMEFIT_{name.upper()}", "")
    assert load_settings() == Settings()


SECRETS = {
    "api_keys": (f"{'a' * 16}\n{'b' * 16},{'c' * 16}\n", ("a" * 16, "b" * 16, "c" * 16)),
    "webhook_secret": ("whsec\n", "whsec"),
    "client_key": ("k" * 16 + "\n", "k" * 16),
    "database_url": ("postgresql+psycopg://u@h/d\n", "postgresql+psycopg://u@h/d"),
    "database_password": (" p@ss \n", " p@ss "),
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    content, value = SECRETS[name]
    (tmp_path / "secret").write_text(content)
    monkeypatch.setenv(f"FRAMEFIT_{name.upper()}_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv(f"FRAMEFIT_{name.upper()}", "")  # as Compose passes an unset variable
    if name == "database_password":
        monkeypatch.setenv("FRAMEFIT_DATABASE_URL", "postgresql://u@h/d")
    settings = load_settings()
    assert getattr(settings, name) == value
    assert str(value) not in repr(settings)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("FRAMEFIT_API_KEYS_FILE", None, "FRAMEFIT_API_KEYS_FILE: .*secret cannot be read: No such file"),
        ("FRAMEFIT_WEBHOOK_SECRET_FILE", " \n", "FRAMEFIT_WEBHOOK_SECRET_FILE: .*secret is empty"),
        ("FRAMEFIT_WEBHOOK_SECRET_FILE", b"\xff\xfe", "FRAMEFIT_WEBHOOK_SECRET_FILE: .*is no UTF-8 text"),
        ("FRAMEFIT_API_KEYS_FILE", "short", "FRAMEFIT_API_KEYS: .*at least 16"),
        ("FRAMEFIT_HF_TOKEN_FILE", None, "FRAMEFIT_HF_TOKEN_FILE: .*cannot be read"),
        ("FRAMEFIT_HF_TOKEN_FILE", "", "FRAMEFIT_HF_TOKEN_FILE: .*is empty"),
        ("FRAMEFIT_WEBHOOK_SECRETS_FILE", "x", "did you mean FRAMEFIT_WEBHOOK_SECRET_FILE"),
    ],
)
def test_a_secret_file_that_cannot_be_used_stops_the_start_and_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, content: str | bytes | None, told: str
) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content.encode() if isinstance(content, str) else content)
    monkeypatch.setenv(name, str(tmp_path / "secret"))
    with pytest.raises(ConfigError, match=told):
        load_settings()


def test_a_secret_is_given_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("one")
    monkeypatch.setenv("FRAMEFIT_WEBHOOK_SECRET", "other")
    monkeypatch.setenv("FRAMEFIT_WEBHOOK_SECRET_FILE", str(tmp_path / "secret"))
    with pytest.raises(ConfigError, match="_SECRET and FRAMEFIT_WEBHOOK_SECRET_FILE are both set"):
        load_settings()


def test_the_hub_finds_its_token_in_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_abc\n")
    monkeypatch.setenv("FRAMEFIT_HF_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", "")
    code = "from app.config import load_settings; load_settings(); import huggingface_hub; "
    code += "print(huggingface_hub.get_token())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "hf_abc\n"


@pytest.mark.parametrize(
    ("host", "options", "allowed"),
    [
        ("127.0.0.1", {}, True),
        ("127.8.8.8", {}, True),
        ("::1", {}, True),
        ("localhost", {}, True),
        ("0.0.0.0", {}, False),
        ("::", {}, False),
        ("192.168.1.5", {}, False),
        ("example.org", {}, False),
        ("0.0.0.0", {"api_keys": "k" * 16}, True),
        ("0.0.0.0", {"allow_public": True}, True),
    ],
)
def test_a_public_address_needs_keys_or_a_clear_yes(
    host: str, options: dict[str, object], allowed: bool
) -> None:
    if allowed:
        load_settings(host=host, **options)
        return
    with pytest.raises(ConfigError, match="FRAMEFIT_API_KEYS"):
        load_settings(host=host, **options)


def with_models(tmp_path: Path, text: str, model: str | None = None) -> Settings:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return Settings(models_file=path, model=model)


def test_built_in_models_are_there_and_the_first_is_the_default() -> None:
    models = load_models(Settings())
    assert next(iter(models)) == "photo-pan"
    assert models["ltx-video"].source == "Lightricks/LTX-Video"
    assert (models["ltx-video"].dtype, models["ltx-video"].placement) == ("bfloat16", "auto")


def test_a_file_changes_single_keys_and_adds_models(tmp_path: Path) -> None:
    text = """
    [models.ltx-video]
    source = "/models/ltx"
    [models.ltx-video.limits]
    max_frames = 97
    """
    models = load_models(with_models(tmp_path, text, model="ltx-video"))
    assert next(iter(models)) == "ltx-video"
    changed = models["ltx-video"]
    assert (changed.source, changed.limits.max_frames) == ("/models/ltx", 97)
    assert changed.limits.max_steps == load_models(Settings())["ltx-video"].limits.max_steps


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[models.tiny]\nsuorce = 'x'", r"models\.tiny\.suorce"),
        ("[models.new]\nsource = 'x'", r"models\.new\.pipeline"),
        ("[models.tiny]\ndtype = 'int8'", r"models\.tiny\.dtype"),
        ("[models.tiny]\nname = 'other'", r"models\.tiny"),
        ("[models.tiny.defaults]\nwidth = 250", "multiples of 32"),
        ("[models.tiny.defaults]\nnum_frames = 24", r"8k\+1"),
        ("[modles.tiny]\ndtype = 'float32'", "modles"),
        ("models = 3", r"\[models\.NAME\]"),
        ("not toml at all", "mine.toml"),
    ],
)
def test_a_models_file_that_is_not_understood_stops_the_start(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_models(with_models(tmp_path, text))


def test_a_default_model_that_is_not_there_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="FRAMEFIT_MODEL"):
        load_models(Settings(model="nonesuch"))
