"""`hf-vlr recipes`."""

import click

from hf_vlr.cli.output import is_main_process, say, say_table

# what a recipe's name begins with, in the order of the list; the longest beginning decides
FAMILIES = {
    "shapes-lt, drawn at run time: no data, no network": ("shapes-",),
    "OpenClipart, and image folders of your own": ("openclipart-",),
    "VL-LTR on your own data": ("vlltr-",),
    "VL-LTR on ImageNet-LT": ("vlltr-imagenet-lt-",),
    "VL-LTR on Places-LT": ("vlltr-places-lt-",),
    "VL-LTR on iNaturalist 2018": ("vlltr-inat18-",),
    "VL-LTR, ablations": ("vlltr-ablation-",),
    "UniCL on your own data": ("unicl",),
    "UniCL and its comparisons on CIFAR-10 and CIFAR-100": ("unicl-cifar", "unicl-supcon-"),
    "UniCL and its comparisons on ImageNet-1K": ("unicl-in1k-",),
    "UniCL from larger sets, measured zero-shot": ("unicl-in2", "unicl-yfcc"),
    "CIFAR-LT: re-balancing, and language from scratch": ("cifar",),
}
OTHERS = "others"


@click.command()
@click.option("--keys", is_flag=True, help="List the keys of a recipe instead: type, default, meaning.")
@click.argument("only", required=False, metavar="[NAME|PART]")
def command(keys: bool, only: str | None) -> None:
    """List the packaged recipes, or explain one: where it comes from, and what it sets.

    NAME is a packaged recipe or a YAML file. PART keeps the recipes whose name, or with --keys the keys that,
    contain it.

    \b
    hf-vlr recipes
    hf-vlr recipes unicl-cifar
    hf-vlr recipes unicl-cifar10-resnet50
    hf-vlr recipes --keys optim
    """
    from hf_vlr.training.recipe import packaged_recipes

    packaged = packaged_recipes()
    if keys:
        found = [row for row in key_rows() if only is None or only in row[0]]
        say_table(found)
        if not found:
            say(f"no key contains {only}")
    elif only in packaged or (only or "").endswith((".yaml", ".yml")):
        explain(only)
    else:
        list_recipes({name: title for name, title in packaged.items() if only is None or only in name}, only)


def key_rows() -> list[tuple[str, str, str, str]]:
    """(key, type, default, help) of all recipe keys."""
    from hf_vlr.training.options import describe_keys

    return describe_keys()


def family(name: str) -> str:
    """The heading that a recipe is listed under."""
    matches = [(begin, title) for title, begins in FAMILIES.items() for begin in begins if name.startswith(begin)]
    return max(matches, key=lambda match: len(match[0]), default=("", OTHERS))[1]


def list_recipes(recipes: dict[str, str], only: str | None) -> None:
    """Print names and titles by family."""
    from hf_vlr.cli.sheet import Sheet

    if not recipes:
        say(f"no recipe contains {only}" if only else "no recipes are packaged")
        return
    sheet = Sheet()
    for title in (*FAMILIES, OTHERS):
        members = [(name, about) for name, about in recipes.items() if family(name) == title]
        if members:
            sheet.heading(title)
            sheet.rows(members)
    sheet.text("hf-vlr recipes NAME explains one, hf-vlr train NAME --dry-run says what it would cost.")
    if is_main_process():
        sheet.show()


def explain(name: str) -> None:
    """Print a recipe's comment, its bases, and all values that differ from the defaults, with their meaning."""
    from hf_vlr.cli.sheet import Sheet
    from hf_vlr.training.recipe import changed_values, load_recipe, recipe_files, spell_value

    files = recipe_files(name)
    title, fields, commands = comment_parts(files[0].comment)
    sheet = Sheet()
    sheet.heading(files[0].name)
    sheet.text(title)
    if len(files) > 1:
        fields = [*fields, ("Base", " → ".join(file.name for file in files[1:]))]
    sheet.rows(fields)
    for line in commands:
        sheet.text(line, indent=2)
    known = {key: (default, text) for key, _, default, text in key_rows()}
    changed = [(key, value) for key, value in changed_values(load_recipe(name)) if key != "output"]
    sheet.heading("what it sets, bases included")
    for key, value in changed:
        default, meaning = known[key]
        sheet.item(f"{key}={spell_value(value)}", meaning, "" if default == "required" else f"(default {default})")
    if is_main_process():
        sheet.show()


def comment_parts(comment: str) -> tuple[str, list[tuple[str, str]], list[str]]:
    """The title, the fields `Name: text` and the command lines of a recipe's opening comment."""
    title, *lines = comment.splitlines() or [""]
    fields: list[tuple[str, str]] = []
    commands: list[str] = []
    for line in lines:
        label, colon, text = line.partition(": ")
        if line.startswith(("hf-vlr ", "accelerate ")):
            commands.append(line)
        elif line.startswith("  ") and fields:
            fields[-1] = (fields[-1][0], f"{fields[-1][1]} {line.strip()}")
        elif colon and label[:1].isupper():
            fields.append((label, text))
        elif line:
            fields.append(("", line))
    return title, fields, commands
