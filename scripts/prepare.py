"""Shards of a public data set that may be larger than the disk: slice by slice it is fetched, built, deleted.

    python scripts/prepare.py openvid data/openvid --slices 186 --workers 16

NAME is one of `fvlm fetch`; behind it stand the options of `fvlm data build`, but for the kind and the media,
which are known. Slice K becomes OUT/K; at the end one index covers all. A second call goes on where the first
was stopped, also by kill -9. Exit codes: 0 done, 2 something is wrong (one line), 130 stopped by Ctrl-C.
"""
import argparse
import sys
from pathlib import Path
from fvlm.cli import _Parser as Parser, download, main as fvlm, run_build
from fvlm.data.build import BuildError, build_options, number_option
from fvlm.data import hub


def read_options(argv):
    raw = argparse.RawDescriptionHelpFormatter
    first = Parser(description=__doc__, allow_abbrev=False, formatter_class=raw)
    for x in ('name', 'a data set of `fvlm fetch`'), ('out', 'a folder'): first.add_argument(x[0], help=x[1])
    first.add_argument('--slices', type=number_option(), default=1, help='parts of the media (default 1)')
    first.add_argument('--raw', default='', help='folder of the downloads (default raw/NAME)')
    first.add_argument('--keep-raw', action='store_true', help='delete nothing')
    first.add_argument('--damaged-ok', action='store_true', help='take what can be read of damaged archives')
    o, rest = first.parse_known_args(argv)
    build_options(second := Parser(prog='prepare.py NAME OUT [--slices N]'))
    return o, lambda annotations='', out='': second.parse_args([annotations, out, *rest])


def prepare_slice(o, k, notes, build):
    plan = hub.plan_fetch(o.name, (k, o.slices), o.raw, commit=notes['commit'])
    if str(k) not in notes['slices']:
        print(plan.about if k == 1 else f'slice {k} of {o.slices}', flush=True)
        download(plan)
        seen, args = {}, build(str(plan.out/plan.remote.annotations), f'{o.out}/{k}')
        args.kind, args.media = plan.remote.build, args.media or str(plan.out)
        o.damaged_ok or hub.check_media(plan)
        hub.begin_slice(o.out, notes, plan)
        try: run_build(args, hub.clips_of_slice(plan, seen), count_bad=k == 1 or not plan.remote.tables)
        except BuildError:
            if seen['clips'] or not seen['of'] or any(Path(o.out, str(k)).glob('*.tar')): raise
            print(f"none of {seen['of']:,} clips has its media in this slice", flush=True)
        hub.note_slice(o.out, notes, plan, seen)
    if not o.keep_raw: hub.delete_media(plan)


def main(argv=None):
    try:
        o, build = read_options(argv)
        args = build()  # what is wrong with it is told before a download
        notes = hub.read_slices(o.out, dict(vars(args), name=o.name, slices=o.slices))
        for k in range(1, o.slices+1): prepare_slice(o, k, notes, build)
        print(f"{notes['absent']:,} clips have their media in no slice", flush=True)
        return fvlm(['data', 'index', o.out]+['--tokenizer', args.tokenizer]*bool(args.tokenizer))
    except (ValueError, OSError) as e:
        print(f"prepare: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt: return 130

if __name__ == '__main__': sys.exit(main())
