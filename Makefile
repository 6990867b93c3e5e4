# Two commands do all set-up from a fresh clone: `make demo` and `make test`. Everything lives in .venv and build/.
# OP=name narrows test, test-driver, test-neon and bench to one operator; ARGS="..." are options of bench-rivals.
PYTHON ?= python3
V := .venv/bin
SOURCES := $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*) CMakeLists.txt setup.py
# Tests run on all cores, each process with one thread.
PYTEST = OMP_NUM_THREADS=1 $(V)/python -m pytest -q
PARALLEL = -n auto --maxprocesses 8 --dist worksteal
ISAS = $(shell $(V)/python -c "from mnv3_fast import instruction_sets; print(*instruction_sets())")
ASAN = build/asan
CHECK = build/wheel-check
NEON_TOOLS = aarch64-linux-gnu-g++:g++-aarch64-linux-gnu qemu-aarch64:qemu-user
NEON_TOOLCHAIN = -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++

.PHONY: help setup demo test test-gpu-emulated test-cuda-artefacts test-isa test-slow test-gpu-slow test-asan test-driver test-neon neon-tools neon-driver neon-loops fuzz lint format bench bench-check bench-rivals wheel wheel-check clean bench-gpu

help:
	@echo "make demo        real photos through torchvision and mnv3_fast, side by side"
	@echo "make test        the quick test suite"
	@echo "make test-gpu-emulated  the GPU kernels on a machine without a GPU: interpreted, their compiled code emulated and inspected"
	@echo "make test-cuda-artefacts  what nvcc, which it installs, makes of the CUDA kernels for six architectures"
	@echo "make test-isa    operators, engine and parity once for each instruction set of this CPU"
	@echo "make test-slow   the full product of cases"
	@echo "make test-gpu-slow  all real layers of the GPU kernels through emulator and simulator"
	@echo "make test-asan   the edge cases under AddressSanitizer and UBSan"
	@echo "make test-driver the kernels without torch, on this CPU"
	@echo "make test-neon   the same for 64-bit ARM, emulated; make neon-loops shows what the inner loops consist of"
	@echo "make fuzz        100,000 random cases against fp64"
	@echo "make lint        ruff and clang-format; make format applies them"
	@echo "make bench       benchmarks -> build/bench/*.json and tables.md"
	@echo "make bench-check BASE=commit  fails where this tree is slower than a commit"
	@echo "make bench-rivals  other inference engines beside ours -> build/rivals/tables.md and plots (about 45 minutes)"
	@echo "make bench-gpu   torch eager, compiled and TensorRT beside ours on a GPU -> build/gpu; ARGS=--dry-run without one"
	@echo "make setup       the environment in .venv and the kernels alone; make clean removes what was built"
	@echo "make wheel       sdist and wheel; make wheel-check tests the wheel in an empty environment"

# The environment follows pyproject.toml; the kernels are rebuilt when a source of theirs changes.
.venv/.packages: pyproject.toml
	test -x $(V)/python || $(PYTHON) -m venv .venv
	$(V)/python -m pip install -q --upgrade pip
	$(V)/python -m pip install -q -e '.[test,bench,dev]'
	touch $@ .venv/.kernels

.venv/.kernels: .venv/.packages $(SOURCES)
	$(V)/python setup.py -q build_ext --inplace
	touch $@

setup: .venv/.kernels

demo: setup
	$(V)/mnv3-fast demo

test: setup
	$(PYTEST) $(PARALLEL) $(if $(OP),tests/ops/test_$(OP).py,tests)

# Two runs, since Triton decides when it is imported whether it interprets or compiles.
test-gpu-emulated: setup
	TRITON_INTERPRET=1 $(PYTEST) $(PARALLEL) tests/gpu/interpreted
	$(PYTEST) $(PARALLEL) tests/gpu

# The CUDA kernels compiled for six architectures, by the nvcc that the committed counts are of, from pip's wheels.
NVCC_WHEELS = $(foreach part,nvcc cccl crt runtime,'nvidia-cuda-$(part)==13.2.*') 'nvidia-nvvm==13.2.*'
build/nvcc/.packages: pyproject.toml
	$(PYTHON) -m venv build/nvcc
	build/nvcc/bin/python -m pip install -q $(NVCC_WHEELS)
	touch $@

test-cuda-artefacts: setup build/nvcc/.packages
	export CUDA_HOME="$$(echo $(abspath build/nvcc)/lib/python3*/site-packages/nvidia/cu13)" && "$$CUDA_HOME/bin/nvcc" --version && \
	  $(PYTEST) $(PARALLEL) -m nvcc tests/gpu tests/benchmarks

test-isa: setup
	@test -n "$(ISAS)" || { echo "test-isa: there are no compiled kernels to test" >&2; exit 1; }
	for isa in $(ISAS); do \
	  echo "MNV3_FAST_ISA=$$isa"; \
	  MNV3_FAST_ISA=$$isa $(PYTEST) $(PARALLEL) tests/ops tests/engine tests/models/test_parity.py tests/contract/test_determinism.py \
	    tests/package/test_instruction_sets.py || exit 1; \
	done

test-slow: setup
	$(PYTEST) $(PARALLEL) -m slow tests

