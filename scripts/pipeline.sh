#!/usr/bin/env bash
# Raw data to report on one machine, set-up included:
#   bash scripts/pipeline.sh CONFIG [--dry-run] [key=value ...]
#   bash scripts/pipeline.sh configs/tiny/pipeline.yaml
#   FVLM_CACHE=/data/cache bash scripts/pipeline.sh configs/pipeline.yaml out=/data/run processes=2
# FVLM_CACHE: one folder for every cache and temporary file, for machines with a small system disk; also for
# the Python environment, unless FVLM_VENV says otherwise. Paths are relative to the folder of the call.
# Exit codes: 0 all done, 1 something failed, 75 stopped on request: the same command continues.
set -euo pipefail
_scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$_scripts/cache.sh"
source "$_scripts/env.sh"
exec python "$_scripts/pipeline.py" "$@"
