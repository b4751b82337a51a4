"""Every configuration file, as it stands in the repository."""
import re
from operator import attrgetter
from pathlib import Path

import pytest

from fvlm.config import ConfigError, diff_configs, load_config, read_yaml
from fvlm.data.hub import remote_of
from fvlm.evaluation.cost import architecture
from fvlm.experiments.ablations import ABLATIONS, FINE_PASS_KEYS, load_ablations, transfer
from fvlm.experiments.recipe import _data_sets, disk_needs, plan_steps, read_recipe, stage_configs

ROOT = Path(__file__).resolve().parents[1]/'configs'
FILES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob('*.y*ml') if p.stem != 'pipeline')
REAL = [f for f in FILES if not f.startswith('tiny/') and f != 'ablations/tiny.yaml']
STAGES = [f for f in REAL if Path(f).stem.startswith('stage')]
DECLARED = {  # run -> what it changes, and to what
    'F1':{'model.frozen':['vision', 'language']}, 'F2':{'model.frozen':['language']}, 'LR1':{},
    'LR2':{'train.lr.connector':1e-3}, 'LR3':{'train.lr.connector':3e-5}, 'LR4':{'train.lr.connector':1e-5},
    'A1':{'model.pooler':'shallow'}, 'A6':{'model.train_mode':'coarse'},
    'B1':{'model.pooler':'grid', 'model.tokens_per_frame':16, 'model.train_mode':'coarse'},
    'A8a':{'data.image_frames':1}, 'A8b':{'data.image_frames':16},
    'D1':{'data.mix':['openvid=27.5', 'webvid=27.5', 'cauldron=30', 'smoltalk=15'], 'data.text_share':0.15},
    'Q1':{'model.first_query':'init'}, 'L1':{'model.lambda_coarse':1.},
    'R1':{'train.refine':1.}, 'R2':{'train.refine':1., 'train.refine_passes':2},
    'K2':{'data.looks_per_frame':2}, 'K4':{'data.looks_per_frame':4},
    'S1':{'model.temperature':.5}, 'S2':{'model.temperature':2.},
    'M1':{'data.mix':['openvid=43', 'webvid=43', 'smoltalk=14']},
    'M2':{'data.mix':['openvid=21.5', 'webvid=21.5', 'cauldron=43', 'smoltalk=14']},
    'M3':{'data.mix':['openvid=16.5', 'webvid=16.5', 'cauldron=46', 'smoltalk=20'], 'data.text_share':0.2}}

