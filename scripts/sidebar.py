"""Make nbs/sidebar.yml, the site's table of contents, from the folders and the notebooks in them.

    python scripts/sidebar.py           # write it
    python scripts/sidebar.py --check   # say whether it is up to date; exit 1 if not
"""
import argparse
import sys
from pathlib import Path

import yaml

NBS = Path(__file__).resolve().parents[1]/'nbs'
TITLES = {'0_start': 'Start here', '1_data': 'Data', '2_model': 'Model', '3_world': 'Built-in world',
          '4_training': 'Training', '5_evaluation': 'Evaluation', '6_experiments': 'Experiments',
          '7_results': 'Results'}
KINDS = {'Tutorials': ('0_start',),
         'The book': ('1_data', '2_model', '3_world', '4_training', '5_evaluation'),
         'Experiments and results': ('6_experiments', '7_results')}


def pages(folder):
    "Notebooks of a folder in reading order, as paths below nbs/."
    return [p.relative_to(NBS).as_posix() for p in sorted(folder.glob('*.ipynb')) if p.name[0] not in '._']


def sidebar():
    "Tutorials, the book, experiments and reference, each made of the parts."
    first, last = '00_config.ipynb', '99_cli.ipynb'
    contents = ['index.ipynb']
    for kind, parts in KINDS.items():
        sections = [{'section': TITLES[part], 'contents': pages(NBS/part)} for part in parts]
        if kind == 'The book': sections.insert(0, first)
        only = sections[0]['contents'] if len(parts) == 1 else None
        contents.append({'section': kind, 'contents': only or sections})
    contents.append({'section': 'Reference', 'contents': [last]})
    return yaml.safe_dump({'website': {'sidebar': {'contents': contents}}}, sort_keys=False)


def main():
    parser = argparse.ArgumentParser(description='Make nbs/sidebar.yml.')
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 if out of date')
    check, file, text = parser.parse_args().check, NBS/'sidebar.yml', sidebar()
    if check:
        stale = file.read_text() != text
        sys.exit('sidebar: nbs/sidebar.yml is out of date; run: python scripts/sidebar.py' if stale else 0)
    file.write_text(text)


if __name__ == '__main__': main()
