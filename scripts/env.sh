# The project's Python environment:  source scripts/env.sh
# Makes .venv (FVLM_VENV: another folder) once, brings it up to date when settings.ini, constraints.txt or
# setup.py change, puts it first in PATH and keeps runs offline. Works from any folder; only pip uses the
# network.

_fvlm_pip() {  # what to say, then pip's arguments; quiet, and the end of the log when it fails
    local what=$1; shift
    [ -z "$what" ] || echo "env: $what" >&2
    "$_fvlm_venv/bin/python" -m pip install --disable-pip-version-check "$@" >>"$_fvlm_venv/pip.log" 2>&1
}

_fvlm_failed() {
    echo "env: $1 failed; the last lines of $_fvlm_venv/pip.log:" >&2
    tail -n 15 "$_fvlm_venv/pip.log" >&2
    return 1
}

_fvlm_torch() {  # a CUDA build where there is a GPU, else a CPU build
    "$_fvlm_venv/bin/python" -m pip show -q torch >/dev/null 2>&1 && return 0
    if nvidia-smi >/dev/null 2>&1; then
        _fvlm_pip "installing torch with CUDA (several GB, 5 to 15 minutes the first time)" "torch>=2.10"
        return
    fi
    # One short question to PyTorch's own CPU index, no other index beside it: offline this fails in seconds.
    PIP_CONFIG_FILE=/dev/null PIP_EXTRA_INDEX_URL='' PIP_FIND_LINKS='' PIP_NO_INDEX='' \
        _fvlm_pip "installing torch for the CPU (about 200 MB, 1 to 3 minutes the first time)" \
        "torch>=2.10" --no-deps --retries 0 --timeout 8 \
        --index-url https://download.pytorch.org/whl/cpu && return
    _fvlm_pip "PyTorch's CPU index did not answer: taking torch from pip's default index" "torch==2.13.0"
}

_fvlm_env() {
    local root=$1 want stamp
    stamp=$_fvlm_venv/.fvlm-stamp
    want=$(cd "$root" && { pwd; cat settings.ini constraints.txt setup.py; } | cksum) || return 1
    if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
        if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "env: fvlm needs python3 3.11 or newer; here is $(python3 --version 2>&1 | tail -n 1)" >&2
            return 1
        fi
        mkdir -p "$_fvlm_venv" && : >"$_fvlm_venv/pip.log" || return 1
        if ! "$_fvlm_venv/bin/python" -m pip --version >/dev/null 2>&1; then
            echo "env: making $_fvlm_venv" >&2
            python3 -m venv "$_fvlm_venv" >>"$_fvlm_venv/pip.log" 2>&1 ||
                { _fvlm_failed "python3 -m venv"; return 1; }
        fi
        _fvlm_torch || { _fvlm_failed "installing torch"; return 1; }
        (cd "$root" && _fvlm_pip "installing fvlm and its tools (1 to 4 minutes the first time)" \
            -c constraints.txt -e '.[dev]') || { _fvlm_failed "installing fvlm"; return 1; }
        echo "$want" >"$stamp"
        echo "env: ready" >&2
    fi
    export PATH="$_fvlm_venv/bin:$PATH"
    export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" WANDB_MODE="${WANDB_MODE:-offline}"
}

_fvlm_root=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)
_fvlm_venv=${FVLM_VENV:-$_fvlm_root/.venv}
case $_fvlm_venv in /*) ;; *) _fvlm_venv=$PWD/$_fvlm_venv ;; esac
_fvlm_env "$_fvlm_root" || { return 1 2>/dev/null || exit 1; }
