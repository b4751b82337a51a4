"""`scripts/evaluate.py` in one process and in two: the same file; what it refuses, it refuses in one line."""
import json, os, subprocess, sys
from pathlib import Path

import pandas as pd, pytest
from fvlm.data.build import build_shards
from fvlm.data.shards import FrameSpec, clips_of
from fvlm.model.foveated import load_tokenizer
from fvlm.world.scenes import World, make_scene, render

SCRIPT = Path(__file__).resolve().parents[1]/'scripts'/'evaluate.py'
QUIET = dict(os.environ, FVLM_QUIET='1', OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Shards with frames as the tiny model wants them, and with larger ones."
    home = tmp_path_factory.mktemp('evaluate')
    scenes = (render(make_scene('lookup', i, World()), home/'videos') for i in range(60))
    clips = [c for s in scenes for c in clips_of(s, home/'videos')]
    for size in (40, 48):
        build_shards(clips, home/f'lookup{size}', FrameSpec(size, 3), tokenizer=load_tokenizer('tiny'))
    return home

def evaluate(home, data, out, processes=1):
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    words = [*launcher*(processes > 1), SCRIPT, 'tiny', home/data, '--out', home/out, '--samples', '9']
    return subprocess.run([sys.executable, *map(str, words)], env=QUIET, cwd=home, capture_output=True,
        text=True, timeout=300)


def test_two_processes_write_the_same_file(home):
    for name, processes in (('one.json', 1), ('two.json', 2)):
        done = evaluate(home, 'lookup40', name, processes)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count('lookup40') == 5, 'three modes, two comparisons, once'
    one, two = (json.loads((home/name).read_text()) for name in ('one.json', 'two.json'))
    for key in ('results', 'paired'):
        pd.testing.assert_frame_equal(pd.DataFrame(one[key]), pd.DataFrame(two[key]), rtol=1e-4)
    assert {r['n'] for r in two['results']} == {9} and {r['bad'] for r in two['results']} == {0}
    assert (two['order'], two['frame_size']) == ('question_first', 40)


def test_frames_of_another_size_are_refused(home):
    done = evaluate(home, 'lookup48', 'other.json')
    assert done.returncode == 1 and not (home/'other.json').exists()
    last = done.stderr.strip().splitlines()[-1]
    assert 'lookup48: frames of 48 pixels, and the model was trained with 40' in last
