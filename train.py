"""Trains a model: python train.py [--config=FILE] [--workdir=DIR].

python train.py                                     trains configs/default.py
python train.py --config=configs/tiny.py            trains another config
python train.py --config.data.train='texts/*.txt'   overrides a setting
python train.py --workdir=DIR                       resumes the run in DIR
python train.py --resume_from=DIR                   resumes it in a new workdir
python train.py --config=FILE --load_base_from=DIR  takes frozen levels from DIR
python train.py --profile_steps=100:110             traces some steps
python train.py --coordinator_address=HOST:PORT --num_processes=N --process_id=I
                                                    is one of N processes

configs/default.py describes every setting. `abstractinator train` is the same.
"""

import sys

from abstractinator.cli.main import main
from abstractinator.runs import allocator

if __name__ == '__main__':
  allocator.keep_memory()
  sys.exit(main(['train', *sys.argv[1:]], program='train.py'))
