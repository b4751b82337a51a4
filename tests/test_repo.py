"""The house rules as a static gate: nothing here runs a notebook or loads a model.

Each rule gathers every culprit before it fails, so that one run tells all.
"""
import ast, json, re, statistics, subprocess
from configparser import ConfigParser
from functools import cache
from pathlib import Path
import pytest, yaml

ROOT = Path(__file__).resolve().parents[1]
# distribution -> import name, where they differ
NAMES = {'pillow':'PIL', 'scikit-learn':'sklearn', 'pyyaml':'yaml'}
# used by hand, by a command, or pins for nbdev
TOOLS = {'jupyterlab', 'nbdev', 'execnb', 'fastgit', 'nbclient', 'ipywidgets', 'pytest'}


# -- reading

@cache
def notebooks():
    "Stem -> notebook, in reading order."
    found = sorted((ROOT/'nbs').glob('[!._]*.ipynb'), key=lambda p: place(p.stem))
    return {p.stem:json.loads(p.read_text(encoding='utf-8')) for p in found}

def place(stem):
    "Sort key of a notebook's number: 05_encoder < 05a_backbones < 06_query; index comes first."
    m = re.match(r'(\d+)([a-z]*)_', stem)
    return (int(m[1]), m[2]) if m else (-1, stem)

def source(cell): return ''.join(cell['source'])
def code_cells(nb): return [c for c in nb['cells'] if c['cell_type'] == 'code']
def directives(cell):
    return {l[2:].split()[0] for l in source(cell).splitlines() if l.startswith('#|') and l[2:].strip()}

def tree(text):
    "Syntax tree of a cell or file; shell and magic lines are left out."
    return ast.parse('\n'.join('pass' if l.startswith(('%', '!')) else l for l in text.splitlines()))

def dotted(node):
    "`torch.load` of the syntax tree as text; empty for anything but names and dots."
    if isinstance(node, ast.Name): return node.id
    base = dotted(node.value) if isinstance(node, ast.Attribute) else ''
    return f'{base}.{node.attr}' if base else ''

def python_files(*folders):
    return sorted(p for f in folders for p in (ROOT/f).rglob('*.py') if '__pycache__' not in p.parts)

def own_texts():
    "Name -> text of everything written here, notebooks cell by cell and without outputs."
    for folder in ('fvlm', 'scripts', 'tests', 'configs', '.ci', '.github'):
        for p in sorted((ROOT/folder).rglob('*')):
            if p.is_file() and (p.suffix in {'.py', '.sh', '.yml', '.yaml', '.md', '.toml'}
                    or folder == '.ci'):
                yield rel(p), p.read_text(encoding='utf-8')
    for p in sorted([*ROOT.glob('*.md'), *ROOT.glob('*.py'), *ROOT.glob('*.ini'), *ROOT.glob('*.yml'),
            *(ROOT/'nbs').glob('*.yml')]):
        yield rel(p), p.read_text(encoding='utf-8')
    for stem, nb in notebooks().items():
        for c in nb['cells']: yield f'{stem} cell {c.get("id")}', source(c)

def rel(path): return path.relative_to(ROOT).as_posix()

def none(bad):
    "Fail with one line for each culprit."
    bad = sorted(bad)
    if bad: pytest.fail('\n  '.join([f'{len(bad)} found', *bad]), pytrace=False)


# -- notebooks

def test_notebooks_are_small():
    none(f'{rel(p)}: {p.stat().st_size//1000} KB' for p in (ROOT/'nbs').rglob('*.ipynb')
        if p.stat().st_size > 500_000)

def test_notebook_opening():
    "A default_exp cell named like the notebook, then H1 and `>` subtitle."
    bad = []
    for stem, nb in notebooks().items():
        cells = nb['cells']
        if not (stem == 'index' or re.match(r'2\d_', stem)):  # pages without a module
            name = re.sub(r'^\d+[a-z]*_', '', stem)
            if not cells or source(cells[0]).strip() != f'#| default_exp {name}':
                bad.append(f'{stem}: the first cell is not "#| default_exp {name}"')
        first = next((source(c) for c in cells if c['cell_type'] == 'markdown'), '')
        if not re.match(r'# \S[^\n]*\n\n> \S', first):
            bad.append(f'{stem}: the first prose is not "# Title", a blank line, "> one line"')
    none(bad)

def test_notebook_cells_have_ids():
    bad = []
    for stem, nb in notebooks().items():
        ids = [c.get('id') for c in nb['cells']]
        if not all(ids): bad.append(f'{stem}: {sum(not i for i in ids)} cells without an id')
        bad += [f'{stem}: id {i} twice' for i in {i for i in ids if i and ids.count(i) > 1}]
    none(bad)

