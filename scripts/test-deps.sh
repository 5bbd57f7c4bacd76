#!/usr/bin/env bash
# What some tests want from outside: axe-core (by npm) and, from the system, a browser, a C compiler for tinygrad's CPU device, OpenCL to try its other devices, and an optimized BLAS for MLX.
# Tests whose tools are missing are skipped and say so; this installs the tools where apt-get and the rights for it are.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# axe-core checks the page's accessibility; it is never shipped
if [ ! -e .test-tools/node_modules/axe-core/axe.min.js ] && command -v npm >/dev/null; then
  npm install --silent --no-save --no-audit --no-fund --prefix .test-tools axe-core@4 >/dev/null ||
    echo "test-deps: could not install axe-core; the accessibility tests will be skipped" >&2
fi

wanted=()
command -v chromium >/dev/null && command -v chromedriver >/dev/null || wanted+=(chromium chromium-driver)
command -v clang >/dev/null || wanted+=(clang)
ldconfig -p 2>/dev/null | grep -q libopenblas.so.0 || wanted+=(libopenblas0-pthread)
[ -e /etc/OpenCL/vendors/pocl.icd ] || wanted+=(pocl-opencl-icd)
command -v ip >/dev/null || wanted+=(iproute2)
command -v nft >/dev/null || wanted+=(nftables)
command -v tmux >/dev/null || wanted+=(tmux)
[ ${#wanted[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
  echo "test-deps: no apt-get here; tests that need ${wanted[*]} will be skipped" >&2
  exit 0
fi
run=()
if [ "$(id -u)" -ne 0 ]; then
  if sudo -n true 2>/dev/null; then run=(sudo -n); else
    echo "test-deps: not root; tests that need ${wanted[*]} will be skipped" >&2
    exit 0
  fi
fi
echo "test-deps: installing ${wanted[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
${run[@]+"${run[@]}"} apt-get update -qq || echo "test-deps: apt-get update failed; going on with the lists that are here" >&2
${run[@]+"${run[@]}"} apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null ||
  echo "test-deps: could not install ${wanted[*]}; tests that need them will be skipped" >&2
