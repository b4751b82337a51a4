"""Turn annotations and their videos into shards: `fvlm data build` for schedulers that start scripts.

    python scripts/precompute.py captions.csv shards --media videos --tokenizer tiny --workers 8
    python scripts/precompute.py 'train-*.parquet' shards --kind cauldron --workers 32 \\
        --tokenizer HuggingFaceTB/SmolLM2-135M-Instruct
    RAY_ADDRESS=10.0.0.1:6379 python scripts/precompute.py captions.csv /mnt/shards --media /mnt/videos \\
        --engine ray --workers 512

It may be stopped at any time, and goes on when it is called again. `--help` lists all options.
"""
import argparse, sys

from fvlm.cli import run_build
from fvlm.data.build import build_options


def main():
    parser = argparse.ArgumentParser(description='Turn annotations and their videos into shards.')
    build_options(parser)
    try: return run_build(parser.parse_args())
    except (ValueError, OSError) as e:
        print('precompute:', ' '.join(str(e).split()), file=sys.stderr)
        return 2


if __name__ == '__main__': sys.exit(main())