def test_notebooks_are_clean():
    "No execution counts, no errors, no widget state."
    bad = []
    for stem, nb in notebooks().items():
        if 'widgets' in nb['metadata']: bad.append(f'{stem}: widget state in the metadata')
        for c in code_cells(nb):
            if c.get('execution_count') is not None or any(o.get('execution_count') is not None
                    for o in c['outputs']):
                bad.append(f'{stem} cell {c.get("id")}: execution count')
            if any(o['output_type'] == 'error' for o in c['outputs']):
                bad.append(f'{stem} cell {c.get("id")}: error output')
            if any('widget' in kind for o in c['outputs'] for kind in o.get('data', {})):
                bad.append(f'{stem} cell {c.get("id")}: widget output')
    none(bad)

def lines(cell): return sum(bool(l.strip()) for l in source(cell).splitlines())

def holds_module(cell):
    "Does the cell define a torch module or a transformers model?"
    classes = [n for n in ast.walk(tree(source(cell))) if isinstance(n, ast.ClassDef)]
    return any(dotted(b).split('.')[-1] in ('Module', 'PreTrainedModel') for n in classes for b in n.bases)

def test_code_cells_are_short():
    bad = []
    for stem, nb in notebooks().items():
        for c in code_cells(nb):
            n = lines(c)
            most = 30 if n <= 30 or not holds_module(c) else 60
            if n > most: bad.append(f'{stem} cell {c.get("id")}: {n} lines of at most {most}')
    none(bad)

def test_median_code_cell():
    sizes = {stem:[lines(c) for c in code_cells(nb)] for stem, nb in notebooks().items()}
    none(f'{stem}: median {statistics.median(n):g} lines of at most 5' for stem, n in sizes.items() if n
        and statistics.median(n) > 5)

def test_import_cells_only_import():
    "The docs build runs every cell that holds an import, and no other example: what stands beside the import then fails."
    bad = []
    for stem, nb in notebooks().items():
        for c in code_cells(nb):
            if directives(c) & {'export', 'exports', 'exporti', 'eval:'}: continue
            body, kinds = tree(source(c)), (ast.Import, ast.ImportFrom)
            alone = all(isinstance(n, (*kinds, ast.FunctionDef, ast.ClassDef)) for n in body.body)
            if not alone and any(isinstance(n, kinds)
                    for n in ast.walk(body)) and 'nbdev_export()' not in source(c):
                bad.append(f'{stem} cell {c.get("id")}: an import and other statements')
    none(bad)

def test_rooms_import_only_lower_rooms():
    rooms = {re.sub(r'^\d+[a-z]*_', '', stem):stem for stem in notebooks() if stem != 'index'}
    bad = []
    for stem, nb in notebooks().items():
        for c in code_cells(nb):
            if not directives(c) & {'export', 'exports', 'exporti'}: continue
            for n in ast.walk(tree(source(c))):
                mods = [a.name for a in n.names] if isinstance(n, ast.Import) else []
                if isinstance(n, ast.ImportFrom) and n.level:
                    bad.append(f'{stem} cell {c.get("id")}: relative import; write "from fvlm.x import y"')
                elif isinstance(n, ast.ImportFrom):
                    mods = [f'fvlm.{a.name}' for a in n.names
                        if a.name[0] != '_'] if n.module == 'fvlm' else [n.module]
                for m in mods:
                    if not m.startswith('fvlm.'): continue
                    other = rooms.get(m.split('.')[1])
                    if other is None: bad.append(f'{stem}: imports {m}, which no notebook makes')
                    elif place(other) >= place(stem):
                        bad.append(f'{stem}: imports {m} of {other}, which is not a lower room')
    none(bad)

def test_every_module_has_a_notebook():
    made = {re.sub(r'^\d+[a-z]*_', '', stem) for stem in notebooks()}
    none(f'{rel(p)}: no notebook makes it' for p in (ROOT/'fvlm').glob('*.py') if p.stem not in made
        | {'__init__', '_modidx'})

def hrefs(entries):
    for e in entries:
        if isinstance(e, str): yield e
        else:
            yield from [e['href']] if 'href' in e else []
            yield from hrefs(e.get('contents', []))

def test_sidebar_lists_every_notebook():
    listed = list(hrefs(yaml.safe_load((ROOT/'nbs/sidebar.yml').read_text())['website']['sidebar'][
        'contents']))
    there = {f'{stem}.ipynb' for stem in notebooks()}
    none([f'{f}: not in nbs/sidebar.yml' for f in there - set(listed)]
        + [f'{f}: in nbs/sidebar.yml, but not there' for f in listed if not (ROOT/'nbs'/f).exists()] +
         [f'{f}: twice in nbs/sidebar.yml' for f in set(listed) if listed.count(f) > 1])


# -- code

