"""Builds that are killed, builds whose workers die, builds by other engines: always the same bytes."""
import hashlib, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
from unittest import mock
import numpy as np, pytest
from fvlm.data.build import BuildError, build_shards, index_folder
from fvlm.data.check import check_shards
from fvlm.data.index import SPLITS, split_of, write_index
from fvlm.data.shards import FrameSpec, Shards, clips_of
from fvlm.data.sources import clips_from
from fvlm.world.scenes import World, make_scene, render

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, 'OMP_NUM_THREADS':'1', 'HF_HUB_OFFLINE':'1', 'PYTHONPATH':str(ROOT)}
SPEC = FrameSpec(40)
BUILD = '''
import json, sys
from fvlm.data.build import BuildError, build_shards
from fvlm.data.shards import FrameSpec

if __name__ == '__main__':
    notes, out, workers = sys.argv[1:4]
    clips = (json.loads(line) for line in open(notes))
    try: build_shards(clips, out, FrameSpec(40), per_shard=4, workers=int(workers), skip=tuple(sys.argv[4:]))
    except BuildError as e: sys.exit(f'build: {e}')
'''


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Videos, their clips as lines of JSON, a script that builds them, and an uninterrupted build."
    home = tmp_path_factory.mktemp('build')
    videos, world = home/'videos', World(glyphs=3)
    clips = [c for i in range(80) for c in clips_of(render(make_scene('lookup', i, world), videos), videos)]
    clips.insert(9, dict(clips[0], key='gone', media=[dict(type='video', path=f'{videos}/gone.mp4')]))
    (home/'clips.jsonl').write_text(''.join(json.dumps(c)+'\n' for c in clips))
    (home/'build.py').write_text(BUILD)
    build_shards(clips, home/'straight', SPEC, per_shard=4)
    return home


def start(home, out, workers=2, *skip, clips='clips.jsonl'):
    command = [sys.executable, str(home/'build.py'), str(home/clips), str(home/out), str(workers), *skip]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)

def finish(process, timeout=240):
    "Wait for the end: exit code and stderr."
    stderr = process.communicate(timeout=timeout)[1]
    return process.returncode, stderr

def wait_until(condition, process=None, timeout=240):
    stop = time.time()+timeout
    while not condition():
        assert process is None or process.poll() is None, f'it ended before: {process.stderr.read()[-2000:]}'
        assert time.time() < stop, 'it never happened'
        time.sleep(.005)

def clips_in(file): return [json.loads(line) for line in file.read_text().splitlines()]

def bytes_of(folder):
    return {p.name:hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob('*.tar'))}
def notes_of(folder): return sorted(p.name for p in folder.glob('0*.json'))

def same_build(a, b):
    "The same tars, the same index, the same report but for the time, and nothing left over."
    assert bytes_of(a) == bytes_of(b) and len(bytes_of(a)) > 1
    for name in ('index.npy', 'index.json'): assert (a/name).read_bytes() == (b/name).read_bytes()
    reports = [{**json.loads((f/'report.json').read_text()), 'seconds':0} for f in (a, b)]
    assert reports[0] == reports[1]
    assert not [p.name for f in (a, b) for p in f.iterdir() if p.name.startswith('.')]

def group_is_gone(group):
    try: os.killpg(group, 0)
    except ProcessLookupError: return True


def at_work(folder, shard):
    "Number of the living process that writes a shard."
    for part in folder.glob(f'.{shard:05d}.tar.*.part'):
        if Path('/proc', number := part.name.split('.')[-2]).exists(): return int(number)


def test_kill_9_changes_nothing(home):
    "Killed twice, each time somewhere else, then called again: the bytes of an uninterrupted build."
    killed = home/'killed'
    for goal in (2, 9):
        process = start(home, 'killed')
        wait_until(lambda: len(notes_of(killed)) >= goal, process)
        process.kill()
        finish(process)
        wait_until(lambda: group_is_gone(process.pid))  # the workers leave with their parent
    assert not (killed/'report.json').exists(), 'it was never killed'
    before = {n:(killed/n).stat().st_mtime_ns for n in notes_of(killed)}
    assert finish(start(home, 'killed'))[0] == 0
    assert {n:(killed/n).stat().st_mtime_ns for n in before} == before, 'finished shards were made again'
    same_build(killed, home/'straight')


