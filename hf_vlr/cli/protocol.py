"""`hf-vlr protocol`."""

import click

from hf_vlr.cli.lazy import LazyGroup

COMMANDS = {
    "zero-shot": ("hf_vlr.cli.protocol_zero_shot", "Class texts against images: 1, 7, 80 templates, descriptions."),
    "linear-probe": ("hf_vlr.cli.protocol_linear_probe", "Logistic regression on frozen features, full or few-shot."),
    "knn": ("hf_vlr.cli.protocol_knn", "Nearest training images."),
    "retrieval": ("hf_vlr.cli.protocol_retrieval", "Images by texts and texts by images: recall, rank, mAP."),
    "gallery": ("hf_vlr.cli.protocol_gallery", "VL-LTR's stage 1: all sentences as one gallery."),
    "concepts": ("hf_vlr.cli.protocol_concepts", "UniCL's Fig. 4: nearest unseen concepts of a concept."),
    "queries": ("hf_vlr.cli.protocol_queries", "The images that match a rare concept best, as a contact sheet."),
    "projection": ("hf_vlr.cli.protocol_projection", "t-SNE or UMAP of image features and class texts."),
    "downstream": ("hf_vlr.cli.protocol_downstream", "Many datasets in one table: zero-shot, probe, mean."),
    "detection": ("hf_vlr.cli.protocol_detection", "The vision tower as a feature-pyramid backbone of Mask R-CNN."),
}


@click.group(cls=LazyGroup, commands_from=COMMANDS)
def command() -> None:
    """Measure a model as the papers do: features stay as they are, texts or few images tell the classes.

    MODEL is a folder that hf-vlr train wrote, or a CLIP, SigLIP or vision model of transformers. Every protocol
    prints a table and writes protocol.json into --out DIR (MODEL/protocol/NAME by default). Its own keys have no
    dots, e.g. k=20; those of a recipe do, e.g. eval.splits=validation, eval.rule=vl-ltr, data.texts=FILE.jsonl.
    It reports one split, the first of eval.splits, test by default; what has to be chosen is chosen on validation
    images, and says so.

    \b
    hf-vlr protocol zero-shot runs/stage1 --data imagefolder:photos
    hf-vlr protocol linear-probe runs/stage1 --data imagefolder:photos shots=[5,20,50,0]
    hf-vlr protocol queries runs/stage1 --data imagefolder:photos --out rare
    hf-vlr protocol downstream runs/stage1 --data elevater root=datasets --out elevater
    """
