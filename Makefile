VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
OUT ?= out

.PHONY: run test lint clip clean

# Set up, enrol one of the two people, replay the shipped clip, show events, write the annotated video.
run: $(VENV)/.installed
	@$(BIN)/mien demo --out $(OUT)

test: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# Draw the shipped clip anew from its public-domain portraits.
clip: $(VENV)/.installed-dev
	$(BIN)/python samples/make_clip.py

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) $(OUT) runs build *.egg-info
