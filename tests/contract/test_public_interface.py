"""Routes, settings, metrics, commands and library names change only with an entry of CHANGELOG.md."""

import shutil
from pathlib import Path

import public_interface
import pytest
from public_interface import ANSWERS, CHANGELOG, COLLECTORS, SNAPSHOT, differences, record, unannounced

FILES = sorted(path.name for path in SNAPSHOT.glob("*.txt"))


@pytest.mark.parametrize("name", sorted(COLLECTORS))
def test_the_public_interface_is_that_of_the_snapshot(name: str) -> None:
    told = differences(name, COLLECTORS[name]())
    assert not told, told


def test_every_file_of_the_snapshot_is_compared() -> None:
    assert set(FILES) == {*COLLECTORS, ANSWERS}  # the answers by `test_data_folder.py`, where a service runs


@pytest.mark.parametrize("name", FILES)
def test_an_entry_of_the_changelog_announces_what_the_snapshot_holds(name: str) -> None:
    told = unannounced(name)
    assert not told, told


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A copy of the snapshot that a test may change."""
    return Path(shutil.copytree(SNAPSHOT, tmp_path / "snapshot"))


@pytest.mark.parametrize("name", FILES)
def test_removed_and_added_lines_are_reported_with_the_command_to_renew(snapshot: Path, name: str) -> None:
    lines = (snapshot / name).read_text().splitlines()
    assert not differences(name, lines, snapshot)
    told = differences(name, [*lines[1:], "a planted line"], snapshot)
    assert f"- {lines[0]}" in told
    assert "+ a planted line" in told
    assert "CHANGELOG.md" in told
    assert "python tests/contract/renew.py" in told


def test_a_planted_setting_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Planted(public_interface.Settings):
        planted: int = 3

    monkeypatch.setattr(public_interface, "Settings", Planted)
    told = differences("settings.txt", COLLECTORS["settings.txt"]())
    assert '+ FRAMEFIT_PLANTED = 3  {"type": "integer"}' in told


def test_a_snapshot_that_was_edited_by_hand_is_not_announced(snapshot: Path) -> None:
    path = snapshot / FILES[0]
    path.write_text(path.read_text() + "a planted line\n")
    assert "changed by hand" in unannounced(path.name, snapshot)


def test_renewing_needs_a_changelog_entry_that_was_not_used_before(snapshot: Path, tmp_path: Path) -> None:
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(CHANGELOG.read_text() + "\n- `FRAMEFIT_PLANTED`: a setting\n  of this test alone.\n")
    entry = "`FRAMEFIT_PLANTED`: a setting of this test alone."
    name = "settings.txt"
    lines = [*(snapshot / name).read_text().splitlines(), "FRAMEFIT_PLANTED"]
    with pytest.raises(ValueError, match="has no entry"):
        record({name: lines}, "an entry that nobody wrote", snapshot, changelog)
    assert record({name: lines}, entry, snapshot, changelog) == [name]
    assert not differences(name, lines, snapshot)
    assert not unannounced(name, snapshot, changelog)
    assert "has no entry" in unannounced(name, snapshot, CHANGELOG)
    assert record({name: lines}, entry, snapshot, changelog) == []
    with pytest.raises(ValueError, match="an earlier change"):
        record({name: [*lines, "FRAMEFIT_SECOND"]}, entry, snapshot, changelog)
