"""Make README.md from nbs/index.ipynb: its prose and its results, as plain Markdown.

    python scripts/readme.py           # write README.md and the images it shows
    python scripts/readme.py --check   # say whether they are up to date; exit 1 if not
"""
import argparse, base64, json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = '<!-- Made from nbs/index.ipynb by scripts/readme.py: edit the notebook, then run it again. -->'


def text(x): return ''.join(x)  # nbformat keeps text as a string or as a list of lines


def fence(body, lang=''):
    "A fenced block; its fence is longer than any inside."
    ticks = '`' * max(3, 1 + max((len(m) for m in re.findall('`+', body)), default=0))
    return f'{ticks}{lang}\n{body.rstrip()}\n{ticks}'


def relink(md):
    "Links of a page in nbs/ as links of a page in the folder above; fenced code stays as it is."
    def path(m):
        before, target = m.groups()
        if target.startswith('../'): return before + target[3:]
        return m[0] if re.match(r'[a-z]+:|[/#]', target) else f'{before}nbs/{target}'
    parts = re.split(r'(^```.*?^```[ \t]*$)', md, flags=re.M | re.S)
    link = r'(\]\(|(?:src|href)=")([^)"\s]+)'
    return ''.join(p if i % 2 else re.sub(link, path, p) for i, p in enumerate(parts))


def show(output, name, images):
    "One output as Markdown; pictures go to `images`."
    if output['output_type'] == 'error':
        raise SystemExit(f"readme: index.ipynb holds an error: {output['ename']}: {output['evalue']}")
    if output['output_type'] == 'stream': return fence(text(output['text']))
    data = output['data']
    if 'text/markdown' in data: return relink(text(data['text/markdown']))
    kinds = {'image/png': 'png', 'image/jpeg': 'jpg', 'image/gif': 'gif', 'image/svg+xml': 'svg'}
    for kind, end in kinds.items():
        if kind not in data: continue
        file, body = f'{name}.{end}', text(data[kind])
        images[file] = body.encode() if end == 'svg' else base64.b64decode(body)
        return f'![](nbs/images/{file})'
    return fence(text(data['text/plain'])) if 'text/plain' in data else ''


def render(nb):
    "The README's text and its pictures, {file name: bytes}."
    blocks, images = [NOTE], {}
    for i, cell in enumerate(nb['cells']):
        source = text(cell['source'])
        if cell['cell_type'] == 'markdown': blocks.append(relink(source))
        if cell['cell_type'] != 'code': continue
        says = {re.sub(r'\s', '', l[2:]) for l in source.splitlines() if l.startswith('#|')}
        if says & {'hide', 'include:false'} or any(s.startswith('default_exp') for s in says): continue
        code = '\n'.join(l for l in source.splitlines() if not l.startswith('#|')).strip()
        if code and 'echo:false' not in says: blocks.append(fence(code, 'python'))
        if 'output:false' in says: continue
        blocks += [show(o, f'index-{cell.get("id", i)}-{n}', images) for n, o in enumerate(cell['outputs'])]
    return '\n\n'.join(b.strip() for b in blocks if b.strip()) + '\n', images


def main():
    parser = argparse.ArgumentParser(description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 if out of date')
    check, index = parser.parse_args().check, ROOT/'nbs/index.ipynb'
    if not index.exists(): sys.exit(f'readme: there is no {index}')
    readme, images = render(json.loads(index.read_text(encoding='utf-8')))
    files = {ROOT/'README.md':readme.encode(), **{ROOT/'nbs/images'/k:v for k, v in images.items()}}
    stale = [f for f, body in files.items() if not f.exists() or f.read_bytes() != body]
    if check:
        names = ', '.join(str(f.relative_to(ROOT)) for f in stale)
        sys.exit(f'readme: {names} out of date; run: python scripts/readme.py' if stale else 0)
    for file in stale:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(files[file])
        print(f'wrote {file.relative_to(ROOT)}')


if __name__ == '__main__': main()
