# Everything happens in .venv; `make demo` and `make test` set it up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH := bench

.PHONY: demo test test-fast lint bench bench-small bench-onnx clean

demo: $(VENV)/.demo
	$(BIN)/lowrank demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/check_imports.py
	$(BIN)/pyright

# STS=stsb_dev.tsv adds the Spearman column; CALIB=stsb_train.tsv COLUMN=sentence1,sentence2 calibrates on it.
bench: $(VENV)/.demo
	$(BIN)/python tools/bench_minilm.py $(if $(STS),--sts $(STS)) $(if $(CALIB),--calib $(CALIB)) $(if $(COLUMN),--column $(COLUMN)) --output $(BENCH)

# Two small trained models: STORIES=models/stories260K SORT=models/gpt-nano-sort.
bench-small: $(VENV)/.demo
	$(BIN)/python tools/bench_small.py $(if $(STORIES),--stories $(STORIES)) $(if $(SORT),--sort $(SORT))

# ONNX in against torch in, for the same model.
bench-onnx: $(VENV)/.demo
	$(BIN)/python tools/bench_onnx.py

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo,dev]"
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
