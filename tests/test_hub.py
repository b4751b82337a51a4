"""Downloads from a stand-in of the hub: what comes, what is refused, what a kill loses (nothing)."""
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
from huggingface_hub import constants

import fvlm
from fvlm.cli import main
from fvlm.data import hub as fetching
from fvlm.data.hub import (REMOTE, FetchPlan, HubError, clips_of_slice, fetch_files, parse_slice,
                           plan_fetch)
from fvlm.data.shards import Shards
from tests.hub_server import serve_hub
from tests.rehearsal.miniatures import make_data
from tests.rehearsal.models import make_models

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A folder of repositories, and what is known of each data set there."
    root = tmp_path_factory.mktemp('hub')
    make_models(root)
    return root, make_data(root, quick=True)


@pytest.fixture
def hub(made, monkeypatch):
    "The address of a hub that this process may use."
    with serve_hub(made[0]) as hub:
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
        monkeypatch.setenv('HF_ENDPOINT', hub)
        monkeypatch.setenv('FVLM_QUIET', '1')
        fetching._list_files.cache_clear()
        yield hub


@pytest.fixture
def wait(monkeypatch): monkeypatch.setattr(fetching.time, 'sleep', lambda seconds: None)


def environment(hub, **more):
    return os.environ | dict(HF_ENDPOINT=hub, HF_HUB_OFFLINE='0', PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1',
        FVLM_QUIET='1') | more


def files_in(folder):
    found = (p for p in Path(folder).rglob('*') if p.is_file())
    return sorted(p.relative_to(folder).as_posix() for p in found if '.cache' not in p.parts)


def refused(capsys, *words):
    "The one line that a command ends with."
    assert main(['fetch', *map(str, words)]) == 2
    err = capsys.readouterr().err
    assert err.startswith('fvlm: ') and err.count('\n') == 1, err
    return err


def until(condition, process=None, seconds=240):
    stop = time.time()+seconds
    while not condition():
        assert process is None or process.poll() is None, f'it ended before: {process.communicate()}'
        assert time.time() < stop, 'it never happened'
        time.sleep(.01)


# -- what comes

def test_every_data_set_comes_as_it_lies_there(made, hub, tmp_path, capsys):
    root, data = made
    names = [n for n, r in REMOTE.items() if r.build]
    assert set(names) <= set(data)
    for name in names:
        out = tmp_path/name
        assert main(['fetch', name, '--out', str(out), '--yes']) == 0, capsys.readouterr().err
        assert files_in(out) == sorted(data[name].files), name
        for f in data[name].files:
            assert (out/f).read_bytes() == (root/'datasets'/REMOTE[name].repo/f).read_bytes(), f
        shown = capsys.readouterr().out
        for word in (REMOTE[name].licence, REMOTE[name].link, 'free disk', 'all there', REMOTE[name].build):
            assert word in shown, (name, word)
        hub.requests.clear()
        assert plan_fetch(name, out=out).missing == {}
        assert main(['fetch', name, '--out', str(out), '--yes']) == 0
        assert not [r for r in hub.requests if '/resolve/' in r[1]], 'fetched again'
        capsys.readouterr()


def test_slices_are_disjoint_and_whole(hub, tmp_path):
    whole = plan_fetch('openvid', out=tmp_path).files
    tables = {f for f in whole if REMOTE['openvid'].wants(f) == 'tables'}
    for n in (1, 2, 3):
        slices = [set(plan_fetch('openvid', (k, n), tmp_path).files) for k in range(1, n+1)]
        assert all(tables <= s for s in slices)
        assert Counter(f for s in slices for f in s-tables) == Counter(set(whole)-tables)
        assert all(len({f for f in s if '_part73' in f}) in (0, 2) for s in slices), 'a zip was parted'
    with pytest.raises(HubError, match='only 3 media files'): plan_fetch('openvid', (1, 4), tmp_path)
    only = plan_fetch('llava-video', out=tmp_path, only='0_30_s*').files
    assert {f.partition('/')[0] for f in only if f.endswith('.gz')} == {'0_30_s_academic_v0_1'}
    for text in ('0/2', '3/2', '1', 'a/b', '1/0'):
        with pytest.raises(HubError, match='K/N'): parse_slice(text)


