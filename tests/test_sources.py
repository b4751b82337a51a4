"""Every public source in its real layout, made small here; and media in archives from other processes.

The notebooks `1_data/03_archives` and `04_sources` show each format on a page. Here stands what a page cannot
show: folders as a fetch leaves them, shares, slices, forked and spawned workers, hostile archives, damage.
"""
import csv
import gzip
import io
import json
import multiprocessing
import os
import random
import tarfile
import zipfile
from concurrent.futures import ProcessPoolExecutor

import pyarrow as pa
import pytest
from pyarrow import parquet

from fvlm.data import archives, sources
from fvlm.data.archives import ArchiveError, MediaFolder, SourceError, read_medium
from fvlm.data.index import split_of
from fvlm.data.sources import SOURCES, clips_from


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv('FVLM_CACHE', str(tmp_path/'.cache'))


class Folder:
    "Writes files of a repository; content that is not bytes is made from the ending of the name."
    def __init__(self, home): self.home = home

    def __call__(self, name, content):
        path = self.home/name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith('.parquet'):
            parquet.write_table(pa.Table.from_pylist(content), path, row_group_size=2)
        elif isinstance(content, bytes): path.write_bytes(content)
        else: path.write_bytes(self.encode(name, content))
        return path

    def encode(self, name, content):
        if name.endswith('.json'): return json.dumps(content).encode()
        if name.endswith('.jsonl'): return '\n'.join(map(json.dumps, content)).encode()
        if name.endswith('.csv'):
            rows = csv.DictWriter(out := io.StringIO(), content[0])
            rows.writeheader()
            rows.writerows(content)
            return out.getvalue().encode()
        out = io.BytesIO()
        if name.endswith('.zip'):
            with zipfile.ZipFile(out, 'w') as z:
                for member, data in content.items(): z.writestr(member, data)
            return out.getvalue()
        with tarfile.open(fileobj=out, mode='w:gz' if name.endswith('gz') else 'w') as tar:
            for member, data in content.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return out.getvalue()


@pytest.fixture
def write(tmp_path): return Folder(tmp_path/'raw')


def asked(question, answer): return [{'from':'human', 'value':question}, {'from':'gpt', 'value':answer}]


def content(clip): return [read_medium(m) for m in clip['media']]


def turns(clip):
    return [[' '.join(p.get('text', p['type']) for p in m['content']) for m in chat['messages']]
            for chat in clip['chats']]


def read(kind, path, media=None, **more): return list(clips_from(kind, path, media, **more))


# every source

def test_openvid(write):
    row = lambda name, caption: {'video':name, 'caption':caption, 'aesthetic score':5.2, 'motion score':1.,
        'temporal consistency score':.9, 'camera motion':'static', 'frame':48, 'fps':24., 'seconds':2.}
    rows = [row('a.mp4', 'A dog.'), row('b.mp4', 'A cat, "quoted".'), row('c.mp4', 'A bird.')]
    write('data/train/OpenVid-1M.csv', rows)
    write('data/train/OpenVidHD.csv', rows[1:2])
    write('OpenVid_part0.zip', {'a.mp4':b'video a', 'mnt/bn/OpenVid_part0/b.mp4':b'video b'})
    joined = write.encode('x.zip', {'c.mp4':b'video c'*99})
    write('OpenVid_part73_partaa', joined[:200])
    write('OpenVid_part73_partab', joined[200:])
    clips = read('openvid', write.home/'data'/'train', write.home)
    assert {c['key']:content(c) for c in clips} == dict(a=[b'video a'], b=[b'video b'], c=[b'video c'*99])
    assert [len(c['chats']) for c in clips] == [1, 1, 1]  # a row that is repeated is no second chat
    (write.home/'OpenVid_part73_partab').unlink()
    bad = []
    assert len(read('openvid', write.home/'data'/'train', write.home, bad=bad)) == 3
    assert len(bad) == 1 and 'OpenVid_part73_partaa' in bad[0]['why']


