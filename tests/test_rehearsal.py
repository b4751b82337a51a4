"""The dress rehearsal in its smaller form, and what its miniatures promise."""
import hashlib
import io
import json
import os
import runpy
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import av
import pytest
from pyarrow import parquet

from tests.rehearsal.media import CODECS, truncated, video
from tests.rehearsal.miniatures import make_data
from tests.rehearsal.models import tokenizer
from tests.rehearsal.runner import Fault, Process, Rehearsal, until
from tests.rehearsal.steps import empty, rehearse, same_result

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT/'scripts'/'rehearse.py'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp('hub')
    return root, make_data(root)


def codec_and_frames(data):
    with av.open(io.BytesIO(data)) as file:
        name = file.streams.video[0].codec_context.name
        return name, sum(1 for _ in file.decode(video=0))

def test_real_codecs():
    names = dict(h264='h264', h265='hevc', vp9='vp9', av1='av1')
    for codec in CODECS:
        name, frames = codec_and_frames(video(1, 2, codec))
        assert (names[codec] in name or name == 'libdav1d') and frames == 8, (codec, name, frames)
        assert video(1, 2, codec) == video(1, 2, codec) != video(2, 2, codec)
    with pytest.raises(av.error.FFmpegError): codec_and_frames(truncated(video(1, 4)))


def test_the_same_bytes_every_time(made, tmp_path):
    def digests(root):
        files = [p for p in sorted(root.rglob('*')) if p.is_file()]
        return {p.relative_to(root).as_posix():hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    make_data(tmp_path)
    assert digests(tmp_path) == digests(made[0])


def test_lengths_of_prompts_and_numbers_of_images(made):
    root, minis = made
    words, prompts = tokenizer(), []
    for file in sorted((root/'datasets'/'HuggingFaceTB'/'smoltalk'/'data'/'all').glob('train-*')):
        for row in parquet.read_table(file).to_pylist():
            prompts.append(next(m['content'] for m in row['messages'] if m['role'] == 'user'))
    lengths = [len(words(p).input_ids) for p in prompts]
    assert min(lengths) == 1 and max(lengths) == 3000 and len(prompts) == minis['smoltalk'].records
    images = Counter()
    for file in sorted((root/'datasets'/'HuggingFaceM4').rglob('*.parquet')):
        images.update(len(row['images']) for row in parquet.read_table(file).to_pylist())
    assert {0, 1, 2, 3, 10} == set(images)


def test_a_zip_in_pieces_is_whole_when_joined(made):
    folder = made[0]/'datasets'/'nkp37'/'OpenVid-1M'
    pieces = [(folder/f'OpenVid_part73_parta{x}').read_bytes() for x in 'ab']
    names = zipfile.ZipFile(io.BytesIO(b''.join(pieces))).namelist()
    assert len(names) == 12 and not zipfile.is_zipfile(io.BytesIO(pieces[0]))


def test_a_difference_is_a_fault_that_names_its_step(tmp_path):
    r = Rehearsal(tmp_path)
    r.row('build a', 5, 4, {'broken':1}, expected=dict(samples_out=4, left_out={'broken':1}))
    assert not r.faults
    r.row('build b', 5, 3, {'broken':2}, expected=dict(samples_out=4, left_out={'broken':1}))
    assert r.faults == ["build b: samples_out is 3, expected 4; left_out is {'broken': 2}, "
        "expected {'broken': 1}"]
    assert [row['ok'] for row in r.rows] == [True, False]
    r.check('build a', True, 'no frames')
    assert r.rows[0]['ok'] and len(r.faults) == 1
    r.check('build a', False, 'no frames')
    assert not r.rows[0]['ok'] and r.faults[1] == 'build a: no frames'


def test_a_fault_is_told_and_ends_the_script_with_1(monkeypatch, capsys):
    from tests.rehearsal import steps
    faults = ['build openvid: samples_out is 3, expected 4']
    monkeypatch.setattr(steps, 'rehearse', lambda *args: faults)
    monkeypatch.setattr(sys, 'argv', [str(SCRIPT), '--quick'])
    main = runpy.run_path(str(SCRIPT))['main']
    assert main() == 1 and capsys.readouterr().out == f'rehearse: {faults[0]}\n'
    faults.clear()
    assert main() == 0


def test_other_weights_or_losses_are_a_fault(tmp_path):
    r = Rehearsal(tmp_path)
    for name, weight, loss in ('a', b'1', 2.), ('b', b'1', 2.), ('c', b'2', 2.), ('d', b'1', 3.):
        (tmp_path/name/'model').mkdir(parents=True)
        (tmp_path/name/'model'/'model.safetensors').write_bytes(weight)
        (tmp_path/name/'metrics.jsonl').write_text(json.dumps(dict(step=1, loss=loss))+'\n')
    for other, faults in ('b', 0), ('c', 1), ('d', 1):
        r.faults.clear()
        same_result(r, 'stage1', tmp_path/'a', tmp_path/other)
        assert len(r.faults) == faults, other


def test_a_folder_with_other_things_is_not_deleted(tmp_path):
    (tmp_path/'thesis.tex').touch()
    assert 'other things' in rehearse(tmp_path, tmp_path/'out.json')[0] and (tmp_path/'thesis.tex').exists()
    (tmp_path/'old').mkdir()
    (tmp_path/'old'/'.rehearsal').touch()
    (tmp_path/'old'/'left').touch()
    empty(tmp_path/'old')
    assert [p.name for p in (tmp_path/'old').iterdir()] == ['.rehearsal']


def test_a_command_that_fails_or_ends_too_early_is_a_fault(tmp_path):
    r, script = Rehearsal(tmp_path), tmp_path/'script.py'
    script.write_text('import sys\nprint("what went wrong")\nsys.exit(int(sys.argv[1]))\n')
    assert r.run('good', [script, 0]) > 0
    with pytest.raises(Fault, match='(?s)bad ended with 3, not 0.*what went wrong'): r.run('bad', [script, 3])
    assert set(r.run_all({'bad':[script, 2], 'good':[script, 0]})) == {'good', 'bad'}
    assert len(r.faults) == 1 and r.faults[0].startswith('bad ended with 2;')
    with pytest.raises(Fault, match='before it could be stopped'):
        until(lambda: False, Process([script, 0], tmp_path, tmp_path/'log'))


def test_quick_rehearsal(tmp_path):
    "All steps in small: their counts are the expected ones, and the result says with what they were made."
    words = [sys.executable, str(SCRIPT), '--quick', '--home', str(tmp_path/'home')]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-6000:]+done.stderr[-3000:]
    result = json.loads((tmp_path/'home'/'rehearsal.json').read_text())
    assert result['quick'] and result['info']['cpu'] and all(row['ok'] for row in result['steps'])
    names = [row['step'] for row in result['steps']]
    for name in ('build openvid', 'check finevideo', 'stage3', 'evaluate cauldron, video_first',
            'ablation B1-seed0', 'scaling cell 135M-grid16'):
        assert name in names
    left_out = next(row['left_out'] for row in result['steps'] if row['step'] == 'build openvid')
    assert left_out['a truncated video'] == left_out['a missing field'] == 1
    assert os.listdir(tmp_path) == ['home'], 'something was written elsewhere'
