"""Each sample once per epoch through the real loader, for any workers and ranks; exact resume; and the same
samples for every number of tokens per frame."""
import json
from dataclasses import replace
from itertools import product
import numpy as np, pytest, torch
from fvlm.world.backbones import tiny_tokenizer
from fvlm.config import DataConfig
from fvlm.data.loader import SampleCounter, plan_index, train_batches
from fvlm.data.plan import Plan
from fvlm.world.scenes import World, make_scene, render
from fvlm.data.index import write_index
from fvlm.data.shards import FrameSpec, Shards, clips_of, fingerprint, index_shard, write_shard

TOKENIZER, DATA, B = tiny_tokenizer(), DataConfig(max_tokens=128), 8


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    "Videos with four questions each, and some text, in three shards."
    home = tmp_path_factory.mktemp('order')
    clips = []
    for i in range(12):
        clips += clips_of(render(make_scene('lookup', i, World(glyphs=4)), home/'videos'), home/'videos')
    for i in range(17):
        messages = [dict(role='user', content=f'say {i} '*(i % 5+1)), dict(role='assistant', content=str(i))]
        clips.append(dict(key=f't{i}', source='talk', media=[], chats=[dict(key=f't{i}', messages=messages)]))
    for i in range(3): write_shard(home/f'{i:05d}.tar', clips[i::3], FrameSpec(40))
    write_index(home, ((p.name, index_shard(p, TOKENIZER)) for p in sorted(home.glob('*.tar'))),
                tokenizer=fingerprint(TOKENIZER))
    return Shards(home, '')


def plan(shards, **options):
    return Plan(shards.lengths(), shards.column('frames'), shards.column('source'), shards.names['sources'],
                batch_size=B, seed=3, **{'window': 0, **options})

def read(shards, plan, workers=0, ranks=1, start=0, stop=10):
    "Keys of each update, over all ranks."
    updates = [[] for _ in range(start, stop)]
    for rank in range(ranks):
        step = 0
        batches = train_batches(shards, plan, TOKENIZER, DATA, start=start, stop=stop, workers=workers,
                                rank=rank, ranks=ranks)
        for b in batches:
            updates[step] += [m['key'] for m in b['meta']]
            step += b['last']
        assert step == stop-start
    return [sorted(u) for u in updates]


OPTIONS = dict(plain=dict(), budgets=dict(window=32, chunk=4, token_budget=130, frame_budget=9),
               oversized=dict(window=32, chunk=4, token_budget=40, frame_budget=2),
               text=dict(window=32, chunk=4, text_share=.25, micro_batch=3))

@pytest.mark.parametrize('name', OPTIONS)
def test_each_sample_once_and_in_the_same_update(shards, name):
    options = OPTIONS[name]
    reference = read(shards, plan(shards, **options))
    for workers, ranks in product((0, 1, 2, 4), (1, 2, 4)):
        assert read(shards, plan(shards, **options), workers, ranks) == reference, (workers, ranks)
    if 'text_share' in options: return
    everything = sorted(shards[i]['row']['key'] for i in range(len(shards)))
    assert len(everything) == 65
    sequence = plan(shards, **options).samples(np.arange(3*65))
    for epoch in range(3):
        assert sorted(shards[i]['row']['key'] for i in sequence[epoch*65:(epoch+1)*65]) == everything


def test_the_next_batch_after_any_step(shards):
    options = dict(window=32, chunk=4, text_share=.25, token_budget=130)
    whole, at = list(train_batches(shards, plan(shards, **options), TOKENIZER, DATA, stop=12)), 0
    for step in range(12):
        state = json.loads(json.dumps(plan(shards, **options).state(step)))
        again = plan(shards, **options)
        b = next(iter(train_batches(shards, again, TOKENIZER, DATA, start=again.check(state), stop=12)))
        for k in ('input_ids', 'labels', 'pixel_values_videos', 'frame_index'):
            resumed, expected = b[k], whole[at][k]
            assert resumed is expected is None or torch.equal(resumed, expected), (step, k)
        at = 1+next(i for i in range(at, len(whole)) if whole[i]['last'])


LIMITS = dict(defaults=dict(), short=dict(max_tokens=30), left=dict(max_tokens=30, too_long='leave'),
              few_frames=dict(max_frames=2))

@pytest.mark.parametrize('name', LIMITS)
def test_every_model_reads_the_same(shards, name):
    "Invariant 20: keys, updates and counts do not depend on a frame's tokens, nor does what is too long."
    data, found = replace(DataConfig(), **LIMITS[name]), []
    for tokens_per_frame, workers in ((1, 0), (16, 2)):
        index = plan_index(shards, data, tokens_per_frame)
        order = Plan(**index, batch_size=B, seed=3, window=32, chunk=4, token_budget=130)
        counter, updates = SampleCounter(shards.names['sources']), [[] for _ in range(20)]
        step = 0
        for b in train_batches(shards, order, TOKENIZER, data, tokens_per_frame, stop=20, workers=workers):
            counter.add(b)
            updates[step] += [(m['key'], m.get('too_long')) for m in b['meta']]
            step += b['last']
        found.append(([sorted(u) for u in updates], counter.counts[:, [0, 2, 4, 5]].tolist()))
    assert found[0] == found[1]
    samples, _, bad, too_long = np.sum(found[0][1], 0)
    assert (samples, bad) == (20*B, 0) and (too_long > 0) == (name != 'defaults')
