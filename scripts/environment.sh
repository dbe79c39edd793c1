# Sourced by scripts/demo and scripts/test: makes .venv with the pinned versions, once.

# make_environment EXTRA: installs this package with the extra ("" for none) unless that is done already.
make_environment() {
    local extra=$1 python stamp
    stamp=.venv/.installed${extra:+-$extra}
    if [ -e "$stamp" ] && [ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt constraints.txt ]; then
        return
    fi
    if [ ! -x .venv/bin/python ]; then
        python=$(find_python)
        echo "making .venv with $("$python" --version)" >&2
        "$python" -m venv .venv
    fi
    echo "installing shardrun and its pinned dependencies into .venv (a few minutes at most)" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint constraints.txt --editable ".${extra:+[$extra]}" >&2
    touch "$stamp"
}

# The first Python of 3.11 or newer that runs.
find_python() {
    local candidate
    for candidate in python3 python3.11 python3.12 python3.13 python; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "shardrun needs Python 3.11 or newer, with venv; found none (tried python3, python3.11 to python3.13)" >&2
    return 2
}

# Installs Slurm and iproute2 where that can be done, for the tests that start a cluster or several hosts of their own.
# They skip themselves, and say why, where it cannot.
make_cluster_tools() {
    if command -v slurmctld slurmd munged ip >/dev/null || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        return
    fi
    echo "installing slurm-wlm, munge and iproute2 for the tests of clusters" >&2
    { timeout 180 apt-get update -q && DEBIAN_FRONTEND=noninteractive timeout 180 apt-get install -yq \
        --no-install-recommends slurm-wlm munge iproute2; } >/dev/null 2>&1 ||
        echo "they could not be installed: those tests are skipped" >&2
}
