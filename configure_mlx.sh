#!/usr/bin/env bash
# Let MLX keep more of a Mac's memory wired (resident for the GPU), so that larger models run without being paged.
# Sets iogpu.wired_limit_mb to the larger of 80 % of the memory and all but 5 GB, and iogpu.wired_lwm_mb to a little less.
# The setting lasts until the next restart. On anything but macOS there is nothing to tune.
set -euo pipefail

if [ "$(uname -s)" != Darwin ]; then
  echo "configure_mlx.sh: nothing to do here, the wired-memory limit is a setting of macOS"
  exit 0
fi

total_mb=$(($(sysctl -n hw.memsize) / 1048576))
eighty_percent=$((total_mb * 80 / 100))
all_but_five_gb=$((total_mb - 5120))
limit_mb=$((eighty_percent > all_but_five_gb ? eighty_percent : all_but_five_gb))
low_water_mb=$((limit_mb - limit_mb / 10))

echo "memory: $total_mb MB; wired limit: $limit_mb MB, low-water mark: $low_water_mb MB"
run=()
[ "$(id -u)" -eq 0 ] || run=(sudo)
${run[@]+"${run[@]}"} sysctl iogpu.wired_limit_mb="$limit_mb"
${run[@]+"${run[@]}"} sysctl iogpu.wired_lwm_mb="$low_water_mb" 2>/dev/null || true
