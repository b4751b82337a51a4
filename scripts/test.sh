#!/usr/bin/env bash
# Every check of this repository:  bash scripts/test.sh
# Goes on after a failure. Last line: "N passed, N failed" (checks, notebooks and pytest tests together);
# exit 1 if any failed.
# --also NAME STATUS counts one more check that has already run (.ci/run uses it).
set -uo pipefail
exec 2>&1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
passed=0 failed=0

heading() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }
finish() { printf '\n%s passed, %s failed\n' "$passed" "$failed"; exit $((failed > 0)); }
check() {  # name, status
    if [ "$2" = 0 ]; then
        passed=$((passed + 1)); echo "ok      $1"
    else
        failed=$((failed + 1)); echo "FAILED  $1"
    fi
}

source scripts/env.sh || { check "environment" 1; finish; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MKL_NUM_THREADS=${MKL_NUM_THREADS:-1} OPENBLAS_NUM_THREADS=1
export TOKENIZERS_PARALLELISM=false
tmp=$(mktemp -d /tmp/fvlm.XXXXXX) || exit 1
trap 'rm -rf "$tmp"' EXIT

count() {  # name, then a command that leaves "passed failed" in $tmp/counts; a crash is one failure
    local name=$1 status good bad; shift
    rm -f "$tmp/counts"
    "$@"; status=$?
    if read -r good bad 2>/dev/null <"$tmp/counts"; then
        passed=$((passed + good)) failed=$((failed + bad))
        [ "$status" = 0 ] || [ "$bad" -gt 0 ] || check "$name: exit status $status" 1
    else
        check "$name: exit status $status, no counts" 1
    fi
}

run_pytest() {
    rm -f "$tmp/junit.xml"
    python -m pytest -q -p no:cacheprovider --junitxml="$tmp/junit.xml" "$@"; local status=$?
    python - "$tmp" <<'PY' || return 1
import sys, xml.etree.ElementTree as ET
suites = list(ET.parse(f'{sys.argv[1]}/junit.xml').iter('testsuite'))
def total(*keys): return sum(int(s.get(k, 0)) for s in suites for k in keys)
bad = total('failures', 'errors')
open(f'{sys.argv[1]}/counts', 'w').write(f'{total("tests")-bad-total("skipped")} {bad}\n')
PY
    [ "$status" = 5 ] || return "$status"  # 5: there were no tests
}

same() {  # no difference between the working tree and the copy
    local out
    out=$(diff -rq -x __pycache__ -x .ipynb_checkpoints -x .last_checked "$1" "$tmp/copy/$1" |
        sed "s#$tmp/copy/#copy/#g")
    [ -z "$out" ] || { echo "$out"; return 1; }
}

fresh() {  # an nbdev command in a copy of the working tree changes nothing in nbs/ and fvlm/
    rm -rf "$tmp/copy"; mkdir "$tmp/copy"
    cp -a nbs fvlm settings.ini setup.py _quarto.yml "$tmp/copy/" || return 1
    (cd "$tmp/copy" && "$1") || return 1
    local status=0
    same nbs || status=1
    same fvlm || status=1
    return $status
}

docs() {  # the part of nbdev_docs before Quarto, in the copy: exported cells and imports run
    (cd "$tmp/copy" && python -W ignore -c "
from pathlib import Path
from nbdev.serve import proc_nbs
proc_nbs(n_workers=2, force=True)
def below(top):
    return {p.relative_to(top).as_posix() for p in Path(top).rglob('*.ipynb') if '/.' not in p.as_posix()}
missing = below('nbs') - below('_proc')
if missing: raise SystemExit('not processed: '+', '.join(sorted(missing)))" >"$tmp/docs.log" 2>&1
    ) || { tail -n 15 "$tmp/docs.log"; return 1; }
}

if [ "${1:-}" = --also ]; then heading "before"; check "$2" "$3"; fi

heading "freshness: notebooks exported and clean"
for command in nbdev_export nbdev_clean; do fresh "$command"; check "$command changes nothing" $?; done

heading "README.md is made from nbs/index.ipynb, the sidebar from the folders"
python scripts/readme.py --check; check "readme" $?
python scripts/sidebar.py --check; check "sidebar" $?

heading "notebooks fit the documentation site"
docs; check "docs" $?

heading "static gate"
count "static gate" run_pytest tests/test_repo.py

heading "notebooks"
count "notebooks" python scripts/test_notebooks.py --workers 2 --counts "$tmp/counts"

heading "tests"
count "tests" run_pytest tests --ignore tests/test_repo.py -n 2 --dist worksteal

finish