def test_webvid(write):
    rows = [dict(videoid=i, contentUrl=f'https://x.org/{i}.mp4', duration='PT00H00M09S',
        page_dir=f'{i//2}_{i//2}', name=f'Caption {i}') for i in range(4)]
    tables = [write(f'data/train/partitions/{k:04d}.csv', rows[2*k:2*k+2]) for k in (0, 1)]
    for i, place in enumerate(['0_0/0.mp4', 'videos/0_0/1.mp4', '2.mp4']): write(place, b'%d' % i)
    write('more.tar', {'1_1/3.mp4':b'3'})
    clips = read('webvid', tables[0].parent, write.home)
    assert [[m if isinstance(m, bytes) else open(m, 'rb').read() for m in content(c)] for c in clips] == [
        [b'%d' % i] for i in range(4)]
    assert [c['key'] for c in clips] == list('0123')


def test_video2dataset(write):
    about = lambda i, status='success': json.dumps(dict(videoid=i, url='x', caption=f'Caption {i}',
        key=f'00000000{i}', status=status)).encode()
    write('00000.tar', {'000000000.mp4':b'v0', '000000000.txt':b'Caption 0', '000000000.json':about(0),
        '000000001.txt':b'Caption 1', '000000001.json':about(1, 'failed_to_download')})
    write('00001.tar', {'000000002.mp4':b'v2', '000000002.txt':b'Caption 2', '000000002.json':about(2)})
    for i in (0, 1): write(f'0000{i}.parquet', [dict(videoid=1, caption='x')])
    bad = []
    clips = read('tars', write.home, source='webvid', bad=bad)
    assert [(c['key'], content(c)) for c in clips] == [('000000000', [b'v0']), ('000000002', [b'v2'])]
    assert 'WebVid' in turns(clips[0])[0][0]
    assert len(bad) == 1 and 'failed_to_download' in bad[0]['why'] and '000000001' in bad[0]['why']


LLAVA = '0_30_s_academic_v0_1'


def write_llava(write, videos=6, ending='tar.gz'):
    "Three tables about the same videos, which lie in two archives."
    name = lambda i: f'academic_source/Charades/V{i}.mp4'
    def row(i, question, answer):
        turns = asked(f'<image>\n{question}', answer)
        return dict(id=f'V{i}', data_source=LLAVA, video=name(i), conversations=turns)
    order = random.Random(1).sample(range(videos), videos)
    tables = dict(v0_1_cap=[row(i, 'Describe it.', f'Long {i}') for i in range(videos)],
        oe_v0_1_qa=[row(i, f'Q{k}?', f'A{k}') for i in order for k in (0, 1)],
        mc_v0_1_qa=[row(i, 'A or B?', 'A.') for i in reversed(order)])
    for table, rows in tables.items(): write(f'{LLAVA}/0_30_s_academic_{table}_processed.json', rows)
    for k in (0, 1):
        members = {name(i):b'video %d' % i for i in range(k, videos, 2)}
        write(f'{LLAVA}/{LLAVA}_videos_{k+1}.{ending}', members)
    return write.home


@pytest.mark.parametrize('ending', ['tar.gz', 'tar', 'zip'])
def test_llava_video_named_by_three_tables_is_one_clip(write, ending):
    home = write_llava(write, ending=ending)
    clips = read('llava_video', home, home)
    assert sorted(content(c)[0] for c in clips) == [b'video %d' % i for i in range(6)]
    assert {len(c['chats']) for c in clips} == {4}
    for c in clips:
        assert sorted(a for _, a in turns(c)) == ['A.', 'A0', 'A1', f"Long {c['key'][1]}"]
        assert all(m[0]['content'][0] == dict(type='video') for m in [x['messages'] for x in c['chats']])
    keys = [x['key'] for c in clips for x in c['chats']]
    assert len(set(keys)) == len(keys) == 24