def test_models_load_by_name_without_a_network(made, tmp_path):
    names = [n for n, r in REMOTE.items() if not r.build]
    assert len(names) == 6
    fetch = f'from fvlm.cli import main\nfor n in {names}: assert main(["fetch", n, "--yes"]) == 0'
    with serve_hub(made[0]) as hub:
        env = environment(hub, FVLM_CACHE=str(tmp_path/'cache'), HOME=str(tmp_path/'home'))
        done = subprocess.run([sys.executable, '-c', fetch], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not [p for p in (tmp_path/'home').rglob('*') if p.is_file()], 'not below FVLM_CACHE'
    load = '''
from fvlm.model.encoder import load_vit
from fvlm.model.foveated import FoveatedVLM, load_tokenizer
for vision in 'dinov2-small', 'dinov2-base', 'dinov3-vits16-pretrain-lvd1689m':
    model, tokenizer = FoveatedVLM.from_backbones(f'facebook/{vision}', 'HuggingFaceTB/SmolLM2-135M-Instruct')
    print(type(model.vision).__name__)
for size in '360M', '1.7B': load_tokenizer(f'HuggingFaceTB/SmolLM2-{size}-Instruct')
'''
    offline = env | dict(HF_HUB_OFFLINE='1', HF_ENDPOINT='http://127.0.0.1:9')
    done = subprocess.run([sys.executable, '-c', load], env=offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ['Dinov2Model', 'Dinov2Model', 'DINOv3ViTModel']


# -- what is refused

def test_refusals_are_one_line_with_the_mend(hub, tmp_path, capsys, wait):
    assert 'choose from openvid' in refused(capsys, 'openvids')
    assert 'K/N' in refused(capsys, 'openvid', '--slice', '3')
    assert 'no media' in refused(capsys, 'webvid', '--slice', '1/2')
    assert 'leave --out out' in refused(capsys, 'dinov2-small', '--out', tmp_path)
    assert 'add --yes' in refused(capsys, 'openvid', '--out', tmp_path)
    hub.gated.add(REMOTE['openvid'].repo)
    assert 'HF_TOKEN' in refused(capsys, 'openvid', '--out', tmp_path, '--yes')
    with mock.patch.dict(os.environ, HF_TOKEN='hf_of_somebody_else'):
        assert 'accept its terms' in refused(capsys, 'openvid', '--out', tmp_path, '--yes')
    hub.gated.clear()
    usage = shutil.disk_usage(tmp_path)._replace(free=30_000)
    with mock.patch.object(fetching.shutil, 'disk_usage', lambda path: usage):
        for words in ((), ('--dry-run',), ('--yes',)):
            assert '--slice 1/' in refused(capsys, 'openvid', '--out', tmp_path, *words)
        assert 'FVLM_CACHE' in refused(capsys, 'smollm2-1.7b')
    hub.down = True
    fetching._list_files.cache_clear()
    assert 'answered 503' in refused(capsys, 'openvid', '--out', tmp_path, '--yes')
    assert files_in(tmp_path) == []


def test_without_a_network(tmp_path, monkeypatch, capsys, wait):
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert 'HF_HUB_OFFLINE=0' in refused(capsys, 'smoltalk', '--yes')
    assert main(['fetch', 'smoltalk', '--dry-run']) == 0
    assert '2.0 GB' in (out := capsys.readouterr().out) and 'Apache-2.0' in out
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    fetching._list_files.cache_clear()
    assert 'did not answer' in refused(capsys, 'smoltalk', '--yes')


def test_webvid_says_where_its_videos_are_not(hub, tmp_path, capsys):
    assert main(['fetch', 'webvid', '--out', str(tmp_path), '--dry-run']) == 0
    said = capsys.readouterr().out
    assert 'no longer distributed' in said and 'video2dataset' in said and files_in(tmp_path) == []


def test_each_clip_belongs_to_one_slice(tmp_path):
    files = {'a.zip':1, 'b.zip':1}
    def belongs(name, k, *media):
        plan = FetchPlan(name, REMOTE[name], tmp_path, (k, 2), files=dict([[*files.items()][k-1]]))
        return clips_of_slice(plan, {})(dict(media=list(media)))
    first, second = (dict(path=f'{tmp_path}/{f}', member='v.mp4') for f in files)
    assert [belongs('openvid', k, first) for k in (1, 2)] == [True, False]
    assert [belongs('openvid', k, second) for k in (1, 2)] == [False, True]
    assert [belongs('openvid', k, first, second) for k in (1, 2)] == [False, False]
    assert [belongs('openvid', k) for k in (1, 2)] == [True, False], 'text of a table that lies beside'
    assert [belongs('cauldron', k) for k in (1, 2)] == [True, True], 'text of a table that is the slice'
    assert [belongs('cauldron', k, dict(data=b'an image')) for k in (1, 2)] == [True, True]
    assert belongs('webvid', 1, dict(path='/elsewhere/v.mp4'))


def test_a_fault_of_this_code_is_not_taken_for_the_network(hub, tmp_path):
    plan = plan_fetch('smoltalk', out=tmp_path)
    with mock.patch.object(fetching, 'hf_hub_download', side_effect=TypeError('a bug')):
        with pytest.raises(TypeError, match='a bug'): fetch_files(plan)


# -- broken connections and kills

def test_broken_connections(made, hub, tmp_path, wait):
    hub.errors[:] = [503]
    plan, received = plan_fetch('openvid', out=tmp_path), []
    assert plan.problem is None and not hub.errors
    hub.cut['OpenVid_part0.zip'], hub.cut['OpenVid-1M.csv'] = [100, 0, 5000], [1]
    hub.errors[:] = [503, 429, 500]
    fetch_files(plan, received.append)
    assert sum(received) == sum(plan.files.values()) and plan.missing == {}
    source = made[0]/'datasets'/plan.remote.repo
    for f in plan.files: assert (tmp_path/f).read_bytes() == (source/f).read_bytes()


def test_a_file_that_has_to_start_again_is_counted_once(hub, tmp_path, wait):
    calls, received, real = [], [], fetching.hf_hub_download
    def fails_at_first(repo, file, **options):
        calls.append(file)
        if calls.count(file) > 1: return real(repo, file, **options)
        options['tqdm_class'](total=10).update(7)
        raise OSError('Consistency check failed')
    plan = plan_fetch('openvid', out=tmp_path)
    with mock.patch.object(fetching, 'hf_hub_download', fails_at_first): fetch_files(plan, received.append)
    assert set(Counter(calls).values()) == {2} and sum(received) == sum(plan.files.values())


def test_a_killed_fetch_goes_on(made, tmp_path):
    with serve_hub(made[0]) as hub:
        command = [sys.executable, '-m', 'fvlm.cli', 'fetch', 'llava-video', '--yes']
        hub.pause = .5
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(hub), stdout=subprocess.DEVNULL)
        until(lambda: len(files_in(tmp_path)) >= 5, process)
        process.kill()
        process.wait()
        before, hub.pause = files_in(tmp_path/'raw/llava-video'), 0
        assert len(before) < len(made[1]['llava-video'].files)
        hub.requests.clear()
        subprocess.run(command, cwd=tmp_path, env=environment(hub), check=True, capture_output=True)
        paths = [path.partition('/resolve/')[2] for method, path, _ in hub.requests if method == 'GET']
        got = [path.partition('/')[2] for path in paths]
        assert not set(got) & set(before), 'what was whole was fetched again'
        assert files_in(tmp_path/'raw/llava-video') == sorted(made[1]['llava-video'].files)


def test_ctrl_c(made, tmp_path):
    with serve_hub(made[0]) as hub:
        hub.pause = 1
        command = [sys.executable, '-m', 'fvlm.cli', 'fetch', 'openvid', '--yes']
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(hub), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
        until(lambda: [r for r in hub.requests if r[0] == 'GET' and '/resolve/' in r[1]], process)
        process.send_signal(signal.SIGINT)
        code, output = ends(process)
        assert code == 130 and 'stopped; whole files are kept' in output and 'Traceback' not in output, output


def prepare(hub, folder, *more, name='openvid'):
    command = [sys.executable, str(ROOT/'scripts/prepare.py'), name, f'data/{name}', '--size', '32',
        '--max-bad', '.9', '--tokenizer', 'tiny', *more]
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(command, cwd=folder, env=environment(hub), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True)


def ends(process):
    output = process.communicate(timeout=300)[0]
    return process.returncode, output


def keys_of(folder):
    shards = Shards(str(folder), '')
    return Counter(shards[i]['row']['key'] for i in range(len(shards)))


def tars(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*.tar')}


def test_slice_by_slice_and_killed(made, tmp_path):
    with serve_hub(made[0]) as hub:
        code, output = ends(prepare(hub, tmp_path/'straight', '--slices', '3'))
        assert code == 0 and '1 clips have their media in no slice' in output, output
        straight, killed = (tmp_path/n/'data/openvid' for n in ('straight', 'killed'))
        raw = tmp_path/'killed/raw/openvid'
        keys = keys_of(straight)
        assert len(keys) == made[1]['openvid'].samples and set(keys.values()) == {1}
        tables = ['data/train/OpenVid-1M.csv', 'data/train/OpenVidHD.csv']
        assert files_in(tmp_path/'straight/raw/openvid') == tables
        reports = [json.loads(p.read_text()) for p in straight.glob('[0-9]/report.json')]
        notes = json.loads((straight/'prepare.json').read_text())
        left_out = sum(r['failed'] for r in reports)+notes['absent']
        assert (len(reports), left_out) == (3, made[1]['openvid'].left_out.total()), 'counted once'
        hub.pause = .3
        for moment in (raw/'OpenVid_part0.zip', killed/'1/00000.tar', killed/'2/build.json',
                killed/'3/build.json'):
            process = prepare(hub, tmp_path/'killed', '--slices', '3')
            until(moment.exists, process)
            process.kill()
            process.communicate()
        hub.pause = 0
        code, output = ends(prepare(hub, tmp_path/'killed', '--slices', '3'))
        assert code == 0, output
        assert tars(killed) == tars(straight)
        assert files_in(raw) == tables
        code, output = ends(prepare(hub, tmp_path/'killed', '--slices', '2'))
        assert code == 2 and 'begun with slices 3' in output and 'Traceback' not in output
        assert ends(prepare(hub, tmp_path/'killed', '--slices', '3', '--workers', '1'))[0] == 0
        assert tars(killed) == tars(straight)


def test_slices_of_tables_that_hold_their_media(made, tmp_path):
    repo = REMOTE['cauldron'].repo
    shutil.copytree(made[0]/'datasets'/repo, tmp_path/'hub/datasets'/repo)
    with serve_hub(tmp_path/'hub') as hub:
        code, output = ends(prepare(hub, tmp_path, '--slices', '2', name='cauldron'))
        assert code == 0 and '0 clips have their media in no slice' in output, output
        path = tmp_path/'data/cauldron/prepare.json'
        notes = json.loads(path.read_text())
        path.write_text(json.dumps(notes | dict(slices={'1':notes['slices']['1']})))
        (tmp_path/'hub/datasets'/repo/'README.md').write_text('another commit')
        code, output = ends(prepare(hub, tmp_path, '--slices', '2', name='cauldron'))
        assert code == 2 and 'answered 404' in output, 'slices of two commits were put together'
    assert keys_of(tmp_path/'data/cauldron').total() == made[1]['cauldron'].samples
    assert files_in(tmp_path/'raw/cauldron') == []


def one_line(result, *words):
    "What `prepare.py` ends with when something is wrong."
    code, output = result
    last = output.splitlines()[-1]
    assert code == 2 and last.startswith('prepare: ') and 'Traceback' not in output, output
    for word in words: assert word in last, (word, output)


def test_no_error_is_taken_for_a_slice_without_clips(made, tmp_path):
    raw, notes = tmp_path/'a/raw/openvid/OpenVid_part0.zip', tmp_path/'a/data/openvid/prepare.json'
    with serve_hub(made[0]) as hub:
        hub.pause = .3
        process = prepare(hub, tmp_path/'a', '--slices', '3', '--quality', '70', '--per-shard', '2')
        until((tmp_path/'a/data/openvid/1/00000.tar').exists, process)
        process.kill()
        process.communicate()
        hub.pause, changed = 0, ('--slices', '3', '--quality', '80', '--per-shard', '2')
        one_line(ends(prepare(hub, tmp_path/'a', *changed)), 'begun with quality 70')
        notes.unlink()
        one_line(ends(prepare(hub, tmp_path/'a', *changed)), 'openvid/1', 'begun with quality 70')
        assert raw.is_file(), 'deleted before it was built'
        (slice := tmp_path/'b/data/openvid/1').mkdir(parents=True)
        handle = os.open(slice, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        one_line(ends(prepare(hub, tmp_path/'b', '--slices', '3')), 'another build')
        os.close(handle)
    assert json.loads((tmp_path/'b/data/openvid/prepare.json').read_text())['slices'] == {}


@pytest.mark.parametrize('name,n', [('openvid', '3'), ('cauldron', '2')])
def test_a_damaged_archive_is_no_slice_without_clips(made, tmp_path, name, n):
    repo = REMOTE[name].repo
    there = shutil.copytree(made[0]/'datasets'/repo, tmp_path/'hub/datasets'/repo)
    path = sorted(there.rglob({'openvid':'*part1.zip', 'cauldron':'*.parquet'}[name]))[-1]
    path.write_bytes(path.read_bytes()[:path.stat().st_size*2//3])
    file = path.relative_to(there).as_posix()
    with serve_hub(tmp_path/'hub') as hub:
        one_line(ends(prepare(hub, tmp_path, '--slices', n, name=name)), file, 'damaged', '--damaged-ok')
        assert (tmp_path/'raw'/name/file).is_file(), 'its media are gone'
        notes = json.loads((tmp_path/'data'/name/'prepare.json').read_text())
        assert [*notes['slices']] == ['1']
        if name == 'cauldron': return  # nothing can be read of its damaged table
        code, output = ends(prepare(hub, tmp_path, '--slices', n, '--damaged-ok', name=name))
        assert code == 0, output
    assert 0 < keys_of(tmp_path/'data'/name).total() < made[1][name].samples


def test_typing_errors_of_prepare_are_one_line(tmp_path):
    for words, said in ((('--slices', '0'), "--slices: '0'"), (('--quality', '0'), "--quality: '0'")):
        one_line(ends(prepare('http://127.0.0.1:9', tmp_path, *words)), said, 'at least 1'*('slices' in said))
    (notes := tmp_path/'data/openvid/prepare.json').parent.mkdir(parents=True)
    for text in '{}', '{"settings": ', '[]', '{"settings": {}, "commit": "", "slices": 3}':
        notes.write_text(text)
        one_line(ends(prepare('http://127.0.0.1:9', tmp_path)), 'prepare.json is damaged', 'delete it')


def test_a_model_that_has_changed_at_the_hub(made, tmp_path):
    repo = 'HuggingFaceTB/SmolLM2-135M-Instruct'
    there = shutil.copytree(made[0]/'models'/repo, tmp_path/'hub/models'/repo)
    with serve_hub(tmp_path/'hub') as hub:
        env = environment(hub, FVLM_CACHE=str(tmp_path/'cache'), HOME=str(tmp_path/'home'))
        command = [sys.executable, '-m', 'fvlm.cli', 'fetch', 'smollm2-135m', '--yes']
        def current():
            folder = next((tmp_path/'cache').rglob('refs')).parent
            return folder/'snapshots'/(folder/'refs/main').read_text()
        def fetch():
            hub.requests.clear()
            subprocess.run(command, env=env, check=True, capture_output=True)
            got = {path.rpartition('/')[2] for method, path, _ in hub.requests
                if method == 'GET' and '/resolve/' in path}
            wanted = [f for f in files_in(there) if REMOTE['smollm2-135m'].wants(f)]
            assert files_in(current()) == wanted
            for f in wanted: assert (current()/f).read_bytes() == (there/f).read_bytes(), f
            return got
        assert 'model.safetensors' in fetch()
        config = json.loads((there/'config.json').read_text())
        (there/'config.json').write_text(json.dumps(config | dict(a_new_field=1)))
        assert fetch() == {'config.json'}
        weights = bytearray((there/'model.safetensors').read_bytes())
        weights[-4] ^= 1
        (there/'model.safetensors').write_bytes(weights)
        assert fetch() == {'model.safetensors'}, 'changed weights of the same size'
        assert fetch() == set()
        before = current()
        config['a_new_field'] = 2
        (there/'config.json').write_text(json.dumps(config))
        (there/'model.safetensors').write_bytes(weights[::-1])
        hub.pause = 2
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: len([r for r in hub.requests if r[0] == 'GET' and '/resolve/' in r[1]]) > 0, process)
        process.kill()
        process.wait()
        assert current() == before and (before/'model.safetensors').is_file(), 'half a snapshot loads by name'


def test_videos_that_no_hub_has(made, tmp_path):
    with serve_hub(made[0]) as hub:
        media = made[0]/'webvid'/'videos'
        code, output = ends(prepare(hub, tmp_path, '--media', str(media), name='webvid'))
        assert code == 0, output
        assert keys_of(tmp_path/'data/webvid').total() == made[1]['webvid'].samples
        some = shutil.copytree(media, tmp_path/'some')
        for path in sorted(some.rglob('*.mp4'))[2:]: path.unlink()
        code, output = ends(prepare(hub, tmp_path/'part', '--media', str(some), '--present', '--limit', '9',
            '--max-bad', '0.05', name='webvid'))
        assert code == 0, output
        assert keys_of(tmp_path/'part/data/webvid').total() == 2
        code, output = ends(prepare(hub, tmp_path/'without', name='webvid'))
        assert code == 2 and 'failed' in output and 'Traceback' not in output, output


# -- one variable for all caches

def test_python_and_the_shell_agree_on_the_caches(tmp_path):
    plain = {k:v for k, v in os.environ.items() if k not in fvlm._CACHES}
    env = plain | dict(FVLM_CACHE=str(tmp_path/'cache'), PYTHONPATH=str(ROOT))
    shell = f'source {ROOT}/scripts/cache.sh; env -0'
    python = 'import fvlm, os; print(*(f"{k}={v}" for k, v in os.environ.items()), sep="\\0", end="\\0")'
    found = []
    for command in (['bash', '-c', shell], [sys.executable, '-c', python]):
        output = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
        variables = dict(l.partition('=')[::2] for l in output.split('\0') if l)
        own = '_', 'SHLVL', 'PWD', 'OLDPWD', 'LC_CTYPE', 'PYTHONPATH', 'FVLM_VENV'
        found.append({k:v for k, v in variables.items() if plain.get(k) != v and k not in own})
    assert found[0] == found[1] and set(found[0]) == {*fvlm._CACHES, 'FVLM_CACHE'}
