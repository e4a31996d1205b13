#!/usr/bin/env bash
# Makes an environment that holds the packages fastmaml is compared with:
#
#     benchmarks/peers/install.sh FOLDER
#     PYTHONPATH=. FOLDER/bin/python -m pytest tests/test_peers.py
#
# Of learn2learn 0.2.0 only what touches gradients is installed (algorithms, nn, optim, utils: pure
# Python, as published). Its data sets and environments are left out, since they need a C build,
# torchvision and an old gym, and `import learn2learn` would load them all.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: $0 FOLDER   (a new folder for the environment, with about 1 GB of room)" >&2
    exit 2
fi
"${PYTHON:-python3}" -m venv "$1"
bin=$(cd "$1" && pwd)/bin
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# torch goes first and pinned, so that what follows finds it there.
"$bin/pip" install --quiet torch==2.13.0
"$bin/pip" install --quiet numpy pytest
"$bin/pip" install --quiet --no-deps higher==0.2.1

"$bin/pip" download --quiet --no-deps --no-binary learn2learn --dest "$scratch" learn2learn==0.2.0
tar xzf "$scratch/learn2learn-0.2.0.tar.gz" -C "$scratch"
source=$scratch/learn2learn-0.2.0/learn2learn
target=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/learn2learn
rm -rf "$target"
mkdir "$target"
cp -r "$source"/{_version.py,algorithms,nn,optim,utils} "$target"
grep -vE '^from \. import (data|gym|text|vision)$' "$source/__init__.py" > "$target/__init__.py"

"$bin/python" -c '
import higher, learn2learn, torch
print(f"torch {torch.__version__}, learn2learn {learn2learn.__version__}, higher 0.2.1")
'
