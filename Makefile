# The two commands are `make quickstart` and `make test`; `make help` lists all.
PYTHON_BIN := .venv/bin/python
QUICKSTART := runs/quickstart
MOVIELENS := runs/movielens
RECBOLE := recbole-1.2.1-py3-none-any.whl
RECBOLE_SHA256 := 9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407

export PYTHONUNBUFFERED := 1
# No figures of use to MLflow's makers from batch jobs.
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help setup quickstart movielens mlflow reproduce reproduce-movielens bench test test-unit test-airflow test-faults lint clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 22

setup: ## Java, .venv and all packages (every other target does this first)
	@.ci/setup

quickstart: setup ## simulated logs -> tables -> MAIL and BaseDNN -> cohort table, registered version, CTR table, report (runs/quickstart)
	rm -rf $(QUICKSTART)
	$(PYTHON_BIN) jobs/simulate_logs.py --out $(QUICKSTART)/logs
	$(PYTHON_BIN) jobs/run_pipeline.py --schema alimama --source $(QUICKSTART)/logs --lake $(QUICKSTART)/lake \
		--end-date 2017-05-13 --new-users masked:0.4:1 --preset tiny --ranks 2 --world $(QUICKSTART)/logs/world

movielens: setup ## the same pipeline on MovieLens-100K, downloaded and checked (runs/movielens)
	mkdir -p $(MOVIELENS)
	$(PYTHON_BIN) -m pip download --quiet --no-deps --dest $(MOVIELENS) recbole==1.2.1
	echo "$(RECBOLE_SHA256)  $(MOVIELENS)/$(RECBOLE)" | sha256sum --check --quiet
	$(PYTHON_BIN) -m zipfile --extract $(MOVIELENS)/$(RECBOLE) $(MOVIELENS)/wheel
	$(PYTHON_BIN) jobs/import_movielens.py --ml100k $(MOVIELENS)/wheel/recbole/dataset_example/ml-100k --out $(MOVIELENS)/logs
	rm -rf $(MOVIELENS)/lake $(MOVIELENS)/mlflow
	$(PYTHON_BIN) jobs/run_pipeline.py --schema movielens --source $(MOVIELENS)/logs --lake $(MOVIELENS)/lake \
		--end-date 2000-01-08 --new-users masked:0.4:1 --preset tiny --ranks 2

mlflow: setup ## MLflow's page of quickstart's runs and versions, on http://127.0.0.1:5000 until Ctrl-C
	$(PYTHON_BIN) -m mlflow server --host 127.0.0.1 --port 5000 --workers 1 \
		--backend-store-uri sqlite:///$(CURDIR)/$(QUICKSTART)/mlflow/mlflow.db

# Arguments of your own come last, and count: make reproduce REPRODUCE="--seeds 2 --budget-minutes 60"
REPRODUCE :=

reproduce: setup ## the paper's tables and figures on simulated logs (runs/reproduce; makes quickstart's lake where it is absent)
	[ -d $(QUICKSTART)/lake/features ] || $(MAKE) quickstart
	$(PYTHON_BIN) jobs/reproduce_paper.py --schema alimama --lake $(QUICKSTART)/lake --end-date 2017-05-13 \
		--new-users masked:0.4:1 --preset tiny --out runs/reproduce $(REPRODUCE)

reproduce-movielens: setup ## the same on MovieLens-100K (runs/reproduce-movielens)
	[ -d $(MOVIELENS)/lake/features ] || $(MAKE) movielens
	$(PYTHON_BIN) jobs/reproduce_paper.py --schema movielens --lake $(MOVIELENS)/lake --end-date 2000-01-08 \
		--new-users masked:0.4:1 --preset tiny --out runs/reproduce-movielens $(REPRODUCE)

bench: setup ## speed beside other libraries, into docs/benchmarks.md (installs peers in runs/bench)
	for script in tests/benchmarks/bench_*.py; do $(PYTHON_BIN) $$script || exit 1; done

lint: setup ## flake8, isort, mypy
	$(PYTHON_BIN) -m flake8 mail_core jobs airflow_dags tests
	$(PYTHON_BIN) -m isort --check-only --diff mail_core jobs airflow_dags tests
	$(PYTHON_BIN) -m mypy

test-unit: setup ## the tests that need no engine
	$(PYTHON_BIN) -m pytest tests/unit

# A file's tests stay in one process, which shares its tables; the long files begin first.
test: lint ## everything that CI runs: lint, unit and integration tests (two processes; installs Chromium where it is absent)
	@.ci/setup-browser
	$(PYTHON_BIN) -m pytest tests/integration tests/unit --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=15

test-airflow: setup ## nights of the Airflow DAG with the real jobs (makes an Airflow of its own in runs/airflow)
	@.ci/setup-airflow
	$(PYTHON_BIN) -m pytest tests/airflow --durations=5

test-faults: setup ## each job killed at 20 random moments and run again (an hour; FAULT_JOBS, FAULT_KILLS)
	$(PYTHON_BIN) -m pytest -s tests/integration/random_kills.py

clean: ## remove what the runs made
	rm -rf runs build *.egg-info
