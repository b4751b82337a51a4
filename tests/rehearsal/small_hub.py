"""Run a script that believes the sizes of the miniatures: python tests/rehearsal/small_hub.py SCRIPT ...

The registry of `fvlm.data.hub` knows how many bytes the real data sets have, and the recipe refuses a disk
that is too small for them. Nothing else is changed.
"""
import runpy
import sys
from dataclasses import replace

from fvlm.data import hub


def main():
    for name, remote in hub.REMOTE.items():
        hub.REMOTE[name] = replace(remote, table_bytes=1e6*bool(remote.tables),
            media_bytes=1e6*bool(remote.media))
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__': main()
