"""The rules of the repository as a static gate: nothing here runs a notebook or loads a model.

Each rule gathers every culprit before it fails, so that one run tells all.
"""
import ast
import io
import json
import re
import subprocess
import tokenize
from collections import Counter
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PARTS = 'data', 'model', 'world', 'training', 'evaluation', 'experiments'  # imports run from right to left
CORE = 'encoder', 'query', 'loss', 'foveated', 'pooling'  # what somebody copies to use the idea
WIDTH = 110  # columns
# distribution -> import name, where they differ
NAMES = {'pillow': 'PIL', 'scikit-learn': 'sklearn', 'pyyaml': 'yaml'}
# used by hand, by a command, pinned for nbdev, or below another (urllib3 of requests)
TOOLS = {'jupyterlab', 'nbdev', 'execnb', 'fastgit', 'nbclient', 'ipywidgets', 'pytest', 'pytest-xdist',
         'urllib3'}


# -- reading

@cache
def notebooks():
    "Path below nbs/ without its suffix -> notebook, in reading order."
    found = [p for p in (ROOT/'nbs').rglob('*.ipynb') if not re.search(r'/[._]', p.as_posix())]
    named = {p.relative_to(ROOT/'nbs').with_suffix('').as_posix(): p for p in found}
    return {k: json.loads(named[k].read_text(encoding='utf-8')) for k in sorted(named, key=place)}


def place(name):
    "Sort key of a notebook: index, 00_config, the parts in order, 99_cli."
    numbers = [re.match(r'(\d+)_', piece) for piece in name.split('/')]
    if len(numbers) == 1: return (int(numbers[0][1]) if numbers[0] else -1,)
    return tuple(int(m[1]) if m else 0 for m in numbers)


def module(name):
    "The module that a notebook makes; empty for pages."
    *part, stem = (re.sub(r'^\d+_', '', piece) for piece in name.split('/'))
    return '' if name == 'index' or part in (['start'], ['results']) else '.'.join([*part, stem])


def source(cell): return ''.join(cell['source'])
def code_cells(nb): return [c for c in nb['cells'] if c['cell_type'] == 'code']


def directives(cell):
    return {l[2:].split()[0] for l in source(cell).splitlines() if l.startswith('#|') and l[2:].strip()}


def exported(cell): return bool(directives(cell) & {'export', 'exports', 'exporti'})


def plain(text):
    "Code without shell and magic lines."
    return '\n'.join('pass' if l.startswith(('%', '!')) else l for l in text.splitlines())


def tree(text): return ast.parse(plain(text))


def dotted(node):
    "`torch.load` of the syntax tree as text; empty for anything but names and dots."
    if isinstance(node, ast.Name): return node.id
    base = dotted(node.value) if isinstance(node, ast.Attribute) else ''
    return f'{base}.{node.attr}' if base else ''


def rel(path): return path.relative_to(ROOT).as_posix()


def python_files(*folders):
    found = [p for f in folders for p in (ROOT/f).rglob('*.py')]
    return sorted(p for p in found if '__pycache__' not in p.parts and p.name != '_modidx.py')


def own_code():
    "Name -> text of all Python written here: notebooks cell by cell, and files that no notebook makes."
    for p in python_files('scripts', 'tests', 'benchmarks'): yield rel(p), p.read_text(encoding='utf-8')
    for name, nb in notebooks().items():
        for c in code_cells(nb): yield f'{name} cell {c["id"]}', source(c)


def own_texts():
    "Name -> text of everything written here, notebooks without their outputs."
    endings = {'.py', '.sh', '.yml', '.yaml', '.md', '.toml', '.jinja'}
    for folder in ('fvlm', 'scripts', 'tests', 'benchmarks', 'configs', '.ci', '.github'):
        for p in sorted((ROOT/folder).rglob('*')):
            if p.is_file() and (p.suffix in endings or folder == '.ci') and p.name != '_modidx.py':
                yield rel(p), p.read_text(encoding='utf-8')
    for pattern in ('*.md', '*.py', '*.ini', '*.yml', '*.cff', 'nbs/*.yml'):
        for p in sorted(ROOT.glob(pattern)): yield rel(p), p.read_text(encoding='utf-8')
    for name, nb in notebooks().items():
        for c in nb['cells']: yield f'{name} cell {c["id"]}', source(c)


