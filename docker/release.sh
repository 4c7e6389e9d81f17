#!/usr/bin/env bash
# Builds the wheel and the image of one release, both with the version of adaptive/version.py.
#
#   docker/release.sh [arguments of docker build]
#
# Only from a commit: the image's labels name it. CHANGELOG.md must have a section of the version. The wheel goes into dist/.
# For a build that can be repeated, give the base by digest: docker/release.sh --build-arg PYTHON_DIGEST=sha256:...
set -euo pipefail
cd "$(dirname "$0")/.."

stop() { echo "docker/release.sh: $1" >&2; exit 1; }

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' adaptive/version.py)
[ -n "$version" ] || stop "adaptive/version.py has no version"
[ -z "$(git status --porcelain)" ] || stop "there are changes that are not committed"
grep -q "^## \[\{0,1\}$version" CHANGELOG.md || stop "CHANGELOG.md has no section ## $version"
revision=$(git rev-parse HEAD)
created=$(git show -s --format=%cI HEAD)
SOURCE_DATE_EPOCH=$(git show -s --format=%ct HEAD)
export SOURCE_DATE_EPOCH

"${PYTHON:-.venv/bin/python}" -m pip wheel --quiet --no-deps --wheel-dir dist .
docker build --build-arg VERSION="$version" --build-arg REVISION="$revision" --build-arg CREATED="$created" \
    --tag "framefit:$version" --tag framefit:latest "$@" .
echo "dist/framefit-$version-py3-none-any.whl and framefit:$version, of commit $revision"
