"""Stage: write synthetic image-mask pairs.

python -m medaug.generate experiment=hippocampus num=200 [guidance_scale=1.5] [sampler=dpmpp_2m] [masks=deformed]
"""

from __future__ import annotations

import logging

from medaug.config import part
from medaug.launcher import launch
from medaug.options import Options
from medaug.processes import choose_device, process_count, process_rank
from medaug.runs import claim, finish, join, stage_folder, trained_checkpoint

log = logging.getLogger(__name__)


def main(options: Options) -> None:
    """Write pairs, their provenance, their manifest and a contact sheet; on request, how the first pair comes about.

    Processes that torchrun or srun started share the pairs without waiting for each other; whoever finds all of them on
    record writes the rest.
    """
    from medaug.cohort.manifest import Manifest
    from medaug.errors import UserError
    from medaug.synthesis.generator import load_mask_generator
    from medaug.synthesis.recipes import check_options, check_task, write_recipe
    from medaug.training.checkpoint import load_experiment, refuse_changed_scans

    for name, least in (("num", 1), ("batch_size", 1), ("strip", 0)):
        if getattr(options.generate, name) < least:
            raise UserError(f"{name}={getattr(options.generate, name)}: at least {least} is needed")
    train, folder = stage_folder(options, "train"), stage_folder(options, "generate")
    checkpoint = trained_checkpoint(options)
    # Before anything is written.
    device = choose_device()
    digest, card, model = load_experiment(checkpoint, options.experiment, device)
    check_task(model.task, card, checkpoint)
    check_options(model.process, card.schema, options.generate, options.sampler, card.attributes)
    manifest = Manifest.load(train / "manifest.json")
    generator = load_mask_generator(options.masks, options.sampler, card, manifest, device)
    identity = part(options, "generate", "masks", "sampler") | {"checkpoint": digest}
    if generator is not None:
        identity["mask_checkpoint"] = generator.checkpoint
    work = claim(folder, identity, options.overwrite, growable=("generate.num",))
    if not work and not options.generate.strip:
        return
    join(folder, identity)

    import numpy as np

    from medaug.cohort import provenance
    from medaug.data.cases import load_cases
    from medaug.data.contents import case_contents
    from medaug.pictures.figures import busiest_slice, contact_sheet, save_figure
    from medaug.pictures.strip import denoising_strip, evenly
    from medaug.synthesis.generation import generate_pairs, pairs_digest, sample_images, synthetic_manifest

    labelled = [case for case in manifest.split("train") if case.label is not None]
    if not labelled:
        raise UserError(f"{train / 'manifest.json'}: no training case has a label to take a mask from")
    cache = folder.parent / "cache"
    refuse_changed_scans(card, case_contents(manifest, labelled, cache))
    if generator is not None:
        tested = manifest.split("test")
        generator.seen.refuse_test_scans("the mask generator", manifest, case_contents(manifest, tested, cache))
    hosts = load_cases(manifest, labelled, card.preprocessing, cache)
    if generator is not None:
        generator = generator.held_against([np.asarray(host.label) for host in hosts])

    def plan(index: int):  # type: ignore[no-untyped-def]
        return write_recipe(
            index, hosts, options.generate, options.masks, options.sampler, digest, card.attributes, generator
        )

    if options.generate.strip and process_rank() == 0:
        recipe, _, mask = plan(0)
        seen: list[tuple[float, np.ndarray]] = []
        last = sample_images(
            model, card.schema, [recipe], [mask], recipe.guidance_scale, lambda t, x0: seen.append((t, x0[0, 0]))
        )
        frames = [seen[i] for i in evenly(len(seen), options.generate.strip)]
        denoising_strip([*frames, (0.0, last[0, 0])], busiest_slice(mask), folder / "strip")
        log.info("how pair 0 comes out of the noise is shown by %s and .gif", folder / "strip.png")
    if not work:
        return

    learned = None if generator is None else generator.seen
    num, rank, ranks = options.generate.num, process_rank(), process_count()
    if ranks > 1:  # now, for on network file systems the others see a new name late
        provenance.rank_file(folder, rank).open("ab").close()
    generate_pairs(model, card, plan, num, options.generate.batch_size, folder, learned, rank, ranks)
    synthetic = synthetic_manifest(card, folder, num)
    if missing := num - len(synthetic.cases):
        log.info(
            "process %d of %d has made its pairs; %d are still to come from the others, the last of which writes the "
            "manifest. Should one have died, the same command again makes what is missing",
            *(rank, ranks, missing),
        )
        return
    synthetic.save(folder / "manifest.json")

    shown = load_cases(synthetic, synthetic.cases[:16], card.preprocessing, cache)
    rows = []
    for i, case in enumerate(shown):
        m = i % len(card.modalities)
        rows.append((f"pair {i}, {card.modalities[m]}", case.image[m], np.array(case.label)))
    title = f"{options.experiment}: synthetic pairs" + (" (phantoms, not patients)" if card.phantom else "")
    sheet = contact_sheet(rows, title, card.schema.foreground, window=(-1.0, 1.0))
    save_figure(sheet, folder / "contact_sheet.png")
    made = provenance.read_all(folder).values()
    said = pairs_digest(Manifest.load(folder / "manifest.json"), [record for record in made if record["index"] < num])
    finish(folder, {"pairs": len(synthetic.cases), "checkpoint": digest, "digest": said})
    log.info("%d pairs are in %s", len(synthetic.cases), folder)


if __name__ == "__main__":
    launch("generate", main)