# The values of the project's original documents, by file: what is there, and where the documents say so.
# A key of the config, or `samples` (updates times batch), `clips` (of them with frames), `query` (width).
ABLATION, POC = 'second document, ablations (phase 1a)', 'first document, proof of concept'
STAGE, SCALING = 'second document, three stages', 'second document, scaling (phase 1b)'
DOCUMENTS = {
    'base.yaml':{
        'model.vision':('facebook/dinov2-small', 'second document, stack'),
        'model.language':('HuggingFaceTB/SmolLM2-135M-Instruct', 'second document, stack'),
        'model.pooler':('deep', 'second document, stack: deep_query=True'),
        'model.train_mode':('fine', 'second document, stack: two passes'),
        'query':(384, 'second document, stack'),
        'data.frame_size':(224, 'second document, data'),
        'data.max_frames':(64, 'second document, data: cap'),
        'data.text_share':(.14, 'second document: 14 % SmolTalk in all stages')},
    'stage1.yaml':{'clips':(2_000_000, STAGE), 'data.mask':('all', STAGE+': all text'), 'stage':(1, STAGE),
        'model.frozen':((), STAGE+': everything trains'), 'train.lr.connector':(1e-4, STAGE+': high'),
        'train.lr.vision':(1e-5, STAGE+': low'), 'train.lr.language':(1e-5, STAGE+': low'),
        'query':(384, STAGE)},
    'stage2.yaml':{'clips':(1_000_000, STAGE), 'data.mask':('answer', STAGE), 'stage':(2, STAGE),
        'model.frozen':((), STAGE+': everything')},
    'stage3.yaml':{'clips':(500_000, STAGE), 'data.mask':('answer', STAGE), 'stage':(3, STAGE),
        'model.frozen':((), STAGE+': everything')},
    'ablations/baseline.yaml':{'samples':(360_000, ABLATION), 'train.lr.connector':(1e-4, ABLATION+': 10:1'),
        'train.lr.vision':(1e-5, ABLATION), 'train.lr.language':(1e-5, ABLATION), 'query':(384, ABLATION),
        'model.language':('HuggingFaceTB/SmolLM2-135M-Instruct', ABLATION),
        'log.project':('foveated-vlm-ablations', 'second document, habits: foveated-vlm-{phase}')},
    'dinov2-base/stage1.yaml':{
        'model.vision':('facebook/dinov2-base', 'second document: base as second size'),
        'query':(384, 'second document, stack')},
    'dinov3/stage1.yaml':{'model.vision':('facebook/dinov3-vits16-pretrain-lvd1689m', POC),
        'data.frame_size':(256, POC)},
    '360m/stage1.yaml':{'model.language':('HuggingFaceTB/SmolLM2-360M-Instruct', 'second document, stack')},
    '1.7b/stage1.yaml':{'model.language':('HuggingFaceTB/SmolLM2-1.7B-Instruct', 'second document, stack')},
    'scaling/template.yaml':{'train.batch_size':(32, SCALING), 'model.tokens_per_frame':(1, SCALING)},
    'first_document/24gb.yaml':{
        'model.vision':('facebook/dinov3-vits16-pretrain-lvd1689m', POC), 'query':(384, POC),
        'model.language':('HuggingFaceTB/SmolLM2-135M-Instruct', POC), 'data.frame_size':(256, POC),
        'model.frozen':((), POC+': trainable'), 'data.max_frames':(8, POC+': T = 8'),
        'data.order':('question_first', POC+': text before the frames'),
        'model.lambda_coarse':(1., POC+': loss = fine + λ·coarse, λ = 1'),
        'train.micro_batch':(2, POC+': batch 2'), 'train.batch_size':(8, POC+': batch 2, accumulation 4'),
        'train.lr.connector':(1e-4, POC), 'train.lr.vision':(1e-4, POC), 'train.lr.language':(1e-4, POC),
        'train.weight_decay':(.01, POC), 'warm-up':(500, POC), 'train.steps':(50_000, POC),
        'train.precision':('bf16', POC), 'train.clip':(1., POC), 'train.log_every':(100, POC),
        'train.eval_every':(1_000, POC), 'train.save_every':(5_000, POC)}}
# The same of recipes: of a data set the expected clips, or an option of its build.
RECIPES = {
    'pipeline.yaml':{'openvid.clips':(905_000, 'second document, counts: OpenVid'),
        'stage1.clips':(2_000_000, STAGE+': WebVid, later OpenVid-1M'),
        'cauldron.clips':(2_001_000, 'second document, counts: Cauldron'),
        'openvid.fps':(1, 'second document, data'), 'vista.cap':(64, 'second document, data'),
        'vista.size':(224, 'second document, data'),
        'smoltalk1.kind':('smoltalk', 'second document: SmolTalk')},
    'first_document/pipeline.yaml':{'llava-video.frames':(8, POC+': T = 8'), 'llava-video.size':(256, POC)}}

def load(name): return load_config(ROOT/name)
def comment(name): return (ROOT/name).read_text(encoding='utf-8').splitlines()[0]


@pytest.mark.parametrize('name', FILES)
def test_it_loads_and_begins_with_a_comment(name):
    load(name)
    assert comment(name).startswith('# '), f'{name}: the first line is no comment'

def test_names_and_folders_are_unique():
    runs = [load(f) for f in FILES if Path(f).stem not in ('base', 'common', 'baseline')
        and f != 'ablations/tiny.yaml']
    for what in ('name', 'out'):
        values = [getattr(c, what) for c in runs]
        twice = sorted({v for v in values if values.count(v) > 1})
        assert not twice, f'{what} twice: {twice}'