# All real blocks and layers through the simulator, and its planted faults: many minutes, most of them compiling.
test-gpu-slow: setup
	$(PYTEST) $(PARALLEL) -m slow tests/gpu

fuzz: setup
	$(PYTEST) $(PARALLEL) -m fuzz tests

# A build of its own, beside the one in use. torch and Python are not instrumented, so leaks are not looked for.
test-asan: setup
	mkdir -p $(ASAN) && cp -r mnv3_fast $(ASAN)/ && rm -f $(ASAN)/mnv3_fast/*.so
	CMAKE_ARGS='-DMNV3_FAST_SANITIZE=ON -DMNV3_FAST_CUDA=OFF' $(V)/python setup.py -q build_ext --build-temp build/asan-cmake --build-lib $(ASAN)
	LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  $(V)/python tests/run_from.py $(ASAN) -q tests/ops tests/engine/test_plan.py \
	  -k "forward or bad_input or executor or node or spoil or nan or batch or memory_safe or means or maps"

# What torch and fp64 say is written to a file here, and compared by a program that has the kernels and no torch.
build/driver/cases.bin: .venv/.kernels tests/dump_cases.py $(wildcard mnv3_fast/*.py mnv3_fast/*/*.py mnv3_fast/*/*/*.py)
	mkdir -p $(@D) && $(V)/python tests/dump_cases.py $@

test-driver: build/driver/cases.bin
	$(V)/cmake -S . -B build/driver -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(V))/ninja -DMNV3_FAST_DRIVER=ON
	$(V)/cmake --build build/driver
	build/driver/mnv3_fast_driver build/driver/cases.bin $(OP)

neon-tools:
	@for tool in $(NEON_TOOLS); do \
	  command -v $${tool%:*} >/dev/null || missing="$$missing $${tool#*:}"; \
	done; \
	test -z "$$missing" || { echo "test-neon: missing packages, install them with: apt-get install$$missing" >&2; exit 1; }

neon-driver: neon-tools setup
	$(V)/cmake -S . -B build/neon -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(V))/ninja -DMNV3_FAST_DRIVER=ON $(NEON_TOOLCHAIN)
	$(V)/cmake --build build/neon

test-neon: neon-driver build/driver/cases.bin
	qemu-aarch64 build/neon/mnv3_fast_driver build/driver/cases.bin $(OP)

neon-loops: neon-driver
	$(V)/python tests/neon_loops.py build/neon/CMakeFiles/kernels_neon.dir/csrc/ops/*/cpu.cpp.o

lint: setup
	$(V)/ruff check .
	$(V)/ruff format --check .
	$(V)/clang-format --dry-run -Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'tests/gpu/*.h' 'tests/gpu/*.c*')

format: setup
	$(V)/ruff check --fix .
	$(V)/ruff format .
	$(V)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'tests/gpu/*.h' 'tests/gpu/*.c*')

# No numbers on red: the op's tests run first. At batch 32 torch is run with both settings of the allocator.
bench: test
	mkdir -p build/bench
	$(V)/python -m pytest -q $(if $(OP),benchmarks/ops/bench_$(OP).py,benchmarks) --benchmark-only --benchmark-columns=median \
	  --benchmark-json=build/bench/bench.json
	$(if $(OP),,$(V)/python -m pytest -q benchmarks/models -m slow --benchmark-only --benchmark-columns=median --benchmark-json=build/bench/batch32.json)
	$(if $(OP),,MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456 \
	  $(V)/python -m pytest -q benchmarks/models -m slow --benchmark-only --benchmark-columns=median --benchmark-json=build/bench/batch32-keep.json)
	$(V)/python -m benchmarks.report build/bench/*.json | tee build/bench/tables.md

# The engines are installed under build/rivals/venv, none into .venv; one that cannot be installed is named in the tables.
bench-rivals: setup
	$(V)/python -m benchmarks.rivals $(ARGS)

# An engine that is not installed or does not fit is named in the tables; ends with status 2 where there is no GPU.
bench-gpu: setup
	$(V)/mnv3-fast bench --device cuda --output build/gpu $(ARGS)

# Fails where this tree is slower than the commit BASE (HEAD~1 unless given) by more than 5% beyond the noise.
bench-check: setup
	$(V)/python -m benchmarks.check $(BASE) $(ARGS)

wheel: setup
	rm -rf dist && $(V)/python -m build -q

# The tests come from the sdist and run in a folder without the sources, against the installed wheel.
wheel-check: wheel
	rm -rf $(CHECK) && mkdir -p $(CHECK)/run
	tar -xzf dist/*.tar.gz -C $(CHECK)/run --strip-components=1 --wildcards '*/tests' '*/pyproject.toml'
	$(PYTHON) -m venv $(CHECK)/venv
	$(CHECK)/venv/bin/python -m pip install -q --upgrade pip
	$(CHECK)/venv/bin/python -m pip install -q "$$(ls dist/*.whl)[test]"
	$(CHECK)/venv/bin/python -c 'import mnv3_fast as m; assert m.instruction_sets(), m.missing_reason()'
	cd $(CHECK)/run && ../venv/bin/python -m pytest -q -p no:cacheprovider \
	  tests/ops tests/engine tests/models/test_parity.py tests/package tests/cli

clean:
	rm -rf build dist *.egg-info mnv3_fast/*.so
