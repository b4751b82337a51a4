__version__ = "0.1.0"

import os

_CACHES = dict(TMPDIR='tmp', XDG_CACHE_HOME='xdg', PIP_CACHE_DIR='pip', HF_HOME='hf', TORCH_HOME='torch',
    TORCHINDUCTOR_CACHE_DIR='inductor', TRITON_CACHE_DIR='triton', CUDA_CACHE_PATH='cuda', WANDB_DIR='wandb',
    WANDB_CACHE_DIR='wandb/cache', WANDB_DATA_DIR='wandb/data', WANDB_CONFIG_DIR='wandb/config',
    MPLCONFIGDIR='matplotlib', RAY_TMPDIR='ray')

def _use_cache_folder(folder): # as scripts/cache.sh does, before any library reads these variables
    for name, part in _CACHES.items(): os.environ[name] = os.path.join(folder, part)
    for name in 'TMPDIR XDG_CACHE_HOME WANDB_CACHE_DIR WANDB_DATA_DIR MPLCONFIGDIR RAY_TMPDIR'.split():
        os.makedirs(os.environ[name], exist_ok=True)

if os.environ.get('FVLM_CACHE'): _use_cache_folder(os.path.abspath(os.environ['FVLM_CACHE']))
