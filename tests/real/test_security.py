"""The security audit of this machine."""

import os
from pathlib import Path

from tests.conftest import need
from tests.support import call, target


def test_this_machine_is_audited_and_a_planted_file_is_found(tmp_path: Path) -> None:
    need("root", None if os.geteuid() == 0 else "only root can plant a file in a system folder")
    planted = Path(f"/usr/local/bin/planted-{os.getpid()}")
    planted.write_text("#!/bin/sh\n")
    planted.chmod(0o4755)
    try:
        (result,) = call(tmp_path, "audit_security", {"targets": ["local"]}, target("local"), root=True)["results"]
    finally:
        planted.unlink()
    data = result["data"]
    assert any(str(planted) in finding["evidence"] for finding in data["findings"])
    ranks = ["critical", "high", "medium", "low", "info"]
    found = [ranks.index(finding["severity"]) for finding in data["findings"]]
    assert found == sorted(found)
    assert sum(data["severities"].values()) == data["total"]
    looked_at = {finding["check"] for finding in data["findings"]} | {one["check"] for one in data.get("skipped", [])}
    assert looked_at >= {"files"}
    if not Path("/run/systemd/system").is_dir():
        assert "failed_units" in {one["check"] for one in data["skipped"]}


def test_the_targets_have_to_be_named(tmp_path: Path) -> None:
    assert call(tmp_path, "audit_security", {}, target("local"))["error"]["code"] == "invalid_arguments"
