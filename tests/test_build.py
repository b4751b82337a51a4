"""Builds that are killed, builds whose workers die, builds by other engines: always the same bytes."""
import hashlib, json, os, signal, subprocess, sys, time
from pathlib import Path
import pytest
from fvlm.data.build import BuildError, build_shards
from fvlm.world.scenes import World, make_scene, render
from fvlm.data.shards import FrameSpec, Shards, clips_of

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, 'OMP_NUM_THREADS':'1', 'HF_HUB_OFFLINE':'1', 'PYTHONPATH':str(ROOT)}
CUT = FrameSpec(40)
BUILD = '''
import json, sys
from fvlm.data.build import BuildError, build_shards
from fvlm.data.shards import Cut

if __name__ == '__main__':
    notes, out, workers = sys.argv[1:4]
    clips = (json.loads(line) for line in open(notes))
    try: build_shards(clips, out, Cut(40), per_shard=4, workers=int(workers), skip=tuple(sys.argv[4:]))
    except BuildError as e: sys.exit(f'build: {e}')
'''


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Films, their clips as lines of JSON, a script that builds them, and an uninterrupted build."
    home = tmp_path_factory.mktemp('films')
    clips = [c for i in range(80) for c in clips_of(render(make_scene('lookup', i, World(glyphs=3)),
        home/'films'), home/'films')]
    clips.insert(9, dict(clips[0], key='gone', media=[dict(type='video', path=f'{home}/films/gone.mp4')]))
    (home/'clips.jsonl').write_text(''.join(json.dumps(c)+'\n' for c in clips))
    (home/'build.py').write_text(BUILD)
    build_shards(clips, home/'straight', CUT, per_shard=4)
    return home


def start(home, out, workers=2, *skip, notes='clips.jsonl'):
    words = [sys.executable, str(home/'build.py'), str(home/notes), str(home/out), str(workers), *skip]
    return subprocess.Popen(words, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True)

def ends(process, timeout=240):
    "Exit code and what was said."
    said = process.communicate(timeout=timeout)[1]
    return process.returncode, said

def until(happens, process=None, timeout=240):
    stop = time.time()+timeout
    while not happens():
        assert process is None or process.poll() is None, f'it ended before: {process.stderr.read()[-2000:]}'
        assert time.time() < stop, 'it never happened'
        time.sleep(.005)

def bytes_of(folder):
    return {p.name:hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob('*.tar'))}
def notes_of(folder): return sorted(p.name for p in folder.glob('0*.json'))

def same_build(a, b):
    "The same tars, the same index, the same report but for the time, and nothing left over."
    assert bytes_of(a) == bytes_of(b) and len(bytes_of(a)) > 1
    assert (a/'index.npy').read_bytes() == (b/'index.npy').read_bytes() and (a/'index.json').read_text() == (
        b/'index.json').read_text()
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
        until(lambda: len(notes_of(killed)) >= goal, process)
        process.kill()
        ends(process)
        until(lambda: group_is_gone(process.pid))  # the workers leave with their parent
    assert not (killed/'report.json').exists(), 'it was never killed'
    before = {n:(killed/n).stat().st_mtime_ns for n in notes_of(killed)}
    assert ends(start(home, 'killed'))[0] == 0
    assert {n:(killed/n).stat().st_mtime_ns for n in before} == before, 'finished shards were made again'
    same_build(killed, home/'straight')


def test_killed_at_any_place_of_a_shard(home, tmp_path):
    "Every state that a kill can leave: half a tar, a tar without its note, half an index, no report."
    def torn(change):
        clips = [json.loads(l) for l in (home/'clips.jsonl').read_text().splitlines()]
        build_shards(clips, tmp_path/'torn', CUT, per_shard=4)
        change(tmp_path/'torn')
        build_shards(clips, tmp_path/'torn', CUT, per_shard=4)
        same_build(tmp_path/'torn', home/'straight')
    torn(lambda f: ((f/'00002.tar').rename(f/'.00002.tar.77.part'), os.truncate(f/'.00002.tar.77.part', 3000),
        (f/'00002.json').unlink()))
    torn(lambda f: (f/'00003.json').unlink())
    torn(lambda f: ((f/'00003.json').rename(f/'.00003.json.a1b2'), (f/'report.json').unlink()))
    torn(lambda f: ((f/'index.npy').rename(f/'.index.77.npy'), (f/'report.json').unlink()))
    torn(lambda f: ((f/'index.json').unlink(), (f/'report.json').rename(f/'.report.json.a1b2')))


