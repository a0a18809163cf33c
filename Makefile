# Needs Python 3.11 and make, nothing else: every dependency is installed as a wheel into .venv.
# .venv/.demo and .venv/.dev record what is installed, so a second call does no pip work.

PYTHON ?= python3.11
BIN := .venv/bin/python
PIP := $(BIN) -m pip install --disable-pip-version-check --only-binary=:all:

RUN := $(BIN) run_blip2.py --config blip2_digits
PICTURES := output/digits/pictures
TELL := $(BIN) run_blip2.py --config itt_blip2_digits
TRAINED := output/digits_training/checkpoint/rank_0/blip2_digits.ckpt
WORDS := output/digits_training/words/words.ckpt
TOLD := output/digits_training/told
PARALLEL := $(RUN) --run_mode train --trainer.type contrastive_language_image_pretrain --lr_schedule.total_steps 300 \
    --runner_config.log_every 5
# of the processes' meeting: one that is free
PORT = $(shell $(BIN) -c 'import socket; one = socket.socket(); one.bind(("127.0.0.1", 0)); print(one.getsockname()[1])')
BENCH := $(BIN) benchmarks/bench.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install dev demo train-demo demo-parallel test lint bench clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: .venv/.demo  ## .venv with mindblip2 and what the demo needs (no torch)

dev: .venv/.dev  ## .venv with everything: tests, linter, converter, parity (adds torch and transformers)

demo: .venv/.demo  ## the embedded models look at pictures of digits, write captions and answer: a minute, no download
	$(BIN) -m mindblip2.demo.scenes $(PICTURES)
	$(RUN) --mode 1 --run_mode predict --predict_data $(PICTURES) --output_dir output/digits
	$(RUN) --mode 1 --run_mode eval
	$(TELL) --mode 1 --run_mode predict --predict_data $(PICTURES) --output_dir output/digits
	$(TELL) --mode 1 --run_mode predict --predict_data $(PICTURES) --output_dir output/digits/answers --answer_only --hypothesis_template "Question: which digit is there? Short answer:"
	$(TELL) --mode 1 --run_mode eval

train-demo: .venv/.demo  ## train the embedded models again from nothing, with their figures: half an hour on two cores
	rm -rf output/digits_training
	$(RUN) --run_mode train --trainer.type contrastive_language_image_pretrain --output_dir output/digits_training
	$(RUN) --mode 1 --run_mode eval --load_checkpoint $(TRAINED) --output_dir output/digits_training
	$(RUN) --run_mode eval --load_checkpoint $(TRAINED) --output_dir output/digits_training --trainer.type image_to_text_retrieval
	$(BIN) -m mindblip2.demo.pretrain_lm itt_blip2_digits $(WORDS)
	$(TELL) --run_mode train --load_checkpoint $(TRAINED) --model.model_config.text_config.checkpoint_name_or_path $(WORDS) --output_dir $(TOLD)
	$(TELL) --mode 1 --run_mode eval --load_checkpoint $(TOLD)/checkpoint/rank_0/itt_blip2_digits.ckpt --output_dir $(TOLD)

demo-parallel: .venv/.demo  ## the embedded model trained for 300 steps by one process, and by two: the same losses; some minutes
	rm -rf output/parallel
	$(PARALLEL) --batch_size 32 --output_dir output/parallel/one_process
	PATH="$(CURDIR)/.venv/bin:$$PATH" OMP_NUM_THREADS=1 msrun --worker_num=2 --local_worker_num=2 --master_port=$(PORT) --join=True \
	    --log_dir=output/parallel/logs $(subst $(BIN) ,,$(PARALLEL)) --batch_size 16 --output_dir output/parallel/two_processes \
	    --use_parallel true --parallel_config.data_parallel 2
	$(BIN) -W ignore::RuntimeWarning -m mindblip2.trainer.logging output/parallel/losses.png output/parallel/one_process output/parallel/two_processes

test: .venv/.dev  ## the tests, two files at a time; the slow ones too with ARGS="-m 'slow or not slow'"
	$(BIN) -m pytest -q -n 2 --dist loadfile $(ARGS)

lint: .venv/.dev  ## ruff, the import contracts, mypy
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	.venv/bin/lint-imports
	$(BIN) -m mypy

bench: .venv/.dev  ## the benchmarks
	$(BENCH) $(ARGS)

clean:  ## remove build products, caches and what MindSpore leaves behind; keep .venv and output/
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache rank_* kernel_meta akg_kernel_meta kernel_build_tmp.key analyze_fail.ir
	find mindblip2 convert parity tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.demo: setup.py | .venv/pyvenv.cfg
	@echo "Installing into .venv: MindSpore is large, the first time takes minutes"
	$(PIP) -e '.[demo]'
	@touch $@

.venv/.dev: setup.py | .venv/pyvenv.cfg
	@echo "Installing into .venv: MindSpore and torch are large, the first time takes minutes"
	$(PIP) -e '.[dev,parity]'
	@touch .venv/.demo $@

.venv/pyvenv.cfg:
	@python=$$(for name in $(PYTHON) python3 python; do \
	    $$name -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$name && break; done); \
	if [ -z "$$python" ]; then \
	    echo "No Python 3.11: none of $(PYTHON), python3 and python is one." >&2; \
	    echo "Install it, or say where it is: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
	echo "$$python -m venv .venv"; \
	$$python -m venv .venv || { rm -rf .venv; \
	    echo "The venv module is incomplete; on Debian and Ubuntu: apt install python3.11-venv" >&2; exit 1; }
