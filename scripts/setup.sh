# Sourced by scripts/run and scripts/test: make .venv at the repository root and install into it, once.
#
#   prepare EXTRAS    afterwards $VENV_PYTHON is the environment's Python
#
# A stamp per set of extras holds a hash of what decides the installation, so a second call installs nothing.
# PYTHON=/path/to/python chooses the interpreter that makes the environment.

say() { printf '%s\n' "$*" >&2; }

fail() { say "error: $*"; exit 2; }

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        is_recent "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or newer"
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do
        if is_recent "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer found; install one (python.org, apt, brew, uv python install), or set PYTHON=/path/to/python"
}

has_card() { [ -e /dev/nvidia0 ] || { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }; }

mentions_cpu_wheels() { case "${PIP_EXTRA_INDEX_URL:-}${PIP_INDEX_URL:-}${PIP_FIND_LINKS:-}" in *cpu*) true ;; *) false ;; esac; }

prepare() {
    local extras="$1" venv="$ROOT/.venv" python wanted stamp
    VENV_PYTHON="$venv/bin/python"
    if [ ! -e "$venv" ]; then
        python="$(find_python)" || exit $?
        say "making a virtual environment in .venv with $("$python" --version)"
        "$python" -m venv "$venv" || { rm -rf "$venv"; fail "python -m venv failed; on Debian and Ubuntu: apt install python3-venv"; }
    fi
    is_recent "$VENV_PYTHON" || fail "$venv is no working environment of Python 3.11 or newer; remove it and run again"
    wanted="$(cat "$ROOT"/{pyproject.toml,hatch_build.py,constraints.txt} | cksum) [$extras] $ROOT"
    stamp="$venv/.installed-${extras:-base}"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        if [ "$(uname -s)" = Linux ] && ! has_card && ! mentions_cpu_wheels; then
            say "no NVIDIA card seen: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu spares a large CUDA download"
        fi
        say "installing (once; a few minutes)"
        "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check -c "$ROOT/constraints.txt" \
            -e "$ROOT${extras:+[$extras]}" || fail "the installation failed; the lines above say why. Run again to go on"
        printf '%s\n' "$wanted" > "$stamp"
    fi
}
