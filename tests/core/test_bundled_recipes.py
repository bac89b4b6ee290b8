"""A recipe that comes with spantune is found by its name wherever the path of a recipe is accepted."""

from __future__ import annotations

import pytest

from spantune.core import ConfigError, as_config, bundled_recipes, description, load_config, recipe_path


def test_every_recipe_is_found_by_name_and_says_what_it_is() -> None:
    recipes = bundled_recipes()
    assert {"demo", "phi4-cmeee"} <= set(recipes)
    for name, path in recipes.items():
        assert load_config(f"bundled:{name}", ["run.name=other"]).run.name == "other"
        assert recipe_path(f"bundled:{name}") == path and as_config(f"bundled:{name}") == load_config(path)
        said = description(path)
        assert said and "spantune" not in said.split()[0] and "Run:" not in said and "\n" not in said


def test_an_unknown_name_is_an_error_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'dmo' comes with spantune; did you mean 'demo'\? valid: "):
        load_config("bundled:dmo")
    with pytest.raises(ConfigError, match=r"demo: no such recipe; .*such as bundled:demo"):
        load_config("demo")
    with pytest.raises(ConfigError, match="such as bundled:phi4-cmeee "):
        load_config("phi4-cmeee")
