# %% [markdown]
# # Your own folder of images in ten minutes
#
# This tutorial goes from a folder of images with captions to a trained model, its numbers, a page
# of its hits and misses, and a text search. It runs the same commands that you would type, and
# prints each one before it runs it.
#
#     python docs/tutorial.py                                    # makes a folder of images first
#     python docs/tutorial.py --images DIR --pairs FILE --text "a dog on a beach"      # your own
#     python docs/tutorial.py --quick                            # a few updates, to see the steps
#
# Everything is written below `--out` (default: `runs/tutorial`). No GPU and no network are needed.
# Editors that know `# %%` cells (VS Code, PyCharm, Spyder, Jupytext) can run it cell by cell.
"""Tutorial: train and search a model on a folder of images (run it, or read it as cells)."""

# %%
import argparse
import csv
import json
import shlex
import shutil
import sys
from pathlib import Path

from itr.cli import main as itr

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--images", type=Path, help="your folder of images (default: make one)")
parser.add_argument("--pairs", type=Path, help="your table with the columns image and caption")
parser.add_argument("--text", default="a small red circle", help="text to search for")
parser.add_argument("--out", type=Path, default=Path("runs/tutorial"))
parser.add_argument("--quick", action="store_true", help="60 images and a few updates")
in_notebook = "ipykernel" in sys.modules
options = parser.parse_args([] if in_notebook else None)
if (options.images is None) != (options.pairs is None):
    parser.error("pass both --images DIR and --pairs FILE, or neither")


def run(*words: object, look_at: str) -> None:
    """Print a command and what to look at in its output, then run it."""
    arguments = [str(word) for word in words]
    print(f"\n$ itr {shlex.join(arguments)}\n# Look at: {look_at}\n", flush=True)
    try:
        code = itr(arguments)
    except SystemExit as ended:
        code = ended.code
    warnings_only = arguments[:2] == ["data", "check"] and code == 1
    if code and not warnings_only:
        sys.exit(f"'itr {shlex.join(arguments)}' ended with exit code {code}; see its message")


# %% [markdown]
# ## 1. The data
#
# The suite needs a folder of images and a table that says which caption belongs to which image: one
# pair per row, in the columns `image` (a path relative to the folder) and `caption`. An image may
# have several rows.
#
# Without `--images`, this cell writes such a folder: 1,200 generated scenes of colored shapes, five
# captions each.


# %%
def make_folder(folder: Path, number: int) -> tuple[Path, Path]:
    """Write ``number`` generated images and their table of pairs; returns folder and table."""
    from itr.data.scenes.make import prepare

    made = prepare(folder.parent / "scenes", train=number - 20, val=10, test=10)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made / "images", folder)
    annotations = json.loads((made / "dataset_scenes.json").read_text())["images"]
    pairs = folder / "pairs.csv"
    with pairs.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for image in annotations:
            for sentence in image["sentences"]:
                writer.writerow([image["filename"], sentence["raw"]])
    return folder, pairs


images, pairs = options.images, options.pairs
if images is None:
    images, pairs = make_folder(options.out / "my_images", 60 if options.quick else 1200)
    print(f"wrote {images} with {pairs}, which begins with")
    print("".join(f"    {line}\n" for line in pairs.read_text().splitlines()[:4]), end="")

# The keys that describe this dataset, for every command. There is no column `split`, so a tenth of
# the images is held out for validation and another tenth for the test (chosen by file name: the
# choice stays the same when the table grows).
data = ["data=table", f"data.train={pairs}", f"data.images={images}", "data.held_out=0.1"]

# %% [markdown]
# ## 2. Check it
#
# `itr data check` opens the data as training does, decodes every image, and reports what is there
# and what is wrong. Do this first with any new dataset.

# %%
run(
    "data", "check", *data,
    look_at="the number of images and captions of each split, and notes, warnings and errors below",
)  # fmt: skip

# %% [markdown]
# ## 3. Train
#
# `model=alip` reads images. `recipe=alip_scenes_retrieval` makes it small enough for a CPU and
# starts from random weights; its tokenizer is learned from your captions. ALIP trains on two texts
# per image: with `data.second_text=other_caption`, which the recipe sets, the second one is another
# caption of the same image.
#
# `itr train` is the same as `python train.py`. Running it again prints the results of the finished
# run; `resume=auto` continues an interrupted one.

# %%
run_directory = options.out / "run"
length = ["trainer.max_steps=4", "batch_size=16"] if options.quick else ["trainer.epochs=40"]
run(
    "train", "model=alip", "recipe=alip_scenes_retrieval", *data, *length,
    f"out={run_directory}", "tracker=none", "overwrite=true",
    look_at="R@1, R@5 and R@10 on the validation images, which rise from epoch to epoch",
)  # fmt: skip

# %% [markdown]
# ## 4. Evaluate
#
# The checkpoint with the best validation is evaluated on the test images, which were in neither
# training nor validation. A checkpoint knows its data and tokenizer, so nothing else is needed.
# `i2t` finds captions for an image, `t2i` finds images for a caption; R@K is the share of queries
# whose match is among the first K. Chance for R@1 is one in the number of images.

# %%
run(
    "eval", f"checkpoint={run_directory}", "split=test",
    look_at="the same numbers that training reported, with 95 % confidence intervals",
)  # fmt: skip

# %% [markdown]
# ## 5. See what it gets right and wrong

# %%
run(
    "gallery", run_directory, "--queries", 4, "--heat", 2,
    look_at="the HTML file that it names; open it in a browser",
)  # fmt: skip

# %% [markdown]
# ## 6. Search with a text

# %%
run(
    "search", run_directory, "--images", images, "--top", 5, options.text,
    look_at="the file names of the images that match best; open a few of them",
)  # fmt: skip

# %% [markdown]
# ## 7. Compare runs
#
# One run is a table of one row. Train another one with `out=...` and one option changed (`seed=1`,
# `loss=triplet`, `model.embed_size=64`), and pass both, or a folder of runs.

# %%
run("results", run_directory, look_at="one row per configuration; its seeds share the row")

# %% [markdown]
# ## Where to go from here
#
# - Other layouts of data, second texts, splits of your own: `docs/data-layouts.md`.
# - The models at the size of their papers, from pretrained weights: `docs/models.md`.
# - Every option: `docs/configuration.md`.