def said(cell):
    "The text of a code cell's outputs."
    return '\n'.join(''.join(o.get('text', [])) + ''.join(
        ''.join(v) for k, v in o.get('data', {}).items() if k.startswith('text/')) for o in cell['outputs'])


def none(bad):
    "Fail with one line for each culprit."
    bad = sorted(bad)
    if bad: pytest.fail('\n  '.join([f'{len(bad)} found', *bad]), pytrace=False)


# -- notebooks

def test_notebooks_are_small():
    found = (ROOT/'nbs').rglob('*.ipynb')
    none(f'{rel(p)}: {p.stat().st_size//1000} KB' for p in found if p.stat().st_size > 500_000)


def test_notebook_opening():
    "A default_exp cell named like the notebook, then H1 and `>` subtitle."
    bad = []
    for name, nb in notebooks().items():
        first = next((source(c) for c in nb['cells'] if c['cell_type'] == 'markdown'), '')
        if not re.match(r'# \S[^\n]*\n\n> \S', first):
            bad.append(f'{name}: the first prose is not "# Title", a blank line, "> one line"')
        if module(name) and source(nb['cells'][0]).strip() != f'#| default_exp {module(name)}':
            bad.append(f'{name}: the first cell is not "#| default_exp {module(name)}"')
    none(bad)


def test_parts_are_numbered_in_reading_order():
    bad = []
    for part in sorted(p for p in (ROOT/'nbs').iterdir() if p.is_dir() and p.name != 'images'):
        numbers = [re.match(r'(\d\d)_', p.name) for p in sorted(part.glob('[!._]*.ipynb'))]
        if [m and int(m[1]) for m in numbers] != list(range(1, len(numbers)+1)):
            bad.append(f'{rel(part)}: not numbered 01, 02, ...')
    none(bad)


def test_notebook_cells_have_ids():
    bad = []
    for name, nb in notebooks().items():
        ids = Counter(c.get('id') for c in nb['cells'])
        if ids[None]: bad.append(f'{name}: {ids[None]} cells without an id')
        bad += [f'{name}: id {i} twice' for i, n in ids.items() if i and n > 1]
    none(bad)


def test_notebooks_are_clean():
    "No execution counts, no errors, no widget state."
    bad = []
    for name, nb in notebooks().items():
        if 'widgets' in nb['metadata']: bad.append(f'{name}: widget state in the metadata')
        for c in code_cells(nb):
            where = f'{name} cell {c["id"]}'
            if any(x.get('execution_count') is not None for x in (c, *c['outputs'])):
                bad.append(f'{where}: execution count')
            if any(o['output_type'] == 'error' for o in c['outputs']): bad.append(f'{where}: error output')
            if any('widget' in kind for o in c['outputs'] for kind in o.get('data', {})):
                bad.append(f'{where}: widget output')
    none(bad)


def test_notebooks_have_outputs():
    "The site shows what is saved."
    none(f'{name}: no saved output' for name, nb in notebooks().items()
         if code_cells(nb) and not any(c['outputs'] for c in code_cells(nb)))


def lines(cell): return sum(bool(l.strip()) for l in source(cell).splitlines())


def holds_module(cell):
    "Does the cell define a torch module or a transformers model?"
    classes = [n for n in ast.walk(tree(source(cell))) if isinstance(n, ast.ClassDef)]
    return any(dotted(b).split('.')[-1] in ('Module', 'PreTrainedModel') for n in classes for b in n.bases)


def test_code_cells_are_short():
    "At most 30 lines (60 for a torch module); prose stands before a cell of more than 20."
    bad = []
    for name, nb in notebooks().items():
        before = ''
        for c in nb['cells']:
            n = lines(c)
            if c['cell_type'] == 'code':
                most = 60 if n > 30 and holds_module(c) else 30
                if n > most: bad.append(f'{name} cell {c["id"]}: {n} lines of at most {most}')
                if n > 20 and before != 'markdown':
                    bad.append(f'{name} cell {c["id"]}: {n} lines without prose')
            before = c['cell_type']
    none(bad)


