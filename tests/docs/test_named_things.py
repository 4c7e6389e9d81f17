"""What README and the documentation name exists: files, commands, options, settings, targets."""

import re
from pathlib import Path

import pytest
import typer.main
from pages import ROOT, codes, inline_codes, pages

from app.cli import app
from app.config import PREFIX, Settings

PAGES = pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
# Folders of the repository: what begins with one of these is a path in it.
REPOSITORY_PATH = re.compile(r"(?<![\w/.-])(?:app|adaptive|tests|docker|docs|\.ci)/[\w./*-]*[\w*/]")
MADE_BY_THE_READER = {"docker/.env", "docker/secrets", "docker/secrets/webhook_secret"}
SETTING = re.compile(r"\bFRAMEFIT_[A-Z_]*[A-Z]\b")
METRIC = re.compile(r"\bframefit_[a-z_]+\b(?!\.)")


@PAGES
def test_every_file_that_is_named_exists(page: Path) -> None:
    for path in REPOSITORY_PATH.findall(codes(page)):
        path = path.replace("NAME", "*")  # a recipe's placeholder
        assert path in MADE_BY_THE_READER or any(ROOT.glob(path.rstrip("/"))), path


@PAGES
def test_every_target_of_make_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"\bmake ([a-z-]+)", codes(page)):
        assert target in targets


@PAGES
def test_every_command_and_option_of_framefit_exists(page: Path) -> None:
    text = codes(page).replace("exec framefit ", "exec ")  # the container's name, not the command
    for line in text.splitlines():
        for words in re.findall(r"(?:^|[\s/(])framefit ([a-z][^`#|]*)", line):
            check_command(words.split())


def check_command(words: list[str]) -> None:
    """Assert that the command is one, and that it has the options given to it."""
    command = typer.main.get_command(app)
    while (commands := getattr(command, "commands", None)) is not None:
        if command.invoke_without_command and (not words or words[0].startswith(("-", "["))):
            break  # it is a command itself
        assert words, "a group of commands needs one of them"
        assert words[0] in commands, f"framefit {' '.join(words)}"
        command, words = commands[words[0]], words[1:]
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help"}
    for option in (word.split("=")[0] for word in words if re.fullmatch(r"-{1,2}[a-z][a-z-]*(=.*)?", word)):
        assert option in known, f"{command.name} {option}"


@PAGES
def test_every_option_of_a_script_is_one(page: Path) -> None:
    for path, words in re.findall(r"python ((?:tests|docs|docker)/[\w/.-]+)([^\n`#;]*)", codes(page)):
        script = ROOT / path
        text = (script / "__main__.py" if script.is_dir() else script).read_text(encoding="utf-8")
        for option in re.findall(r"(?<!\S)--[a-z-]+", words):
            assert f'"{option}"' in text, f"{path} {option}"


@PAGES
def test_every_setting_exists(page: Path) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    compose = "".join(path.read_text() for path in (ROOT / "docker").glob("*.y*ml"))
    for name in SETTING.findall(page.read_text(encoding="utf-8")):
        assert name in known or name in compose, name


@PAGES
def test_every_metric_exists(page: Path) -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "app").rglob("*.py"))
    rules = "".join(path.read_text() for path in (ROOT / "docker" / "prometheus").rglob("*.yml"))
    recorded = (ROOT / "tests" / "contract" / "snapshot" / "metrics.txt").read_text(encoding="utf-8")
    for code in inline_codes(page):
        for name in METRIC.findall(code):
            bare = re.sub(r"_(total|bucket|sum|count)$", "", name)
            assert any(bare in text for text in (source, rules, recorded)), name
