# One machine: `make quickstart`, `make test`. A cluster: see docs/ and cluster/.
PYTHON ?= python3
EXTRA ?= cpu
BIN := .venv/bin
STAMP := .venv/.installed-$(EXTRA)

.PHONY: setup quickstart table4 table6 test test-slow bench-selection bench-perplexity bench-training bench-rendering bench-values bench-rollouts lint format clean

setup: $(STAMP)

$(STAMP): pyproject.toml .ci/setup.sh
	PYTHON="$(PYTHON)" EXTRA="$(EXTRA)" bash .ci/setup.sh
	@touch $@

# LLM=1 adds an arm chosen by the LLM selector; its cost estimate is shown first. SET="a.b=c ..." overrides settings.
quickstart: setup
	$(BIN)/atlas run jobs/quickstart.yaml $(if $(LLM),--with llm) $(foreach s,$(SET),--set $(s))

# Tables 4 and 6 in small, on what `make quickstart` made.
ENVS ?= maze textcraft
table4: setup
	@for env in $(ENVS); do $(BIN)/atlas run jobs/table4.yaml --set name=table4-$$env --set "expert.envs=[$$env]" \
		--set "evaluate.tasks={$$env: null}" $(foreach s,$(SET),--set $(s)) || exit; done

table6: setup
	$(BIN)/atlas verify --config jobs/table6.yaml $(foreach s,$(SET),--set $(s))

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

bench-rollouts: setup
	$(BIN)/python -m bench.rollouts $(BENCH)

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