@pytest.mark.parametrize('name', STAGES)
def test_stages(name):
    cfg = load(name)
    assert cfg.stage == int(Path(name).stem[5])
    assert cfg.data.mask == ('all' if cfg.stage == 1 else 'answer')
    assert bool(cfg.model.init) == (cfg.stage > 1), 'stages 2 and 3 go on from the stage before'

@pytest.mark.parametrize('name', REAL)
def test_text_share(name):
    other = {'d1':.15, 'm3':.2, '24gb':0}  # the first document has no text-only samples
    assert load(name).data.text_share == other.get(Path(name).stem, .14)

@pytest.mark.parametrize('name', REAL)
def test_every_real_run_logs_both_losses(name):
    "The coarse loss is trained, or measured every 50 updates; a run without a fine pass has only that one."
    cfg = load(name)
    assert cfg.model.train_mode == 'coarse' or cfg.model.lambda_coarse > 0 or cfg.train.coarse_every == 50

@pytest.mark.parametrize('name', ['stage1.yaml', 'ablations/baseline.yaml'])
def test_the_connector_is_ten_times_as_fast(name):
    lr = load(name).train.lr
    assert lr.vision == lr.language and lr.connector == pytest.approx(10*lr.vision)

def value(cfg, key):
    "Of a config: a key, or what follows from several."
    t, samples = cfg.train, cfg.train.steps*cfg.train.batch_size
    more = {'samples':samples, 'clips':samples*(1-cfg.data.text_share), 'warm-up':t.warmup*t.steps}
    if key == 'query': return architecture(cfg).query_dim
    return more[key] if key in more else attrgetter(key)(cfg)

def cases(table):
    return [pytest.param(f, k, *v, id=f'{f}:{k}') for f, rows in table.items() for k, v in rows.items()]

@pytest.mark.parametrize('name, key, wanted, source', cases(DOCUMENTS))
def test_values_of_the_documents(name, key, wanted, source):
    got = value(load(name), key)
    if key == 'clips': wanted = pytest.approx(wanted, abs=32)  # whole updates
    assert got == wanted, f'{name}: {key} is {got}; {source} says {wanted}'

@pytest.mark.parametrize('name, key, wanted, source', cases(RECIPES))
def test_recipes_hold_what_the_documents_say(name, key, wanted, source):
    recipe, (which, option) = read_recipe(ROOT/name), key.rsplit('.', 1)
    sets, stages = _data_sets(recipe), stage_configs(recipe)
    of = [which]
    if which in stages: of = [Path(f.strip()).name for f in stages[which][2].data.shards.split(',')]
    options, expected = zip(*(sets[n] for n in of))
    if option == 'clips': got = sum(e.clips for e in expected if e.frames)
    elif option == 'kind': got = remote_of(options[0]['fetch'])[1].build
    else: got = options[0][option]
    assert got == wanted, f'{name}: {key} is {got}; {source} says {wanted}'

def test_the_recipe_fits_on_500_gb():
    recipe = read_recipe(ROOT/'pipeline.yaml')
    assert disk_needs(recipe, plan_steps(recipe)).need.sum() <= 500e9
    webvid = next(s.words for s in plan_steps(recipe) if s.name == 'data webvid')
    assert '--present' in webvid and '--limit' in webvid, 'nobody has all videos of its tables'

def test_the_texts_are_disjoint_and_enough():
    "One share of SmolTalk for each stage and one for the ablations; no text is expected to be read twice."
    recipe = read_recipe(ROOT/'pipeline.yaml')
    sets, stages = _data_sets(recipe), stage_configs(recipe)
    smoltalk = {n:(o, e) for n, (o, e) in sets.items() if o.get('fetch') == 'smoltalk'}
    shares = sorted(tuple(map(float, o['share'].split(':'))) for o, _ in smoltalk.values())
    assert len(shares) == 4 and shares[0][0] == 0 and shares[-1][1] == 1
    assert all(a[1] == b[0] for a, b in zip(shares, shares[1:])), 'they overlap, or leave something out'
    runs = [stages[f'stage{i}'][2] for i in (1, 2, 3)]+[load('ablations/baseline.yaml')]
    for cfg, name in zip(runs, ('smoltalk1', 'smoltalk2', 'smoltalk3', 'smoltalk')):
        assert name in cfg.data.shards and value(cfg, 'samples')*cfg.data.text_share < smoltalk[name][1].clips

