"""Every configuration file, as it stands in the repository."""
from pathlib import Path
import pytest

from fvlm.experiments.ablations import ABLATIONS, FINE_PASS_KEYS, load_ablations, transfer
from fvlm.config import ConfigError, diff_configs, load_config, read_yaml

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
    'Q1':{'model.first_query':'init'}, 'L1':{'model.lambda_coarse':1.}}

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
    assert load(name).data.text_share == (0.15 if Path(name).stem == 'd1' else 0.14)

@pytest.mark.parametrize('name', REAL)
def test_every_real_run_logs_both_losses(name):
    "The coarse loss is trained, or measured every 50 updates; a run without a fine pass has only that one."
    cfg = load(name)
    assert cfg.model.train_mode == 'coarse' or cfg.model.lambda_coarse > 0 or cfg.train.coarse_every == 50

@pytest.mark.parametrize('name', ['stage1.yaml', 'ablations/baseline.yaml'])
def test_the_connector_is_ten_times_as_fast(name):
    lr = load(name).train.lr
    assert lr.vision == lr.language and lr.connector == pytest.approx(10*lr.vision)

def test_the_baseline():
    cfg = load('ablations/baseline.yaml')
    assert cfg.train.steps*cfg.train.batch_size == 300_000
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
