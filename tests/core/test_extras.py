"""A missing optional dependency is reported with the command that installs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spantune.core import ConfigError, extras, install_command, lazy_exports, missing_train, need, require_extra

ROOT = Path(__file__).parents[2]


def test_need_and_require_extra_say_how_to_install_what_is_missing() -> None:
    assert need("json", "table").dumps([]) == "[]"
    require_extra("model.base=nf4", "bitsandbytes", ["json"])
    with pytest.raises(ConfigError, match=r"^this kind of file needs nowhere, .*; run pip install .*\[table\]'$"):
        need("nowhere.inside", "table")
    with pytest.raises(ConfigError, match=r"^model\.base=nf4 needs nowhere, .*; run pip install .*\[bitsandbytes\]'$"):
        require_extra("model.base=nf4", "bitsandbytes", ["json", "nowhere"])


def test_a_checkout_is_named_by_a_dot_inside_and_by_its_path_outside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    assert install_command("train", "embedded") == "pip install -e '.[train,embedded]'"
    monkeypatch.chdir(tmp_path)
    assert install_command("train") == f"pip install -e '{ROOT}[train]'"


WHEEL = "file:///wheels/spantune-0.2.0-py3-none-any.whl"


@pytest.mark.parametrize(
    ("stated", "command"),
    [
        (None, "pip install 'spantune[train]'"),
        ({"url": "file:///my%20code/spantune", "dir_info": {}}, "pip install '/my code/spantune[train]'"),
        ({"url": WHEEL, "archive_info": {}}, f"pip install 'spantune[train] @ {WHEEL}'"),
        (
            {"url": "https://example.org/s.git", "vcs_info": {"vcs": "git", "commit_id": "1"}},
            "pip install 'spantune[train] @ git+https://example.org/s.git'",
        ),
    ],
    ids=["index", "folder", "wheel", "git"],
)
def test_an_installed_copy_is_extended_from_where_it_came(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stated: dict[str, object] | None, command: str
) -> None:
    installed = tmp_path / "spantune-0.2.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.4\nName: spantune\nVersion: 0.2.0\n")
    if stated is not None:
        (installed / "direct_url.json").write_text(json.dumps(stated))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "lib" / "site-packages" / "spantune" / "core" / "extras.py"))
    assert install_command("train") == command


def test_a_lazy_name_that_needs_torch_says_so_and_another_missing_module_stays_a_bug(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, module in (("needs_torch", "torch"), ("needs_other", "a_module_of_nobody")):
        (tmp_path / "lazily" / name).mkdir(parents=True)
        source = f"raise ModuleNotFoundError('No module', name={module!r})\n"
        (tmp_path / "lazily" / name / "__init__.py").write_text(source)
    (tmp_path / "lazily" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    get, _ = lazy_exports("lazily", {"needs_torch": ["train"], "needs_other": ["other"]})
    with pytest.raises(ConfigError, match=r"of which torch is not installed; run pip install .*\[train\]'$"):
        get("train")
    with pytest.raises(ModuleNotFoundError):
        get("other")
    assert missing_train(ModuleNotFoundError(name="torch.no_such_part")) is None  # torch is there: another version
