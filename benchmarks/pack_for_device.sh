#!/usr/bin/env bash
# Fills the ignored folder .device with what on_device.sh needs on a machine that downloads nothing
# and holds Python 3.12, JAX for its GPU, PyTorch and the packages of `there` below: the other
# packages as wheels, this one among them, and images. The images are NASI_DATA, a folder that
# holds cifar10_small.npz, or such a file. Fails if checkout and folder are above 64 MiB.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
data=${NASI_DATA:-../shared/data}
if [ -d "$data" ]; then data=$data/cifar10_small.npz; fi
most=$((64 * 1024 * 1024))
there="jax flax optax orbax-checkpoint chex numpy scipy scikit-learn rich matplotlib pillow
    safetensors filelock"
# What pyproject.toml asks for beside those, and what these need.
missing="tyro docstring-parser typeguard platformdirs grain array-record portpicker
    pydantic pydantic-core annotated-types typing-inspection typing-extensions"

"$python" - $there $missing <<'PYTHON'
import re
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    asked = tomllib.load(file)["project"]["dependencies"]
names = {re.match(r"[\w.-]+", each)[0].lower() for each in asked}
if others := names - set(sys.argv[1:]):
    sys.exit(f"{', '.join(sorted(others))}: name it in pack_for_device.sh, as there or as missing")
PYTHON

rm -rf .device
mkdir -p .device/wheels
cp "$data" .device/images.npz
platforms=()
for tag in manylinux1 manylinux2014 manylinux_2_17 manylinux_2_24 manylinux_2_27 manylinux_2_28; do
    platforms+=(--platform "${tag}_x86_64")
done
# shellcheck disable=SC2086
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp "${platforms[@]}" -d .device/wheels $missing
# Of this package the metadata count: on_device.sh runs what the checkout holds.
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
cp -r pyproject.toml README.md nasi_jax "$source"
for name in LICENSE*; do if [ -f "$name" ]; then cp "$name" "$source"; fi; done
"$python" -m pip wheel -q --no-deps -w .device/wheels "$source"

packed=$(du -sb .device | cut -f 1)
checkout=$(git ls-files -z --cached --others --exclude-standard |
    xargs -0 du -cb --exclude=.device 2> /dev/null | awk '$2 == "total" { sum += $1 } END { print sum }')
ls -l .device/wheels .device/images.npz
echo "packed $((packed / 1024)) KiB, checkout $((checkout / 1024)) KiB, of $((most / 1024)) KiB"
if [ $((packed + checkout)) -gt "$most" ]; then
    echo "too large" >&2
    exit 1
fi