def test_a_worker_dies(home):
    "One line that names the clip; the next call goes on, and a clip that does it again can be skipped."
    clips = [json.loads(l) for l in (home/'clips.jsonl').read_text().splitlines()]
    os.mkfifo(home/'films'/'hangs.mp4')  # to open it is to wait
    clips[13] = dict(clips[13], key='hangs', media=[dict(type='video', path=f'{home}/films/hangs.mp4')])
    (home/'hangs.jsonl').write_text(''.join(json.dumps(c)+'\n' for c in clips))
    dies = home/'dies'
    for workers in (1, 2):
        process = start(home, 'dies', workers, notes='hangs.jsonl')
        until(lambda: at_work(dies, 3) and (dies/'.00003.tar.now').read_text().partition('\n')[0] == 'hangs'
            and len(notes_of(dies)) >= 3, process)
        os.kill(at_work(dies, 3), signal.SIGKILL)
        code, said = ends(process)
        lines = [l for l in said.splitlines() if l.startswith('build: ')]
        assert code and len(lines) == 1 and "'hangs'" in lines[0] and 'call again' in lines[
            0] and 'Traceback' not in said, said[-2000:]
    assert ends(start(home, 'dies', 2, 'hangs', notes='hangs.jsonl'))[0] == 0
    kinds = json.loads((dies/'report.json').read_text())['kinds']
    assert kinds == {'no such file':1, 'left out by hand':1}
    changed = {n for n,h in bytes_of(dies).items() if h != bytes_of(home/'straight')[n]}
    assert changed == {'00003.tar'}


def test_two_builds_do_not_share_a_folder(home):
    clips = [json.loads(l) for l in (home/'hangs.jsonl').read_text().splitlines()]
    process = start(home, 'shared', 0, notes='hangs.jsonl')
    until(lambda: at_work(home/'shared', 3), process)
    with pytest.raises(BuildError, match='another build'):
        build_shards(clips, home/'shared', CUT, per_shard=4)
    process.kill()
    ends(process)
    assert build_shards(clips, home/'shared', CUT, per_shard=4, seconds_per_clip=5)['kinds'] == {
        'no such file':1, 'takes longer than # s':1}


def test_ctrl_c_is_quick(home):
    "Workers stop with their parent and without a word, also in the middle of a clip."
    process = start(home, 'stopped', 2, notes='hangs.jsonl')
    until(lambda: at_work(home/'stopped', 3) and len(notes_of(home/'stopped')) > 4, process)
    os.killpg(process.pid, signal.SIGINT)
    said = ends(process, 60)[1]
    assert said.count('Traceback') <= 1 and 'KeyboardInterrupt' in said, said[-2000:]
    until(lambda: group_is_gone(process.pid), timeout=60)


def test_a_script_without_main_guard_is_told(home):
    (home/'bare.py').write_text(BUILD.replace("if __name__ == '__main__':", 'if True:'))
    done = subprocess.run([sys.executable, str(home/'bare.py'), str(home/'clips.jsonl'), str(home/'bare'),
        '2'], env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode and "__name__=='__main__'" in [l for l in done.stderr.splitlines()
        if l.startswith('build: ')][-1], done.stderr[-2000:]


def test_ray_gives_the_same_bytes(home):
    os.environ.setdefault('RAY_raylet_start_wait_time_s', '300')  # a busy machine starts it slowly
    ray = pytest.importorskip('ray')
    clips = [json.loads(l) for l in (home/'clips.jsonl').read_text().splitlines()]
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level='error')
        build_shards(clips, home/'ray', CUT, per_shard=4, engine='ray', workers=2)
    finally: ray.shutdown()
    same_build(home/'ray', home/'straight')


def test_the_command_and_the_script_build_alike(home, tmp_path):
    "One table of captions, two ways in; and a mistake is one line."
    films = [json.loads(l)['media'][0]['path'] for l in (home/'clips.jsonl').read_text().splitlines()[:8]]
    (tmp_path/'captions.csv').write_text('video,caption\n' + ''.join(f'{Path(f).name},"film, number {i}"\n'
        for i, f in enumerate(films)))
    words = [str(tmp_path/'captions.csv'), '--media', str(home/'films'), '--size', '40', '--per-shard', '4',
        '--tokenizer', 'tiny']
    done = subprocess.run([sys.executable, str(ROOT/'scripts'/'precompute.py'), words[0],
        str(tmp_path/'script'), *words[1:], '--workers', '2'], env=ENV, capture_output=True, text=True,
        timeout=240)
    assert done.returncode == 0 and '8 samples' in done.stdout, done.stderr[-2000:]
    from fvlm.cli import data_options, run_data
    from argparse import ArgumentParser
    data_options(parser := ArgumentParser())
    assert run_data(parser.parse_args(['build', words[0], str(tmp_path/'command'), *words[1:], '--workers',
        '0'])) == 0
    same_build(tmp_path/'script', tmp_path/'command')
    assert len(Shards(tmp_path/'script', '')) == 8
    done = subprocess.run([sys.executable, str(ROOT/'scripts'/'precompute.py'), str(tmp_path/'none.csv'),
        str(tmp_path/'x')], env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2 and done.stderr.startswith('precompute: ') and done.stderr.count(
        '\n') == 1, done.stderr[-2000:]
