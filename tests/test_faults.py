"""The fault drills in a small size: what a long run meets, done on purpose. `scripts/faults.py` does them in full."""
import pytest
import fvlm.hostile
from fvlm.faults import DRILLS, QUICK, in_order, run_drill


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with a world that all drills share."
    return tmp_path_factory.mktemp('drills')


@pytest.mark.parametrize('id', in_order(DRILLS))
def test_drill(home, id):
    row = run_drill(id, home, QUICK)
    assert row['passed'], row['error'] or row['measured']
