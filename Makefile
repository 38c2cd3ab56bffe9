# make demo        the main job on synthetic people, two sites in FLARE's simulator
# make test        lint and the test suite        make acceptance   what is slower (its page needs chromium on PATH)

PYTHON := $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
RUN := runs/demo
STATE := runs/demo-state

.PHONY: demo test acceptance

demo: .venv/.installed
	mkdir -p $(RUN)/local
	echo "state: $(CURDIR)/$(STATE)/{site}" > $(RUN)/local/privfedtalk.yaml
	FL_LOG_LEVEL=privfedtalk_flare/flare/console.json $(BIN)/nvflare simulator jobs/privfedtalk -w $(RUN) -n 2 -t 2
	cp $(RUN)/server/simulate_job/summary.json $(RUN)/summary.json
	@echo
	@$(BIN)/privfedtalk summary $(RUN)
	@echo; echo "Videos";             find $(RUN)/site-*/simulate_job -name '*.mp4' ! -name '*.real.mp4' | sort
	@echo; echo "Adapters";           find $(STATE) -name '*.safetensors' -path '*adapter*' | sort
	@echo; echo "TensorBoard folder"; echo $(RUN)/server/simulate_job/tb_events

test: .venv/.installed-test
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not acceptance" -n 2 --dist loadfile --durations=20

acceptance: .venv/.installed-test
	$(BIN)/python -m pytest -m acceptance

.venv/.installed: setup.cfg pyproject.toml
	@echo "Installing into .venv: minutes, and about 6 GB"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.installed-test: setup.cfg pyproject.toml
	@echo "Installing into .venv: minutes, and about 6 GB"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch .venv/.installed $@
