#!/bin/sh
# Installs what Resurgam needs on Debian 12, and makes .venv with exactly the versions in constraints.txt.
#
#   tools/setup.sh python   what the command and the quick tests need: Python with venv
#   tools/setup.sh vms      also what VMs and stemcells need: QEMU, mmdebstrap, Docker Engine, file system tools
#   tools/setup.sh test     also what the whole test suite needs: Postfix, Alertmanager, docker-registry (Debian starts them)
#
# What is there already is left alone. What is missing is installed through apt where this user may do that; where not,
# the exact command is printed and the script ends with 4.
set -eu

wanted=${1:-vms}
project=$(cd "$(dirname "$0")/.." && pwd)
venv="$project/.venv"

say() { printf '%s\n' "$*" >&2; }

missing=""
# need PROGRAM PACKAGE
need() {
    if ! PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; then
        case " $missing " in *" $2 "*) ;; *) missing="$missing $2" ;; esac
    fi
}

need python3 python3
if command -v python3 >/dev/null 2>&1; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
else
    missing="$missing python3-venv"
fi
if [ "$wanted" = test ]; then
    need postfix postfix
    need prometheus-alertmanager prometheus-alertmanager
    need docker-registry docker-registry
    need htpasswd apache2-utils
    need faketime faketime
    need iptables iptables
    wanted=vms
fi
if [ "$wanted" = vms ]; then
    need qemu-system-x86_64 qemu-system-x86
    need qemu-img qemu-utils
    need mmdebstrap mmdebstrap
    # A test's container image is one busybox and nothing else, so it must be linked statically.
    if ! busybox=$(command -v busybox) || ldd "$busybox" >/dev/null 2>&1; then missing="$missing busybox-static"; fi
    need ip iproute2
    need mkfs.xfs xfsprogs
    need mke2fs e2fsprogs
    need rsync rsync
    need tar tar
    need dockerd docker.io
fi

if [ -n "$missing" ]; then
    install="apt-get install -y --no-install-recommends$missing"
    if ! command -v apt-get >/dev/null 2>&1; then
        say "error: missing:$missing, and this machine has no apt-get"
        say "next:  install these (the names are Debian's) and run this again"
        exit 4
    fi
    if [ "$(id -u)" -eq 0 ]; then
        as_root=""
    elif command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        as_root="sudo"
    else
        say "error: missing:$missing, and this user may not install it"
        say "next:  run as root:  apt-get update && $install"
        exit 4
    fi
    say "installing:$missing"
    log=$(mktemp)
    if ! { $as_root apt-get update && $as_root env DEBIAN_FRONTEND=noninteractive $install; } >"$log" 2>&1; then
        say "error: apt-get failed; the end of what it said:"
        tail -n 15 "$log" >&2
        rm -f "$log"
        say "next:  run as root:  apt-get update && $install"
        exit 1
    fi
    rm -f "$log"
fi

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "error: $(python3 --version) is too old, 3.11 is needed (Debian 12 has it)"
    exit 4
}

stamp="$venv/.installed"
if [ ! -f "$stamp" ] || [ "$project/constraints.txt" -nt "$stamp" ] || [ "$project/pyproject.toml" -nt "$stamp" ]; then
    say "installing Python packages into .venv (exactly those of constraints.txt)"
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$project/constraints.txt"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
        --editable "$project"
    touch "$stamp"
fi
