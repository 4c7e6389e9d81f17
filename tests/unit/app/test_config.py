"""Settings and the model list: what is read, and what stops the start."""

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
