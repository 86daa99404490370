VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
OUT ?= out

.PHONY: run test soak clip clean

# Set up, enrol one of the two people, replay the shipped clip, show events, write the annotated video.
run: $(VENV)/.installed
	@mkdir -p $(OUT) && rm -f $(OUT)/gallery.sqlite*
	$(BIN)/mien gallery enroll "Eileen Collins" samples/eileen_collins.jpg --gallery $(OUT)/gallery.sqlite
	$(BIN)/mien replay samples/two_people.mp4 --gallery $(OUT)/gallery.sqlite \
	    --out $(OUT)/events.jsonl --annotate $(OUT)/two_people.mp4
	@echo && echo "One event of $(OUT)/events.jsonl:"
	@grep '"mien.faces/1"' $(OUT)/events.jsonl | sed -n 40p

test: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# Make things go wrong for an hour at most: lost streams, 16 cameras, kill -9, damaged files.
soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak --out $(OUT)/soak.json
	MIEN_FUZZ_CASES=10000 $(BIN)/python -m pytest -q tests/test_subscriber.py tests/test_relay_memory.py \
	    tests/test_hostile.py tests/test_control.py -k "no_message or read_or_refused or whatever_comes_in"

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
