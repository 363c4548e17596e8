.PHONY: demo quick test coverage lint deps bench soak hostile clean
.DEFAULT_GOAL := test

VENV := .venv/bin
# The byte code of the tests is written once, and not made anew by each worker.
unexport PYTHONDONTWRITEBYTECODE
# Twice what a small machine has cores: the tests wait for processes as long as they work.
WORKERS := 4

demo: .venv/ready  ## bake the default service and run it
	@$(VENV)/python scripts/demo.py

test: .venv/ready  ## everything, the slow tests too
	$(VENV)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(if $(ONCE_MORE),|| $(AGAIN))

# With ONCE_MORE=1, what failed beside other tests is run once more, alone and by its name: if it passes, it is unsteady, and is to be mended.
AGAIN = { [ $$? -eq 1 ] && echo "These failed. Once more, alone:" && $(VENV)/python -m pytest -v --last-failed && echo "They are UNSTEADY."; }

quick: .venv/ready  ## what neither starts services nor builds environments: a minute
	$(VENV)/python -m pytest -q -n 2 -m "not slow"

coverage: .venv/ready  ## the tests of the chassis, and which of its lines and branches they run
	MEASURE_COVERAGE=1 $(VENV)/python -m pytest tests/test_chassis.py -k "promises and fastapi"

lint: .venv/ready  ## all that .pre-commit-config.yaml lists
	@$(VENV)/pre-commit run --all-files --show-diff-on-failure

deps: .venv/ready  ## let all version ranges take in the newest releases, if the tests pass; ONLY=NAME for one
	@$(VENV)/python scripts/deps.py $(if $(ONLY),--only $(ONLY))

bench: .venv/ready  ## what the chassis costs, how that grows, what looking at it and traces that are off cost; OUT=FOLDER for JSON and charts
	@$(if $(OUT),mkdir -p $(OUT))
	@$(VENV)/python benchmarks/table.py $(if $(OUT),--json $(OUT)/table.json)
	@$(VENV)/python benchmarks/growth.py $(if $(OUT),--json $(OUT)/growth.json)
	@$(if $(OUT),$(VENV)/python benchmarks/chart.py $(OUT))
	@$(VENV)/python benchmarks/introspection.py
	@$(VENV)/python benchmarks/database.py
	@$(VENV)/python benchmarks/tracing.py

soak: .venv/ready  ## half an hour of load and faults, then 20 rolling restarts behind each balancer, under load
	@$(VENV)/python scripts/soak.py $(if $(MINUTES),--minutes $(MINUTES))
	@ROLLING_ROUNDS=20 $(VENV)/python -m pytest -q tests/test_rolling_restart.py

hostile: .venv/ready  ## the tests of docs/reliability.md with ten times as many examples
	@HOSTILE_SCALE=10 $(VENV)/python -m pytest -q tests/hostile tests/test_answers.py

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/ready: pyproject.toml
	@for python in $(PYTHON) python3.15 python3.14 python3.13 python3.12 python3.11 python3; do \
		if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Setting up .venv with $$($$python --version) ..."; \
			$$python -m venv --clear .venv && exit 0 || exit 1; \
		fi; \
	done; \
	echo "No Python 3.11 or newer with the venv module was found (Debian: apt install python3-venv)." >&2; exit 1
	@$(VENV)/python -m pip install --quiet --disable-pip-version-check "uv>=0.13,<0.14"
	@$(VENV)/uv pip install --quiet --python $(VENV)/python --group dev
	@touch $@