def test_many_rows_are_joined_in_little_memory(write, monkeypatch):
    "What waits is in a file: no clip but the present one is held, however far apart its rows stand."
    rows = [dict(id=f'{i}', data_source='x', video=f'{i}.mp4', conversations=asked(f'<image>{k}', f'{k}'))
            for k in range(3) for i in range(300)]
    write('a.json', rows[:500])
    write('b.json', rows[500:])
    alive, most, convert = set(), 0, sources._convert

    def counted(self, records, bad, share=(0, 1)):
        nonlocal most
        for clip in convert(self, records, bad, share):
            tracked = Tracked(clip)
            alive.add(id(tracked))
            most = max(most, len(alive))
            yield tracked

    class Tracked(dict):
        def __del__(self): alive.discard(id(self))

    monkeypatch.setattr(sources, '_convert', counted)
    clips = read('llava_video', write.home)
    assert len(clips) == 300 and {len(c['chats']) for c in clips} == {3} and most < 20


def test_rows_with_equal_hashes_stay_apart(write, monkeypatch):
    monkeypatch.setattr(sources, 'hash', lambda x: 7, raising=False)
    rows = [dict(id=f'{i}{k}', video=f'{i}.mp4', data_source='x', conversations=asked(f'<image>{k}', 'x'))
            for k in range(2) for i in range(3)]
    clips = clips_from('llava_video', write('a.json', rows))
    monkeypatch.setattr(sources, '_unique', lambda key, counts: key)
    found = {os.path.basename(c['media'][0]['path']):[x['key'] for x in c['chats']] for c in clips}
    assert found == {f'{i}.mp4':[f'{i}0', f'{i}1'] for i in range(3)}


def test_vista(write):
    for subset in ('temporal_niah_qa', 'hr_video_grid_mcq'):
        turn = asked('What?', 'That.')
        write(f'{subset}.json', [dict(id=f'{i}', image=f'{i}.mp4', conversations=turn) for i in (0, 1)])
    write('temporal_niah_qa/temporal_niah_qa_1.tar', {'0.mp4':b't0', '1.mp4':b't1'})
    write('hr_video_grid_mcq/hr_video_grid_mcq_1.tar', {'hr_video_grid_mcq/0.mp4':b'h0'})
    write('hr_video_grid_mcq/hr_video_grid_mcq_2.tar', {'hr_video_grid_mcq/1.mp4':b'h1'})
    clips = read('vista', write.home)
    assert sorted(content(c)[0] for c in clips) == [b'h0', b'h1', b't0', b't1']
    assert turns(clips[0]) == [['video What?', 'That.']]


def test_finevideo(write):
    pairs = lambda i: [dict(question=f'Q{k}', answer=f'A{k}') for k in range(i)]
    about = lambda i: dict(original_video_filename=f'f{i}.mp4', duration_seconds=9, youtube_title='T',
        content_metadata=dict(title='T', description=f'About {i}', qAndA=pairs(i)))
    rows = [dict(mp4=b'video %d' % i, json=about(i)) for i in range(5)]
    for k in (0, 1): write(f'data/train-0000{k}-of-00002.parquet', rows[3*k:3*k+3])
    clips = read('finevideo', write.home/'data')
    assert [content(c) for c in clips] == [[r['mp4']] for r in rows]
    answers = [[a for _, a in turns(c)] for c in clips]
    assert answers == [[f'About {i}', *(f'A{k}' for k in range(i))] for i in range(5)]
    assert all('data' not in m for c in clips for m in c['media'])  # the main process carries no video
    assert [c['key'] for c in clips] == [f'f{i}' for i in range(5)]


def test_sharegpt4video(write):
    rows = [dict(video_id=f'v{i}', video_path=f'panda/{i}.mp4', timestamp=['0'], keyframe=[0],
        zip_folder='panda_videos_1.zip', captions=[dict(idx='0', content='Part.'),
        dict(idx='-1', content=f'Whole {i}.')]) for i in (0, 1)]
    table = write('sharegpt4video_40k.jsonl', rows)
    write('zip_folder/panda/panda_videos_1.zip', {'0.mp4':b'0', 'panda/1.mp4':b'1'})
    write('zip_folder/pexels/pexels_videos_1.zip', {'0.mp4':b'another'})
    clips = read('sharegpt4video', table, write.home)
    assert [content(c) for c in clips] == [[b'0'], [b'1']]
    assert [turns(c)[0][1] for c in clips] == ['Whole 0.', 'Whole 1.']