@pytest.mark.parametrize('folder, flag, wanted', [('dinov3', '--size', '256'), ('uniform8', '--frames', '8')])
def test_a_variant_is_a_recipe_with_other_shards(folder, flag, wanted):
    "The command in the comment of its first stage: its shards are built so, and its stages read them."
    text = (ROOT/folder/'stage1.yaml').read_text(encoding='utf-8').replace('\n# ', ' ')
    recipe = read_recipe(ROOT/'pipeline.yaml', re.findall(r'[\w.]+=[\w./]+', text.split('\nbase:')[0]))
    stages = stage_configs(recipe)
    for i, (_, _, cfg) in enumerate(stages.values(), 1):
        assert cfg.data.shards == load(f'{folder}/stage{i}.yaml').data.shards
    for s in plan_steps(recipe):
        if s.name == 'data vista': assert s.words[s.words.index(flag)+1] == wanted
    if flag == '--size': assert {c.data.frame_size for _, _, c in stages.values()} == {int(wanted)}

def test_the_baseline():
    cfg = load('ablations/baseline.yaml')
    assert cfg.train.steps*cfg.train.batch_size == 360_000
    assert (cfg.model.language.split('-')[-2], cfg.data.order, cfg.train.schedule, cfg.train.warmup) == (
        '135M', 'mixed', 'cosine', 0.05)
    assert (cfg.log.project, cfg.train.lr.connector, cfg.model.pooler, cfg.model.train_mode) == (
        'foveated-vlm-ablations', 1e-4, 'deep', 'fine')
    sources = {Path(s.strip()).name for s in cfg.data.shards.split(',')}
    assert sources == {'openvid', 'webvid', 'cauldron', 'smoltalk'}

def test_each_ablation_changes_its_declared_thing_alone():
    found = load_ablations(ROOT/'ablations').items()
    assert {name:{k:new for k, (_, new) in d.items()} for name, (_, d) in found} == DECLARED
    assert set(DECLARED) == set(ABLATIONS)

@pytest.mark.parametrize('name', list(DECLARED))
def test_an_ablation_is_a_base_and_a_change(name):
    tree = read_yaml(ROOT/'ablations'/f'{name.lower()}.yaml')
    assert tree['base'] == 'baseline.yaml'
    assert tree['name'] == name.lower() and tree['out'].endswith(name.lower())

@pytest.mark.parametrize('name', list(DECLARED))
def test_an_ablation_fits_the_tiny_world(name):
    baseline, tiny = load('ablations/baseline.yaml'), load('ablations/tiny.yaml')
    cfg = transfer(baseline, load(f'ablations/{name.lower()}.yaml'), tiny)
    dropped = set(FINE_PASS_KEYS)-set(DECLARED[name])  # with the fine pass itself
    assert set(diff_configs(tiny, cfg))-dropped == set(DECLARED[name])

def test_a_second_change_is_refused(tmp_path):
    for p in [ROOT/'base.yaml', *(ROOT/'ablations').glob('*.yaml')]:
        to = tmp_path/p.relative_to(ROOT)
        to.parent.mkdir(exist_ok=True)
        to.write_bytes(p.read_bytes())
    (tmp_path/'tiny').mkdir()
    spoilt = tmp_path/'ablations'/'lr2.yaml'
    spoilt.write_text(spoilt.read_text(encoding='utf-8')+'data: {order: video_first}\n')
    with pytest.raises(ConfigError, match='data.order'): load_ablations(tmp_path/'ablations')
