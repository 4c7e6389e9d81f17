"""The disk of downloaded weights, as metrics."""

import shutil
import subprocess
import sys
from pathlib import Path

from app.service.exposition.hub_cache import HubCacheGauges


def test_the_disk_is_shown_before_the_first_download_makes_the_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not" / "yet"):
        found = {s.name: s.value for family in HubCacheGauges(folder).collect() for s in family.samples}
        assert found["framefit_hub_cache_total_bytes"] == shutil.disk_usage(tmp_path).total
        assert 0 < found["framefit_hub_cache_free_bytes"] <= found["framefit_hub_cache_total_bytes"]


def test_the_folder_is_the_one_that_the_hubs_client_uses_and_no_torch_is_imported(tmp_path: Path) -> None:
    code = "import sys; from app.service.exposition.hub_cache import hub_cache; print(hub_cache()); "
    code += "print('torch' in sys.modules)"
    environ = {"HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert done.stdout.split() == [str(tmp_path / "hub"), "False"]