def dangers(text):
    "What must not be in the library or the scripts."
    nodes = list(ast.walk(tree(text)))
    safe = {n.name for n in nodes if isinstance(n, ast.ClassDef) and any('SafeLoader' in dotted(b)
        for b in n.bases)} | {'SafeLoader', 'CSafeLoader'}
    for n in nodes:
        if isinstance(n, (ast.Import, ast.ImportFrom)):
            names = [n.module or ''] if isinstance(n, ast.ImportFrom) else [a.name for a in n.names]
            if any(m.split('.')[0] in ('pickle', 'cPickle', 'cloudpickle', 'dill') for m in names):
                yield n, 'pickle'
            if isinstance(n, ast.ImportFrom) and n.module == 'torch' and any(a.name == 'load'
                    for a in n.names):
                yield n, 'torch.load'
            if isinstance(n, ast.ImportFrom) and n.module == 'yaml' and any(
                    a.name.startswith(('load', 'unsafe')) for a in n.names):
                yield n, 'yaml.load'
        if not isinstance(n, ast.Call): continue
        name, words = dotted(n.func), {k.arg:k.value for k in n.keywords}
        if name in ('eval', 'exec', 'builtins.eval', 'builtins.exec', 'torch.load', 'os.system', 'os.popen',
                'yaml.unsafe_load', 'yaml.full_load'):
            yield n, name
        if name.split('.')[-1] in ('read_pickle', 'to_pickle', 'extract', 'extractall'):
            yield n, name
        if name in ('yaml.load', 'yaml.load_all') and not any(dotted(a).split('.')[-1] in safe
                for a in [*n.args[1:], *words.values()]):
            yield n, f'{name} without a safe loader'
        for word in ('trust_remote_code', 'shell', 'allow_pickle'):
            if word in words and not (isinstance(words[word], ast.Constant) and words[word].value in (False,
                    None)):
                yield n, word

def test_no_dangerous_calls():
    bad = [f'{rel(p)}:{n.lineno}: {what}' for p in python_files('fvlm', 'scripts') for n,
        what in dangers(p.read_text(encoding='utf-8'))]
    shell = re.compile(r'\bpickle\b|torch\.load\(|trust_remote_code\s*=\s*True|shell=True|(^|[;&|])\s*eval\b|\b(eval|exec)\(')
    for p in [*(ROOT/'scripts').rglob('*.sh'), *(ROOT/'.ci').glob('*')]:
        bad += [f'{rel(p)}:{i}: {m[0]}' for i, l in enumerate(p.read_text(encoding='utf-8').splitlines(), 1)
            if (m := shell.search(l))]
    none(bad)

def test_nothing_left_to_do():
    word = re.compile(r'\b(' + '|'.join(['TO'+'DO', 'FIX'+'ME', 'XX'+'X']) + r')\b')
    none(f'{name}: {m[0]}' for name, text in own_texts() if (m := word.search(text)))

def test_no_hard_paths():
    "No folder of one machine; a notebook may look for optional clips beside the repository if the cell skips where they are absent."
    work, clips = re.compile(r'(?<![\w.])/wo' + r'rk(?![\w])'), '../sha' + 'red'
    bad = [f'{name}: {m[0]}' for name, text in own_texts() if (m := work.search(text))]
    for name, text in own_texts():
        if clips in text and not (' cell ' in name and re.search(r'\.(exists|is_dir|is_file)\(\)', text)):
            bad.append(f'{name}: {clips} without a guard')
    for stem, nb in notebooks().items():
        bad += [f'{stem} cell {c.get("id")}: {m[0]} in an output' for c in code_cells(nb)
            if (m := work.search(said(c)))]
    none(bad)

def said(cell):
    "The text of a code cell's outputs."
    return '\n'.join(''.join(o.get('text', [])) + ''.join(''.join(v) for k, v in o.get('data', {}).items()
        if k.startswith('text/')) for o in cell['outputs'])

def test_scripts_are_thin_and_say_how_to_run_them():
    bad = []
    for p in sorted((ROOT/'scripts').glob('*.py')):
        text = p.read_text(encoding='utf-8')
        if (n := len(text.splitlines())) >= 80: bad.append(f'{rel(p)}: {n} lines, not under 80')
        if 'python scripts/' not in (ast.get_docstring(ast.parse(text)) or ''):
            bad.append(f'{rel(p)}: no "python scripts/..." line in the docstring')
    none(bad)

def test_every_requirement_is_used():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini')
    named = {re.split(r'[\[<>=!~;]', w)[0] for key in ('requirements', 'dev_requirements')
        for w in cfg['DEFAULT'][key].split()}
    texts = [p.read_text(encoding='utf-8') for p in python_files('fvlm', 'scripts', 'tests')]
    texts += [source(c) for nb in notebooks().values() for c in code_cells(nb)]
    used = set()
    for n in (n for text in texts for n in ast.walk(tree(text))):
        if isinstance(n, ast.Import): used |= {a.name.split('.')[0] for a in n.names}
        if isinstance(n, ast.ImportFrom) and not n.level: used.add(n.module.split('.')[0])
    none(f'settings.ini: {r} is never imported' for r in named if NAMES.get(r, r) not in used
        and r not in TOOLS)


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

def test_no_large_files_in_git():
    done = subprocess.run(['git', '-C', ROOT, 'ls-files', '-z'], capture_output=True, text=True)
    if done.returncode: pytest.skip('not a git repository')
    files = [ROOT/f for f in done.stdout.split('\0') if f]
    none(f'{rel(p)}: {p.stat().st_size/1e6:.1f} MB' for p in files if p.is_file() and not p.is_symlink()
        and p.stat().st_size > 5_000_000)