@pytest.mark.parametrize('packed', [True, False])
def test_sharegptvideo(write, packed):
    frames = {f'v_{i}/c01_{n:04d}.jpeg':b'%d %d' % (i, n) for i in (1, 2) for n in (10, 9, 1)}
    if packed: write('train_300k/chunk_0.tar.gz', frames)
    for name, data in {} if packed else frames.items(): write(name, data)
    home, turn = 'video_instruction/train', asked('<video>\nQ?', 'A.')
    write(f'{home}/sft/a.jsonl', [dict(id=f'{v}-q', video=v, conversations=turn) for v in ('v_1', 'v_2')])
    caption = dict(id='v_1-c', video='v_1', conversations=asked('<video>\nD.', 'C.'))
    write(f'{home}/pretrain/b.jsonl', [caption])
    write(f'{home}/dpo/sft_dpo_17k.jsonl', [dict(id='p', video='v_2', prompt='<video>\nQ?', answer='B',
        chosen='A.', rejected='C.', chosen_score=5, rejected_score=1)])
    clips = read('sharegptvideo', write.home/'video_instruction', write.home)
    clips = {content(c)[0][0][:1]:c for c in clips}
    for i in (b'1', b'2'): assert content(clips[i]) == [[i+b' 1', i+b' 9', i+b' 10']]
    assert sorted(turns(clips[b'1'])) == [['video D.', 'C.'], ['video Q?', 'A.']]
    assert [x.get('rejected') for x in clips[b'2']['chats']] == ['C.', None]


def test_cauldron_of_none_to_eleven_images(write):
    counts = [0, 1, 2, 3, 11, 0, 1]
    rows = [dict(images=[dict(bytes=b'%d-%d' % (i, n), path=None) for n in range(count)],
        texts=[dict(user=f'Q{t}', assistant=f'A{t}', source='x') for t in range(1+i % 2)])
        for i, count in enumerate(counts)]
    write('ai2d/train-00000-of-00001-abc.parquet', rows)
    clips = read('cauldron', write.home)
    assert [content(c) for c in clips] == [[x['bytes'] for x in r['images']] for r in rows]
    assert [len(c['chats'][0]['messages']) for c in clips] == [2*len(r['texts']) for r in rows]


def test_rlaif_v_in_both_forms(write):
    one = [dict(ds_name='x', image=dict(bytes=b'%d' % i, path=f'{i}.jpg'), question='Q?', chosen=f'C{i}',
        rejected=f'R{i}', origin_dataset='x', origin_split='x', idx=i, image_path='x') for i in range(3)]
    part = lambda kind, text=None: dict(type=kind, text=text, index=0)
    said = lambda role, *parts: [dict(role=role, content=list(parts))]
    two = [dict(images=[r['image']], prompt=said('user', part('text', 'Q?'), part('image')),
        **{k:said('assistant', part('text', r[k])) for k in ('chosen', 'rejected')}) for r in one]
    first = read('rlaif_v', write('a/RLAIF-V-Dataset_000.parquet', one))
    second = read('rlaif_v', write('b/data/train-00000-of-00001.parquet', two))
    for clips in (first, second):
        assert [content(c) for c in clips] == [[b'%d' % i] for i in range(3)]
        answers = [(turns(c)[0][1], c['chats'][0]['rejected']) for c in clips]
        assert answers == [(f'C{i}', f'R{i}') for i in range(3)]
    assert turns(first[0])[0][0] == 'image Q?' and turns(second[0])[0][0] == 'Q? image'


# shares and parts