def test_killed_at_any_place_of_a_shard(home, tmp_path):
    "Every state that a kill can leave: half a tar, a tar without its note, half an index, no report."
    def torn(change):
        clips = clips_in(home/'clips.jsonl')
        build_shards(clips, tmp_path/'torn', SPEC, per_shard=4)
        change(tmp_path/'torn')
        build_shards(clips, tmp_path/'torn', SPEC, per_shard=4)
        same_build(tmp_path/'torn', home/'straight')
    torn(lambda f: ((f/'00002.tar').rename(f/'.00002.tar.77.part'),
                    os.truncate(f/'.00002.tar.77.part', 3000), (f/'00002.json').unlink()))
    torn(lambda f: (f/'00003.json').unlink())
    torn(lambda f: ((f/'00003.json').rename(f/'.00003.json.a1b2'), (f/'report.json').unlink()))
    torn(lambda f: ((f/'index.npy').rename(f/'.index.77.npy'), (f/'report.json').unlink()))
    torn(lambda f: ((f/'index.json').unlink(), (f/'report.json').rename(f/'.report.json.a1b2')))


def test_a_worker_dies(home):
    "One line that names the clip; the next call goes on, and a clip that does it again can be skipped."
    clips = clips_in(home/'clips.jsonl')
    os.mkfifo(home/'videos'/'hangs.mp4')  # to open it is to wait
    clips[13] = dict(clips[13], key='hangs', media=[dict(type='video', path=f'{home}/videos/hangs.mp4')])
    (home/'hangs.jsonl').write_text(''.join(json.dumps(c)+'\n' for c in clips))
    dies = home/'dies'
    for workers in (1, 2):
        process = start(home, 'dies', workers, clips='hangs.jsonl')
        current = lambda: (dies/'.00003.tar.now').read_text().partition('\n')[0]
        wait_until(lambda: at_work(dies, 3) and current() == 'hangs' and len(notes_of(dies)) >= 3, process)
        os.kill(at_work(dies, 3), signal.SIGKILL)
        code, stderr = finish(process)
        lines = [l for l in stderr.splitlines() if l.startswith('build: ')]
        assert code and len(lines) == 1 and 'Traceback' not in stderr, stderr[-2000:]
        assert "'hangs'" in lines[0] and 'call again' in lines[0]
    assert finish(start(home, 'dies', 2, 'hangs', clips='hangs.jsonl'))[0] == 0
    kinds = json.loads((dies/'report.json').read_text())['kinds']
    assert kinds == {'no such file':1, 'left out by hand':1}
    changed = {n for n,h in bytes_of(dies).items() if h != bytes_of(home/'straight')[n]}
    assert changed == {'00003.tar'}


def test_two_builds_do_not_share_a_folder(home):
    clips = clips_in(home/'hangs.jsonl')
    process = start(home, 'shared', 0, clips='hangs.jsonl')
    wait_until(lambda: at_work(home/'shared', 3), process)
    with pytest.raises(BuildError, match='another build'):
        build_shards(clips, home/'shared', SPEC, per_shard=4)
    process.kill()
    finish(process)
    assert build_shards(clips, home/'shared', SPEC, per_shard=4, seconds_per_clip=5)['kinds'] == {
        'no such file':1, 'takes longer than # s':1}


def test_ctrl_c_is_quick(home):
    "Workers stop with their parent and without a word, also in the middle of a clip."
    process = start(home, 'stopped', 2, clips='hangs.jsonl')
    wait_until(lambda: at_work(home/'stopped', 3) and len(notes_of(home/'stopped')) > 4, process)
    os.killpg(process.pid, signal.SIGINT)
    stderr = finish(process, 60)[1]
    assert stderr.count('Traceback') <= 1 and 'KeyboardInterrupt' in stderr, stderr[-2000:]
    wait_until(lambda: group_is_gone(process.pid), timeout=60)


