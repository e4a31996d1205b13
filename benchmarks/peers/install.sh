#!/usr/bin/env bash
# Makes two environments that hold the packages fastmaml is compared with:
#
#     benchmarks/peers/install.sh FOLDER
#     PYTHONPATH=. FOLDER/torch/bin/python -m pytest tests/compat/test_peers.py
#     python -m benchmarks.programs.meta_step --peers FOLDER
#
# FOLDER/torch has learn2learn, higher and TorchOpt, FOLDER/jax has JAX. Name one of them to make it alone.
#
# Of learn2learn 0.2.0 what touches gradients is installed (algorithms, nn, optim, utils: pure Python,
# as published), and its task sets (data), compiled anew, since its own C files are too old for Python
# 3.11; that takes a C compiler. Its networks, benchmarks and environments are left out: they need
# torchvision and an old gym, and `import learn2learn` would load them all.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ] || { [ $# -eq 2 ] && [ "$2" != torch ] && [ "$2" != jax ]; }; then
    echo "usage: $0 FOLDER [torch | jax]   (a new folder, with about 2 GB of room)" >&2
    exit 2
fi
wanted=${2:-torch jax}
mkdir -p "$1"
folder=$(cd "$1" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

make_torch() {
    local bin=$folder/torch/bin
    "${PYTHON:-python3}" -m venv "$folder/torch"
    # torch goes first and pinned, so that what follows finds it there.
    "$bin/pip" install --quiet torch==2.13.0
    "$bin/pip" install --quiet numpy pytest
    "$bin/pip" install --quiet --no-deps higher==0.2.1 torchopt==0.7.3
    "$bin/pip" install --quiet optree graphviz requests tqdm
    "$bin/pip" install --quiet cython==3.3.1 setuptools

    "$bin/pip" download --quiet --no-deps --no-binary learn2learn --dest "$scratch" \
        learn2learn==0.2.0
    tar xzf "$scratch/learn2learn-0.2.0.tar.gz" -C "$scratch"
    local source=$scratch/learn2learn-0.2.0/learn2learn target
    target=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/learn2learn
    rm -rf "$target"
    mkdir "$target"
    cp -r "$source"/{_version.py,algorithms,data,nn,optim,utils} "$target"
    rm "$target"/data/*.c
    grep -vE '^from \. import (gym|text|vision)$' "$source/__init__.py" \
        > "$target/__init__.py"
    (cd "$target/.." && CFLAGS=-w "$bin/cythonize" -q -i -3 learn2learn/data/*.pyx)
    "$bin/python" -c '
import higher, learn2learn, torch, torchopt
print(
    f"torch {torch.__version__}, learn2learn {learn2learn.__version__}, higher 0.2.1, "
    f"TorchOpt {torchopt.__version__}"
)
'
}

make_jax() {
    local bin=$folder/jax/bin
    "${PYTHON:-python3}" -m venv "$folder/jax"
    "$bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy
    "$bin/python" -c 'import jax; print(f"jax {jax.__version__}")'
}

for one in $wanted; do
    "make_$one"
done
