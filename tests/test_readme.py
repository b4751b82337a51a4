"README.md from a small made-up notebook."
import base64, json, shutil, subprocess, sys
from pathlib import Path
import pytest

SCRIPT = Path(__file__).parents[1]/'scripts/readme.py'
PNG = base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6'
                       'kgAAAABJRU5ErkJggg==')


def md(source): return dict(cell_type='markdown', id='m', metadata={}, source=source.splitlines(True))
def code(source, *outputs, id='c'):
    return dict(cell_type='code', id=id, metadata={}, execution_count=None, source=source,
                outputs=list(outputs))


def shown(**data):
    kinds = {k.replace('_', '/'): v for k, v in data.items()}
    return dict(output_type='display_data', metadata={}, data=kinds)


LINKS = ('[model]({nbs}2_model/04_foveated.ipynb#modes) ![a]({nbs}images/x.png) [web](https://a.b/c.ipynb) '
         '[here](#title) [licence]({top}LICENSE) <img src="{nbs}images/y.png">')
FIGURE = shown(text_plain='<Figure>', image_png=base64.b64encode(PNG).decode())
RESULT = dict(output_type='execute_result', execution_count=None, metadata={}, data={'text/plain': ['2']})

NB = dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[
    md('# Title\n\n> One line.\n\n' + LINKS.format(nbs='', top='../')),
    md('```md\n[kept](2_model/04_foveated.ipynb)\n```'),
    code('#| hide\nsecret = 1', shown(text_plain='hidden output')),
    code('#| echo: false\nfigure()', FIGURE, id='fig'),
    code('#| eval: false\n1+1', RESULT),
    code('print("```")', dict(output_type='stream', name='stdout', text=['```\n'])),
    code('table', shown(text_plain='raw', text_markdown='| a |\n|---|\n| [q](2_model/02_query.ipynb) |')),
    dict(cell_type='raw', id='r', metadata={}, source='---\nskip_exec: true\n---'),
])

WANT = '''# Title

> One line.

''' + LINKS.format(nbs='nbs/', top='') + '''

```md
[kept](2_model/04_foveated.ipynb)
```

![](nbs/images/index-fig-0.png)

```python
1+1
```

```
2
```

````python
print("```")
````

````
```
````

```python
table
```

| a |
|---|
| [q](nbs/2_model/02_query.ipynb) |
'''


@pytest.fixture
def repo(tmp_path):
    (tmp_path/'scripts').mkdir()
    (tmp_path/'nbs').mkdir()
    shutil.copy(SCRIPT, tmp_path/'scripts')
    (tmp_path/'nbs/index.ipynb').write_text(json.dumps(NB))
    return tmp_path


def run(repo, *args):
    return subprocess.run([sys.executable, repo/'scripts/readme.py', *args], capture_output=True, text=True)


def test_text_and_images(repo):
    assert run(repo).returncode == 0
    note, body = (repo/'README.md').read_text().split('\n\n', 1)
    assert note.startswith('<!--') and body == WANT
    assert (repo/'nbs/images/index-fig-0.png').read_bytes() == PNG


def test_check(repo):
    assert run(repo, '--check').returncode == 1 and not (repo/'README.md').exists()
    run(repo)
    assert run(repo, '--check').returncode == 0
    for file in ('README.md', 'nbs/images/index-fig-0.png'):
        good = (repo/file).read_bytes()
        (repo/file).write_bytes(good + b'x')
        done = run(repo, '--check')
        assert done.returncode == 1 and file in done.stderr and len(done.stderr.splitlines()) == 1
        assert (repo/file).read_bytes() == good + b'x'
        (repo/file).write_bytes(good)


def test_error_output_and_missing_notebook(repo):
    nb = json.loads(json.dumps(NB))
    error = dict(output_type='error', ename='ZeroDivisionError', evalue='', traceback=[])
    nb['cells'].append(code('1/0', error))
    (repo/'nbs/index.ipynb').write_text(json.dumps(nb))
    assert 'ZeroDivisionError' in run(repo).stderr
    (repo/'nbs/index.ipynb').unlink()
    done = run(repo)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
