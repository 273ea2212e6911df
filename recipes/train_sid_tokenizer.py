"""Give every item of a catalogue a semantic id (SID): a short tuple of codes, similar items sharing their first codes.

Method: item text (title and categories) is embedded (all-MiniLM-L6-v2, or TF-IDF + SVD where that is out of reach)
    and quantised, c_j = argmin_k |r_(j-1) - v_(j,k)|^2, r_j = r_(j-1) - v_(j,c_j), by `--quantizer` kmeans (residual
    k-means), balanced (the same with clusters of equal size) or rqvae (in the latent space of an autoencoder, TIGER,
    arXiv 2305.05065). Items that end up with one tuple are told apart by `--collision`: suffix adds a level that
    numbers them (TIGER); nearest moves all but the closest one to the free tuple at the least added error; share
    leaves them their common tuple (as in the indexes of MiniOneRec, arXiv 2510.24431).
Run:   python recipes/train_sid_tokenizer.py --dataset DIR --levels 256 256 256 --output_dir outputs/sid_table
Quick: python recipes/train_sid_tokenizer.py --config recipes/configs/train_sid_tokenizer/quickstart.yaml
Makes: the SID table (read it with SidTable.load), item_embeddings.safetensors, sid_centroids.safetensors, for rqvae
    the network, metrics.json (per level utilisation, perplexity, mse and collision rate; collision rate and
    reconstruction error before and after the policy).
Expect: MiniLM, 3 x 256, seed 0, collision rate before the policy (0 after it) and reconstruction error after it:
    Amazon Beauty 2014 .121 and .248 by kmeans, .110 and .254 by balanced, .018 and .325 by rqvae; Industrial and
    Scientific 2018 .181 and .239, .130 and .242, .055 and .283. More in the header of each config.
"""

from dataclasses import dataclass, field

from recllm.data.catalog import Catalog
from recllm.provenance import RunRecord
from recllm.training.arguments import parse


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "folder for the SID table"})
    dataset: str = field(metadata={"help": "data set folder (catalog.parquet)"})
    encoder: str = field(
        default="auto", metadata={"help": "auto, minilm, tfidf, or a sentence-transformers folder or Hub id"}
    )
    levels: list[int] = field(
        default_factory=lambda: [256, 256, 256], metadata={"help": "number of codes of each level, coarse first"}
    )
    position_weight: float = field(
        default=0.0, metadata={"help": "weight of an item's lat and lon beside its text, whose vectors have length 1"}
    )
    collision: str = field(default="nearest", metadata={"help": "nearest, suffix (adds a level) or share"})
    quantizer: str = field(default="kmeans", metadata={"help": "kmeans, balanced or rqvae"})
    kmeans_init: str = field(default="sketch++", metadata={"help": "kmeans: sketch++, k-means++ or sample"})
    kmeans_iterations: int = field(default=12, metadata={"help": "kmeans: at most so many Lloyd iterations a level"})
    balanced_rounds: int = field(default=10, metadata={"help": "balanced: so many means a level"})
    rqvae_widths: list[int] = field(
        default_factory=lambda: [512, 256, 128, 64], metadata={"help": "rqvae: hidden widths of the encoder"}
    )
    rqvae_latent: int = field(default=32, metadata={"help": "rqvae: width of the latent space"})
    rqvae_beta: float = field(default=0.25, metadata={"help": "rqvae: weight of the commitment loss"})
    rqvae_sinkhorn: float = field(
        default=0.0, metadata={"help": "rqvae: epsilon of the last level's assignment in training; 0 is off"}
    )
    rqvae_epochs: int = field(default=300, metadata={"help": "rqvae: at most so many epochs"})
    rqvae_batch_size: int = field(default=256, metadata={"help": "rqvae: items a step"})
    rqvae_lr: float = field(default=1e-3, metadata={"help": "rqvae: AdamW learning rate"})
    rqvae_patience: int = field(default=10, metadata={"help": "rqvae: five epochs each, without gain, before the end"})
    seed: int = field(default=0, metadata={"help": "seed of the quantiser and of the SVD"})


def main(args: Arguments) -> None:
    record = RunRecord.start(
        args.output_dir, recipe="train_sid_tokenizer", config=args, inputs={"dataset": args.dataset}
    )
    if record.complete:
        return

    from recllm.sid.build import build_quantizer, reconstruction_report, save_quantizer
    from recllm.sid.collisions import resolve_collisions
    from recllm.sid.embeddings import embed_items, encoder_assets, save_embeddings, with_positions
    from recllm.sid.quantizer import table_report
    from recllm.sid.table import SidTable

    catalog = Catalog.load(args.dataset)
    vectors_ND, encoder = embed_items(catalog, args.encoder, args.seed)
    if args.position_weight:
        vectors_ND = with_positions(vectors_ND, catalog, args.position_weight)

    quantizer = build_quantizer(args.quantizer, args)
    codes_NL = quantizer.fit(vectors_ND).encode(vectors_ND)
    latents_ND, centroids = quantizer.latents(vectors_ND), quantizer.centroids

    unique_NL, sizes = resolve_collisions(codes_NL, args.levels, latents_ND, centroids, args.collision)
    table = SidTable(unique_NL, sizes, shared=args.collision == "share")

    table.save(args.output_dir)
    save_embeddings(args.output_dir, vectors_ND)
    save_quantizer(args.output_dir, quantizer)
    record.extra["encoder"] = encoder
    for asset in encoder_assets(encoder):
        record.add_asset(asset)
    record.extra["sid_table_hash"] = table.hash
    report = table_report(codes_NL, unique_NL, sizes, latents_ND, centroids)
    record.finish(report | reconstruction_report(quantizer, vectors_ND, codes_NL, unique_NL))


if __name__ == "__main__":
    main(*parse(Arguments))
