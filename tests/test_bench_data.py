"""The data benchmark compares like with like: its reference yields the same frames, tokens and JPEGs."""
import importlib.util, json, sys
from itertools import count
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np, pytest, torch, webdataset as wds

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location('bench_data', ROOT/'benchmarks/data.py')
bench = sys.modules['bench_data'] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


@pytest.fixture(scope='module')
def mixture(tmp_path_factory):
    "A folder of twenty samples, the lengths that were asked for, and the tokenizer."
    rows, tokenizer = bench.histogram(20, seed=3), bench.tiny_tokenizer()
    clips = bench.make_clips(rows, bench.drawn_images(6), tokenizer)
    return bench.make_shards(tmp_path_factory.mktemp('shards')/'mixed', clips, tokenizer), rows, tokenizer


def test_mixture_has_the_lengths_of_the_histogram(mixture):
    folder, rows, _ = mixture
    shards = bench.Shards(folder)
    assert shards.column('frames').tolist() == rows['frames'].tolist()
    off = shards.column('tokens')-rows['tokens']
    assert -bench.TEMPLATE-30 < off.min() and off.max() < 60, off
    many = bench.histogram(100_000)
    T = many['frames'][many['kind'] == 1]
    assert 4.5 < T.mean() < 5.5 and T.max() == 64 and abs((many['frames'] == 0).mean()-.14) < .01
    assert (many['tokens']+many['shown']).max() <= 1024


def test_reference_yields_the_same_batches(mixture):
    folder, _, tokenizer = mixture
    data = bench.DataConfig(frame_size=bench.SIDE)
    ours = bench.Batches(bench.Shards(folder), tokenizer, data)[list(range(8))]
    plain = next(iter(bench.plain_batches(folder, tokenizer)))
    from fvlm.model.encoder import normalise
    torch.testing.assert_close(plain['pixels'][plain['mask']], normalise(ours['pixel_values_videos']))
    assert not plain['pixels'][~plain['mask']].any()
    assert torch.equal(plain['ids'], ours['input_ids'])
    assert torch.equal(plain['mask'], ours['frame_index'] >= 0)
    learned = ours['labels'] != bench.IGNORE
    assert torch.equal(plain['labels'][learned], ours['labels'][learned])


def test_reference_builds_the_same_jpegs(tmp_path):
    clips, frames = bench.scene_clips(3, tmp_path/'videos'), bench.FrameSpec(bench.FRAME_SIZE)
    bench.build_shards(clips, tmp_path/'built', frames)
    bench.plain_build(clips, tmp_path/'plain.tar', frames)
    jpegs = lambda path: [(s['__key__'], k, s[k]) for s in wds.WebDataset(str(path), shardshuffle=False)
        for k in sorted(s) if k.endswith('jpg')]
    assert len(jpegs(tmp_path/'plain.tar')) == 9
    assert jpegs(tmp_path/'plain.tar') == jpegs(tmp_path/'built/00000.tar')
    from fvlm.data.sampling import write_video
    noise = np.random.default_rng(0).integers(0, 256, (35, 40, 64, 3), np.uint8)
    wide, small = write_video(tmp_path/'wide.mp4', noise, fps=10), bench.FrameSpec(32)
    assert bench.plain_cut(wide, small) == bench.cut_media(dict(type='video', path=wide), small)


def test_race_takes_turns_and_spread_counts():
    calls = []
    found = bench.race(dict(a=lambda: calls.append('a'), b=lambda: calls.append('b') or dict(size=3)), 3)
    assert ''.join(calls) == 'ab'+'ab'+'ba'+'ab' and [r['size'] for r in found['b']] == [3]*3
    assert bench.spread([3, 1, 2]) == dict(min=1., median=2., max=3., n=3)
    assert bench.spread_ratio([2, 9], [1, 3]) == dict(min=2., median=2.5, max=3., n=2)
    runs = dict(ours=[dict(seconds=1, wall=2)], plain=[dict(seconds=3, wall=1)])
    assert {k: v['max'] for k, v in bench.gains(runs).items()} == dict(ratio=3., ratio_wall=.5)


def test_watch_adds_up_stages():
    watch = bench.Watch()
    with patch('time.process_time', partial(next, count())):  # every look at the clock is a second
        with watch('block'): pass
        assert watch.wrap('call', divmod)(7, 2) == (3, 1)
        assert list(watch.each('step', 'abc')) == ['a', 'b', 'c']
    assert dict(watch.seconds) == dict(block=1, call=1, step=4)  # the last step finds the end
    runs = [dict(seconds=2., wall=4., stages=dict(read=.5, decode=1.))]*5
    stages = bench.by_stage(runs, 100)
    found = {k: v['median'] for k, v in stages['ms_per_frame'].items() if v['median']}
    assert found == dict(read=5., decode=10., rest=5.)
    assert (stages['frames_per_s']['median'], stages['core_share']['max']) == (50., .5)


def test_memory_growth_tells_peak_from_kept():
    found = {}
    with bench.memory_growth(found):
        held = np.ones(20_000_000)
        np.ones(40_000_000)
    assert 100e6 < found['kept'] < 300e6 and found['peak'] > 1.5*found['kept'] and len(held)


def test_padding_share():
    plan = bench.Plan(lengths=[10, 30, 20, 20], frames=[0]*4, source=[0]*4, names=('a',), batch_size=4,
        window=0, micro_batch=4)
    assert bench.useful(plan, 1) == 80/120


def test_order_in_a_fresh_process_is_the_same(tmp_path):
    folder = str(bench.make_index(tmp_path/'index', 5000))
    here = bench.order_run(folder, 'ours', [900])
    fresh = bench.in_fresh_process('order_run', folder=folder, way='ours', later=[900])
    assert here['samples'] == fresh['samples'] and set(here) == set(fresh)
    assert len(set(bench.order_run(folder, 'plain', [])['samples'])) == 32


def test_folder_without_videos_is_refused(tmp_path):
    with pytest.raises(ValueError, match='no readable mp4 in it'): bench.readable_clips(tmp_path)


def test_committed_file_is_whole():
    result = json.loads((ROOT/'results/bench_data.json').read_text())
    assert not result['quick'] and set(result['loader']) == {'mixed', 'equal'}
    assert len(result['plan']) == len(result['size']['orders'])
