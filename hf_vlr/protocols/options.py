"""The settings of each protocol: every key, its default, its range and its help stand once, in the fields below."""

from dataclasses import dataclass, field

from hf_vlr.training.keys import about, option

CHOOSE_BY = ("balanced", "accuracy")


@dataclass
class ZeroShotOptions:
    """Class texts against images, no training."""

    rows: list[str] = field(
        default_factory=lambda: ["clip-templates:1", "clip-templates:7", "clip-templates:80", "corpus"],
        metadata=about("texts that are compared, each as data.texts takes them; corpus is data.texts itself"),
    )


@dataclass
class LinearProbeOptions:
    """Logistic regression on frozen features."""

    features: str = option(
        "unit",
        "unit: divided by their norm; standard: each dimension of mean 0 and deviation 1 on the training images; raw",
        choices=("unit", "standard", "raw"),
    )
    C: float | None = option(None, "inverse strength of L2; null = chosen on validation images", above=0.0)
    choose_by: str = option("balanced", "what the choice maximises: mean per class, or accuracy", choices=CHOOSE_BY)
    refit: str = option(
        "train",
        "images the reported probe is fitted on once C is chosen; with validation images shot groups change their size",
        choices=("train", "train+validation"),
    )
    shots: list[int] = field(
        default_factory=list,
        metadata=about("images per class the probe sees, e.g. [5,20,50,0]; 0 = all; [] = all, once", low=0),
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata=about("draws of those images", low=0))
    class_weight: str = option("none", "balanced: an image of a class of n weighs 1/n", choices=("none", "balanced"))
    max_iter: int = option(1000, "steps of L-BFGS, at most", low=1)
    zero_shot: bool = option(True, "show zero-shot by data.texts beside it, where the model reads texts")


@dataclass
class KnnOptions:
    """k nearest training images."""

    k: list[int] = field(
        default_factory=lambda: [1, 5, 10, 20, 50, 100, 200],
        metadata=about("numbers of neighbours; of several the best on validation images is reported", low=1),
    )
    temperature: float = option(0.07, "T of the weights exp(cos/T)", above=0.0)
    choose_by: str = option("balanced", "what the choice maximises: mean per class, or accuracy", choices=CHOOSE_BY)


@dataclass
class RetrievalOptions:
    """Images by texts and texts by images."""

    kind: str = option(
        "auto",
        "pairs: captions of images; classes: images of a class by its texts; auto: pairs where images have captions",
        choices=("auto", "pairs", "classes"),
    )
    ranks: list[int] = field(default_factory=lambda: [1, 5, 10], metadata=about("K of recall@K", low=1))


@dataclass
class GalleryOptions:
    """VL-LTR's stage 1: sentences and images as each other's neighbours."""

    neighbours: int = option(5, "sentences that vote", low=1)


@dataclass
class ConceptsOptions:
    """Nearest other concepts of a concept (UniCL, Fig. 4)."""

    query: str = option(
        "texts", "what stands for a query: its texts, or the mean of its images", choices=("texts", "images")
    )
    against: str = option(
        "texts", "what stands for the other concepts; images needs them to have some", choices=("texts", "images")
    )
    candidates: str = option(
        "auto",
        "the other concepts: classes (those of the data), unseen (the split of that name), or a file, one name a line; "
        "auto: unseen where there is such a split, else classes",
    )
    attributes: str | None = option(
        None, "JSON file {name: [attribute, ...]} (hypernyms, say); null = none, but shapes-lt knows its own"
    )
    top: int = option(5, "nearest concepts of each query", low=1)
    show: int = option(10, "queries that are printed", low=0)


@dataclass
class QueriesOptions:
    """Images that match a concept best."""

    top: int = option(10, "images shown of each class, and K of precision@K", low=1)
    group: str = option("few", "shot group whose classes are shown", choices=("many", "medium", "few", "all"))
    show: int = option(20, "classes on the sheet, at most", low=1)
    thumbnail: int = option(80, "side of a thumbnail in pixels", low=16)


@dataclass
class ProjectionOptions:
    """Features in the plane."""

    method: str = option("tsne", "t-SNE, or UMAP (needs umap-learn)", choices=("tsne", "umap"))
    classes: list[str] = field(
        default_factory=list,
        metadata=about("names of the classes that are drawn, each in a colour; [] = all, or `most`"),
    )
    most: int = option(12, "classes drawn where none are named: equally many of each shot group; 0 = all", low=0)
    colour: str = option("class", "what a colour means", choices=("class", "shot"))
    images: int = option(2000, "images drawn, at most, equally many of each class", low=10)
    texts: bool = option(True, "the class texts on the same picture, where the model reads texts")
    centre: bool = option(True, "subtract the mean of images from images and of texts from texts, which lie apart")
    perplexity: float = option(30.0, "of t-SNE; neighbours of UMAP", above=1.0)


@dataclass
class DownstreamOptions:
    """Many datasets in one table."""

    protocols: list[str] = field(
        default_factory=lambda: ["zero-shot", "linear-probe"],
        metadata=about("columns", choices=("zero-shot", "linear-probe")),
    )
    root: str | None = option(None, "folder that holds the datasets of the list by name; null = the list names sources")
    texts: str = option("clip-templates:80", "class texts of a dataset whose entry names none")
    features: str = option("unit", "as in linear-probe", choices=("unit", "standard", "raw"))
    max_iter: int = option(1000, "steps of L-BFGS, at most", low=1)
