PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: install demo test lint clean

install: $(VENV)/installed

$(VENV)/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $@

# The main job on phantoms: no data, no GPU. The commands are those for real images.
demo: install
	rm -rf $(DEMO)
	$(BIN)/edgeseg data phantoms $(DEMO)/phantoms --count 160
	$(BIN)/edgeseg train $(DEMO)/phantoms --out $(DEMO)/run --size 96 \
	    --teacher edge-32 --general-epochs 10 --teacher-epochs 8 --student-epochs 16
	for precision in fp32 fp16 int8; do \
	    $(BIN)/edgeseg export $(DEMO)/run --target x86-cpu --precision $$precision \
	        --calib $(DEMO)/phantoms --out $(DEMO)/$$precision || exit; \
	done
	$(BIN)/edgeseg benchmark $(DEMO)/run $(DEMO)/fp32 $(DEMO)/fp16 $(DEMO)/int8 \
	    --data $(DEMO)/phantoms --rounds 60 --seconds 2 --passes 0 \
	    --out $(DEMO)/report.html

# A file's tests stay together: they share what is costly to make.
test: install
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ruff check --target-version py38 --select E9,F runtime export/kit export/device/onboard
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

clean:
	rm -rf $(DEMO) $(VENV) build dist *.egg-info
