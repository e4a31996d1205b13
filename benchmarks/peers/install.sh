#!/usr/bin/env bash
# Makes two environments that hold the packages fastmaml is compared with:
#
#     benchmarks/peers/install.sh FOLDER
#     PYTHONPATH=. FOLDER/torch/bin/python -m benchmarks.peers --sources FOLDER/sources
#     python -m benchmarks.programs.meta_step --peers FOLDER
#
# FOLDER/torch has learn2learn, higher and TorchOpt, FOLDER/jax has JAX. Name one of them to make it
# alone; one that is complete already is left as it is. FOLDER/sources has what learn2learn publishes.
#
# learn2learn 0.2.0 is whole, as published, but for its own C files, which are too old for Python
# 3.11: its task sets are compiled anew, which takes a C compiler. What it imports is there in the
# last release that it can do with: gym 0.26, PyTorch Lightning 2.6 (but for its trainers' flags,
# which ended with 1.9 and want an older torch), and torchvision, whose build for
# CUDA is told of ops that it misses under a torch for the CPU. qpth, mujoco-py and metaworld are
# left out, which it can do without. Ours needs gymnasium for the same environments.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ] || { [ $# -eq 2 ] && [ "$2" != torch ] && [ "$2" != jax ]; }; then
    echo "usage: $0 FOLDER [torch | jax]   (a new folder, with about 2 GB of room)" >&2
    exit 2
fi
wanted=${2:-torch jax}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)

make_torch() {
    local bin=$folder/torch/bin site sources=$folder/sources
    "${PYTHON:-python3}" -m venv --clear "$folder/torch"
    # torch goes first and pinned, so that what follows finds it there.
    "$bin/pip" install --quiet torch==2.13.0
    "$bin/pip" install --quiet numpy pytest parameterized cython==3.3.1 "setuptools<81"
    "$bin/pip" install --quiet scipy pandas pillow requests tqdm optree graphviz pyyaml packaging
    "$bin/pip" install --quiet --constraint "$here/../../constraints.txt" "gymnasium[mujoco]"
    "$bin/pip" install --quiet --no-deps higher==0.2.1 torchopt==0.7.3 torchvision==0.28.0 \
        gym==0.26.2 gym-notices cloudpickle pytorch-lightning==2.6.6 torchmetrics==1.9.0 \
        lightning-utilities
    site=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$bin/python" -c 'import torchvision' 2> /dev/null || tell_torchvision "$site/torchvision"

    rm -rf "$sources"
    "$bin/pip" download --quiet --no-deps --no-binary learn2learn --dest "$sources" \
        learn2learn==0.2.0
    tar xzf "$sources/learn2learn-0.2.0.tar.gz" -C "$sources" --exclude '*/.eggs'
    rm -rf "$site/learn2learn" "$sources"/*.tar.gz
    cp -r "$sources/learn2learn-0.2.0/learn2learn" "$site"
    rm "$site"/learn2learn/data/*.c
    (cd "$site" && CFLAGS=-w "$bin/cythonize" -q -i -3 learn2learn/data/*.pyx)
    # gym speaks of its age.
    "$bin/python" -W ignore -c '
import higher, learn2learn, torch, torchopt
print(
    f"torch {torch.__version__}, learn2learn {learn2learn.__version__}, higher 0.2.1, "
    f"TorchOpt {torchopt.__version__}"
)
'
}

# A build for CUDA does not load under a torch for the CPU, and its import wants these ops.
tell_torchvision() {
    cat - "$1/__init__.py" > "$1/__init__.new" <<'PYTHON'
import torch

_missing = torch.library.Library("torchvision", "DEF")
_missing.define("nms(Tensor a, Tensor b, float c) -> Tensor")
_missing.define("qnms(Tensor a, Tensor b, float c) -> Tensor")

PYTHON
    mv "$1/__init__.new" "$1/__init__.py"
}

make_jax() {
    local bin=$folder/jax/bin
    "${PYTHON:-python3}" -m venv --clear "$folder/jax"
    "$bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy
    "$bin/python" -c 'import jax; print(f"jax {jax.__version__}")'
}

for one in $wanted; do
    made=$folder/$one/.made-by  # what this script was when it made it
    cmp --silent "$0" "$made" && continue
    "make_$one"
    cp "$0" "$made"
done
