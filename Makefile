# One machine: `make quickstart`, `make test`. A cluster: see docs/ and cluster/.
PYTHON ?= python3
EXTRA ?= cpu
BIN := .venv/bin
STAMP := .venv/.installed-$(EXTRA)

.PHONY: setup quickstart smollm2 paper table1 table2 table3 table4 table5 table6 table7 figure2 fourteen study data test test-slow bench gpu-check lint format clean

setup: $(STAMP)

$(STAMP): pyproject.toml .ci/setup.sh
	PYTHON="$(PYTHON)" EXTRA="$(EXTRA)" bash .ci/setup.sh
	@touch $@

# LLM=1 adds an arm chosen by the LLM selector; its cost estimate is shown first. SET="a.b=c ..." overrides settings.
quickstart: setup
	$(BIN)/atlas run jobs/quickstart.yaml $(if $(LLM),--with llm) $(foreach s,$(SET),--set $(s))

# A pretrained model of 135 M parameters, on two cores in at most three hours a seed: docs/own-model.md.
smollm2: setup
	$(BIN)/atlas fetch-model smollm2
	$(BIN)/atlas run jobs/smollm2.yaml $(OPTIONS)

# The paper: all of it, one table, or Figure 2. SCALE=laptop plays the same graph on tiny models and built-in
# environments; SEEDS=3 runs every arm three times; RAY_ADDRESS=http://HEAD:8265 RUNS=s3://BUCKET/runs submits it to a
# cluster, whose nodes all have to see the run folders.
RECIPE := jobs/paper$(if $(SCALE),-$(SCALE)).yaml
RUN := $(BIN)/atlas $(if $(RAY_ADDRESS),submit run --address $(RAY_ADDRESS),run) $(RECIPE)
OPTIONS = $(if $(RUNS),--set runs=$(RUNS)) $(if $(SEEDS),--set seeds=$(SEEDS)) $(foreach s,$(SET),--set $(s))
paper: setup
	$(RUN) $(OPTIONS)

table1 table2 table3 table4 table5 table6 table7 figure2: setup
	$(RUN) $(OPTIONS) --only $@

# Every environment of the paper, built in, with a tiny model; held in and held out apart.
fourteen: setup
	$(BIN)/atlas run jobs/fourteen.yaml $(OPTIONS)

# When do critical steps help? Three studies with tiny models; see docs/results.md.
study: setup
	for study in study-bases study study-budget; do $(BIN)/atlas study jobs/$$study.yaml $(foreach s,$(SET),--set $(s)) || exit; done

# The expert trajectories, into the hub's cache; counts what is there.
data: setup
	$(BIN)/atlas trajectories stats AgentGym/AgentTraj-L

test: setup
	$(BIN)/python -m pytest -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -m slow

# `bench` runs every benchmark and shows one table, `bench-NAME` one of them (bench/__main__.py names them all);
# BENCH="--tiny" shows in a minute that one runs, BENCH="--help" says what it measures and which options it has.
bench: setup
	$(BIN)/python -m pip install -q -e ".[bench]"
	$(BIN)/python -m bench $(BENCH)

bench-%: setup
	$(BIN)/python -m bench $* $(BENCH)

# What one GPU does here, in ten minutes, without downloads: training speed, memory, numerics, rollouts, scoring.
gpu-check: setup
	$(BIN)/python -m bench gpu $(BENCH)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Never touches runs/.
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
