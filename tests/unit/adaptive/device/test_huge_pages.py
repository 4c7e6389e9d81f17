"""Large tensors of the host lie in huge pages, in programs that ask for them."""

import subprocess
import sys
from pathlib import Path

import pytest

KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TENSOR_BYTES = 64 * 2**20

ASKS_FIRST = "from adaptive.device.huge_pages import enable_huge_pages; enable_huge_pages(); import torch"
STARTS_ANEW = """
import torch
from adaptive.device.huge_pages import restart_with_huge_pages
small = torch.zeros(9)
restart_with_huge_pages()
"""
MEASURE = f"""
import re
from pathlib import Path
large = torch.ones({TENSOR_BYTES // 4})
print(int(re.search("AnonHugePages: *([0-9]+) kB", Path("/proc/self/smaps_rollup").read_text())[1]) * 1024)
"""


@pytest.mark.skipif(
    not KERNEL.exists() or "[never]" in KERNEL.read_text(), reason="this kernel gives no huge pages"
)
@pytest.mark.parametrize("way", [ASKS_FIRST, STARTS_ANEW])
def test_a_large_tensor_lies_in_huge_pages(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    script = tmp_path / "script.py"
    script.write_text(f"{way}\n{MEASURE}")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0.9 * TENSOR_BYTES