def test_a_script_without_main_guard_is_told(home):
    (home/'bare.py').write_text(BUILD.replace("if __name__ == '__main__':", 'if True:'))
    command = [sys.executable, str(home/'bare.py'), str(home/'clips.jsonl'), str(home/'bare'), '2']
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=240)
    last = [l for l in done.stderr.splitlines() if l.startswith('build: ')][-1]
    assert done.returncode and "__name__=='__main__'" in last, done.stderr[-2000:]


def test_ray_gives_the_same_bytes(home):
    os.environ.setdefault('RAY_raylet_start_wait_time_s', '300')  # a busy machine starts it slowly
    ray = pytest.importorskip('ray')
    clips = clips_in(home/'clips.jsonl')
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level='error')
        build_shards(clips, home/'ray', SPEC, per_shard=4, engine='ray', workers=2)
    finally: ray.shutdown()
    same_build(home/'ray', home/'straight')


def test_the_command_and_the_script_build_alike(home, tmp_path):
    "One table of captions, two ways in; and a mistake is one line."
    names = [Path(c['media'][0]['path']).name for c in clips_in(home/'clips.jsonl')[:8]]
    rows = [f'{name},"video, number {i}"' for i, name in enumerate(names)]
    (tmp_path/'captions.csv').write_text('\n'.join(['video,caption', *rows, '']))
    options = ['--media', str(home/'videos'), '--size', '40', '--per-shard', '4', '--tokenizer', 'tiny']
    def precompute(*args):
        command = [sys.executable, str(ROOT/'scripts'/'precompute.py'), *map(str, args)]
        return subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=240)
    done = precompute(tmp_path/'captions.csv', tmp_path/'script', *options, '--workers', '2')
    assert done.returncode == 0 and '8 samples' in done.stdout, done.stderr[-2000:]
    from argparse import ArgumentParser
    from fvlm.cli import run_build
    from fvlm.data.build import build_options
    build_options(parser := ArgumentParser())
    args = [str(tmp_path/'captions.csv'), str(tmp_path/'command'), *options, '--workers', '0']
    assert run_build(parser.parse_args(args)) == 0
    same_build(tmp_path/'script', tmp_path/'command')
    assert len(Shards(tmp_path/'script', '')) == 8
    done = precompute(tmp_path/'none.csv', tmp_path/'x')
    assert done.returncode == 2 and done.stderr.startswith('precompute: '), done.stderr[-2000:]
    assert done.stderr.count('\n') == 1


def test_killed_between_a_shard_and_its_index(home, tmp_path):
    "A video is replaced, its shard made again, the build killed: the next call writes the index."
    clips, out = clips_in(home/'clips.jsonl')[:8], tmp_path/'out'
    video = tmp_path/'a.mp4'
    shutil.copy(clips[0]['media'][0]['path'], video)
    clips[0] = dict(clips[0], media=[dict(type='video', path=str(video))])
    build_shards(clips, out, SPEC, per_shard=4)
    before = np.load(out/'index.npy')
    shutil.copy(longer(home), video)
    with mock.patch('fvlm.data.build.write_index', side_effect=KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt): build_shards(clips, out, SPEC, per_shard=4)
    assert build_shards(clips, out, SPEC, per_shard=4)['frames'] == 8*3+2
    assert np.load(out/'index.npy')['length'][0] > before['length'][0]
    shards = Shards(out, '')
    assert [len(shards[i]['pixels']) for i in range(0, len(shards), 3)] == [5]+[3]*7


def longer(home):
    "A video of five seconds."
    row = render(make_scene('lookup', 999, World(glyphs=3, frames=5)), home/'videos')[0]
    return home/'videos'/row['video']


