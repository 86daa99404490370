"""What `mien gallery check` finds."""

import pytest
from typer.testing import CliRunner

from daemon.cli import app
from daemon.config import IdentityConfig
from daemon.gallery import Gallery
from daemon.gallery_check import findings
from engines.errors import UsageError
from tests.test_gallery import MODEL, look


@pytest.fixture
def path(tmp_path):
    return tmp_path / "gallery.sqlite"


def test_people_too_alike_and_strange_images_are_found(path):
    with Gallery(path) as gallery:
        gallery.enrol("Ann", [look(1, 0, 0), look(0.9, 0.1, 0, image="b.jpg")])
        gallery.enrol("Anna", [look(0.95, 0, 0.1)])
        gallery.enrol("Bob", [look(0, 1, 0), look(0, 0, 1, image="not_bob.jpg")])
        found = findings(gallery, IdentityConfig(threshold=0.6))

    assert 3 == len(found)
    assert "not_bob.jpg is unlike the other images" in found[1]
    assert "Ann and Anna are too alike" in found[2]


def test_embeddings_of_two_lengths_by_one_embedder_are_found(path):
    with Gallery(path) as gallery:
        gallery.enrol("Ann", [look(1, 0)])
        gallery.enrol("Bob", [look(1, 0, model="other@1")])
        gallery._connection.execute(
            "UPDATE looks SET model = ?, embedding = zeroblob(12) WHERE id = 2", (MODEL,)
        )
        found = findings(gallery, IdentityConfig(threshold=0.6))

    assert [f"embeddings of 2 lengths by {MODEL}: 2 numbers (Ann), 3 numbers (Bob)"] == [
        line.partition(";")[0] for line in found
    ]


def test_an_older_daemon_that_cannot_look_for_damage_is_told_of(path, monkeypatch):
    class Older:
        path = "control.sock"

        def ask(self, _):
            raise UsageError("not a request: Invalid value 'gallery_check'")

    with Gallery(path) as gallery:
        gallery.enrol("Ann", [look(1, 0)])
    monkeypatch.setattr("daemon.commands.gallery._owner", lambda *_: Older())
    monkeypatch.setattr("daemon.commands.gallery._through", lambda *_, **__: Gallery(path))

    told = CliRunner().invoke(app, ["gallery", "check", "--gallery", str(path)])

    assert 0 == told.exit_code and "no findings" in told.stdout
    assert "control.sock: the daemon is older than this command" in told.stderr
