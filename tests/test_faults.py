"""The fault drills at a small size; `python scripts/faults.py` does them in full."""
import os

import drills.hostile  # registers its drills, as the next line does
import drills.inputs
import pytest
from drills.runs import DRILLS, QUICK, Drill, in_order, run_drill

LONG = {'F1', 'F3', 'F14', 'F21'}  # FVLM_ALL=1 does these too; tests/test_processes.py kills a run as well
ELSEWHERE = {'F6', 'F7', 'F8'}  # tests/test_data_order.py
CHOSEN = [id for id in in_order(DRILLS) if id not in LONG | ELSEWHERE or os.environ.get('FVLM_ALL')]


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with a world that all drills share."
    return tmp_path_factory.mktemp('drills')


@pytest.mark.parametrize('id', CHOSEN)
def test_drill(home, id):
    row = run_drill(id, home, QUICK)
    assert row['passed'], row['error'] or row['measured']


@pytest.mark.parametrize('work, passed', [
    (lambda folder, size: dict(counted=3), True), (lambda folder, size: dict(counted=2), False),
    (lambda folder, size: {}, False), (lambda folder, size: 1/0, False)])
def test_a_drill_can_fail(tmp_path, monkeypatch, work, passed):
    "A broken rule, nothing measured or an error inside the drill is a failed row, not a lost one."
    drill = Drill('F97', 'a wrong count', 'counting to three', 'three', lambda f: f['counted'] == 3, work)
    monkeypatch.setitem(DRILLS, 'F97', drill)
    row = run_drill('F97', tmp_path, QUICK)
    assert row['passed'] is passed and row['id'] == 'F97'


def test_every_drill_module_is_registered():
    modules = {'drills.runs', drills.inputs.__name__, drills.hostile.__name__}
    assert {d.work.__module__ for d in DRILLS.values()} == modules


def test_each_of_the_23_faults_has_a_drill():
    assert in_order(DRILLS) == [f'F{i}' for i in range(1, 24)]
