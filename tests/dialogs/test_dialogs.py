"""Every script against the dialog in process: whole, octet by octet and in odd pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dialogs.runner import InProcess, play, read, scripts


@pytest.mark.parametrize("piece", [0, 1, 7])
@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.stem)
def test_in_process(path: Path, piece: int) -> None:
    script = read(path)
    peer = InProcess(script, piece)
    play(script, peer)
    peer.close()
    assert peer.receive() == b"", "the server said more than the script has"


def test_a_script_can_fail(tmp_path: Path) -> None:
    for text in ("S: 221 *", "S: 220 *\nC: NOOP\nS: 250 2.0.0 Bye", "S: 220 *\nX: closed", "S: 220 *\nC: NOOP"):
        path = tmp_path / "wrong.smtp"
        path.write_text(text)
        with pytest.raises(AssertionError):
            play(read(path), InProcess(read(path)))
