"""The fault drills at a small size; `scripts/faults.py` does them in full."""
import os
import pytest
import drills.inputs
from drills.runs import DRILLS, QUICK, in_order, run_drill

# tests/test_inputs.py and tests/test_data_order.py do these
ELSEWHERE = {'F6', 'F7', 'F8', 'F16', 'F18', 'F19', 'F20', 'F22'}
LONG = {'F1', 'F3', 'F14', 'F21'}  # tests/test_processes.py kills a run too; FVLM_ALL=1 does all here
HERE = [id for id in in_order(DRILLS) if id not in ELSEWHERE | LONG or os.environ.get('FVLM_ALL')]


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with a world that all drills share."
    return tmp_path_factory.mktemp('drills')


@pytest.mark.parametrize('id', HERE)
def test_drill(home, id):
    row = run_drill(id, home, QUICK)
    assert row['passed'], row['error'] or row['measured']
