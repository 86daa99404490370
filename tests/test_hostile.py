"""Configurations nobody wrote on purpose: each is read, or refused in words."""

from __future__ import annotations

import os

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.config import CameraConfig, Config, load_config
from engines.errors import UsageError

NUM_CASES = int(os.environ.get("MIEN_FUZZ_CASES", "150"))
KEYS = st.sampled_from([*CameraConfig.model_fields, *Config.model_fields, "path", "endpoint", "x"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["../../x", "a\nb", "🙂", "'; DROP TABLE people; --", "rtsp://me:secret@host/1", "null"]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
CONFIGS = st.dictionaries(KEYS, VALUES, max_size=4) | st.fixed_dictionaries(
    {"cameras": st.lists(st.dictionaries(KEYS, VALUES, max_size=6), max_size=4)}
)


@settings(max_examples=NUM_CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=CONFIGS.map(yaml.safe_dump) | st.text(max_size=100) | st.binary(max_size=100))
def test_a_config_is_read_or_refused_in_words_that_hold_no_password(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))

    try:
        assert isinstance(load_config(path), Config)
    except UsageError as error:
        assert str(error).startswith(str(path))
        assert "secret" not in str(error)


@pytest.mark.parametrize("name", ["../x", "a/b", "a\nb", "🙂", "_daemon", '"', "", "x" * 65])
def test_a_camera_whose_name_would_not_fit_a_topic_is_refused(tmp_path, name):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"cameras": [{"name": name, "source": "0"}]}))

    with pytest.raises(UsageError, match=r"cameras\[0\]\.name"):
        load_config(path)