def test_shares_are_disjoint_and_complete(write):
    answer = dict(role='assistant', content='A')
    rows = [dict(messages=[dict(role='user', content=f'Q{i}'), answer]) for i in range(600)]
    write('data/all/train-00000-of-00002.parquet', rows[:300])
    write('data/all/train-00001-of-00002.parquet', rows[300:])
    parts = [read('smoltalk', write.home, share=share) for share in ((0, .5), (.5, .75), (.75, 1))]
    keys = [{c['key'] for c in part} for part in parts]
    assert set.union(*keys) == {c['key'] for c in read('smoltalk', write.home)}
    assert sum(map(len, keys)) == 600
    assert [abs(len(k)-n) < 60 for k, n in zip(keys, (300, 150, 150))] == [True]*3
    again = read('smoltalk', write.home, share=(0, .5))
    assert again == parts[0]
    for part in keys: assert {split_of(k) for k in part} == {'train', 'validation', 'test'}


def test_a_part_of_the_media(write):
    home = write_llava(write)
    (home/LLAVA/f'{LLAVA}_videos_2.tar.gz').unlink()
    clips = read('llava_video', home, home, present=True)
    assert sorted(c['key'] for c in clips) == ['V0', 'V2', 'V4'] and {len(c['chats']) for c in clips} == {4}
    assert len(read('llava_video', home, home)) == 6  # the builder tells what is missing


# what is wrong is named

FAULTS = [
    ('openvid', dict(caption='x'), 'video'), ('openvid', dict(video='a.mp4', caption=None), 'caption'),
    ('webvid', dict(page_dir='0', name='x'), 'videoid'), ('webvid', dict(videoid=1, page_dir='0'), 'name'),
    ('llava_video', dict(id='1', video='a.mp4'), 'conversations'),
    ('llava_video', dict(id='1', video='a.mp4', conversations=asked('Q', None)), 'conversations.1.value'),
    ('vista', dict(id='1', conversations=asked('Q', 'A')), 'image'),
    ('finevideo', dict(mp4='a.mp4', json=dict(content_metadata=dict(qAndA=[]))),
        'json.content_metadata.description'),
    ('finevideo', dict(mp4='a.mp4', json=dict(content_metadata=dict(description='x',
        qAndA=[dict(question='Q')]))), 'json.content_metadata.qAndA.0.answer'),
    ('sharegpt4video', dict(captions=[dict(idx='-1', content='x')]), 'video_path'),
    ('sharegptvideo', dict(video='v', prompt='Q', chosen='A'), 'rejected'),
    ('cauldron', dict(images=[], texts=[dict(user='Q', assistant='')]), 'texts.0.assistant'),
    ('smoltalk', dict(messages=[dict(role='user', content='Q'), dict(role='assistant')]),
        'messages.1.content'),
    ('rlaif_v', dict(question='Q', chosen='A', rejected='B'), 'image'),
    ('rlaif_v', dict(images=['a.png'], prompt=[dict(role='user')], chosen=[], rejected=[]), 'chosen')]


@pytest.mark.parametrize('kind, row, field', FAULTS)
def test_fault_names_record_and_field(write, kind, row, field):
    good = dict(id='x')
    with pytest.raises(SourceError) as e: read(kind, write('t.jsonl', [row, good]))
    assert f"'{field}'" in str(e.value) and 't.jsonl: record 1' in str(e.value) and '\n' not in str(e.value)


# archives from other processes

def _read_all(job):
    path, names = job
    return [(name, read_medium(dict(type='video', path=path, member=name))) for name in names]


def _opened_anew(path):
    caches = archives._archive, archives._file
    before = [c.cache_info().misses for c in caches]
    _read_all((path, ['v/3.mp4']))
    return [c.cache_info().misses-n for c, n in zip(caches, before)]


