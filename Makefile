# One machine: `make quickstart`, `make test`. A cluster: see docs/ and cluster/.
PYTHON ?= python3
EXTRA ?= cpu
BIN := .venv/bin
STAMP := .venv/.installed-$(EXTRA)

.PHONY: setup quickstart smollm2 paper table1 table2 table3 table4 table5 table6 table7 figure2 fourteen study data test test-slow bench-selection bench-perplexity bench-training bench-rendering bench-values bench-report bench-environments bench-rollouts bench-scaling bench-soak gpu-check lint format clean

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

# When do critical steps help? Seven worlds, three seeds, tiny models; see docs/results.md.
study: setup
	$(BIN)/atlas study jobs/study.yaml $(foreach s,$(SET),--set $(s))

# The expert trajectories, into the hub's cache; counts what is there.
data: setup
	$(BIN)/atlas trajectories stats AgentGym/AgentTraj-L

# Economical against exhaustive values; about half an hour the first time, then from its run folders.
bench-values: setup
	$(BIN)/python -m bench.values $(BENCH)

test: setup
	$(BIN)/python -m pytest -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -m slow

# Each prints a table and writes bench/NAME.json. With a GPU: BENCH="--device cuda".
bench-training: setup
	$(BIN)/python -c "import trl" 2>/dev/null || $(BIN)/python -m pip install -q -e ".[bench]"
	$(BIN)/python -m bench.training $(BENCH)

bench-rendering: setup
	$(BIN)/python -m bench.rendering

bench-selection: setup
	$(BIN)/python -m bench.selection

bench-perplexity: setup
	$(BIN)/python -m bench.perplexity $(BENCH)

# The viewer with 10,000 trajectories, in headless Chromium (apt-get install chromium).
bench-report: setup
	$(BIN)/python -m bench.report_site $(BENCH)

# Every built-in environment in process and over HTTP; names of some: BENCH="maze webshop".
bench-environments: setup
	$(BIN)/python -m bench.environments $(BENCH)

bench-rollouts: setup
	$(BIN)/python -m bench.rollouts $(BENCH)

# 1, 2 and 4 simulated engines, and the simulator of docs/scaling.md beside real runs; 10 minutes.
bench-scaling: setup
	$(BIN)/python -m bench.scaling $(BENCH)

# Half an hour of kills on a cluster in network namespaces (root); shorter: BENCH="--minutes 3 --every 20".
bench-soak: setup
	$(BIN)/python -m bench.soak $(BENCH)

# What one GPU does here, in ten minutes, without downloads: training speed, memory, numerics, rollouts, scoring.
gpu-check: setup
	$(BIN)/python -m bench.gpu $(BENCH)

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
