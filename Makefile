# One machine: `make quickstart`, `make test`. A cluster: see docs/ and cluster/.
PYTHON ?= python3
EXTRA ?= cpu
BIN := .venv/bin
STAMP := .venv/.installed-$(EXTRA)

.PHONY: setup quickstart test test-slow bench-perplexity lint format clean

setup: $(STAMP)

$(STAMP): pyproject.toml .ci/setup.sh
	PYTHON="$(PYTHON)" EXTRA="$(EXTRA)" bash .ci/setup.sh
	@touch $@

# LLM=1 adds an arm chosen by the LLM selector; its cost estimate is shown first. SET="a.b=c ..." overrides settings.
quickstart: setup
	$(BIN)/atlas run jobs/quickstart.yaml $(if $(LLM),--with llm) $(foreach s,$(SET),--set $(s))

test: setup
	$(BIN)/python -m pytest -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -m slow

# Ours beside the rival in one run: a table, and bench/perplexity.json.
bench-perplexity: setup
	$(BIN)/python -m bench.perplexity

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
