# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documentation says is held against the code: settings, options, sentences, links."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from agentmem_backup import cli, errors, settings, targets

from tests.docs.pages import ANY, CHECKOUT, ENGINE, blocks, inline_code, prose, read, rows, sentences

OTHERS = {
    "--undo": "said not to be there yet",
    "--small": "script/demo's",
    "--delete": "rsync's",
    "--checksum": "rsync's",
    "--rdb": "redis-cli's",
    "--pdeathsig": "setpriv's",
    "--clean": "pg_restore's",
    "--delta": "pgBackRest's",
    "--limit": "ansible-playbook's",
}
"""Options in the text that are not this command's, and whose they are."""
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", *sorted(f"docs/{path.name}" for path in (CHECKOUT / "docs").glob("*.md"))]


def settings_rows() -> list[list[str]]:
    """The rows that the table of settings must have."""
    found = []
    for name, option, value in settings.walk(settings.Settings()):
        default = ",".join(value) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else f"{value}"
        if value == {}:
            default = ""
        if isinstance(value, float):
            default = f"{value:g}"
        variable = option.metadata["env"]
        meaning = option.metadata["help"] + (" (secret)" if option.metadata["secret"] else "")
        found.append([f"`{name}`", f"`{variable}`" if variable else "", f"`{default}`" if default else "empty", meaning])
    return found


def test_every_setting_is_in_the_table() -> None:
    wanted = settings_rows()
    assert rows("docs/operations.md", "All settings") == wanted, "the table should be:\n" + "\n".join(
        f"| {' | '.join(row)} |" for row in wanted
    )


def target_rows() -> list[list[str]]:
    """The rows that the table of a target's fields must have."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for kind, fields in targets.KINDS.items():
        for name, one in fields.items():
            default = str(one.default).lower() if isinstance(one.default, bool) else str(one.default)
            meaning = one.help + (" (required)" if one.required else "") + (" (secret)" if one.secret else "")
            found.setdefault((name, f"`{default}`" if default else "empty", meaning), []).append(f"`{kind}`")
    return [[f"`{name}`", ", ".join(kinds), default, meaning] for (name, default, meaning), kinds in found.items()]


def test_every_field_of_a_target_is_in_the_table() -> None:
    wanted = target_rows()
    assert rows("docs/operations.md", "All fields of a target") == wanted, "the table should be:\n" + "\n".join(
        f"| {' | '.join(row)} |" for row in wanted
    )


def test_exit_codes() -> None:
    told = {int(code) for code, __ in rows("docs/operations.md", "Exit codes")}
    assert told == {0, *(one.exit_code for one in vars(errors).values() if hasattr(one, "exit_code"))}


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_are_understood(page: str) -> None:
    for code in inline_code(page):
        words = shlex.split(code)[1:] if code.startswith("agentmem-backup ") and ANY not in code else []
        if len(words) == 1:  # the name of a verb, not a whole command
            words.append("--help")
        try:
            cli.parser().parse_args(words)
        except SystemExit as helped:
            assert helped.code == 0
        except errors.UsageError as error:
            assert not words, f"{page}: `{code}`: {error}"


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_exist(page: str) -> None:
    sources = [(ENGINE / name).read_text() for name in ("cli.py", "compat.py")]
    known = {word for text in sources for word in re.findall(r"\"(--[a-z]+(?:-[a-z]+)*)\"", text)} | {"--help", "--version"}
    told = {word for code in inline_code(page) for word in re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", code)}
    assert told - known <= OTHERS.keys()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, __, anchor = target.partition("#")
        if "://" in target or path.startswith("mailto:"):
            continue
        file = ((CHECKOUT / page).parent / path).resolve() if path else CHECKOUT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", read(str(file.relative_to(CHECKOUT))), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}, f"{page}: {target}"


def test_troubleshooting_quotes_what_the_engine_says() -> None:
    quoted = re.findall(r"^\*\*`(.+)`\*\*$", read("docs/troubleshooting.md"), flags=re.MULTILINE)
    assert len(quoted) > 100
    known = sentences()
    strangers = [text for text in quoted if not any(text in one for one in known)]
    assert len(quoted) == len(set(quoted))
    assert not strangers, "the engine says nothing like:\n" + "\n".join(strangers)


def test_the_architecture_names_every_module_of_the_engine() -> None:
    page = read("docs/architecture.md")
    picture = page.partition("```\n")[2].partition("```")[0]
    named = set(re.findall(r"\b[a-z_]+\b", picture)) | set(re.findall(r"`(?:\w+/)?(\w+)\.py`", page))
    absent = {path.stem for path in ENGINE.rglob("*.py")} - {"__init__"} - named
    assert not absent, f"docs/architecture.md says nothing of {', '.join(sorted(absent))}"
    places = (ENGINE, ENGINE.parent)
    for name in re.findall(r"`((?:\w+/)?\w+\.py)`", page):
        assert any((place / name).exists() for place in places), f"docs/architecture.md names {name}, which does not exist"


def test_variables_of_the_fleets_inventory_exist() -> None:
    known = {name for path in CHECKOUT.glob("roles/*/defaults/main.yml") for name in yaml.safe_load(path.read_text())}
    known |= {name for path in CHECKOUT.glob("playbooks/*.yml") for name in re.findall(r"agentmem_backup_\w+", path.read_text())}
    told = [block for block in blocks("docs/operations.md") if block.text.startswith("# inventory/group_vars/")]
    assert len(told) == 2
    for block in told:
        own = {name for name in yaml.safe_load(block.text) if len(re.findall(rf"\b{name}\b", block.text)) > 1}
        assert {*yaml.safe_load(block.text)} - own <= known, block.where