def test_import_cells_only_import():
    "The docs build runs every cell with an import, and no other example: what stands beside it then fails."
    bad, kinds = [], (ast.Import, ast.ImportFrom)
    for name, nb in notebooks().items():
        for c in code_cells(nb):
            if exported(c) or 'eval:' in directives(c) or 'nbdev_export()' in source(c): continue
            body = tree(source(c))
            alone = all(isinstance(n, (*kinds, ast.FunctionDef, ast.ClassDef)) for n in body.body)
            if not alone and any(isinstance(n, kinds) for n in ast.walk(body)):
                bad.append(f'{name} cell {c["id"]}: an import and other statements')
    none(bad)


def imports(text):
    "Names of the fvlm modules that a piece of code imports, and whether an import is relative."
    for n in ast.walk(tree(text)):
        if isinstance(n, ast.ImportFrom) and n.level: yield '.'
        elif isinstance(n, ast.ImportFrom) and (n.module or '').split('.')[0] == 'fvlm':
            if n.module.removeprefix('fvlm').lstrip('.') in ('', *PARTS):
                for a in n.names: yield f'{n.module}.{a.name}'[5:]
            else: yield n.module[5:]
        elif isinstance(n, ast.Import): yield from (a.name[5:] for a in n.names if a.name.startswith('fvlm.'))


def test_imports_run_downwards():
    "Between the parts and inside them: config, data, model, world, training, evaluation, experiments, cli."
    made = {module(name): place(name) for name in notebooks() if module(name)}
    bad = []
    for name, nb in notebooks().items():
        for c in filter(exported, code_cells(nb)):
            for other in imports(source(c)):
                if other == '.': bad.append(f'{name}: relative import; write "from fvlm.x import y"')
                elif other.startswith('__'): pass
                elif other not in made: bad.append(f'{name}: imports fvlm.{other}, which no notebook makes')
                elif made[other] >= place(name):
                    bad.append(f'{name}: imports fvlm.{other}, which comes later')
    none(bad)


def test_every_module_has_a_notebook():
    made = {module(name) for name in notebooks()}
    files = {'.'.join(p.relative_to(ROOT/'fvlm').with_suffix('').parts): p for p in python_files('fvlm')}
    files = {m: p for m, p in files.items() if p.stem != '__init__'}
    none(f'{rel(p)}: no notebook makes it' for m, p in files.items() if m not in made)


def test_the_parts_are_those_of_the_design():
    folders = [p.name for p in sorted((ROOT/'nbs').glob('[0-9]_*'))]
    assert folders == ['0_start', *(f'{i}_{part}' for i, part in enumerate(PARTS, 1)), '7_results']


# -- size

def test_lines_fit():
    "No line over 110 columns in modules, notebooks, scripts, tests and benchmarks."
    paths = [*python_files('fvlm'), *(ROOT/'scripts').glob('*.sh'), ROOT/'.ci/run']
    header = re.compile(r'^__all__ = \[.*?\]', re.M | re.S)  # nbdev's own, up to 120 columns
    files = [(rel(p), header.sub('', p.read_text(encoding='utf-8'))) for p in paths]
    none(f'{name}:{i}: {len(l)} columns' for name, text in [*own_code(), *files]
         for i, l in enumerate(text.splitlines(), 1) if len(l) > WIDTH)


def test_one_statement_a_line():
    "No `;` between statements; one at the end of a plot's last line is for its output."
    bad = []
    for name, text in own_code():
        tokens = list(tokenize.generate_tokens(io.StringIO(plain(text) + '\n').readline))
        for t, after in zip(tokens, tokens[1:]):
            joins = after.type not in (tokenize.NEWLINE, tokenize.COMMENT)
            if t.type == tokenize.OP and t.string == ';' and joins:
                bad.append(f'{name}:{t.start[0]}: {t.line.strip()[:80]}')
    none(bad)


def test_package_is_small():
    sizes = {p: p.stat().st_size for p in python_files('fvlm')}
    bad = [f'{rel(p)}: {n/1000:.1f} KB of at most 32' for p, n in sizes.items() if n > 32_000]
    if (total := sum(sizes.values())) > 630_000: bad.append(f"fvlm: {total/1000:.0f} KB of at most 630")
    core = sum(len((ROOT/f'fvlm/model/{m}.py').read_text().splitlines()) for m in CORE)
    if core > 975: bad.append(f'core of fvlm/model: {core} lines of at most 975')
    none(bad)