def test_forked_worker_opens_archives_for_itself(write):
    path = str(write('a.tar', {'v/3.mp4':b'x'}))
    assert [_opened_anew(path), _opened_anew(path)] == [[1, 1], [0, 0]]
    with ProcessPoolExecutor(1, multiprocessing.get_context('fork')) as pool:
        assert pool.submit(_opened_anew, path).result() == [1, 1]


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_workers_read_archives_in_any_order(write, method):
    "Also of archives that the parent has open, whose position a forked child must not share."
    rng = random.Random(0)
    files = {f'v/{i}.mp4':rng.randbytes(rng.randrange(10, 60_000)) for i in range(60)}
    paths = [str(write(f'a.{ending}', files)) for ending in ('zip', 'tar', 'tar.gz')]
    for path in paths: _read_all((path, ['v/3.mp4']))
    jobs = [(path, rng.sample(list(files), 30)) for path in paths for _ in range(4)]
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        results = pool.map(_read_all, jobs)
        for path in paths: _read_all((path, list(files)))  # meanwhile
        for result in results:
            for name, data in result: assert data == files[name], name


def test_list_is_made_once_and_anew_after_a_change(write, monkeypatch):
    path = write('a.tar.gz', {'1.mp4':b'one', '2.mp4':b'two'})
    read_one = lambda name: read_medium(dict(type='video', path=str(path), member=name))
    assert read_one('2.mp4') == b'two'
    archives._archive.cache_clear()
    archives._file.cache_clear()
    with monkeypatch.context() as m:
        m.setattr(archives, '_write_list', None)  # not called
        assert read_one('1.mp4') == b'one'
    write('a.tar.gz', {'2.mp4':b'changed', '3.mp4':b'three'})
    assert read_one('2.mp4') == b'changed'
    with pytest.raises(ArchiveError, match='a.tar.gz'): read_one('1.mp4')


def test_seek_points_of_a_large_gzip(write):
    "Any member of a stream of many seek points, in random order, without reading from the start."
    rng = random.Random(0)
    files = {f'{i}.mp4':rng.randbytes(700_000) for i in range(24)}
    path = str(write('a.tar.gz', files))
    for name in rng.sample(list(files), 24):
        assert read_medium(dict(type='video', path=path, member=name)) == files[name]
    points = next((write.home.parent/'.cache'/'archives').glob('*.points'))
    assert points.stat().st_size > 3*32_768  # 32 KB for each point of 4 MB


def test_cut_archive_is_one_line_and_the_rest_is_read(write):
    home = write_llava(write, ending='tar')
    part = home/LLAVA/f'{LLAVA}_videos_2.tar'
    part.write_bytes(part.read_bytes()[:2563])  # the third member is cut
    bad = []
    clips = read('llava_video', home, home, bad=bad)
    assert len(clips) == 6 and len(bad) == 1 and str(part) in bad[0]['why'] and 'damaged' in bad[0]['why']
    good, lost = {}, []
    for c in clips:
        try: good[c['key']] = content(c)[0]
        except ArchiveError as e: lost.append(str(e))
    assert [k for k, v in sorted(good.items()) if isinstance(v, bytes)] == ['V0', 'V1', 'V2', 'V3', 'V4']
    assert len(lost) == 1 and 'V5' in lost[0] and str(part) in lost[0]
    with pytest.raises(SourceError, match=part.name): read('llava_video', home, home)


def test_hostile_names_lead_nowhere(write, tmp_path):
    (tmp_path/'secret.mp4').write_bytes(b'secret')
    write('a.tar', {'../secret.mp4':b'x', '/secret.mp4':b'y', 'ok.mp4':b'z'})
    media = MediaFolder(write.home)
    assert [media.find(n) for n in ('secret.mp4', 'up/secret.mp4')] == [None, None]
    for name in ('../secret.mp4', 'x/../../secret.mp4', str(tmp_path/'secret.mp4')):
        bad = []
        table = write('t.jsonl', [dict(video=name, caption='x')])
        assert read('openvid', table, write.home, bad=bad) == []
        assert 'inside the media folder' in bad[0]['why']


def test_gzip_bomb_is_not_unpacked(write, monkeypatch):
    "A member of many zeros in few bytes is refused by its size."
    monkeypatch.setitem(archives.LIMITS, 'video', 16 << 20)
    head = tarfile.TarInfo('bomb.mp4')
    head.size = 64 << 20
    path = write('a.tar.gz', gzip.compress(head.tobuf()+bytes(head.size+1024), 1))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ArchiveError, match='at most 16 MB'):
        read_medium(dict(type='video', path=str(path), member='bomb.mp4'))


