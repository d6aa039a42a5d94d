#!/usr/bin/env bash
# The paper's search results, one part each, at its own settings:
#   bash benchmarks/paper.sh PART [FOLDER]
# figure2 error against steps in NAS-Bench-1Shot1, table2 random labels and images there,
# nasbench201 all five operations and one theta_0, darts its cells, size_of_x where nu lies.
# FOLDER has cifar10_small.npz and the tables (../shared/data if not given). DEVICE=small takes the
# smallest supernets and ten seeds, for two CPU cores; else it is the paper's sizes, for a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:?which part: figure2, table2, nasbench201, darts or size_of_x}
folder=${2:-../shared/data}
images=$folder/cifar10_small.npz
nb101=("$folder/nasbench101_30k.csv.gz" "$folder/nasbench1shot1_2.csv.gz")
nb201=("$folder/nasbench201_cifar10.csv")
if [ "${DEVICE:-full}" = small ]; then
  oneshot=(--variant nasi-fix)
  darts=(--seeds 2)
else
  oneshot=(--variant nasi-ada)
  darts=(--seeds 5)
fi
each_space() { # script, relaxation, other flags
  for space in 1 2 3; do
    python "benchmarks/$1.py" --space "nasbench1shot1-$space" --data "$images" \
      --table "${nb101[@]}" --column val_108 --relaxation "$2" "${oneshot[@]}" \
      --seed 400 --out "runs/paper/$1-$space-$2" "${@:3}"
  done
}

case $part in
  figure2)
    for relaxation in soft hard; do
      each_space selection "$relaxation"
    done
    ;;
  table2)
    each_space ablations hard --test-column test_108 \
      --only "labels: random" "images: Gaussian, labels: random"
    ;;
  nasbench201)
    for relaxation in soft hard; do
      python benchmarks/selection.py --space nasbench201 --data "$images" --table "${nb201[@]}" \
        --column c10_test_200 --ops none skip_connect nor_conv_1x1 nor_conv_3x3 avg_pool_3x3 \
        --redraw False --relaxation "$relaxation" --seed 300 \
        --out "runs/paper/nasbench201-$relaxation"
    done
    ;;
  darts)
    for relaxation in soft hard; do
      python benchmarks/darts_cells.py --data "$images" --relaxation "$relaxation" "${darts[@]}" \
        --out "runs/paper/darts-$relaxation"
    done
    python benchmarks/darts_cells.py --data "$images" --classes 100 "${darts[@]}" \
      --out runs/paper/darts-100-classes
    python benchmarks/darts_cells.py --data "$images" --num-cells 20 "${darts[@]}" \
      --out runs/paper/darts-20-cells
    ;;
  size_of_x)
    python benchmarks/size_of_x.py --data "$images" --out runs/paper/size_of_x
    ;;
  *)
    echo "no part '$part': figure2, table2, nasbench201, darts or size_of_x" >&2
    exit 2
    ;;
esac