def public(path):
    "Names in `__all__` of an exported module."
    for n in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(n, ast.Assign) and dotted(n.targets[0]) == '__all__': return ast.literal_eval(n.value)
    return []


def test_exported_names_have_one_home():
    homes = {}
    for p in python_files('fvlm'):
        for name in public(p): homes.setdefault(name, []).append(rel(p))
    none(f'{name}: {", ".join(files)}' for name, files in homes.items() if len(files) > 1)


def used_names(text):
    "Names that a piece of code takes from this package: imported, or reached through a dot."
    nodes = list(ast.walk(tree(text)))
    taken = {a.name for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}
    return taken | {n.attr for n in nodes if isinstance(n, ast.Attribute)}


def signature_names(path):
    "Names in annotations of a module's functions and fields, and its exceptions."
    nodes = list(ast.walk(ast.parse(path.read_text(encoding='utf-8'))))
    notes = [n.annotation for n in nodes if isinstance(n, (ast.arg, ast.AnnAssign)) and n.annotation]
    notes += [n.returns for n in nodes if isinstance(n, ast.FunctionDef) and n.returns]
    names = {x.id for note in notes for x in ast.walk(note) if isinstance(x, ast.Name)}
    return names | {n.name for n in nodes if isinstance(n, ast.ClassDef) and n.name.endswith('Error')}


def test_exported_names_are_used():
    "A public name is used outside its notebook or in a public signature, or another page speaks of it."
    met = {'README.md': set(), 'scripts': set()}  # notebook, or one of these two -> names
    for name, text in own_texts():
        where = name.split(' cell ')[0] if ' cell ' in name else 'README.md'
        words = re.findall(r'`[^`\n]+`', text) if not name.endswith('.py') else []
        if name.endswith('.jinja'): words = [text]  # a template sees the names of the module that fills it
        met.setdefault(where, set()).update(w for code in words for w in re.findall(r'\w+', code))
    for name, text in own_code():
        where = name.split(' cell ')[0] if ' cell ' in name else 'scripts'
        met.setdefault(where, set()).update(used_names(text))
    bad = []
    for name in filter(module, notebooks()):
        path = ROOT/'fvlm'/(module(name).replace('.', '/') + '.py')
        if not path.exists(): continue  # another rule's business
        others = signature_names(path).union(*(names for where, names in met.items() if where != name))
        bad += [f'{rel(path)}: {n}' for n in public(path) if n not in others]
    none(bad)


# -- words

PRIVATE = {  # words of the first version -> what the field says
    r'films?': 'video', r'census': 'sample counter', r'riders?': 'static query',
    r'forgets?': 'gradient checkpointing',
    r'deep_read|look_attention|no_angles|see_(coarse|fine|auto)|fine_passes|unspread|in_step': 'see design',
    r'laws?': 'invariant',  # scaling laws and power laws are the field's own
    r'lessons?|educat\w+': 'pretraining', r'eyes?': 'vision backbone',
    r'this room|other rooms?|a lower room': 'notebook',
}


def test_words_are_the_fields():
    pattern = re.compile(r'\b(' + '|'.join(f'(?:{w})' for w in PRIVATE) + r')\b', re.I)
    skip = ('tests/test_repo.py', 'CHANGELOG.md')
    texts = [(name, re.sub(r'(scaling|power)[- ]laws?', '', text)) for name, text in own_texts()
        if name not in skip]
    found = [(name, m[0]) for name, text in texts for m in pattern.finditer(text.replace('torch.eye', ''))]
    none(f'{name}: {word}' for name, word in found if not ('scaling' in name and word.startswith('law')))


# -- the site

def hrefs(entries):
    for e in entries:
        if isinstance(e, str): yield e
        else:
            if 'href' in e: yield e['href']
            yield from hrefs(e.get('contents', []))


def test_sidebar_lists_every_notebook():
    "nbs/sidebar.yml is made from the folders by scripts/sidebar.py."
    sidebar = yaml.safe_load((ROOT/'nbs/sidebar.yml').read_text())['website']['sidebar']
    assert sorted(hrefs(sidebar['contents'])) == sorted(f'{name}.ipynb' for name in notebooks())