def test_two_workers_stop_a_build_that_loses_too_much(home, tmp_path):
    "The drive is not mounted: an error before the end, finished shards kept, the same call goes on."
    videos, clips = tmp_path/'videos', []
    for i in range(440):
        key, path = f'p{i}', videos/f'{i%40}.mp4'
        clips.append(dict(key=key, source='s', media=[dict(type='video', path=str(path))],
                          chats=[dict(key=key, question='what?', answer='a thing')]))
    call = lambda: build_shards(clips, tmp_path/'out', FrameSpec(8, 1), per_shard=20, workers=2, max_bad=.1)
    why = r'no such file\); at most 10.0% may; mend them and call again'
    with pytest.raises(BuildError, match=why): call()
    notes = notes_of(tmp_path/'out')
    assert 10 <= len(notes) < 22 and not (tmp_path/'out'/'index.npy').exists()
    assert json.loads((tmp_path/'out'/'failures.json').read_text())['kinds'].keys() == {'no such file'}
    videos.mkdir()
    for i, c in enumerate(clips_in(home/'clips.jsonl')[10:50]):
        shutil.copy(c['media'][0]['path'], videos/f'{i}.mp4')
    assert call()['samples'] == 440


def test_a_table_that_repeats_its_videos(home, tmp_path):
    "LLaVA-Video: three tables about the same videos; each is decoded and stored once, with all its chats."
    names = [Path(c['media'][0]['path']).name for c in clips_in(home/'clips.jsonl')[:3]]
    for kind in ('oe', 'mc', 'cap'):
        rows = [dict(id=n, video=n, data_source='0_30_s', conversations=[
            {'from':'human', 'value':f'<image>\n{kind}?'}, {'from':'gpt', 'value':'Yes.'}]) for n in names]
        (tmp_path/f'{kind}.json').write_text(json.dumps(rows))
    clips = lambda: clips_from('auto', tmp_path, media=home/'videos')
    report = build_shards(clips(), tmp_path/'shards', SPEC, per_shard=2)  # inside the annotations
    assert [report[k] for k in ('clips', 'samples', 'frames', 'failed')] == [3, 9, 9, 0]
    assert build_shards(clips(), tmp_path/'shards', SPEC, per_shard=2) == report


def renamed(home, prefix):
    clips = [c for c in clips_in(home/'clips.jsonl') if c['key'] != 'gone']
    return [dict(c, key=prefix+c['key'], source=prefix or 's',
                 chats=[dict(chat, key=prefix+chat['key']) for chat in c['chats']]) for c in clips]

def test_no_leak_between_splits(home, tmp_path):
    "The same videos in two data sets, under other names: no video stands in two splits, also when indexed."
    clips, copies = renamed(home, ''), renamed(home, 'copy-')
    assert any(split_of(a['key']) != split_of(b['key']) for a, b in zip(clips, copies))
    build_shards([*clips, *copies], tmp_path/'both', SPEC, per_shard=40)
    assert set(check_shards(tmp_path/'both').reasons) == {'same content', 'uncounted tokens'}
    splits = np.load(tmp_path/'both'/'index.npy')['split'].reshape(2, -1)
    assert (splits[0] == splits[1]).all() and len(set(splits[0])) == 3
    assert [list(SPLITS)[s] for s in splits[0][::3]] == [split_of(c['key']) for c in clips]
    (tmp_path/'foreign').mkdir()
    for tar in (tmp_path/'both').glob('*.tar'): shutil.copy(tar, tmp_path/'foreign')
    index_folder(tmp_path/'foreign')
    assert np.load(tmp_path/'foreign'/'index.npy').tolist() == np.load(tmp_path/'both'/'index.npy').tolist()


def test_held_out_data_are_nested(tmp_path):
    "A number and not a share; fewer are a part of more; given splits stay."
    rows = [dict(key=f'k{i}', group=f'g{i}', content='', source='s', task='', split='test' if i < 5 else '',
                 frames=0, images=0, chat=0, offset=i, length=1, tokens=1) for i in range(50_000)]
    held = []
    for n in (500, 2000, 10_000):
        write_index(tmp_path, [('a.tar', rows)], held_out=n)
        split = np.load(tmp_path/'index.npy')['split']
        held.append([set(np.flatnonzero(split == s)) for s in (1, 2)])
        expected = min(n, 5000)
        assert all(abs(len(h)-expected) < 5*expected**.5+5 for h in held[-1])
        assert set(range(5)) <= held[-1][1]
    for fewer, more in zip(held, held[1:]): assert fewer[0] <= more[0] and fewer[1] <= more[1]
    assert [list(SPLITS)[s] for s in split[5:]] == [split_of(f'g{i}') for i in range(5, 50_000)]
