#!/usr/bin/env bash
# The dress rehearsal, set-up included:  bash scripts/rehearse.sh [--quick] [--true-shapes]
# Every data set as a miniature in its real layout, every config with the real keys; offline, on two cores.
# Result: outputs/rehearsal/rehearsal.json, with --true-shapes results/rehearsal.json; exit 1 names what
# differed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh
exec python scripts/rehearse.py "$@"
