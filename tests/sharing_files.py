"""Which test files run in one process of `pytest -n`: those that use the same service, which starts once."""

from xdist.scheduler import LoadFileScheduling

SHARING = {
    f"tests/acceptance/test_{name}.py": "a service of acceptance tests"
    for name in ("clients", "page", "page_pictures", "videos")
}


class SharingFiles(LoadFileScheduling):
    """`--dist loadfile` that hands out these files as if they were one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return SHARING.get(file, file)
