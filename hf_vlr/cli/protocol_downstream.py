"""`hf-vlr protocol downstream`."""

from hf_vlr.cli.protocol_command import protocol_command

command = protocol_command(
    "downstream",
    """Measure many datasets: zero-shot and linear probe of each, in one table with the mean.

    --data names a list: elevater (ELEVATER's 20 datasets, looked for in root/NAME), or a YAML file

    \b
    base: elevater          # may be left out
    datasets:
      - {name: dtd, source: "imagefolder:textures"}
      - {name: birds, source: ORG/BIRDS, texts: birds.jsonl, metric: mean-per-class, classes: 200}

    metric is accuracy, mean-per-class or roc-auc. A dataset that is not there is "not run", never a number; the mean
    says over how many it is. What is done is kept in --out, so that the same command goes on.

    \b
    hf-vlr protocol downstream runs/stage1 --data elevater root=datasets --out elevater
    hf-vlr protocol downstream runs/stage1 --data mine.yaml protocols=zero-shot texts=templates --out mine
    """,
)
