# Every cache and temporary file in one folder:  FVLM_CACHE=/data/cache; source scripts/cache.sh
# Importing fvlm does the same for a Python process (fvlm/__init__.py); a test compares the two.
# Without FVLM_CACHE nothing changes.
if [ -n "${FVLM_CACHE:-}" ]; then
    mkdir -p "$FVLM_CACHE" && FVLM_CACHE=$(cd "$FVLM_CACHE" && pwd) || {
        echo "cache: cannot make $FVLM_CACHE" >&2
        return 1 2>/dev/null || exit 1
    }
    export FVLM_CACHE FVLM_VENV="${FVLM_VENV:-$FVLM_CACHE/venv}"
    export TMPDIR="$FVLM_CACHE/tmp" XDG_CACHE_HOME="$FVLM_CACHE/xdg"
    export PIP_CACHE_DIR="$FVLM_CACHE/pip" HF_HOME="$FVLM_CACHE/hf"
    export TORCH_HOME="$FVLM_CACHE/torch" TORCHINDUCTOR_CACHE_DIR="$FVLM_CACHE/inductor"
    export TRITON_CACHE_DIR="$FVLM_CACHE/triton" CUDA_CACHE_PATH="$FVLM_CACHE/cuda"
    export WANDB_DIR="$FVLM_CACHE/wandb" WANDB_CACHE_DIR="$FVLM_CACHE/wandb/cache"
    export WANDB_DATA_DIR="$FVLM_CACHE/wandb/data" WANDB_CONFIG_DIR="$FVLM_CACHE/wandb/config"
    export MPLCONFIGDIR="$FVLM_CACHE/matplotlib" RAY_TMPDIR="$FVLM_CACHE/ray"
    mkdir -p "$TMPDIR" "$XDG_CACHE_HOME" "$WANDB_CACHE_DIR" "$WANDB_DATA_DIR" "$MPLCONFIGDIR" "$RAY_TMPDIR"
fi
