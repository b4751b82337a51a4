#!/usr/bin/env bash
# The main experiment, set-up included:  bash scripts/speedrun.sh [--smoke] [--seeds N]
# Result: outputs/speedrun/report.html (with --smoke outputs/smoke/report.html).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh
exec python scripts/speedrun.py "$@"
