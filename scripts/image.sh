#!/usr/bin/env bash
# The steps of the Dockerfile, so that tests run what it runs: scripts/image.sh STEP [cpu|cuda].
#
#   system DEVICE        Debian packages, the user that containers run as, and the folder of their data
#   requirements DEVICE  print the pinned packages, with hashes; for cpu without torch and NVIDIA's libraries
#   packages DEVICE      install them
#   project              install this package, compile bytecode, check that it starts
set -euo pipefail
cd "$(dirname "$0")/.."

# wget is what KubeRay's own probes call. On a GPU Triton compiles kernels with a C compiler.
system() {
    local packages=(wget)
    [ "$1" = cpu ] || packages+=(gcc libc6-dev)
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${packages[@]}"
    rm -rf /var/lib/apt/lists/*
    useradd --create-home --uid 1000 prospect
    install --directory --owner prospect --group prospect /data
}

requirements() {
    if [ "$1" = cuda ]; then
        cat requirements.lock
        return
    fi
    # An entry is a line that begins with a name, and the indented lines behind it.
    awk '/^[^ #]/ { keep = $0 !~ /^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==/ } keep' requirements.lock
}

# Bytecode is compiled here: the user of a container cannot write it, and each process would compile all it imports.
# torch for CPUs is another build than the locked one, of the same version: uv knows where, and its hash is not locked.
packages() {
    local uv
    uv=$(sed -n 's/^UV_VERSION := //p' Makefile)
    python -m pip install --quiet --no-cache-dir --disable-pip-version-check "uv==$uv"
    requirements "$1" > /tmp/requirements.txt
    export UV_COMPILE_BYTECODE=1
    uv pip install --system --no-cache --no-deps --require-hashes -r /tmp/requirements.txt
    if [ "$1" = cpu ]; then
        # shellcheck disable=SC2046
        uv pip install --system --no-cache --no-deps --torch-backend cpu $(locked torch) $(locked torchvision)
    fi
    rm /tmp/requirements.txt
}

locked() { # NAME==VERSION
    sed -n "s/^\($1==[^ ;]*\).*/\1/p" requirements.lock
}

project() {
    uv pip install --system --no-cache --no-deps -e .
    python -m compileall -q platform jobs serve
    prospect --version
}

step=${1:-}
device=${2:-cpu}
case "$device" in cpu | cuda) ;; *) echo "error: DEVICE ($device) must be cpu or cuda" >&2; exit 2 ;; esac
case "$step" in
    system | requirements | packages) "$step" "$device" ;;
    project) project ;;
    *) echo "error: step (${step}) must be one of system, requirements, packages, project" >&2; exit 2 ;;
esac