def test_links_lead_somewhere():
    "Every relative link of a notebook or a document names a file of the repository."
    bad, link = [], re.compile(r'\]\(([^)\s]+)\)')
    pages = [(f'nbs/{name}.ipynb', source(c)) for name, nb in notebooks().items()
             for c in nb['cells'] if c['cell_type'] == 'markdown']
    pages += [(rel(p), p.read_text(encoding='utf-8')) for p in ROOT.glob('*.md')]
    for name, text in pages:
        text = re.sub(r'`[^`]*`', '', re.sub(r'^```.*?^```', '', text, flags=re.M | re.S))
        for target in link.findall(text):
            if re.match(r'[a-z]+:|#', target): continue
            if not ((ROOT/name).parent/target.split('#')[0]).exists(): bad.append(f'{name}: {target}')
    none(bad)


# -- code

def dangers(text):
    "What must not be in the library or the scripts."
    nodes = list(ast.walk(tree(text)))
    classes = [n for n in nodes if isinstance(n, ast.ClassDef)]
    safe = {n.name for n in classes if any('SafeLoader' in dotted(b) for b in n.bases)}
    safe |= {'SafeLoader', 'CSafeLoader'}
    calls = {'eval', 'exec', 'builtins.eval', 'builtins.exec', 'torch.load', 'os.system', 'os.popen',
             'yaml.unsafe_load', 'yaml.full_load'}
    for n in nodes:
        if isinstance(n, (ast.Import, ast.ImportFrom)):
            names = [n.module or ''] if isinstance(n, ast.ImportFrom) else [a.name for a in n.names]
            if {m.split('.')[0] for m in names} & {'pickle', 'cPickle', 'cloudpickle', 'dill'}:
                yield n, 'pickle'
            if isinstance(n, ast.ImportFrom):
                taken = [a.name for a in n.names]
                if n.module == 'torch' and 'load' in taken: yield n, 'torch.load'
                if n.module == 'yaml' and any(a.startswith(('load', 'unsafe')) for a in taken):
                    yield n, 'yaml.load'
        if not isinstance(n, ast.Call): continue
        name, words = dotted(n.func), {k.arg: k.value for k in n.keywords}
        if name in calls: yield n, name
        if name.split('.')[-1] in ('read_pickle', 'to_pickle', 'extract', 'extractall'):
            yield n, name  # tars are read in memory
        if name in ('yaml.load', 'yaml.load_all'):
            if not any(dotted(a).split('.')[-1] in safe for a in [*n.args[1:], *words.values()]):
                yield n, f'{name} without a safe loader'
        for word in ('trust_remote_code', 'shell', 'allow_pickle'):
            value = words.get(word)
            if value is not None and not (isinstance(value, ast.Constant) and value.value in (False, None)):
                yield n, word


def test_no_dangerous_calls():
    found = [(p, n, what) for p in python_files('fvlm', 'scripts', 'benchmarks')
             for n, what in dangers(p.read_text(encoding='utf-8'))]
    bad = [f'{rel(p)}:{n.lineno}: {what}' for p, n, what in found]
    shell = re.compile(r'\bpickle\b|torch\.load\(|trust_remote_code\s*=\s*True|shell=True'
                       r'|(^|[;&|])\s*eval\b|\b(eval|exec)\(')
    for p in [*(ROOT/'scripts').rglob('*.sh'), *(ROOT/'.ci').glob('*')]:
        for i, l in enumerate(p.read_text(encoding='utf-8').splitlines(), 1):
            if m := shell.search(l): bad.append(f'{rel(p)}:{i}: {m[0]}')
    none(bad)


def test_nothing_left_to_do():
    word = re.compile(r'\b(' + '|'.join(['TO'+'DO', 'FIX'+'ME', 'XX'+'X']) + r')\b')
    none(f'{name}: {m[0]}' for name, text in own_texts() if (m := word.search(text)))