# one broken line costs itself

def captions(n): return [f'{i}.mp4,"Caption {i}, said"\n' for i in range(1, n+1)]


BROKEN = {'a quote in a quote': '101.mp4,"a "quoted" word"\n', 'never closed': '101.mp4,"a word\n',
          'more fields than columns': '101.mp4,a,b\n'}


@pytest.mark.parametrize('line', BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize('others_quoted', [True, False])
def test_broken_line_of_a_csv_costs_itself(write, line, others_quoted):
    lines = [x if others_quoted else x.replace('"', '').replace(', said', '') for x in captions(1000)]
    lines[100] = line
    table, bad = write('t.csv', ('video,caption\n'+''.join(lines)).encode()), []
    clips = read('openvid', table, bad=bad)
    assert [c['key'] for c in clips] == [str(i) for i in range(1, 1001) if i != 101]
    assert len(bad) == 1 and 't.csv: record 101 ' in bad[0]['why'] and 'fetch' not in bad[0]['why']


def test_broken_field_of_several_lines(write):
    "Whole fields may have line breaks; of a broken one the lines after the first are tried, and are bad too."
    lines = captions(20)
    lines[3] = '4.mp4,"one\ntwo, ""2""\n\nthree"\n'
    lines[9] = '10.mp4,"one\ntwo "2"\nthree"\n'
    table, bad = write('t.csv', ('video,caption\n'+''.join(lines)).encode()), []
    clips = read('openvid', table, bad=bad)
    assert [c['key'] for c in clips] == [str(i) for i in range(1, 21) if i != 10]
    assert turns(clips[3])[0][1] == 'one\ntwo, "2"\n\nthree'
    assert [b['why'].partition(' (')[0][-9:] for b in bad] == ['record 10', 'record 11', 'record 12']
    assert ['too few fields' in b['why'] for b in bad] == [False, True, False]


def test_long_caption_of_a_csv(write, monkeypatch):
    lines = captions(9)
    lines[4] = f'5.mp4,"{"word "*60_000}"\n'
    table = write('t.csv', ('video,caption\n'+''.join(lines)).encode())
    assert [len(turns(c)[0][1]) > 200_000 for c in read('openvid', table)] == [i == 4 for i in range(9)]
    monkeypatch.setitem(archives.LIMITS, 'json', 3000)
    lines[4] = '5.mp4,"'+'word\n'*1000+'"\n'  # each line is short, the record too long
    bad = []
    clips = read('openvid', write('t.csv', ('video,caption\n'+''.join(lines)).encode()), bad=bad)
    assert [c['key'] for c in clips] == list('12346789') and ' record 5 ' in bad[0]['why']


@pytest.mark.parametrize('text, lines', [('word '*300+'\n', 99), ('word\n'*6, 5)])
def test_record_of_a_csv_has_a_limit(write, monkeypatch, text, lines):
    monkeypatch.setitem(archives.LIMITS, 'json', 2000)
    monkeypatch.setattr(archives, '_MAX_LINES', lines)
    table, bad = write('t.csv', f'video,caption,more\n1.mp4,"{text}","{text}"\n2.mp4,a,b\n'.encode()), []
    assert [c['key'] for c in read('openvid', table, bad=bad)][-1] == '2'
    assert ' record 1 ' in bad[0]['why'] and 'too long' in bad[0]['why']


def test_broken_header_of_a_csv_ends_it(write):
    with pytest.raises(SourceError, match='header'):
        read('openvid', write('t.csv', b'video,"cap"tion\na.mp4,x\nb.mp4,y\n'))


def test_rows_of_one_video_behind_many_texts_are_one_clip(write):
    talk = [dict(role='user', content='Q'), dict(role='assistant', content='A')]
    texts = [dict(id=f't{i}', messages=talk) for i in range(1500)]
    videos = [dict(id=f'{i}{k}', video=f'{i}.mp4', user=f'Q{k}', assistant='A')
        for k in range(6) for i in (0, 1)]
    clips = read('plain', write('t.jsonl', texts+videos))
    assert [len(c['chats']) for c in clips if c['media']] == [6, 6] and len(clips) == 1502


def test_a_kind_without_media_is_read_once(write, monkeypatch):
    talk, times = [dict(role='user', content='Q'), dict(role='assistant', content='A')], []
    path = write('t.jsonl', [dict(messages=talk)]*3)
    convert = sources._convert
    monkeypatch.setattr(sources, '_convert', lambda *args: times.append(1) or convert(*args))
    assert len(read('smoltalk', path)) == 3 and len(times) == 1


# archives

@pytest.mark.parametrize('piece', [4, 7, 1000])
def test_names_of_a_large_archive_are_found(write, monkeypatch, piece):
    monkeypatch.setattr(archives, '_MAX_CHECKSUMS', piece)
    files = {f'v/{i}/{i%30}.mp4':b'%d' % i for i in range(60)}
    write('a.tar', files)
    media = MediaFolder(write.home)
    for name, data in files.items(): assert read_medium(dict(media.find(name), type='video')) == data


def test_number_of_frames_is_limited(write, monkeypatch):
    monkeypatch.setattr(archives, '_MAX_FRAMES', 3)
    for n in (3, 4):
        frames = {f'v{n}/{i}.jpg':b'%d' % i for i in range(n)}
        for name, data in frames.items(): write(name, data)
        places = [dict(path=str(write.home/f'v{n}')),
                  dict(path=str(write(f'{n}.zip', frames)), member=f'v{n}')]
        for place in places:
            if n == 3: assert read_medium(dict(place, type='video')) == [b'0', b'1', b'2']
            else:
                with pytest.raises(ArchiveError, match='4 frames'): read_medium(dict(place, type='video'))


def test_only_what_begins_a_sequence_is_a_piece(write):
    packed = write.encode('x.zip', {f'{i}.mp4':b'%d' % i for i in range(99)})
    write('a.zip', {'whole.mp4':b'w'})
    for name in ('a.zip.md', 'a.tar.xz', 'a.zip.sh', 'a.zip.08', 'b.tar.gz.md', 'c.zip.md'):
        write(name, b'no')
    for i in range(12):
        write(f'c.zip.a{"abcdefghijkl"[i]}', packed[i*len(packed)//12:(i+1)*len(packed)//12])
        write(f'd/c.zip.{i+1}', packed[i*len(packed)//12:(i+1)*len(packed)//12])
    media = MediaFolder(write.home)
    for name in ('whole.mp4', '98.mp4', 'd/98.mp4'): assert media.find(name), name
    assert media.faults == []
    (write.home/'c.zip.ab').unlink()
    media = MediaFolder(write.home)
    assert media.find('98.mp4')['path'].endswith('d/c.zip.1')
    assert len(media.faults) == 1 and 'c.zip.aa' in media.faults[0] and 'the others' in media.faults[0]


def test_frames_with_odd_numbers_in_their_names(write):
    names = ['1.jpg', '2.jpg', '010.jpg', '9'*200+'.jpg', '²1.jpg', '٣.jpg']
    for name in names: write(f'v/{name}', name.encode())
    long = write('a.tar', {f'v/{n}.jpg':n.encode() for n in ('9'*5000, '2', '10')})
    assert read_medium(dict(type='video', path=str(write.home/'v'))) == [n.encode() for n in names]
    frames = read_medium(dict(type='video', path=str(long), member='v'))
    assert [len(f) for f in frames] == [1, 2, 5000]


def test_all_named_sources_are_there():
    named = {'openvid', 'webvid', 'llava_video', 'vista', 'finevideo', 'sharegpt4video', 'sharegptvideo',
             'cauldron', 'smoltalk', 'rlaif_v', 'plain', 'tars', 'sharegpt'}
    assert named == set(SOURCES)
