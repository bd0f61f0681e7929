PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := demo

# ONNX Runtime's C header is in no wheel.
ORT_C = $(VENV)/onnxruntime-c
# A file's tests stay together: they share what is costly to make. A worker that crashed is not
# replaced: pytest-xdist 3.8 waits for ever when it is (its issues 784 and 1378). The tests start
# hundreds of processes: where bytecode is not written, each compiles the package anew.
PYTEST = env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: install demo test test-oldest lint docs clean

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

$(ORT_C)/lib/libonnxruntime.so: | install
	runtime/c/get_onnxruntime.sh $(ORT_C) \
	    $$(echo $(VENV)/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.1.*)

# Where the header is not to be had, the C tests of that engine skip and say so.
test: install
	[ -n "$$EDGESEG_ONNXRUNTIME" ] || $(MAKE) $(ORT_C)/lib/libonnxruntime.so || true
	[ -n "$$EDGESEG_ONNXRUNTIME" ] || [ ! -e $(ORT_C)/lib/libonnxruntime.so ] \
	    || export EDGESEG_ONNXRUNTIME="$(abspath $(ORT_C))"; $(PYTEST)

# The tests that touch numbers, with the kernels of the oldest CPUs that we know: x86 with AVX2.
test-oldest: install
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 \
	    $(PYTEST) -m numbers $$(grep -rl --include='test_*.py' 'pytest\.mark\.numbers' tests)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ruff check --target-version py38 --select E9,F runtime export/kit export/device/onboard
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

# The site in site/; a broken link, a page outside the navigation or an unknown name fails it.
docs: install
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(DEMO) $(VENV) build dist site *.egg-info