def test_no_hard_paths():
    "No folder of one machine; a notebook may look for optional clips beside the repository if it says so."
    work, clips = re.compile(r'(?<![\w.])/wo' + r'rk(?![\w])'), '../sha' + 'red'
    bad = [f'{name}: {m[0]}' for name, text in own_texts() if (m := work.search(text))]
    for name, text in own_texts():
        guarded = ' cell ' in name and re.search(r'\.(exists|is_dir|is_file)\(\)', text)
        if clips in text and not guarded: bad.append(f'{name}: {clips} without a guard')
    for name, nb in notebooks().items():
        for c in code_cells(nb):
            if m := work.search(said(c)): bad.append(f'{name} cell {c["id"]}: {m[0]} in an output')
    none(bad)


def test_scripts_are_thin_and_say_how_to_run_them():
    bad, tools = [], {'readme.py', 'sidebar.py', 'test_notebooks.py'}
    for folder, most in (('scripts', 60), ('benchmarks', 1000)):
        for p in sorted((ROOT/folder).glob('*.py')):
            text, most = p.read_text(encoding='utf-8'), 100 if p.name in tools else most
            if (n := len(text.splitlines())) > most: bad.append(f'{rel(p)}: {n} lines of at most {most}')
            if f'python {folder}/' not in (ast.get_docstring(ast.parse(text)) or ''):
                bad.append(f'{rel(p)}: no "python {folder}/..." line in the docstring')
    none(bad)


def test_every_requirement_is_used():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini')
    wanted = cfg['DEFAULT']['requirements'].split() + cfg['DEFAULT']['dev_requirements'].split()
    named = {re.split(r'[\[<>=!~;]', w)[0] for w in wanted}
    texts = [p.read_text(encoding='utf-8') for p in python_files('fvlm')] + [text for _, text in own_code()]
    used = set()
    for n in (n for text in texts for n in ast.walk(tree(text))):
        if isinstance(n, ast.Import): used |= {a.name.split('.')[0] for a in n.names}
        if isinstance(n, ast.ImportFrom) and not n.level: used.add(n.module.split('.')[0])
    unused = [r for r in named-TOOLS if NAMES.get(r, r) not in used]
    none(f'settings.ini: {r} is never imported' for r in unused)


# -- results and files

def test_results_tell_commit_and_hardware():
    bad = []
    for p in (ROOT/'results').rglob('*.json'):
        data = json.loads(p.read_text(encoding='utf-8'))
        info = data.get('info') if isinstance(data, dict) else None
        if not isinstance(info, dict):
            bad.append(f'{rel(p)}: no info')
            continue
        if not info.get('commit'): bad.append(f'{rel(p)}: no commit in info')
        if not (info.get('hardware') or data.get('hardware') or info.get('gpu') or info.get('cpu')):
            bad.append(f'{rel(p)}: no hardware (cpu or gpu) in info')
    none(bad)


def test_a_result_outside_the_history_is_named_on_its_page():
    "A result file names a commit of this history, or a page says that its commit is not there."
    def git(*args): return subprocess.run(['git', '-C', ROOT, *args], capture_output=True, text=True)
    if git('rev-parse', '--is-shallow-repository').stdout.strip() != 'false': pytest.skip('no whole history')
    pages = '\n'.join(source(c) for name, nb in notebooks().items() if name.startswith('7_results/')
                      for c in nb['cells'] if c['cell_type'] == 'markdown')
    bad = []
    for p in sorted((ROOT/'results').glob('*.json')):
        commit = json.loads(p.read_text(encoding='utf-8'))['info']['commit']
        there = git('merge-base', '--is-ancestor', commit, 'HEAD').returncode == 0
        said_so = f"`{commit[:10]}`, is not in this repository's history" in pages
        if there or said_so: continue
        bad.append(f'{rel(p)}: {commit[:10]} is not in the history, and no page says so')
    none(bad)


def test_no_large_files_in_git():
    done = subprocess.run(['git', '-C', ROOT, 'ls-files', '-z'], capture_output=True, text=True)
    if done.returncode: pytest.skip('not a git repository')
    files = [ROOT/f for f in done.stdout.split('\0') if f]
    none(f'{rel(p)}: {p.stat().st_size/1e6:.1f} MB' for p in files
         if p.is_file() and not p.is_symlink() and p.stat().st_size > 5_000_000)
